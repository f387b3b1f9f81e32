//! Usage records: one for each request that an engine had, with what the engine counted, delivered
//! at least once, and never at a client's cost.

use crate::harness::{await_until, Config, Conn, Engine, Webhook, SOON};
use crate::rig::{Rig, CHAT, CHATS, STREAM};
use rustix::process::Signal;
use serde_json::{json, Value};
use std::collections::HashSet;

const STREAM_USAGE: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Count."}]}"#;
const PROMPT: &str = r#"{"model":"m","prompt":"Count."}"#;
const PROMPT_STREAM: &str =
    r#"{"model":"m","prompt":"Count.","stream":true,"stream_options":{"include_usage":true}}"#;
const EMBED: &str = r#"{"model":"m","input":"Count."}"#;

/// Catches: a field that a receiver was built for and that is missing, or means something else.
#[test]
fn a_record_has_every_field() {
    for (body, stream) in [(CHAT, false), (STREAM_USAGE, true)] {
        let rig = Rig::new();
        let knobs = "x-mock-usage: 31,17\r\nx-mock-tokens: 5\r\nx-mock-ttft-ms: 30\r\n";
        let answer = rig.ask(body, knobs).response();
        let record = rig.record();
        let latency = record["latency_ms"].as_u64().unwrap();
        let ttft = record["ttft_ms"].as_u64().unwrap();
        assert!((30..=latency).contains(&ttft), "{record}");
        assert!(record["first_byte_ms"].as_u64().is_some_and(|first| first <= ttft), "{record}");
        let time = record["timestamp"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && time.contains('T'), "{time}");
        let first = answer.text();
        let engine_id = record["upstream_id"].as_str().unwrap();
        assert!(first.contains(&format!("\"id\":\"{engine_id}\"")), "{engine_id}: {first}");
        let expected = json!({
            "request_id": answer.head.get("x-request-id").unwrap(),
            "client_request_id": null,
            "timestamp": time,
            "user_id": null,
            "api_key": null,
            "model": "m",
            "prompt_tokens": 31,
            "completion_tokens": 17,
            "total_tokens": 48,
            "usage": {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48},
            "usage_source": "engine",
            "is_stream": stream,
            "method": "POST",
            "path": CHATS,
            "endpoint": CHATS,
            "backend": rig.engine.url().trim_start_matches("http://"),
            "backend_url": rig.engine.url(),
            "status_code": 200,
            "latency_ms": latency,
            "ttft_ms": ttft,
            "first_byte_ms": record["first_byte_ms"],
            "retry_count": 0,
            "fallback_used": false,
            "status": "complete",
            "error": null,
            "upstream_id": engine_id,
            "request_bytes": body.len(),
            "response_bytes": answer.body.len(),
            // The end mark is none.
            "events": first.matches("data: {").count(),
        });
        assert_eq!(record, expected);
        rig.proxy.await_metric("llmproxy_usage_tokens_total", &[("type", "prompt")], 31.0);
        rig.proxy.await_metric("llmproxy_usage_tokens_total", &[("type", "completion")], 17.0);
    }
}

/// Catches: usage that one engine's spelling hides: spacing, place, zeros first, repeated counts.
#[test]
fn usage_is_found_in_every_dialect() {
    let chats = [(CHATS, CHAT), (CHATS, STREAM_USAGE)];
    let prompts = [("/v1/completions", PROMPT), ("/v1/completions", PROMPT_STREAM)];
    for dialect in ["vllm", "sglang", "tgi", "llamacpp", "ollama"] {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
        let asks = chats.iter().chain(&prompts).chain(&[("/v1/embeddings", EMBED)]);
        let mut sent = 0;
        for (path, body) in asks {
            let is_embedding = *path == "/v1/embeddings";
            for text in ["plain", "tricky"] {
                let fields = format!("x-mock-usage: 31,17\r\nx-mock-text: {text}\r\n");
                let answer = proxy.connect().post(path, &fields, body);
                sent += 1;
                let record = hook.await_records(sent, SOON).pop().unwrap();
                let shown = format!("{dialect} {path} {body}: {record}");
                assert_eq!(answer.status(), 200, "{shown}");
                let completion = if is_embedding { 0 } else { 17 };
                let told = [&record["prompt_tokens"], &record["completion_tokens"]];
                assert_eq!(told, [31, completion], "{shown}");
                assert_eq!(record["total_tokens"], 31 + completion, "{shown}");
                assert_eq!(record["usage_source"], "engine", "{shown}");
            }
        }
    }
}

