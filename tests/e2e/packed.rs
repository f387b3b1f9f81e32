//! Answers that their engine packed pass as they are, and their records say what those of plain
//! ones would.

use crate::classify::packed;
use crate::harness::{Backend, Config, Proxy, Webhook, SOON};
use crate::rig::{before, leave, Leave, Rig, CHAT, CHATS, STREAM};
use serde_json::{json, Value};
use std::io::Write;

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// A whole answer of status 200 with this body, packed already, and further fields.
fn answer(media: &str, coding: &str, fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Encoding: {coding}\r\n{fields}\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The record of one request to an engine that answers so, the proxy and its receiver.
fn recorded(path: &str, body: &str, bytes: Vec<u8>) -> (Value, Proxy, Webhook) {
    let backend = Backend::answering(bytes);
    let (proxy, hook) = before(&backend, "");
    proxy.connect().post(path, "", body);
    let record = hook.await_records(1, SOON).remove(0);
    (record, proxy, hook)
}

/// Catches: packed answers that are changed on their way, or have no usage in their records.
#[test]
fn packed_answers_pass_untouched_and_are_metered() {
    for encoding in ["gzip", "deflate", "zstd"] {
        let rig = Rig::new();
        let knobs = format!("x-mock-encoding: {encoding}\r\nx-mock-usage: 31,17\r\n");
        let answer = rig.ask(CHAT, &knobs).response();
        assert_eq!(answer.head.get("content-encoding"), Some(encoding));
        assert!(serde_json::from_slice::<Value>(&answer.body).is_err(), "it was unpacked");
        let record = rig.record();
        let told = (&record["prompt_tokens"], &record["completion_tokens"]);
        assert_eq!(told, (&json!(31), &json!(17)), "{encoding}: {record}");
        rig.proxy.await_metric("llmproxy_usage_tokens_total", &[("type", "prompt")], 31.0);
        let found = [("result", "found")];
        rig.proxy.await_metric("llmproxy_usage_unpacked_total", &found, 1.0);
    }
    let (record, proxy, _hook) = recorded(CHATS, CHAT, answer(JSON, "odd", "", b"{}"));
    assert_eq!(record["usage_missing_reason"], "packed_unknown", "{record}");
    let unknown = [("result", "packed_unknown")];
    proxy.await_metric("llmproxy_usage_unpacked_total", &unknown, 1.0);
    proxy.await_metric("llmproxy_usage_missing_total", &[], 1.0);
}

/// Digits that cannot be packed to much less than half.
fn digits(count: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut digits = String::with_capacity(count + 16);
    while digits.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        digits += &format!("{state:016x}");
    }
    digits
}

/// Catches: an answer that is too long for its usage to be found, though it is neither a bomb nor
/// more than memory has room for.
#[test]
fn usage_is_found_at_the_end_of_long_answers() {
    let stored = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let body = |count: usize| {
        let usage = "\"usage\":{\"prompt_tokens\":31,\"completion_tokens\":17}";
        format!("{{\"id\":\"a\",\"system_fingerprint\":\"{}\",{usage}}}", digits(count))
            .into_bytes()
    };
    for (coding, bytes) in [
        ("gzip", packed("gzip", &body(800_000))),
        ("deflate", packed("deflate", &body(800_000))),
        ("zstd", packed("zstd", &body(800_000))),
        ("br", packed("br", &body(60_000))),
        ("gzip", stored(&body(12_000_000))),
    ] {
        let len = bytes.len();
        assert!(coding == "br" || len > 342 * 1024, "{coding}: {len}");
        let (record, ..) = recorded(CHATS, CHAT, answer(JSON, coding, "", &bytes));
        let told = (&record["prompt_tokens"], &record["completion_tokens"]);
        assert_eq!(told, (&json!(31), &json!(17)), "{coding}, {len}: {record}");
        assert_eq!((&record["status"], &record["upstream_id"]), (&json!("complete"), &json!("a")));
    }
}

/// Catches: a bomb that is unpacked to its end, bytes that are no such thing, and a record that
/// does not say why it has no tokens.
#[test]
fn what_cannot_be_unpacked_is_told() {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let blanks = vec![b' '; 1024 * 1024];
    (0..33).for_each(|_| bomb.write_all(&blanks).unwrap());
    for (bytes, reason) in [
        (bomb.finish().unwrap(), "packed_too_large"),
        (b"{\"usage\":{\"prompt_tokens\":1}}".to_vec(), "packed_broken"),
    ] {
        let (record, proxy, _hook) = recorded(CHATS, CHAT, answer(JSON, "gzip", "", &bytes));
        assert_eq!(record["usage_missing_reason"], reason, "{record}");
        assert_eq!((&record["usage_source"], &record["usage"]), (&json!("missing"), &Value::Null));
        proxy.await_metric("llmproxy_usage_missing_total", &[], 1.0);
        proxy.await_metric("llmproxy_usage_unpacked_total", &[("result", reason)], 1.0);
    }
}

