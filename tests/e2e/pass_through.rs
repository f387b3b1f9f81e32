//! Answers reach the client as the engine sent them: status, fields, every byte of the body.

use crate::harness::client::Response;
use crate::harness::message::Ended;
use crate::harness::{Backend, Config, Engine, Proxy};

/// Fields that belong to one connection (RFC 9110 section 7.6.1), the framing, which is ours to
/// choose, and the id that the proxy adds.
const NOT_COMPARED: [&str; 5] =
    ["connection", "keep-alive", "transfer-encoding", "content-length", "x-request-id"];

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;
const CHAT_STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Count."}]}"#;
const CHAT_USAGE: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Count."}]}"#;
const PROMPT: &str = r#"{"model":"m","prompt":"Count.","max_tokens":5}"#;
const PROMPT_STREAM: &str = r#"{"model":"m","prompt":"Count.","stream":true}"#;
const EMBED: &str = r#"{"model":"m","input":"Count."}"#;
const INPUTS: &str = r#"{"inputs":"Count.","parameters":{"details":true}}"#;
const TEXT_STREAM: &str = r#"{"text":"Count.","stream":true}"#;

/// What is asked of every dialect.
const OPENAI: [(&str, &str); 6] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT_STREAM),
    ("/v1/chat/completions", CHAT_USAGE),
    ("/v1/completions", PROMPT),
    ("/v1/completions", PROMPT_STREAM),
    ("/v1/embeddings", EMBED),
];

/// Ways to ask for the same answer that cut its bytes, or its outcome, in another way.
const KNOBS: [&str; 9] = [
    "",
    "x-mock-text: tricky\r\n",
    "x-mock-split: byte\r\nx-mock-tokens: 3\r\n",
    "x-mock-split: merged\r\nx-mock-tokens: 200\r\n",
    "x-mock-split: 3\r\n",
    "x-mock-close: header\r\n",
    "x-mock-status: 429\r\nx-mock-retry-after: 7\r\n",
    "x-mock-status: 500\r\n",
    "x-mock-answer-bytes: 100000\r\nx-mock-event-bytes: 5000\r\n",
];

/// Catches: any byte or field of vLLM's answers that changes on the way.
#[test]
fn vllm_answers_pass_unchanged() {
    compare("vllm", &[]);
}

/// Catches: the same for SGLang, with its native endpoint and its Ollama emulation.
#[test]
fn sglang_answers_pass_unchanged() {
    compare("sglang", &[("/generate", TEXT_STREAM), ("/api/chat", CHAT)]);
}

/// Catches: the same for TGI (chunk sizes in capitals), with its native endpoints.
#[test]
fn tgi_answers_pass_unchanged() {
    compare("tgi", &[("/generate", INPUTS), ("/generate_stream", INPUTS)]);
}

/// Catches: the same for llama.cpp (last chunk in two writes), with its native endpoint.
#[test]
fn llamacpp_answers_pass_unchanged() {
    compare("llamacpp", &[("/completion", PROMPT), ("/completion", PROMPT_STREAM)]);
}

/// Catches: the same for Ollama (NDJSON), with its native endpoints.
#[test]
fn ollama_answers_pass_unchanged() {
    compare("ollama", &[("/api/chat", CHAT), ("/api/generate", PROMPT)]);
}

/// Asks the engine directly and through the proxy, and compares.
fn compare(dialect: &str, native: &[(&str, &str)]) {
    let engine = Engine::start(&["--dialect", dialect, "--models", "m,n"]);
    let proxy = Config::backend_at(engine.url()).start();
    let mut checked = 0;
    for (path, body) in OPENAI.iter().chain(native) {
        for knobs in KNOBS {
            let direct = engine.connect().post(path, knobs, body);
            let through = proxy.connect().post(path, knobs, body);
            assert_same(&format!("{dialect} {path} {body} {knobs:?}"), &direct, &through);
            checked += 1;
        }
    }
    assert_eq!(checked, (OPENAI.len() + native.len()) * KNOBS.len());
    for path in ["/v1/models", "/v1/models/nothing-here"] {
        let (direct, through) = (engine.connect().get(path), proxy.get(path));
        assert_same(&format!("{dialect} GET {path}"), &direct, &through);
    }
}

fn assert_same(what: &str, direct: &Response, through: &Response) {
    assert_eq!(through.head.first_line, direct.head.first_line, "{what}");
    assert_eq!(compared(through), compared(direct), "{what}");
    let length = |response: &Response| response.head.get("content-length").map(str::to_owned);
    assert_eq!(length(through), length(direct), "{what}");
    assert!(through.body == direct.body, "{what}: {} != {}", through.text(), direct.text());
    assert_eq!(through.ended, direct.ended, "{what}");
}

fn compared(response: &Response) -> Vec<(String, String)> {
    let theirs = |(name, _): &&(String, String)| {
        !NOT_COMPARED.iter().any(|hop| name.eq_ignore_ascii_case(hop))
    };
    response.head.fields.iter().filter(theirs).cloned().collect()
}

/// One answer from a scripted backend through a proxy.
fn relay(answer: &[u8]) -> (Response, Proxy, Backend) {
    let backend = Backend::answering(answer);
    let proxy = Config::backend_at(backend.url()).start();
    let response = proxy.get("/v1/models");
    (response, proxy, backend)
}

