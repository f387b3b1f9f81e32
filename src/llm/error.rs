//! Errors of our own in the form that the clients of a path read: before an answer as OpenAI does
//! (the shape is a superset of what the engines send, so one client code path handles theirs and
//! ours), inside a stream as its dialect does.

use super::dialect::Dialect;
use crate::base::refusal::Refusal;
use memchr::memmem;
use serde::Serialize;
use serde_json::Value;
use std::borrow::Cow;

/// How engines say that they are full, whatever status stands beside it: TGI, TEI and Infinity;
/// SGLang; Ollama; vLLM.
const FULL: [&[u8]; 5] = [
    b"overloaded",
    b"queue is full",
    b"maximum pending requests exceeded",
    b"\"type\":\"Service Unavailable\"",
    b"\"type\": \"Service Unavailable\"",
];

/// Characters of an engine's own words that go into an event of ours. Beyond: cut.
const MESSAGE_CHARS_MAX: usize = 1000;

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

/// Whether an error, or an answer that is one, says that its engine has as much to do as it takes.
pub fn says_full(body: &[u8]) -> bool {
    FULL.into_iter().any(|words| memmem::find(body, words).is_some())
}

/// Appends the JSON body that answers a refused request.
pub fn write_body(refusal: &Refusal, out: &mut Vec<u8>) {
    let error = Error {
        message: &refusal.message,
        r#type: refusal.kind(),
        code: refusal.code,
        param: refusal.param(),
    };
    // Writing strings into a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, &Body { error });
}

/// Appends the last event of a stream that broke after its head was sent and after so many events,
/// in the form that raises an error in the clients of its path. It must follow the end of an event,
/// and no end mark may follow it: clients read that as success.
pub fn write_last_event(dialect: Dialect, fault: &Refusal, events: u64, out: &mut Vec<u8>) {
    let message = told_after(fault, events);
    let error = Error { message: &message, r#type: fault.kind(), code: fault.code, param: None };
    match dialect {
        // anthropic's packages raise on the event's name, and tell what kind it is by the `type`
        // inside.
        Dialect::Messages => {
            out.extend_from_slice(b"event: error\ndata: ");
            let error = Error { r#type: anthropic_kind(fault), ..error };
            let _ = serde_json::to_writer(&mut *out, &Typed { r#type: "error", error });
        }
        // OpenAI documents this event as flat; its packages give it to their caller as one event
        // among others, as they do `response.failed`, and raise on a top-level `error` alone. So it
        // has both.
        Dialect::Responses => {
            out.extend_from_slice(b"event: error\ndata: ");
            let (code, message, param) = (error.code, &*message, error.param);
            let sequence_number = events;
            let event =
                ResponseError { r#type: "error", code, message, param, sequence_number, error };
            let _ = serde_json::to_writer(&mut *out, &event);
        }
        _ => {
            out.extend_from_slice(b"data: ");
            let _ = serde_json::to_writer(&mut *out, &Body { error });
        }
    }
    out.extend_from_slice(b"\n\n");
}

/// An error of `/v1/messages`.
#[derive(Serialize)]
struct Typed<'a> {
    r#type: &'a str,
    error: Error<'a>,
}

/// An error of `/v1/responses`.
#[derive(Serialize)]
struct ResponseError<'a> {
    r#type: &'a str,
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
    /// The events of such a stream are numbered from 0.
    sequence_number: u64,
    error: Error<'a>,
}

/// The kind that Anthropic's own interface has for the status.
fn anthropic_kind(fault: &Refusal) -> &'static str {
    match fault.status {
        503 => "overloaded_error",
        504 => "timeout_error",
        _ => fault.kind(),
    }
}

/// What went wrong, and how far the stream had come; a client that got nothing needs no count.
fn told_after(fault: &Refusal, events: u64) -> Cow<'_, str> {
    let what = fault.message.trim_end_matches('.');
    match events {
        0 => Cow::Borrowed(&fault.message),
        1 => format!("{what}, after 1 event.").into(),
        _ => format!("{what}, after {events} events.").into(),
    }
}

/// What an engine says in the body of an error, in whatever form engines have for that; `None`: it
/// has none of them.
pub fn message_in(body: &[u8]) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let said: Value = serde_json::from_slice(body).ok()?;
    let error = said.get("error");
    let nested = error.and_then(|error| error.get("message"));
    let places = [nested, error, said.get("message"), said.get("detail")];
    let message = places.into_iter().flatten().find_map(text)?;
    Some(message.chars().take(MESSAGE_CHARS_MAX).collect())
}

/// The status for which an error stands that an engine told inside a stream, by its code; 500: it
/// has none, or one that nobody knows.
pub fn status_inside(code: Option<&str>) -> u16 {
    let code = code.unwrap_or_default();
    let told = code.parse().ok().filter(|status| (400..600).contains(status));
    told.unwrap_or(match code {
        // Names that TGI, OpenAI, vLLM and Anthropic have for what others number.
        "validation" | "template_error" | "missing_template_vars" | "tool_error" => 422,
        "invalid_request_error" | "BadRequestError" | "context_length_exceeded" => 400,
        "not_found_error" | "NotFoundError" | "model_not_found" => 404,
        "rate_limit_error" | "rate_limit_exceeded" => 429,
        "overloaded" | "overloaded_error" => 503,
        _ => 500,
    })
}

#[derive(Serialize)]
struct Line<'a> {
    error: &'a str,
}

