//! Errors in the form that OpenAI clients read. The shape is a superset of what the engines send
//! (vLLM nests the same object), so one client code path handles theirs and ours.

use crate::base::refusal::Refusal;
use serde::Serialize;

#[derive(Serialize)]
struct Body<'a> {
    error: Error<'a>,
}

/// The field order of OpenAI's own answers.
#[derive(Serialize)]
struct Error<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

/// Appends the JSON body that answers a refused request.
pub fn write_body(refusal: &Refusal, out: &mut Vec<u8>) {
    let error = Error {
        message: &refusal.message,
        r#type: refusal.kind(),
        code: refusal.code,
        param: None,
    };
    // Writing strings into a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, &Body { error });
}

/// Appends the last event of a stream that broke after its head was sent. It must follow an event
/// boundary, and no `[DONE]` may follow it: clients read that as success.
pub fn write_event(fault: &Refusal, out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    write_body(fault, out);
    out.extend_from_slice(b"\n\n");
}
