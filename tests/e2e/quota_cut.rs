//! Streams that end where the quota of their key does (`auth.quota_on_exhausted: cut`).

use crate::harness::message::Ended;
use crate::harness::{await_until, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{CHATS, STREAM};
use serde_json::Value;

const KEY: &str = "Authorization: Bearer k\r\n";
const QUOTA: u64 = 40;
/// Of which far fewer fit.
const KNOBS: &str = "x-mock-tokens: 2000\r\nx-mock-gap-ms: 20\r\n";

fn start(engine: &Engine, hook: &Webhook, auth: &str) -> Proxy {
    Config::backend_at(engine.url())
        .webhook(&hook.url(), "")
        .section(format!("auth: {{quota_reserve: none, {auth}}}"))
        .section(format!("api_keys: [{{key: k, total_quota: {QUOTA}}}]"))
        .section("counters: {entries: 1024}")
        .start()
}

/// Path, engine, body, and what stands in the last events.
const STREAMS: [(&str, &str, &str, &[&str]); 9] = [
    (CHATS, "vllm", STREAM, &[r#""finish_reason":"length""#, "data: [DONE]\n\n"]),
    (
        "/v1/completions",
        "vllm",
        r#"{"model":"m","stream":true,"prompt":"a"}"#,
        &[r#""object":"text_completion""#, r#""finish_reason":"length""#, "data: [DONE]\n\n"],
    ),
    (
        "/v1/responses",
        "vllm",
        r#"{"model":"m","stream":true,"input":"a"}"#,
        &["event: response.incomplete\n", r#"{"reason":"max_output_tokens"}"#],
    ),
    (
        "/v1/messages",
        "vllm",
        STREAM,
        &["event: content_block_stop\n", r#""stop_reason":"max_tokens""#, "event: message_stop\n"],
    ),
    ("/api/chat", "ollama", r#"{"model":"m","messages":[]}"#, &[r#""done_reason":"length""#]),
    ("/api/generate", "ollama", r#"{"model":"m","prompt":"a"}"#, &[r#""done_reason":"length""#]),
    (
        "/generate",
        "sglang",
        r#"{"text":"a","stream":true}"#,
        &[r#""finish_reason":{"type":"length"}"#, "data: [DONE]\n\n"],
    ),
    ("/generate_stream", "tgi", r#"{"inputs":"a"}"#, &[r#""finish_reason":"length""#]),
    (
        "/completion",
        "llamacpp",
        r#"{"prompt":"a","stream":true}"#,
        &[r#""stop":true"#, r#""stop_type":"limit""#],
    ),
];

/// Catches: a stream that goes on beyond its quota, one that ends as if it had broken, a connection
/// that carries half an answer of an engine's, an engine that goes on for nobody.
#[test]
fn each_dialect_ends_as_if_the_answer_were_long_enough() {
    for (path, dialect, body, last) in STREAMS {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = start(&engine, &hook, "quota_on_exhausted: cut");
        let mut conn = proxy.connect();
        let answer = conn.post(path, &format!("{KEY}{KNOBS}"), body);
        let text = answer.text();
        assert_eq!((answer.status(), &answer.ended), (200, &Ended::Whole), "{path}: {text}");
        for part in last {
            assert!(text.contains(part), "{path}: {part} in {text}");
        }
        assert!(!text.contains("\"error\":{"), "{path}: {text}");
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!(
            (&record["status"], &record["error"]),
            (&Value::from("complete"), &Value::from("quota_exhausted")),
            "{path}"
        );
        let events = record["events"].as_u64().unwrap();
        // What came in one read is passed on together; a busy machine reads late.
        assert!((QUOTA / 2..1500).contains(&events), "{path}: {events}");
        await_until("the engine was cut", SOON, || {
            engine.posts().last().is_some_and(|post| post["ended"] == "cancelled")
        });
        conn.post(path, KEY, body).assert_refused(429, "insufficient_quota");
        let faults = [("kind", "quota_exhausted")];
        assert_eq!(proxy.metric("llmproxy_faults_total", &faults), 1.0, "{path}");
    }
}

/// Catches: a stream that is cut though nobody asked for it, or though all of it was said.
#[test]
fn streams_are_finished_unless_the_file_says_otherwise() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    for (auth, tokens) in
        [("", 200), ("quota_on_exhausted: finish", 200), ("quota_on_exhausted: cut", 30)]
    {
        let proxy = start(&engine, &hook, auth);
        let knobs = format!("{KEY}x-mock-tokens: {tokens}\r\n");
        let answer = proxy.connect().post(CHATS, &knobs, STREAM);
        let text = answer.text();
        assert_eq!(text.matches("\"content\":\" ").count(), tokens, "{auth}: {text}");
        assert_eq!(proxy.metric("llmproxy_faults_total", &[("kind", "quota_exhausted")]), 0.0);
    }
}

/// Catches: one of two streams of a key that is cut while what both have reserved fits, a quota
/// that both together overstep.
#[test]
fn streams_of_one_key_share_what_is_left() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = start(&engine, &hook, "quota_on_exhausted: cut");
    let knobs = format!("{KEY}{KNOBS}");
    let mut both = [proxy.connect(), proxy.connect()];
    for conn in &mut both {
        conn.start_post(CHATS, &knobs, STREAM);
        assert_eq!(conn.head().status(), 200);
    }
    for conn in &mut both {
        let text = conn.read_until("data: [DONE]\n\n");
        assert!(text.contains(r#""finish_reason":"length""#), "{text}");
    }
    let records = hook.await_records(2, SOON);
    let events = |record: &Value| record["events"].as_u64().unwrap();
    assert!(records.iter().map(events).sum::<u64>() < 1500, "{records:?}");
}