/// Catches: counts in the head of an answer that are forgotten because its body is packed.
#[test]
fn what_the_head_counts_stands_whatever_the_body_is() {
    let fields = "x-prompt-tokens: 31\r\nx-generated-tokens: 17\r\n";
    for (coding, body) in [
        ("gzip", packed("gzip", b"{\"generated_text\":\"a\"}")),
        ("gzip", b"no gzip".to_vec()),
        ("odd", b"odd".to_vec()),
    ] {
        let (record, ..) = recorded("/generate", "{}", answer(JSON, coding, fields, &body));
        let told = (&record["prompt_tokens"], &record["completion_tokens"]);
        assert_eq!(told, (&json!(31), &json!(17)), "{record}");
        assert_eq!(record["usage_missing_reason"], Value::Null, "{record}");
    }
}

/// Catches: a packed answer that is said to be complete where a plain one is not, and counts that
/// are strange and seen by nobody.
#[test]
fn packed_answers_are_judged_as_plain_ones_are() {
    let delta = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    let error = "data: {\"error\": {\"message\": \"gone\", \"code\": 500}}\n\n";
    let done = "data: [DONE]\n\n";
    for (media, body, code, engine) in [
        (EVENTS, format!("{delta}{done}"), Value::Null, Value::Null),
        (EVENTS, format!("{delta}{error}{done}"), json!("error_in_stream"), json!("500")),
        (EVENTS, delta.to_owned(), json!("stream_unfinished"), Value::Null),
        (JSON, String::new(), json!("empty_answer"), Value::Null),
        (JSON, "{\"error\":{\"code\":504}}".to_owned(), json!("error_in_answer"), json!("504")),
    ] {
        let bytes = answer(media, "gzip", "", &packed("gzip", body.as_bytes()));
        let (record, proxy, _hook) = recorded(CHATS, STREAM, bytes);
        let told = (&record["error"], &record["engine_error"]);
        assert_eq!(told, (&code, &engine), "{body}: {record}");
        let status = if code.is_null() { "complete" } else { "backend_error" };
        assert_eq!(record["status"], status, "{body}: {record}");
        if let Some(code) = code.as_str() {
            proxy.await_metric("llmproxy_faults_total", &[("kind", code)], 1.0);
        }
        // When a token came in a stream that cannot be read as it passes is not known.
        assert_eq!(record["ttft_ms"].is_null(), media == EVENTS, "{body}: {record}");
        assert!(!record["first_byte_ms"].is_null(), "{body}: {record}");
    }
    let odd = b"{\"usage\":{\"prompt_tokens\":-5,\"completion_tokens\":2}}";
    let (record, proxy, _hook) =
        recorded(CHATS, CHAT, answer(JSON, "gzip", "", &packed("gzip", odd)));
    assert_eq!(record["usage_missing_reason"], "count_negative", "{record}");
    proxy.await_metric("llmproxy_usage_odd_total", &[("reason", "count_negative")], 1.0);
    let details = b"{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\
        \"prompt_tokens_details\":{\"cached_tokens\":4}}}";
    let (record, proxy, _hook) =
        recorded(CHATS, CHAT, answer(JSON, "gzip", "", &packed("gzip", details)));
    assert_eq!(record["usage_warnings"], json!(["cached_exceeds_prompt"]), "{record}");
    proxy.await_metric("llmproxy_usage_odd_total", &[("reason", "cached_exceeds_prompt")], 1.0);
    proxy.await_metric("llmproxy_tokens_total", &[("type", "cached")], 4.0);
}

/// Catches: an error that is packed, and of which the record does not have the engine's code.
#[test]
fn a_packed_refusal_of_an_engine_is_read() {
    let body = packed("gzip", b"{\"error\":{\"code\":\"overloaded\"}}");
    let bytes = answer(JSON, "gzip", "", &body);
    let failed = [b"HTTP/1.1 500 X".to_vec(), bytes["HTTP/1.1 200 OK".len()..].to_vec()].concat();
    let (record, ..) = recorded(CHATS, CHAT, failed);
    assert_eq!(
        (&record["status_code"], &record["engine_error"]),
        (&json!(500), &json!("overloaded"))
    );
}