/// Catches: an estimate, or the previous request's counts, where an engine sends none.
#[test]
fn usage_that_no_engine_sent_is_missing() {
    let rig = Rig::with("stream_usage: never", |config| config);
    let mut client = rig.proxy.connect();
    client.post(CHATS, "", STREAM_USAGE);
    client.post(CHATS, "", STREAM);
    let record = rig.hook.await_records(2, SOON).remove(1);
    assert_eq!(record["usage_source"], "missing", "{record}");
    for field in ["usage", "prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(record[field], Value::Null, "{record}");
    }
    rig.proxy.await_metric("llmproxy_usage_missing_total", &[], 1.0);
}

/// Catches: records of errors left out, or of requests that no engine had sent in.
#[test]
fn what_an_engine_refused_is_recorded_and_what_we_refused_is_not() {
    let rig = Rig::new();
    assert_eq!(rig.ask(CHAT, "x-mock-status: 429\r\n").response().status(), 429);
    rig.proxy.post(CHATS, "{} {}").assert_refused(400, "invalid_json");
    rig.proxy.post("/nowhere", CHAT).assert_refused(404, "unknown_path");
    assert_eq!(rig.ask(CHAT, "").response().status(), 200);
    let statuses: Vec<Value> =
        rig.hook.await_records(2, SOON).iter().map(|r| r["status_code"].clone()).collect();
    assert_eq!(statuses, [429, 200]);
    rig.proxy.await_metric("llmproxy_rejected_total", &[("reason", "unknown_path")], 1.0);
    rig.proxy.await_metric("llmproxy_rejected_total", &[("reason", "invalid_json")], 1.0);
}

