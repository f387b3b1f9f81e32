//! What is classified is what the engine sees: paths in every spelling, methods, bodies without
//! meaning, bodies that come packed, and the engines' own management.

use crate::harness::backend::Served;
use crate::harness::client::in_chunks;
use crate::harness::message::find;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{Backend, Config, Webhook, SOON};
use crate::rig::{before, pair, rejected, CHAT, OK, STREAM};
use std::io::Write;

/// An engine that tells usage of a stream when it is asked, and only then.
fn engine() -> Backend {
    Backend::start(|served: &mut Served| {
        while let Some(request) = served.request() {
            let asked = find(&request.body, br#""include_usage":true"#).is_some();
            served.begin_events();
            served.chunk("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n");
            if asked {
                served.chunk(
                    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\
                     \"total_tokens\":5}}\n\n",
                );
            }
            served.chunk("data: [DONE]\n\n");
            served.send("0\r\n\r\n");
        }
    })
}

/// Catches: a chat in another spelling that an engine serves, and that is neither asked for usage
/// nor recorded as what it is; a spelling that goes to the engine as the client wrote it.
#[test]
fn a_chat_is_metered_in_every_spelling() {
    let backend = engine();
    let (proxy, hook) = before(&backend, "");
    let spellings = [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/%63hat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/%76%31/chat/completion%73/?a=%2f", "/v1/chat/completions"),
        ("/chat/completions", "/chat/completions"),
    ];
    for (sent, (spelling, path)) in spellings.into_iter().enumerate() {
        let answer = proxy.post(spelling, STREAM);
        assert_eq!(answer.status(), 200, "{spelling}: {}", answer.text());
        assert!(!answer.text().contains("usage"), "{spelling}: {}", answer.text());
        let record = hook.await_records(sent + 1, SOON).pop().unwrap();
        assert_eq!(record["prompt_tokens"], 3, "{spelling}: {record}");
        assert_eq!(record["path"], path, "{record}");
        let target = backend.requests().last().unwrap().head.target().to_owned();
        assert_eq!(target.split('?').next(), Some(path), "{spelling}");
    }
    assert!(backend.requests()[3].head.target().ends_with("?a=%2f"), "the query is kept");
    let chats = [("path", "/v1/chat/completions"), ("status", "200")];
    assert_eq!(proxy.metric("llmproxy_requests_total", &chats), 4.0);
}

/// Catches: a stream that an engine takes for one and that is not asked for its usage.
#[test]
fn a_stream_is_metered_however_it_is_asked_for() {
    let backend = engine();
    let (proxy, hook) = before(&backend, "");
    let cases = [
        ("/v1/chat/completions", r#"{"model":"m","stream":"true","messages":[]}"#),
        ("/v1/chat/completions", r#"{"model":"m","stream":1,"messages":[]}"#),
        ("/v1/chat/completions", "\u{feff}{\"model\":\"m\",\"stream\":true}"),
        ("/v1/chat/completions", r#"{"model":"m","stream":true,"temperature":NaN}"#),
        ("/v1/chat/completions", r#"{"model":"m","stream":true,"max_tokens":"3"}"#),
        ("/invocations", r#"{"model":"m","stream":true,"messages":[]}"#),
        ("/invocations", r#"{"model":"m","stream":true,"prompt":"x"}"#),
    ];
    for (sent, (path, body)) in cases.into_iter().enumerate() {
        let answer = proxy.post(path, body);
        assert_eq!(answer.status(), 200, "{path} {body}: {}", answer.text());
        assert!(!answer.text().contains("usage"), "{body}: {}", answer.text());
        let record = hook.await_records(sent + 1, SOON).pop().unwrap();
        let told = [&record["prompt_tokens"], &record["completion_tokens"]];
        assert_eq!(told, [3, 2], "{path} {body}: {record}");
        assert_eq!(record["model"], "m", "{body}: {record}");
    }
    // What a form says of itself changes nothing, and what is none asks for nothing.
    let form = "Content-Type: multipart/form-data; boundary=x\r\n";
    let head = format!("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{form}");
    let bytes = format!("{head}Content-Length: {}\r\n\r\n{STREAM}", STREAM.len());
    assert_eq!(proxy.connect().send(bytes).response().status(), 200);
    let record = hook.await_records(cases.len() + 1, SOON).pop().unwrap();
    assert_eq!(record["prompt_tokens"], 3, "{record}");
    assert_eq!(proxy.post("/invocations", r#"{"stream":true,"input":"x"}"#).status(), 200);
    assert!(find(&backend.requests().last().unwrap().body, b"include_usage").is_none());
}

/// The bytes, packed.
pub fn packed(coding: &str, bytes: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::default();
    match coding {
        "gzip" | "x-gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            ruzstd::encoding::compress_to_vec(bytes, level)
        }
        // Brotli's uncompressed form: a window of 16 bits, one stored part, an empty last one.
        "br" => {
            let length = u32::try_from(bytes.len() - 1).unwrap();
            let head = (1 << 20) | (length << 4);
            [&head.to_le_bytes()[..3], bytes, &[3]].concat()
        }
        _ => bytes.to_vec(),
    }
}

/// Catches: a packed body that is not read, or goes to the engine as something else than was read.
#[test]
fn a_packed_body_is_read_and_goes_on_unpacked() {
    let backend = engine();
    let (proxy, hook) = before(&backend, "");
    let mut conn = proxy.connect();
    let long = format!("{{\"model\":\"m\",\"x\":\"{}\",\"stream\":true}}", "word ".repeat(200_000));
    let mut sent = 0;
    for (field, coding) in [
        ("Content-Encoding: gzip", "gzip"),
        ("content-encoding: X-GZip", "x-gzip"),
        ("Content-Encoding: deflate", "deflate"),
        ("Content-Encoding: zstd", "zstd"),
        ("X-Body-Compressed: zstd", "zstd"),
        ("Content-Encoding: br", "br"),
        ("Content-Encoding: identity", ""),
        ("Content-Encoding:", ""),
    ] {
        for body in [STREAM, &long] {
            if coding == "br" && body.len() > 60_000 {
                continue;
            }
            let bytes = packed(coding, body.as_bytes());
            for chunked in [false, true] {
                if chunked {
                    let head = format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{field}\r\n\
                         Transfer-Encoding: chunked\r\n\r\n"
                    );
                    conn.send(head).send(in_chunks(&bytes, &[7, 4096]));
                } else {
                    conn.start_post("/v1/chat/completions", &format!("{field}\r\n"), &bytes);
                }
                let answer = conn.response();
                assert_eq!(answer.status(), 200, "{field}: {}", answer.text());
                sent += 1;
                let record = hook.await_records(sent, SOON).pop().unwrap();
                assert_eq!(record["prompt_tokens"], 3, "{field}: {record}");
                assert_eq!(record["model"], "m", "{field}: {record}");
                assert_eq!(record["request_bytes"], body.len(), "{field}");
                let got = backend.requests().pop().unwrap();
                let wish = br#","stream_options":{"include_usage":true}"#;
                assert_eq!(got.body.len(), body.len() + wish.len(), "{field}");
                for name in ["content-encoding", "x-body-compressed"] {
                    assert!(got.head.get(name).is_none(), "{field}: {:?}", got.head);
                }
            }
        }
    }
}

/// Catches: a packed body that is waved through, or that grows without a bound; a connection that
/// is lost over one.
#[test]
fn a_body_that_cannot_be_unpacked_is_refused() {
    let (proxy, backend) = pair(&["max_body_size: 2MiB"]);
    let mut conn = proxy.connect();
    let mut post = |fields: &str, body: &[u8]| conn.post("/v1/chat/completions", fields, body);
    let chat = CHAT.as_bytes();
    for fields in [
        "Content-Encoding: compress\r\n",
        "Content-Encoding: gzip, gzip\r\n",
        "Content-Encoding: gzip\r\nContent-Encoding: zstd\r\n",
        "Content-Encoding: gzip\r\nX-Body-Compressed: zstd\r\n",
        "X-Body-Compressed: yes\r\n",
    ] {
        let response = post(fields, chat);
        response.assert_refused(415, "unsupported_content_encoding");
        assert_eq!(response.head.get("accept-encoding"), Some("gzip, deflate, zstd, br"));
    }
    let gz = packed("gzip", chat);
    for coding in ["gzip", "zstd"] {
        post("", &packed(coding, chat)).assert_refused(415, "undeclared_content_encoding");
        let identity = "Content-Encoding: identity\r\n";
        post(identity, &packed(coding, chat)).assert_refused(415, "undeclared_content_encoding");
    }
    for body in [chat, &gz[..gz.len() - 1], &[&gz[..], &gz].concat()] {
        let response = post("Content-Encoding: gzip\r\n", body);
        response.assert_refused(400, "bad_content_encoding");
    }
    let twice = packed("zstd", br#"{"model":"a","model":"b"}"#);
    post("Content-Encoding: zstd\r\n", &twice).assert_refused(400, "duplicate_key");
    let odd = |n: u32| b'a' + (n.wrapping_mul(0x9E37_79B9) >> 28) as u8;
    let large = packed("gzip", &(0..3_000_000).map(odd).collect::<Vec<u8>>());
    assert!(large.len() < 2 << 20);
    post("Content-Encoding: gzip\r\n", &large).assert_refused(413, "body_too_large");
    let bomb = packed("gzip", &[b' '; 2 << 20]);
    post("Content-Encoding: gzip\r\n", &bomb).assert_refused(413, "body_too_dense");
    assert_eq!(backend.connections(), 0);
    assert_eq!(post("Content-Encoding: gzip\r\n", &gz).status(), 200);
    assert_eq!(backend.requests()[0].body, chat);
}

/// Catches: a path that an engine decodes to another one than we do.
#[test]
fn paths_that_can_be_read_in_two_ways_are_refused() {
    let (proxy, backend) = pair(&[]);
    let mut conn = proxy.connect();
    let paths = [
        "/v1/chat%2fcompletions",
        "/v1/chat%252fcompletions",
        "/v1/%2563hat/completions",
        "/v1/chat/completions;x=1",
        "/v1/chat/completions%3bx",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat/completions%00",
        "/v1/chat/completions%3f",
        "/v1/chat%5ccompletions",
        "/v1/%c0%ae%c0%ae/x",
        "/v1/chat/completion%",
    ];
    for path in paths {
        conn.post(path, "", CHAT).assert_refused(400, "bad_path");
    }
    assert_eq!(rejected(&proxy, "bad_path"), paths.len() as f64);
    assert_eq!(backend.connections(), 0);
}

/// Catches: a method by which an engine serves a chat unseen, or a 405 that does not say what there
/// is.
#[test]
fn an_endpoint_that_posts_answers_nothing_else() {
    let (proxy, backend) = pair(&[]);
    for (line, allow) in [
        ("PUT /v1/chat/completions", "POST, OPTIONS"),
        ("PATCH /generate", "POST, OPTIONS"),
        ("GET /v1/%63hat/completions", "POST, OPTIONS"),
        ("DELETE /v1/models/m", "GET, HEAD, OPTIONS"),
    ] {
        let bytes = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = proxy.connect().send(bytes).response();
        response.assert_refused(405, "method_not_allowed");
        assert_eq!(response.head.get("allow"), Some(allow), "{line}");
    }
    for line in ["PRI /v1/models", "ANNOUNCE /v1/models", "PROPFIND /v1/models"] {
        let mut conn = proxy.connect();
        let bytes = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        conn.send(bytes).response().assert_refused(501, "method_not_implemented");
        conn.assert_closes();
    }
    assert_eq!(backend.connections(), 0);
    let bytes = "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\n\r\n";
    assert_eq!(proxy.connect().send(bytes).response().status(), 200);
}

/// Catches: a body that one server reads and the next takes for a request; an engine's connection
/// that is used again although the engine may have left such a body unread.
#[test]
fn a_body_without_meaning_is_refused_but_for_the_one_that_has_one() {
    let (proxy, backend) = pair(&["paths: [/v1/models, /v1/responses/*, /api/delete]"]);
    let body = "Content-Length: 13\r\n\r\n{\"name\":\"m\"}\n";
    for line in ["GET /v1/models", "DELETE /v1/responses/r", "OPTIONS /v1/models"] {
        let mut conn = proxy.connect();
        let bytes = format!("{line} HTTP/1.1\r\nHost: a\r\n{body}");
        conn.send(bytes).response().assert_refused(400, "unexpected_body");
        conn.assert_closes();
    }
    assert_eq!(backend.connections(), 0);
    for sent in 1..=2 {
        let bytes = format!("DELETE /api/delete HTTP/1.1\r\nHost: a\r\n{body}");
        assert_eq!(proxy.connect().send(bytes).response().status(), 200);
        assert_eq!(backend.requests().last().unwrap().body, b"{\"name\":\"m\"}\n");
        assert_eq!(backend.connections(), sent);
    }
    assert_eq!(proxy.get("/v1/models").status(), 200);
    assert_eq!(backend.connections(), 3);
}

/// Catches: an engine's management that any client reaches.
#[test]
fn management_of_engines_is_closed_by_default() {
    let (proxy, backend) = pair(&[]);
    let lines = [
        "DELETE /api/delete",
        "POST /v1/load_lora_adapter",
        "POST /v1/%6coad_lora_adapter",
        "POST /v1/unload_lora_adapter/",
        "POST /sleep",
        "GET /flush_cache",
        "POST /update_weights_from_disk",
        "POST /api/pull",
        "GET /slots",
        "POST /props",
    ];
    for line in lines {
        let bytes = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        proxy.connect().send(bytes).response().assert_refused(404, "unknown_path");
    }
    assert_eq!(rejected(&proxy, "unknown_path"), lines.len() as f64);
    assert_eq!(backend.connections(), 0);
    let (proxy, _backend) = pair(&["paths: [/sleep]"]);
    assert_eq!(proxy.post("/sleep", "").status(), 200);
}

/// Catches: a base that ends in the version, as clients write theirs, under which every path is
/// `/v1/v1/...`, no probe succeeds, or a completion is taken for llama.cpp's own.
#[test]
fn a_base_that_ends_in_the_version_is_not_doubled() {
    let backend = engine();
    let hook = Webhook::start();
    let url = format!("{}/v1", backend.url());
    let proxy = Config::backend_at(&url).webhook(&hook.url(), "").start();
    for (sent, path) in
        ["/v1/chat/completions", "/chat/completions", "/completions"].into_iter().enumerate()
    {
        assert_eq!(proxy.post(path, STREAM).status(), 200);
        let record = hook.await_records(sent + 1, SOON).pop().unwrap();
        assert_eq!(record["prompt_tokens"], 3, "{path}: {record}");
        let rest = path.strip_prefix("/v1").unwrap_or(path);
        let target = backend.requests().last().unwrap().head.target().to_owned();
        assert_eq!(target, format!("/v1{rest}"), "{path}");
    }
    let probed = Backend::answering(OK);
    let proxy = Config::backend_at(format!("{}/v1/", probed.url())).health_check().start();
    proxy.await_metric("llmproxy_backend_up", &[], 1.0);
    crate::harness::await_until("a probe", SOON, || !probed.requests().is_empty());
    assert_eq!(probed.requests()[0].head.target(), "/health");
}

/// Catches: a mistake of which `check` does not name the cure.
#[test]
fn check_warns_of_what_opens_or_doubles_too_much() {
    for (text, cure) in [
        ("backends: [{url: 'http://gpu:8000/v1'}]", "write `http://gpu:8000`"),
        ("backends: [{url: 'http://gpu:8000/x/v1/'}]", "write `http://gpu:8000/x`"),
        ("backends: [{url: 'unix:/run/e.sock:/v1'}]", "write `unix:/run/e.sock`"),
        (
            "backends: [{url: 'http://gpu:8000'}]\nserver: {paths: ['/v1/*']}",
            "(/v1/load_lora_adapter, /v1/unload_lora_adapter, ...)",
        ),
        (
            "backends: [{url: 'http://gpu:8000'}]\nserver: {paths: [/v1/models, /SLEEP/]}",
            "lets every client manage engines",
        ),
    ] {
        let scratch = Scratch::new();
        let file = scratch.write("config.yaml", text);
        let ran = llmproxy(&["check", &file.display().to_string()]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ran.stderr.contains(cure), "{cure}: {}", ran.stderr);
    }
}