/// Catches: metrics that know packed answers only where records of them are made.
#[test]
fn without_reporters_packed_answers_are_counted_too() {
    let usage = b"{\"usage\":{\"prompt_tokens\":31,\"completion_tokens\":17}}";
    let backend = Backend::answering(answer(JSON, "gzip", "", &packed("gzip", usage)));
    let proxy = Config::backend_at(backend.url()).start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.await_metric("llmproxy_usage_tokens_total", &[("type", "prompt")], 31.0);
}

/// Catches: a record that waits for its packed answer and takes the place of an engine that is read
/// on, so that the engine is cut, or that gives way itself and has no tokens.
#[test]
fn a_late_record_takes_no_place_of_an_engine_that_is_read_on() {
    const LONG: usize = 3;
    let usage = "\"usage\":{\"prompt_tokens\":31,\"completion_tokens\":17}";
    let text = "\"\\n\":0,".repeat(2 * 1024 * 1024);
    let long = answer(JSON, "gzip", "", &packed("gzip", format!("{{{text}{usage}}}").as_bytes()));
    let (go_on, may_end) = std::sync::mpsc::channel::<()>();
    let may_end = std::sync::Mutex::new(may_end);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.body.ends_with(b" ") {
                served.send(&long);
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            served.send(format!("{head}data: {{}}\n\n"));
            let _ = may_end.lock().unwrap().recv();
            return;
        }
    });
    let hook = Webhook::start();
    let config = Config::new().backend(backend.url(), "on_client_abort: drain");
    // One place for an engine that is read on.
    let proxy = config.webhook(&hook.url(), "").server("max_connections: 7").start();
    let mut gone = proxy.connect();
    gone.start_post(CHATS, "", STREAM);
    gone.head();
    gone.read_until("data:");
    leave(gone, Leave::Rst);
    proxy.await_metric("llmproxy_drains", &[], 1.0);
    let mut others: Vec<_> = (0..LONG).map(|_| proxy.connect()).collect();
    for conn in &mut others {
        conn.start_post(CHATS, "", format!("{CHAT} "));
    }
    for conn in &mut others {
        assert_eq!(conn.response().status(), 200);
    }
    for record in hook.await_records(LONG, 6 * SOON) {
        let told = (&record["prompt_tokens"], &record["completion_tokens"]);
        assert_eq!(told, (&json!(31), &json!(17)), "{record}");
    }
    assert_eq!(proxy.metric("llmproxy_crowded_closed_total", &[("kind", "drain")]), 0.0);
    proxy.await_metric("llmproxy_drains", &[], 1.0);
    drop(go_on);
    proxy.await_metric("llmproxy_drains", &[], 0.0);
}

/// Catches: a client whose next request waits until an answer is unpacked that it has had for long.
#[test]
fn the_next_request_does_not_wait_for_an_answer_to_be_unpacked() {
    const LONG: usize = 2;
    let usage = "\"usage\":{\"prompt_tokens\":31,\"completion_tokens\":17}";
    let short = answer(JSON, "gzip", "", &packed("gzip", format!("{{{usage}}}").as_bytes()));
    // The one thread that unpacks is busy with it for a while.
    let text = "\"\\n\":0,".repeat(2 * 1024 * 1024);
    let long = answer(JSON, "gzip", "", &packed("gzip", format!("{{{text}{usage}}}").as_bytes()));
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            let is_long = request.body.ends_with(b" ");
            served.send(if is_long { &long } else { &short });
        }
    });
    let (proxy, hook) = before(&backend, "");
    let mut others: Vec<_> = (0..LONG).map(|_| proxy.connect()).collect();
    for conn in &mut others {
        conn.start_post(CHATS, "", format!("{CHAT} "));
    }
    for conn in &mut others {
        assert_eq!(conn.response().status(), 200);
    }
    let mut conn = proxy.connect();
    for _ in 0..2 {
        assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
    }
    let found =
        |proxy: &Proxy| proxy.metric("llmproxy_usage_unpacked_total", &[("result", "found")]);
    assert!(found(&proxy) < LONG as f64, "both answers were there before they were unpacked");
    for record in hook.await_records(LONG + 2, 6 * SOON) {
        let told = (&record["prompt_tokens"], &record["completion_tokens"]);
        assert_eq!(told, (&json!(31), &json!(17)), "{record}");
        assert_eq!(record["status"], "complete", "{record}");
    }
    proxy.await_metric("llmproxy_drains", &[], 0.0);
}
