//! Nanoseconds per call of what `http` does once per message or once per chunk:
//! `cargo bench -p bench --bench http`.

use bench::{measure, EVENT};
use llmproxy::http::chunked::{ChunkDecoder, Piece};
use llmproxy::http::field::Known;
use llmproxy::http::request::{Method, RequestHead};
use llmproxy::http::response::ResponseHead;
use llmproxy::http::write::{self, ForwardRequest, ForwardResponse, OutFraming};
use std::hint::black_box;

/// As the openai package of Python sends it.
const REQUEST: &[u8] = b"POST /v1/chat/completions HTTP/1.1\r\n\
    Host: gateway.example:8000\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Connection: keep-alive\r\n\
    Accept: application/json\r\n\
    Content-Type: application/json\r\n\
    User-Agent: OpenAI/Python 1.99.0\r\n\
    X-Stainless-Lang: python\r\n\
    X-Stainless-Package-Version: 1.99.0\r\n\
    X-Stainless-OS: Linux\r\n\
    X-Stainless-Arch: x64\r\n\
    X-Stainless-Runtime: CPython\r\n\
    X-Stainless-Runtime-Version: 3.12.3\r\n\
    Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\n\
    X-Stainless-Async: false\r\n\
    x-stainless-retry-count: 0\r\n\
    x-stainless-read-timeout: 600\r\n\
    Content-Length: 1024\r\n\r\n";
/// As uvicorn begins a stream.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    date: Tue, 14 Nov 2023 22:13:20 GMT\r\n\
    server: uvicorn\r\n\
    content-type: text/event-stream; charset=utf-8\r\n\
    x-request-id: 0123456789abcdef0123456789abcdef\r\n\
    Transfer-Encoding: chunked\r\n\r\n";
const HEAD_BYTES_MAX: usize = 64 * 1024;
const ID: &str = "0123456789abcdef0123456789abcdef";

fn main() {
    let mut request = RequestHead::default();
    measure("request head, parse", REQUEST.len(), || {
        request.reset();
        assert!(request.parse(black_box(REQUEST), HEAD_BYTES_MAX).is_ok());
    });
    measure("request head, find a field", 0, || {
        assert!(black_box(request.first(black_box(REQUEST), Known::Authorization)).is_some());
    });
    let mut out = Vec::with_capacity(4096);
    let how = ForwardRequest {
        base_path: "",
        host: "10.0.0.1:8000",
        body_len: Some(1024),
        request_id: ID,
        drop: &["authorization".to_owned(), "x-api-key".to_owned()],
        set: &[],
        identity: &[],
        client_ip: "192.0.2.1",
        via: "hop",
        client_scheme: "http",
        plain_answer: false,
        trust_forwarded: false,
        trace: None,
    };
    measure("request head, write", REQUEST.len(), || {
        out.clear();
        write::request(&mut out, &request, black_box(REQUEST), &how);
    });

    let mut response = ResponseHead::default();
    measure("response head, parse", RESPONSE.len(), || {
        response.reset();
        assert!(response.parse(black_box(RESPONSE), Method::Post, HEAD_BYTES_MAX).is_ok());
    });
    let version = request.version;
    let framing = OutFraming::Chunked;
    let how = ForwardResponse {
        client: version,
        framing,
        close: false,
        request_id: ID,
        fields: &[],
        at_ours: &|_| None,
    };
    measure("response head, write", RESPONSE.len(), || {
        out.clear();
        write::response(&mut out, &response, black_box(RESPONSE), &how);
    });

    let chunk = [format!("{:x}\r\n", EVENT.len()).as_bytes(), EVENT, b"\r\n"].concat();
    let mut decoder = ChunkDecoder::new(HEAD_BYTES_MAX);
    measure("chunk of one event, decode", chunk.len(), || decode(&mut decoder, black_box(&chunk)));
    let chunks = chunk.repeat(64);
    measure("64 chunks, decode", chunks.len(), || decode(&mut decoder, black_box(&chunks)));
}

/// Takes in chunks, and forgets where their data lies.
fn decode(decoder: &mut ChunkDecoder, mut input: &[u8]) {
    while let Ok(Piece::Data { end, .. }) = black_box(decoder.decode(input)) {
        input = &input[end..];
    }
}