/// Appends the last line of a stream of JSON lines that broke after its head was sent and after so
/// many lines, in the form of Ollama, whose clients these are. It must follow the end of a line.
pub fn write_last_line(fault: &Refusal, lines: u64, out: &mut Vec<u8>) {
    let _ = serde_json::to_writer(&mut *out, &Line { error: &told_after(fault, lines) });
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_has_the_shape_that_openai_clients_read() {
        let refusal = Refusal::new(404, "model_not_found", "no \"x\"\n here");
        let mut out = b"kept".to_vec();
        write_body(&refusal, &mut out);
        let expected = concat!(
            r#"kept{"error":{"message":"no \"x\"\n here","#,
            r#""type":"invalid_request_error","code":"model_not_found","param":"model"}}"#
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    const ODD: &str = "line\n\ndata: [DONE]\r\n\"two\".";

    /// What a client parses of the last event.
    fn last_event(dialect: Dialect, status: u16, events: u64) -> (String, serde_json::Value) {
        let fault = Refusal::new(status, "backend_broke", ODD);
        let mut out = Vec::new();
        write_last_event(dialect, &fault, events, &mut out);
        let mut scan = crate::llm::sse::SseScan::default();
        scan.feed(&out);
        assert_eq!((scan.events(), scan.at_boundary()), (1, true));
        let mut said = crate::llm::usage::UsageScan::default();
        said.expect(dialect, Some(crate::llm::sse::EventFraming::Events));
        said.feed(&out);
        assert!(said.facts().error() && !said.done());
        let text = String::from_utf8(out).unwrap();
        let (before, json) = text.split_once("data: ").unwrap();
        (before.to_owned(), serde_json::from_str(json).unwrap())
    }

    /// Catches: an error that the clients of a path take for one more event, or cannot parse.
    #[test]
    fn an_error_event_has_the_form_of_its_dialect_whatever_the_message_holds() {
        let after = "line\n\ndata: [DONE]\r\n\"two\", after 3 events.";
        for dialect in [Dialect::OpenAi, Dialect::Generate, Dialect::Completions, Dialect::Other] {
            let error = json!({
                "message": after, "type": "api_error", "code": "backend_broke", "param": null,
            });
            let wanted = (String::new(), json!({ "error": error }));
            assert_eq!(last_event(dialect, 502, 3), wanted, "{dialect:?}");
        }
        for (status, kind) in
            [(502, "api_error"), (503, "overloaded_error"), (504, "timeout_error")]
        {
            let (before, event) = last_event(Dialect::Messages, status, 3);
            assert_eq!((before.as_str(), &event["type"]), ("event: error\n", &json!("error")));
            assert_eq!(event["error"]["type"], kind);
            assert_eq!(event["error"]["message"], after);
        }
        let (before, event) = last_event(Dialect::Responses, 502, 3);
        assert_eq!((before.as_str(), &event["type"]), ("event: error\n", &json!("error")));
        assert_eq!((&event["code"], &event["message"]), (&json!("backend_broke"), &json!(after)));
        assert_eq!((&event["param"], &event["sequence_number"]), (&json!(null), &json!(3)));
        assert_eq!(event["error"]["message"], after);
    }

    #[test]
    fn the_message_counts_what_went_before_it() {
        for (events, wanted) in
            [(0, "Gone."), (1, "Gone, after 1 event."), (2, "Gone, after 2 events.")]
        {
            let fault = Refusal::new(502, "backend_broke", "Gone.");
            assert_eq!(told_after(&fault, events), wanted);
        }
    }

    /// Catches: an engine whose words are lost because it has another form for errors.
    #[test]
    fn the_words_of_an_engine_are_found_in_each_form() {
        for body in [
            r#"{"error":{"message":"no \"x\"","type":"t","code":404}}"#,
            r#"{"object":"error","message":"no \"x\"","code":400}"#,
            r#"{"error":"no \"x\"","error_type":"overloaded"}"#,
            r#"{"detail":"no \"x\""}"#,
        ] {
            assert_eq!(message_in(body.as_bytes()).as_deref(), Some("no \"x\""), "{body}");
        }
        for body in ["", "<html>", "\"x\"", r#"{"error":{"code":7}}"#, r#"{"detail":[]}"#] {
            assert_eq!(message_in(body.as_bytes()), None, "{body}");
        }
        let long = format!(r#"{{"detail":"{}"}}"#, "ä".repeat(5000));
        assert_eq!(message_in(long.as_bytes()).unwrap().chars().count(), MESSAGE_CHARS_MAX);
    }

    /// Catches: a client's mistake that is taken for an illness of its engine.
    #[test]
    fn a_code_inside_a_stream_stands_for_a_status() {
        for (code, status) in [
            (Some("503"), 503),
            (Some("400"), 400),
            (Some("200"), 500),
            (Some("x"), 500),
            (None, 500),
            (Some("validation"), 422),
            (Some("overloaded_error"), 503),
            (Some("invalid_request_error"), 400),
        ] {
            assert_eq!(status_inside(code), status, "{code:?}");
        }
    }

    /// Catches: a message that breaks its line, or another shape than Ollama's clients read.
    #[test]
    fn an_error_line_is_one_line_whatever_the_message_holds() {
        let fault = Refusal::new(502, "backend_error", "line\n\"two\"");
        let mut out = b"{}\n".to_vec();
        write_last_line(&fault, 1, &mut out);
        let wanted = "{}\n{\"error\":\"line\\n\\\"two\\\", after 1 event.\"}\n";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }
}