/// Catches: fields that lose their case, their order, their doubles or their odd but valid bytes;
/// a status or reason that is replaced by a tidier one.
#[test]
fn odd_but_valid_answers_keep_their_shape() {
    let (response, _proxy, _backend) = relay(
        b"HTTP/1.1 299 Fine  Indeed\r\nSet-Cookie: a=1\r\nX-Weird_Name!: \"x\"\r\nset-cookie: b=2\r\n\
          X-Empty:\r\nx-tab: a\tb\r\nServer: uvicorn\r\nContent-Encoding: gzip\r\n\
          Content-Length: 4\r\n\r\n\x1f\x8b\x00\xff",
    );
    assert_eq!(response.head.first_line, "HTTP/1.1 299 Fine  Indeed");
    let fields = compared(&response);
    let fields: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let expected = [
        ("Set-Cookie", "a=1"),
        ("X-Weird_Name!", "\"x\""),
        ("set-cookie", "b=2"),
        ("X-Empty", ""),
        ("x-tab", "a\tb"),
        ("Server", "uvicorn"),
        ("Content-Encoding", "gzip"),
    ];
    assert_eq!(fields, expected);
    assert_eq!(response.body, b"\x1f\x8b\x00\xff");
}

/// Catches: a long but lawful head of an answer that is cut at a buffer's size.
#[test]
fn a_long_head_of_an_answer_passes() {
    let fields: String = (0..90).map(|i| format!("X-{i}: {}\r\n", "y".repeat(600 + i))).collect();
    let (response, _proxy, _backend) =
        relay(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok").as_bytes());
    assert_eq!((response.status(), response.text().as_str()), (200, "ok"));
    let sent: String = compared(&response).iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    assert_eq!(sent, fields);
}

/// Catches: a field of the engine's connection, or one that its Connection field names, that
/// reaches the client (RFC 9110 section 7.6.1).
#[test]
fn hop_by_hop_fields_of_an_answer_stay_behind() {
    let (response, _proxy, _backend) = relay(
        b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nConnection: x-other\r\nX-Hop: 1\r\n\
          X-Other: 2\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nTrailer: X-T\r\n\
          Upgrade: h2c\r\nProxy-Authenticate: Basic\r\nX-Stays: 3\r\nContent-Length: 2\r\n\r\nok",
    );
    assert_eq!(compared(&response), [("X-Stays".to_owned(), "3".to_owned())]);
    assert!(response.head.get("connection").is_none(), "the client's connection lives on");
}

/// Catches: a 100 or 103 of the engine that is taken for the answer, or that keeps the connection
/// from being used again.
#[test]
fn interim_answers_are_passed_over() {
    let (response, proxy, backend) = relay(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
          HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    assert_eq!((response.status(), response.text().as_str()), (200, "ok"));
    assert_eq!(proxy.get("/v1/models").text(), "ok");
    assert_eq!(backend.connections(), 1);
}

/// Catches: a body on an answer that has none by its status, or one of these that hangs because a
/// body is waited for (RFC 9112 section 6.3).
#[test]
fn answers_without_a_body_end_with_their_head() {
    for status in ["204 No Content", "304 Not Modified"] {
        let backend = Backend::answering(format!("HTTP/1.1 {status}\r\nX-A: 1\r\n\r\n"));
        let proxy = Config::backend_at(backend.url()).start();
        let mut conn = proxy.connect();
        for _ in 0..3 {
            let response = conn.get("/v1/models");
            assert_eq!(response.head.first_line, format!("HTTP/1.1 {status}"));
            assert!(response.head.get("transfer-encoding").is_none());
            assert_eq!(response.body, b"");
        }
        assert_eq!(backend.connections(), 1, "{status}");
    }
}

/// Catches: a body that the engine ends by closing that loses its end, or that is not marked as
/// whole for an HTTP/1.1 client (whose connection then lives on).
#[test]
fn an_answer_that_ends_with_the_close_becomes_chunks() {
    let backend = Backend::start(|served| {
        served.request();
        served.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nfirst ");
        served.send("second ".repeat(10_000));
    });
    let proxy = Config::backend_at(backend.url()).start();
    let mut conn = proxy.connect();
    for _ in 0..2 {
        let response = conn.get("/v1/models");
        assert_eq!(response.head.get("transfer-encoding"), Some("chunked"));
        assert_eq!(response.text(), format!("first {}", "second ".repeat(10_000)));
        assert_eq!(response.ended, Ended::Whole);
    }
    assert_eq!(backend.connections(), 2);
}

/// Catches: chunk extensions or trailers of an engine that reach the client (the raw reader
/// refuses both), or that break the body.
#[test]
fn chunk_extensions_and_trailers_stay_behind() {
    let (response, _proxy, backend) = relay(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
          5;a=\"b\"\r\nhello\r\n0003\r\n, w\r\n00;x\r\nX-Trailer: 1\r\n\r\n",
    );
    assert_eq!(response.text(), "hello, w");
    assert_eq!(response.ended, Ended::Whole);
    assert!(response.head.get("x-trailer").is_none());
    assert_eq!(backend.connections(), 1);
}

/// Catches: a large answer that arrives damaged, in either framing.
#[test]
fn large_answers_are_whole() {
    let body: Vec<u8> =
        (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut counted =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    counted.extend_from_slice(&body);
    let mut chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunked.extend(crate::harness::client::in_chunks(&body, &[1, 70_000, 16_384, 3, 200_000]));
    for answer in [counted, chunked] {
        let (response, _proxy, _backend) = relay(&answer);
        assert_eq!(response.ended, Ended::Whole);
        assert!(response.body == body, "{} bytes", response.body.len());
    }
}
