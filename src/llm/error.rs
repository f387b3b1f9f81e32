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

#[derive(Serialize)]
struct Line<'a> {
    error: &'a str,
}

/// Appends the last line of a stream of JSON lines that broke after its head was sent, in the form
/// of Ollama, whose clients these are. It must follow the end of a line.
pub fn write_line(fault: &Refusal, out: &mut Vec<u8>) {
    let _ = serde_json::to_writer(&mut *out, &Line { error: &fault.message });
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_shape_that_openai_clients_read() {
        let refusal = Refusal::new(404, "model_not_found", "no \"x\"\n here");
        let mut out = b"kept".to_vec();
        write_body(&refusal, &mut out);
        let expected = concat!(
            r#"kept{"error":{"message":"no \"x\"\n here","#,
            r#""type":"not_found_error","code":"model_not_found","param":null}}"#
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn an_error_event_is_one_event_whatever_the_message_holds() {
        let fault = Refusal::new(502, "backend_error", "line\n\ndata: [DONE]\r\n");
        let mut out = Vec::new();
        write_event(&fault, &mut out);
        let mut scan = crate::llm::sse::SseScan::default();
        scan.feed(&out);
        assert_eq!((scan.events(), scan.at_boundary(), scan.done()), (1, true, false));
        let json = out.strip_prefix(b"data: ").unwrap();
        let tree: serde_json::Value = serde_json::from_slice(json).unwrap();
        assert_eq!(tree["error"]["code"], "backend_error");
        assert_eq!(tree["error"]["type"], "api_error");
    }
    /// Catches: a message that breaks its line, or another shape than Ollama's clients read.
    #[test]
    fn an_error_line_is_one_line_whatever_the_message_holds() {
        let fault = Refusal::new(502, "backend_error", "line\n\"two\"");
        let mut out = b"{}\n".to_vec();
        write_line(&fault, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "{}\n{\"error\":\"line\\n\\\"two\\\"\"}\n");
    }
}
