//! The mock engine end to end, over plain sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test stops loudly"
)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{read_answer, read_until, send_chat, Engine};
use loadtest::load::codec::{Answer, Wrong};
use loadtest::script::{checksum, expected_body, Ask, Dialect, Usage};
use loadtest::sys::unix_ms;

const STREAM: &str = r#"{"model":"m","stream":true}"#;

#[test]
fn a_stream_is_what_the_script_says_on_a_kept_connection() {
    for (name, dialect) in [
        ("vllm", Dialect::Vllm),
        ("sglang", Dialect::Sglang),
        ("tgi", Dialect::Tgi),
        ("llamacpp", Dialect::Llamacpp),
        ("ollama", Dialect::Ollama),
    ] {
        let engine = Engine::start(&["--dialect", name]);
        let mut socket = engine.connect();
        for seed in [3, 4] {
            let ask = Ask {
                dialect,
                seed,
                tokens: 5,
                event_bytes: 40,
                usage: Usage { completion: 5, ..Ask::default().usage },
                ..Ask::default()
            };
            let fields =
                format!("x-mock-tokens: 5\r\nx-mock-event-bytes: 40\r\nx-mock-seed: {seed}\r\n");
            send_chat(&mut socket, &fields, STREAM);
            assert_eq!(read_answer(&mut socket), (200, expected_body(&ask)), "{name}");
            let whole = Ask { stream: false, answer_bytes: 900, ..ask };
            let fields = fields + "x-mock-answer-bytes: 900\r\n";
            send_chat(&mut socket, &fields, r#"{"model":"m"}"#);
            let (status, body) = read_answer(&mut socket);
            assert_eq!((status, &body), (200, &expected_body(&whole)), "{name}");
            assert_eq!(body.len(), 900, "{name}");
        }
    }
}

#[test]
fn events_keep_their_times() {
    let engine = Engine::start(&[]);
    let mut socket = engine.connect();
    let begun = Instant::now();
    send_chat(
        &mut socket,
        "x-mock-ttft-ms: 100\r\nx-mock-gap-ms: 50\r\nx-mock-tokens: 3\r\n",
        STREAM,
    );
    read_until(&mut socket, "\"content\":\"\"");
    let first = begun.elapsed();
    read_until(&mut socket, "[DONE]");
    let last = begun.elapsed();
    assert!(first >= Duration::from_millis(100), "{first:?}");
    // The wait and two gaps.
    assert!(last >= Duration::from_millis(200), "{last:?}");
}

#[test]
fn a_leave_before_the_first_token_is_noted_at_once() {
    let engine = Engine::start(&[]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-ttft-ms: 60000\r\nx-request-id: req-7\r\n", STREAM);
    engine.await_log(|entry| entry["ended"] == "open");
    let left = unix_ms();
    drop(socket);
    let entry = engine.await_log(|entry| entry["ended"] == "cancelled");
    assert_cancelled_soon(&entry, left);
    assert_eq!(entry["x_request_id"], "req-7");
    assert_eq!(entry["half_closed"], false);
    assert_eq!(entry["events_sent"], 0);
}

#[test]
fn a_leave_between_tokens_is_noted_at_once() {
    let engine = Engine::start(&["--gap-ms", "60000"]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "", STREAM);
    read_until(&mut socket, "token_ids\":null}]}\n\n");
    let left = unix_ms();
    drop(socket);
    let entry = engine.await_log(|entry| entry["ended"] == "cancelled");
    assert_cancelled_soon(&entry, left);
    assert_eq!(entry["events_sent"], 2, "role and first content");
}

#[test]
fn a_half_close_is_told_from_a_close() {
    // A gateway that half-closes kills its own streams at real engines; the log must show it.
    let engine = Engine::start(&["--gap-ms", "60000"]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "", STREAM);
    read_until(&mut socket, "\n\n");
    socket.shutdown(Shutdown::Write).expect("half-closed");
    let entry = engine.await_log(|entry| entry["half_closed"] == true);
    assert_eq!(entry["ended"], "cancelled");
    let mut closed = engine.connect();
    send_chat(&mut closed, "", STREAM);
    read_until(&mut closed, "\n\n");
    drop(closed);
    engine.await_log(|entry| entry["ended"] == "cancelled" && entry["id"] != 1);
    // The probe for a half-close takes 20 ms; by then the connection count is down.
    let begun = Instant::now();
    while !engine.get("/mock/stats").contains("\"connections_open\":2") {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    assert!(engine.get("/mock/stats").contains("\"half_closed\":1"));
}

fn assert_cancelled_soon(entry: &serde_json::Value, left: f64) {
    let noticed = entry["cancelled_unix_ms"].as_f64().expect("a time");
    // The next token is a minute away.
    assert!((0.0..30e3).contains(&(noticed - left)), "noticed {} ms later", noticed - left);
}

#[test]
fn dying_stalling_and_failing_happen_where_they_are_told_to() {
    let engine = Engine::start(&["--tokens", "8"]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-die-after: 3\r\nx-mock-gap-ms: 5\r\n", STREAM);
    let mut text = Vec::new();
    let end = socket.read_to_end(&mut text).map_err(|e| e.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(String::from_utf8_lossy(&text).matches("data: ").count(), 3);

    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-die-before-head: 1\r\nx-mock-die-with: fin\r\n", STREAM);
    assert_eq!(socket.read(&mut [0; 16]).expect("FIN"), 0);

    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-stall-after: 2\r\n", STREAM);
    read_until(&mut socket, "token_ids\":null}]}\n\n\r\n");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    assert_eq!(socket.read(&mut [0; 16]).map_err(|e| e.kind()), Err(ErrorKind::WouldBlock));

    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-error: in-stream\r\nx-mock-error-after: 2\r\n", STREAM);
    let (status, body) = read_answer(&mut socket);
    let text = String::from_utf8(body).expect("text");
    assert_eq!(status, 200);
    assert!(text.contains(r#"data: {"error": {"message": "#) && text.ends_with("[DONE]\n\n"));
    assert_eq!(text.matches("data: ").count(), 4);

    send_chat(&mut socket, "x-mock-status: 503\r\nx-mock-retry-after: 7\r\n", STREAM);
    let text = read_until(&mut socket, "}}");
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("\r\nretry-after: 7\r\n"), "{text}");
}

#[test]
fn the_shape_of_the_wire_changes_and_the_bytes_do_not() {
    let engine = Engine::start(&["--tokens", "4"]);
    let expected = expected_body(&Ask {
        tokens: 4,
        usage: Usage { completion: 4, ..Ask::default().usage },
        ..Ask::default()
    });
    for fields in ["x-mock-split: byte\r\n", "x-mock-split: 3\r\n", "x-mock-split: merged\r\n"] {
        let mut socket = engine.connect();
        send_chat(&mut socket, fields, STREAM);
        assert_eq!(read_answer(&mut socket), (200, expected.clone()), "{fields}");
    }
    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-close: delimited\r\n", STREAM);
    let head = read_until(&mut socket, "\r\n\r\n");
    assert!(head.contains("connection: close\r\n") && !head.contains("chunked"), "{head}");
    let mut body = Vec::new();
    socket.read_to_end(&mut body).expect("FIN");
    assert_eq!(body, expected);

    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-error: after\r\n", STREAM);
    let mut text = String::new();
    socket.read_to_string(&mut text).expect("FIN");
    assert!(text.ends_with("data: [DONE]\n\n\r\n"), "no last chunk: {text:?}");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let engine = Engine::start(&["--tokens", "1"]);
    let mut socket = engine.connect();
    for seed in 0..3 {
        // The first is still being generated when the others arrive.
        send_chat(&mut socket, &format!("x-mock-seed: {seed}\r\nx-mock-ttft-ms: 30\r\n"), "{}");
    }
    for seed in 0..3 {
        let id = format!("\"id\":\"chatcmpl-{seed:012x}\"");
        read_until(&mut socket, &id);
        read_until(&mut socket, "kv_transfer_params\":null}");
    }
    assert!(engine.log().iter().all(|entry| entry["conn"] == 1), "one connection");
}

#[test]
fn silence_is_filled_with_comments_and_prompts_take_time() {
    let engine = Engine::start(&["--dialect", "tgi"]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "x-mock-comment-ms: 20\r\nx-mock-ttft-ms: 110\r\n", STREAM);
    let silence = read_until(&mut socket, "data: ");
    assert!((3..=5).contains(&silence.matches("\r\n:\n\n\r\n").count()), "{silence}");
    read_until(&mut socket, "0\r\n\r\n");

    let body = format!(r#"{{"model":"m","prompt":"{}"}}"#, "x".repeat(10 << 10));
    let begun = Instant::now();
    send_chat(&mut socket, "x-mock-prefill-us-per-kb: 10000\r\n", &body);
    read_answer(&mut socket);
    assert!(begun.elapsed() >= Duration::from_millis(100), "10 KiB at 10 ms each");
}

#[test]
fn the_log_shows_what_was_sent() {
    let engine = Engine::start(&[]);
    let body = r#"{"model":"m","messages":[{"role":"user","content":"naïve"}]}"#;
    let mut socket = engine.connect();
    send_chat(&mut socket, "X-Odd-Case: 1\r\n", body);
    read_answer(&mut socket);
    let entry = engine.await_log(|entry| entry["ended"] == "complete");
    assert_eq!(entry["body_len"], body.len());
    assert_eq!(entry["body_hash"], format!("{:016x}", checksum(body.as_bytes())));
    assert_eq!(entry["body_start"], body);
    assert_eq!(entry["method"], "POST");
    assert_eq!(entry["path"], "/v1/chat/completions");
    assert!(entry["head"].as_str().expect("text").contains("\r\nX-Odd-Case: 1\r\n"));

    // The same body in chunks is the same body.
    let (first, second) = body.split_at(10);
    write!(
        socket,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
         x-mock-echo: headers\r\n\r\n{:x}\r\n{first}\r\n{:x};ext=1\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    )
    .expect("sent");
    let (_, echo) = read_answer(&mut socket);
    let echo: serde_json::Value = serde_json::from_slice(&echo).expect("JSON");
    assert_eq!(echo["body"], body);
    assert_eq!(echo["fields"][1], serde_json::json!(["transfer-encoding", "chunked"]));
}

#[test]
fn a_unix_socket_serves_the_same() {
    let path = std::env::temp_dir().join(format!("mock-{}.sock", std::process::id()));
    let engine = Engine::start(&["--listen", &format!("unix:{}", path.display())]);
    assert_eq!(engine.address, format!("unix:{}", path.display()));
    let mut socket = UnixStream::connect(&path).expect("it accepts");
    send_chat(&mut socket, "x-mock-tokens: 2\r\n", STREAM);
    let ask = Ask { tokens: 2, ..Ask::default() };
    assert_eq!(read_answer(&mut socket), (200, expected_body(&ask)));
    std::fs::remove_file(&path).expect("it was there");
}

#[test]
fn connections_close_as_the_servers_do() {
    let engine = Engine::start(&["--dialect", "llamacpp", "--max-requests", "2"]);
    let mut socket = engine.connect();
    send_chat(&mut socket, "", "{}");
    read_answer(&mut socket);
    send_chat(&mut socket, "", "{}");
    let head = read_until(&mut socket, "\r\n\r\n");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    socket.read_to_end(&mut Vec::new()).expect("FIN after the second answer");

    let engine = Engine::start(&["--idle-close-ms", "100"]);
    let mut socket = engine.connect();
    let begun = Instant::now();
    assert_eq!(socket.read(&mut [0; 16]).expect("FIN"), 0);
    let idle = begun.elapsed();
    assert!(idle >= Duration::from_millis(95), "{idle:?}");
}

#[test]
fn knobs_and_health_change_at_run_time_and_back() {
    let engine = Engine::start(&[]);
    let health = || {
        let mut socket = engine.connect();
        write!(socket, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        read_answer(&mut socket).0
    };
    let chat = || {
        let mut socket = engine.connect();
        send_chat(&mut socket, "", "{}");
        read_answer(&mut socket).0
    };
    assert_eq!((health(), chat()), (200, 200));
    assert_eq!(engine.post("/mock/health?status=503"), 200);
    assert_eq!(engine.post("/mock/knobs?status=429&retry-after=1"), 200);
    assert_eq!((health(), chat()), (503, 429));
    assert_eq!(engine.post("/mock/knobs?no-such-knob=1"), 400);
    assert_eq!(engine.post("/mock/reset"), 200);
    assert_eq!((health(), chat()), (200, 200));
    assert!(engine.get("/mock/stats").contains("\"requests\":1"));
}

#[test]
fn head_has_no_body_and_unknown_paths_have_the_dialects_error() {
    let engine = Engine::start(&["--dialect", "ollama"]);
    let mut socket = engine.connect();
    write!(socket, "HEAD / HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    assert!(read_until(&mut socket, "\r\n\r\n").contains("Content-Length: 17\r\n"));
    // The next answer follows at once; a body in between would spoil its status line.
    write!(socket, "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    let (status, body) = read_answer(&mut socket);
    assert_eq!((status, body.starts_with(b"{\"error\":")), (404, true));
}

#[test]
fn broken_answers_are_broken_in_the_way_they_are_named() {
    let engine = Engine::start(&[]);
    for (name, wrong) in [
        ("cl-te", Some(Wrong::Framing)),
        ("te-unknown", Some(Wrong::Framing)),
        ("dup-cl", Some(Wrong::Framing)),
        ("list-cl", Some(Wrong::Framing)),
        ("plus-cl", Some(Wrong::Framing)),
        ("huge-cl", Some(Wrong::Framing)),
        ("short-body", Some(Wrong::Eof)),
        ("extra-bytes", Some(Wrong::Extra)),
        ("bad-chunk", Some(Wrong::ChunkSize)),
        ("no-crlf", Some(Wrong::ChunkEnd)),
        ("bare-lf", Some(Wrong::Eof)),
        ("obs-fold", Some(Wrong::Field)),
        ("nul-header", Some(Wrong::Field)),
        ("huge-header", Some(Wrong::HeadTooLong)),
        ("endless-1xx", None),
        ("many-1xx", None),
        ("1xx", None),
        ("http10", None),
        ("chunk-ext", None),
        ("trailers", None),
        ("garbage", Some(Wrong::Eof)),
    ] {
        let mut socket = engine.connect();
        let fields = format!("x-mock-bad: {name}\r\nconnection: close\r\n");
        send_chat(&mut socket, &fields, "{}");
        if name != "endless-1xx" {
            socket.shutdown(Shutdown::Write).expect("no more requests");
        }
        assert_eq!(read_broken(&mut socket, name), wrong, "{name}");
    }
}

/// Reads up to 4 MiB and gives what is wrong with it.
fn read_broken(socket: &mut impl Read, name: &str) -> Option<Wrong> {
    let mut answer = Answer::default();
    let mut bytes = [0; 16 << 10];
    for _ in 0..256 {
        match socket.read(&mut bytes) {
            Ok(0) => return answer.end().err(),
            Ok(count) => {
                if let Err(wrong) = answer.feed(&bytes[..count], |_| ()) {
                    return Some(wrong);
                }
            }
            Err(e) => panic!("{name}: {e}"),
        }
        if answer.is_done() && name != "extra-bytes" {
            return None;
        }
    }
    None
}
