//! How each engine says no: before the stream, and inside it.

use super::{Api, Dialect, Piece};

/// The body of an error answer and its content type.
pub fn error_body(dialect: Dialect, status: u16) -> (&'static str, String) {
    let (kind, message) = match status {
        400 => ("BadRequestError", "This model's maximum context length is 4096 tokens."),
        401 => ("Unauthorized", "Unauthorized"),
        404 => ("NotFoundError", "The model `x` does not exist."),
        429 => ("overloaded", "Model is overloaded"),
        503 => ("Service Unavailable", "The request queue is full."),
        _ => ("InternalServerError", "EngineCore encountered an issue."),
    };
    let body = match dialect {
        Dialect::Vllm if status == 401 => r#"{"error":"Unauthorized"}"#.to_string(),
        Dialect::Vllm => format!(
            r#"{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":{status}}}}}"#
        ),
        // Flat: there is no "error" object around it.
        Dialect::Sglang => format!(
            r#"{{"object":"error","message":"{message}","type":"{kind}","param":null,"code":{status}}}"#
        ),
        Dialect::Tgi => format!(r#"{{"error":"{message}","error_type":"overloaded"}}"#),
        Dialect::Llamacpp => format!(
            r#"{{"error":{{"code":{status},"message":"{message}","type":"unavailable_error"}}}}"#
        ),
        Dialect::Ollama => format!(
            r#"{{"error":{{"message":"{message}","type":"api_error","param":null,"code":null}}}}"#
        ),
    };
    ("application/json", body)
}

/// What a server of FastAPI says to a request with a member that it does not know, before (422) and
/// after (400) vLLM and its like put it into an object of their own.
pub fn refused_options(status: u16) -> String {
    if status == 422 {
        return r#"{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs are not permitted","input":{"include_usage":true}}]}"#.to_string();
    }
    format!(
        r#"{{"object":"error","message":"[{{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), 'msg': 'Extra inputs are not permitted'}}]","type":"BadRequestError","param":null,"code":{status}}}"#
    )
}

/// The pieces that a failing generation sends inside a 200 stream, after `step`. None at all: the
/// body is cut.
pub fn in_stream(dialect: Dialect, api: Api, step: u32) -> Vec<Piece> {
    let (event, done) = match (dialect, api) {
        // Wrapping the error can itself fail there: nothing comes, and the body is cut.
        (_, Api::Responses) => return Vec::new(),
        (_, Api::Messages) => (
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"internal_error\",\"message\":\"EngineCore encountered an issue.\"}}",
            false,
        ),
        // Python's json.dumps puts spaces here, though other chunks are compact.
        (Dialect::Vllm, _) => (
            r#"data: {"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}}"#,
            true,
        ),
        (Dialect::Sglang, _) => (
            r#"data: {"error": {"object": "error", "message": "The request queue is full.", "type": "SERVICE_UNAVAILABLE", "param": null, "code": 503}}"#,
            true,
        ),
        (Dialect::Tgi, Api::Generate) => {
            (r#"data: {"error":"Model is overloaded","error_type":"overloaded"}"#, false)
        }
        // 422 whatever the cause.
        (Dialect::Tgi, _) => {
            (r#"data: {"error":{"message":"Model is overloaded","http_status_code":422}}"#, true)
        }
        (Dialect::Llamacpp, _) => (
            r#"data: {"error":{"code":500,"message":"decode failed","type":"server_error"}}"#,
            false,
        ),
        (Dialect::Ollama, Api::OllamaChat | Api::OllamaGenerate) => {
            (r#"{"error":"an error was encountered while running the model"}"#, false)
        }
        // Its /v1 routes read the error line as an empty chat chunk: no finish, no [DONE].
        (Dialect::Ollama, _) => (
            r#"data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"","system_fingerprint":"fp_ollama","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            false,
        ),
    };
    let end = if event.starts_with('{') { "\n" } else { "\n\n" };
    let mut pieces = vec![Piece { step, events: 1, bytes: format!("{event}{end}").into_bytes() }];
    if done {
        pieces.push(Piece { step, events: 1, bytes: b"data: [DONE]\n\n".to_vec() });
    }
    pieces
}