/// Catches: both forms of the seeds: a receiver of one gets the fields of the other, or none.
#[test]
fn the_flat_and_the_nested_form_can_be_asked_for() {
    let (engine, flat, nested) = (Engine::start(&[]), Webhook::start(), Webhook::start());
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{reporters: [{{name: a, type: webhook, format: flat, webhook: {{url: \"{}\"}}}}, \
             {{name: b, type: webhook, format: nested, webhook: {{url: \"{}\"}}}}]}}",
            flat.url(),
            nested.url()
        ))
        .start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    let flat = flat.await_records(1, SOON).remove(0);
    assert!(flat["prompt_tokens"].is_u64() && flat.get("usage").is_none(), "{flat}");
    let nested = nested.await_records(1, SOON).remove(0);
    assert!(nested["usage"]["prompt_tokens"].is_u64(), "{nested}");
    assert!(nested.get("prompt_tokens").is_none(), "{nested}");
    assert_eq!(flat["request_id"], nested["request_id"]);
}

/// Catches: a record given up after one bad answer, sent twice after a good one, or without a key
/// by which a receiver can tell.
#[test]
fn a_record_is_tried_again_until_it_is_taken_once() {
    let hook = Webhook::scripted(|n, _| [500, 0, 429, 204][n.min(3)]);
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "retry: 5").start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.await_metric("llmproxy_webhook_success_total", &[], 1.0);
    let deliveries = hook.deliveries();
    assert_eq!(deliveries.len(), 4);
    assert!(deliveries.iter().all(|d| d.body == deliveries[0].body));
    let record: Value = serde_json::from_slice(&deliveries[0].body).unwrap();
    for delivery in &deliveries {
        assert_eq!(delivery.head.method(), "POST");
        assert_eq!(delivery.head.get("content-type"), Some("application/json"));
        assert_eq!(delivery.head.get("idempotency-key"), record["request_id"].as_str());
    }
    assert_eq!(proxy.metric("llmproxy_webhook_failure_total", &[]), 0.0);
    assert_eq!(proxy.metric("llmproxy_reporter_retries_total", &[("reporter", "hook")]), 3.0);
    assert_eq!(proxy.metric("llmproxy_reporter_queue", &[]), 0.0);
}

/// Catches: clients that wait for a receiver, or lose an answer to its failure; records given up
/// because nobody takes them now.
#[test]
fn a_dead_receiver_costs_no_request_and_no_record() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = Webhook::scripted(|_, _| {
        crate::harness::pause(std::time::Duration::from_secs(30));
        0
    });
    let engine = Engine::start(&[]);
    for url in [format!("http://{dead}/usage"), silent.url()] {
        let config = Config::backend_at(engine.url());
        let proxy = config.webhook(&url, "retry: 0, timeout: 100ms").start();
        for _ in 0..5 {
            let answer = proxy.post(CHATS, CHAT);
            assert_eq!(answer.status(), 200);
        }
        proxy.await_metric("llmproxy_usage_ring_bytes", &[], 0.0);
        proxy.await_metric("llmproxy_reporter_queue", &[], 5.0);
        assert_eq!(proxy.metric("llmproxy_webhook_success_total", &[]), 0.0);
        assert_eq!(proxy.metric("llmproxy_webhook_failure_total", &[]), 0.0);
    }
}

/// Catches: prompts that leave for billing when nobody asked for it, or with other digits.
#[test]
fn the_request_body_travels_only_if_configured() {
    let rig = Rig::new();
    rig.ask(CHAT, "").response();
    assert!(rig.record().get("request_body").is_none());
    let body = r#"{"model":"m", "temperature":0.10000000000000000001,"messages":[]}"#;
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{include_request_body: true, reporters: [{{name: hook, type: webhook, \
             webhook: {{url: \"{}\"}}}}]}}",
            hook.url()
        ))
        .start();
    assert_eq!(proxy.post(CHATS, body).status(), 200);
    hook.await_records(1, SOON);
    let sent = String::from_utf8(hook.deliveries()[0].body.clone()).unwrap();
    // White space between tokens is not part of what was said.
    let compact = r#"{"model":"m","temperature":0.10000000000000000001,"messages":[]}"#;
    assert!(sent.contains(&format!("\"request_body\":{compact}")), "{sent}");
}

/// Catches: a record that is written over an old one and shows something of it.
#[test]
fn a_record_shows_nothing_of_the_one_before() {
    let rig = Rig::new();
    let mut conn = rig.proxy.connect();
    for round in 0..3 {
        conn.post(CHATS, "x-mock-usage: 31,17\r\nx-request-id: theirs\r\n", STREAM_USAGE);
        let full = rig.hook.await_records(2 * round + 1, SOON).remove(2 * round);
        assert!(full["upstream_id"].is_string() && full["client_request_id"] == "theirs");
        conn.get("/v1/models");
        let bare = rig.hook.await_records(2 * round + 2, SOON).remove(2 * round + 1);
        for field in ["model", "usage", "client_request_id", "error"] {
            assert_eq!(bare[field], json!(null), "{field}: {bare}");
        }
        assert_eq!((&bare["method"], &bare["path"]), (&json!("GET"), &json!("/v1/models")));
        assert_eq!((&bare["request_bytes"], &bare["events"]), (&json!(0), &json!(0)));
    }
}

/// Catches: two requests billed as one because a client repeats its id.
#[test]
fn request_ids_are_unique_whatever_clients_send() {
    let rig = Rig::new();
    for _ in 0..20 {
        let answer = rig.proxy.connect().post(CHATS, "x-request-id: same\r\n", CHAT);
        assert_eq!(answer.head.get("x-request-id"), Some("same"));
    }
    let records = rig.hook.await_records(20, SOON);
    let ids: HashSet<&str> = records.iter().map(|r| r["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 20);
    assert!(records.iter().all(|r| r["client_request_id"] == "same"));
    assert!(!ids.contains("same"));
}

/// Catches: records that a stop loses: those queued, and those of streams that it waited for.
#[test]
fn a_stop_delivers_what_is_queued() {
    // Slower than the requests come, so that some wait when the signal does.
    let hook = Webhook::scripted(|_, _| {
        crate::harness::pause(std::time::Duration::from_millis(20));
        204
    });
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
    let mut running: Conn = proxy.connect();
    running.start_post(CHATS, "x-mock-tokens: 10\r\nx-mock-gap-ms: 50\r\n", STREAM_USAGE);
    running.head();
    for _ in 0..20 {
        assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    }
    proxy.process.signal(Signal::TERM);
    assert_eq!(running.rest().1, crate::harness::message::Ended::Whole);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    let records = hook.records();
    assert_eq!(records.len(), 21);
    let ids: HashSet<&str> = records.iter().map(|r| r["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 21);
    let stream = records.iter().find(|record| record["is_stream"] == true).unwrap();
    assert_eq!(stream["usage_source"], "engine", "{stream}");
    await_until("its page is gone with it", SOON, || {
        std::net::TcpStream::connect(proxy.addr()).is_err()
    });
}

/// Catches: tokens booked to the wrong backend, and a name that a client chose as a label.
#[test]
fn tokens_are_counted_by_model_and_backend() {
    let engine = Engine::start(&[]);
    let proxy = Config::new()
        .backend(engine.url(), "name: gpu-1")
        .section("metrics: {models: [known]}")
        .start();
    for (model, times) in [("known", 2), ("whatever-a-client-says", 1)] {
        for _ in 0..times {
            let body = CHAT.replace("\"m\"", &format!("\"{model}\""));
            assert!(body.contains(model), "{body}");
            let answer = proxy.connect().post(CHATS, "x-mock-usage: 31,17\r\n", &body);
            assert_eq!(answer.status(), 200);
        }
    }
    for (model, times) in [("known", 2.0), ("other", 1.0)] {
        for (kind, tokens) in [("prompt", 31.0), ("completion", 17.0), ("reasoning", 0.0)] {
            let labels = [("model", model), ("type", kind), ("backend", "gpu-1")];
            proxy.await_metric("llmproxy_tokens_total", &labels, times * tokens);
        }
    }
    assert_eq!(proxy.metric("llmproxy_usage_tokens_total", &[("type", "prompt")]), 93.0);
}

/// Catches: a key in a form that a reporter did not ask for, that of the request before, or none.
#[test]
fn records_have_the_key_in_the_form_of_their_reporter() {
    const KEY: &str = "sk-test-0123456789-secret";
    let engine = Engine::start(&[]);
    let hooks: Vec<(&str, Webhook)> =
        ["plain", "masked", "sha256", "none", ""].map(|form| (form, Webhook::start())).into();
    let reporters = hooks.iter().enumerate().map(|(i, (form, hook))| {
        let form = if form.is_empty() { String::new() } else { format!("api_key: {form}, ") };
        format!("{{name: r{i}, {form}webhook: {{url: \"{}\"}}}}", hook.url())
    });
    let reporters = reporters.collect::<Vec<_>>().join(", ");
    let proxy = Config::backend_at(engine.url())
        .section(format!("usage: {{reporters: [{reporters}]}}"))
        .start();
    let mut client = proxy.connect();
    for field in [
        format!("Authorization: Bearer {KEY}\r\n"),
        format!("X-API-Key: {KEY}\r\n"),
        "Authorization: Basic dTpw\r\n".to_owned(),
    ] {
        assert_eq!(client.post(CHATS, &field, CHAT).status(), 200);
    }
    // `printf sk-test-0123456789-secret | sha256sum`
    let digest = "bded31cee9fab5a7c1b96c40ea20800753177503d73a9f5c56ce8318f98780f5";
    for (form, hook) in &hooks {
        let mut keys: Vec<Value> =
            hook.await_records(3, SOON).iter().map(|record| record["api_key"].clone()).collect();
        keys.sort_by_key(Value::is_null);
        let shown = match *form {
            "plain" => json!(KEY),
            "sha256" => json!(digest),
            "none" => Value::Null,
            _ => json!("sk-t...cret"),
        };
        assert_eq!(keys, [shown.clone(), shown, Value::Null], "{form}");
    }
}
