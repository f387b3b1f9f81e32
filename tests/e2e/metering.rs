//! What a record says of answers that are not plain: native dialects, packed bytes, errors inside a
//! stream of status 200, kills; and what becomes of records that a receiver refuses.

use crate::harness::config::SPOOL;
use crate::harness::{await_until, pause, Backend, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{Rig, CHAT, CHATS, STREAM};
use rustix::process::Signal;
use serde_json::{json, Value};

/// The record of one request to a backend that answers with these bytes.
fn record_of(path: &str, body: &str, answer: &str) -> Value {
    let (backend, hook) = (Backend::answering(answer), Webhook::start());
    let proxy = Config::backend_at(backend.url()).webhook(&hook.url(), "").start();
    proxy.connect().post(path, "", body);
    hook.await_records(1, SOON).remove(0)
}

fn stream(events: &str) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{events}", events.len())
}

/// Catches: an engine's failure that is billed as a success because its status was 200.
#[test]
fn errors_inside_a_stream_are_recorded() {
    let delta =
        "data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
    let error = "data: {\"error\": {\"message\": \"gone\", \"code\": 500}}\n\n";
    let done = "data: [DONE]\n\n";
    for (events, status, code) in [
        (format!("{delta}{done}"), "complete", Value::Null),
        (format!("{delta}{error}{done}"), "backend_error", json!("error_in_stream")),
        (format!("{error}{done}"), "backend_error", json!("error_in_stream")),
        (delta.to_owned(), "backend_error", json!("stream_unfinished")),
        (format!("{delta}data: [DONE]"), "complete", Value::Null),
        (done.to_owned(), "backend_error", json!("empty_answer")),
        (String::new(), "backend_error", json!("empty_answer")),
    ] {
        let record = record_of(CHATS, STREAM, &stream(&events));
        assert_eq!((&record["status"], &record["error"]), (&json!(status), &code), "{record}");
        assert_eq!(record["status_code"], 200);
        let engine = if events.contains("error") { json!("500") } else { Value::Null };
        assert_eq!(record["engine_error"], engine, "{record}");
    }
}

fn document(body: &str) -> String {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Catches: an answer of status 200 that is none.
#[test]
fn whole_answers_that_are_none_are_recorded() {
    for (body, code, engine) in [
        ("", json!("empty_answer"), Value::Null),
        ("{\"error\":{\"code\":504}}", json!("error_in_answer"), json!("504")),
        ("{\"choices\":[],\"error\":null}", Value::Null, Value::Null),
        ("{\"choices\":[{\"text\":\"a", json!("answer_unfinished"), Value::Null),
    ] {
        let record = record_of(CHATS, CHAT, &document(body));
        let told = (&record["error"], &record["engine_error"]);
        assert_eq!(told, (&code, &engine), "{record}");
        assert_eq!(record["status"] == "complete", code.is_null(), "{record}");
    }
}

/// Catches: a client or a model that writes the bill, and counts that are none and are billed.
#[test]
fn only_the_engines_own_usage_is_billed() {
    let forged = "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":999999}";
    let real = "\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":2}";
    let events = format!(
        ": {{{forged}}}\n\nid: {{{forged}}}\ndata: {{\"metadata\":{{{forged}}},\"choices\":\
         [{{{forged},\"finish_reason\":\"stop\"}}],\ndata: {real}}}\n\n: {{{forged}}}\n\n"
    );
    let record = record_of(CHATS, STREAM, &stream(&events));
    let told = (&record["prompt_tokens"], &record["completion_tokens"], &record["status"]);
    assert_eq!(told, (&json!(8), &json!(2), &json!("complete")), "{record}");
    let odd = "{\"usage\":{\"prompt_tokens\":-5,\"completion_tokens\":2}}";
    let record = record_of(CHATS, CHAT, &document(odd));
    assert_eq!(record["usage_missing_reason"], "count_negative", "{record}");
    assert_eq!((&record["usage_source"], &record["usage"]), (&json!("missing"), &Value::Null));
    let strange = "{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":9,\
                   \"prompt_tokens_details\":{\"cached_tokens\":4}}}";
    let record = record_of(CHATS, CHAT, &document(strange));
    let warnings = json!(["cached_exceeds_prompt", "total_differs"]);
    assert_eq!(record["usage_warnings"], warnings, "{record}");
    assert_eq!((&record["prompt_tokens"], &record["total_tokens"]), (&json!(3), &json!(9)));
    let (text, done) = ("data: {\"choices\":[{\"text\":\"x\"}]}\n\n", "data: [DONE]\n\n");
    let late = format!("\u{feff}data: {{{real}}}\n\n{text}{done}data: {{{forged}}}\n\n");
    let record = record_of(CHATS, STREAM, &stream(&late));
    let told = (&record["prompt_tokens"], &record["completion_tokens"], &record["status"]);
    assert_eq!(told, (&json!(8), &json!(2), &json!("complete")), "{record}");
    assert_eq!(record["events"], 3, "{record}");
    let record = record_of(CHATS, CHAT, &document(&format!("{{{real}}}{{{forged}}}")));
    assert_eq!(record["usage_warnings"], json!(["text_behind"]), "{record}");
    assert_eq!(record["prompt_tokens"], 8, "{record}");
    for half in ["{\"usage\":{\"prompt_tokens\":3}}", "{\"usage\":{\"completion_tokens\":3}}"] {
        let record = record_of(CHATS, CHAT, &document(half));
        let told = (&record["usage_source"], &record["usage_missing_reason"]);
        assert_eq!(told, (&json!("missing"), &json!("count_missing")), "{record}");
    }
    let audio = "{\"text\":\"a\",\"usage\":{\"type\":\"duration\",\"seconds\":37}}";
    let record = record_of("/v1/audio/transcriptions", "{}", &document(audio));
    let told = (&record["audio_seconds"], &record["usage_source"], &record["usage"]);
    assert_eq!(told, (&json!(37), &json!("engine"), &Value::Null), "{record}");
}

/// Catches: an answer that is billed each time it is looked at, an error that is billed, and what
/// was said into a microphone that is read as a bill.
#[test]
fn what_was_not_made_for_the_request_is_not_billed() {
    let body = "{\"usage\":{\"input_tokens\":8,\"output_tokens\":2,\"prompt_tokens\":8}}";
    let answer = document(body);
    let (backend, hook) = (Backend::answering(answer), Webhook::start());
    let proxy = Config::backend_at(backend.url()).webhook(&hook.url(), "").start();
    proxy.connect().get("/v1/responses/resp_1");
    proxy.connect().post("/v1/responses/resp_1/cancel", "", "{}");
    for record in hook.await_records(2, SOON) {
        assert_eq!((&record["usage"], &record["usage_source"]), (&Value::Null, &json!("missing")));
    }
    let failed = document(body).replace("200 OK", "500 Internal Server Error");
    assert_eq!(record_of(CHATS, CHAT, &failed)["usage"], Value::Null);
    let spoken = document(body).replace("application/json", "text/plain");
    let record = record_of("/v1/audio/transcriptions", "{}", &spoken);
    assert_eq!((&record["usage"], &record["status"]), (&Value::Null, &json!("complete")));
}

/// Catches: a client that has all of its answer, and is said to have left.
#[test]
fn a_client_that_closes_behind_the_end_mark_has_not_left() {
    let backend = Backend::start(|served| {
        while served.request().is_some() {
            served.begin_events();
            served.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n");
            served.chunk("data: [DONE]\n\n");
            // The last chunk of the body never comes.
            served.left_within(SOON);
        }
    });
    let hook = Webhook::start();
    let proxy = Config::backend_at(backend.url()).webhook(&hook.url(), "").start();
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    conn.read_until("[DONE]");
    drop(conn);
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["status"], &record["error"]), (&json!("complete"), &Value::Null));
}

/// Catches: a comment or a role that passes for a token, in the time to the first one and in the
/// patience with an engine that is silent otherwise.
#[test]
fn only_what_a_model_said_is_a_token() {
    let rig = Rig::new();
    let knobs = "x-mock-comment-ms: 20\r\nx-mock-ttft-ms: 200\r\nx-mock-tokens: 3\r\n";
    rig.ask(STREAM, knobs).response();
    let record = rig.record();
    let time = |name: &str| record[name].as_u64().unwrap();
    assert!(time("ttft_ms") >= 200 && time("first_byte_ms") < time("ttft_ms"), "{record}");
    let rig = Rig::with("idle_timeout: 60s, first_byte_timeout: 300ms", |config| config);
    rig.ask(STREAM, "x-mock-comment-ms: 20\r\nx-mock-ttft-ms: 60000\r\n").response();
    let record = rig.record();
    assert_eq!(
        (&record["error"], &record["ttft_ms"]),
        (&json!("first_byte_timeout"), &Value::Null)
    );
}

/// Catches: native paths whose counts nobody finds, in bodies, in the last line, in fields.
#[test]
fn native_answers_are_metered() {
    let ndjson = "{\"message\":{\"content\":\"a\"},\"done\":false}\n{\"done\":true,\
                  \"done_reason\":\"stop\",\"prompt_eval_count\":31,\"eval_count\":17}\n";
    let ollama = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{ndjson}",
        ndjson.len()
    );
    let tgi = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-prompt-tokens: 31\r\n\
               x-generated-tokens: 17\r\nContent-Length: 22\r\n\r\n{\"generated_text\":\"a\"}";
    let sglang = stream(
        "data: {\"text\":\"a\",\"meta_info\":{\"prompt_tokens\":31,\"completion_tokens\":17}}\n\n\
         data: [DONE]\n\n",
    );
    for (path, answer) in
        [("/api/chat", ollama.as_str()), ("/generate", tgi), ("/generate", sglang.as_str())]
    {
        let record = record_of(path, "{\"inputs\":\"a\"}", answer);
        let told = (&record["prompt_tokens"], &record["completion_tokens"], &record["status"]);
        assert_eq!(told, (&json!(31), &json!(17), &json!("complete")), "{path}: {record}");
        assert_eq!(record["usage_source"], "engine");
    }
}

/// Catches: counts in a head that are none, and that nobody is told of.
#[test]
fn odd_counts_in_a_head_are_told() {
    for (fields, reason) in [
        ("x-prompt-tokens: -3\r\nx-generated-tokens: 17", "count_negative"),
        ("x-prompt-tokens: 31", "count_missing"),
        ("x-compute-tokens: many", "count_not_a_number"),
    ] {
        let body = "{\"generated_text\":\"a\"}";
        let answer = document(body).replace("\r\n\r\n", &format!("\r\n{fields}\r\n\r\n"));
        let (backend, hook) = (Backend::answering(answer), Webhook::start());
        let proxy = Config::backend_at(backend.url()).webhook(&hook.url(), "").start();
        proxy.connect().post("/generate", "", "{\"inputs\":\"a\"}");
        let record = hook.await_records(1, SOON).remove(0);
        let told = (&record["usage_source"], &record["usage_missing_reason"]);
        assert_eq!(told, (&json!("missing"), &json!(reason)), "{record}");
        proxy.await_metric("llmproxy_usage_odd_total", &[("reason", reason)], 1.0);
        proxy.await_metric("llmproxy_usage_missing_total", &[], 1.0);
    }
}

/// Catches: an endpoint whose engine stopped to count, and of which the metric says nothing.
#[test]
fn each_answer_without_usage_is_counted() {
    let backend = Backend::answering(document("{\"x\":1}"));
    let proxy = Config::backend_at(backend.url()).start();
    let metered = [
        CHATS,
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/audio/transcriptions",
        "/generate",
        "/completion",
        "/api/chat",
    ];
    for (before, path) in metered.into_iter().enumerate() {
        proxy.connect().post(path, "", "{\"x\":1}");
        proxy.await_metric("llmproxy_usage_missing_total", &[], before as f64 + 1.0);
    }
    proxy.connect().post("/tokenize", "", "{\"x\":1}");
    proxy.connect().get("/v1/models");
    let audio = "{\"text\":\"a\",\"usage\":{\"type\":\"duration\",\"seconds\":37}}";
    let (told, hook) = (Backend::answering(document(audio)), Webhook::start());
    let other = Config::backend_at(told.url()).webhook(&hook.url(), "").start();
    other.connect().post("/v1/audio/transcriptions", "", "{}");
    hook.await_records(1, SOON);
    other.await_metric("llmproxy_requests_total", &[("status", "200")], 1.0);
    assert_eq!(other.metric("llmproxy_usage_missing_total", &[]), 0.0);
    assert_eq!(proxy.metric("llmproxy_usage_missing_total", &[]), metered.len() as f64);
}

/// Catches: estimates that nobody asked for, or that pass for an engine's count.
#[test]
fn events_stand_for_tokens_only_where_that_is_asked_for() {
    for (estimates, source, tokens) in
        [(false, "missing", Value::Null), (true, "counted", json!(1))]
    {
        let (engine, hook) = (Engine::start(&[]), Webhook::start());
        let proxy = Config::backend_at(engine.url())
            .section(format!(
                "usage: {{estimate_on_abort: {estimates}, inject_stream_usage: false, reporters: \
                 [{{name: hook, type: webhook, webhook: {{url: \"{}\"}}}}]}}",
                hook.url()
            ))
            .start();
        // The first of the two events tells the role, and nothing that a model said.
        proxy.connect().post(CHATS, "x-mock-die-after: 2\r\nx-mock-gap-ms: 5\r\n", STREAM);
        let record = hook.await_records(1, SOON).remove(0);
        let told = (&record["usage_source"], &record["completion_tokens"], &record["usage"]);
        assert_eq!(told, (&json!(source), &tokens, &Value::Null), "{record}");
    }
}

/// Catches: a stream that vanishes with the process that carried it.
#[test]
fn a_stream_that_is_killed_is_recorded_at_the_next_start() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let scratch = crate::harness::scratch::Scratch::new();
    let config = Config::backend_at(engine.url()).webhook(&hook.url(), "").yaml();
    let config = config.replace(SPOOL, &scratch.file("spool").display().to_string());
    let file = scratch.write("config.yaml", config);
    let start = || {
        let args = ["--config", &file.to_string_lossy()];
        Proxy::start_with(&args, crate::harness::scratch::Scratch::new())
    };
    let proxy = start();
    let mut client = proxy.connect();
    client.start_post(CHATS, "x-mock-gap-ms: 50\r\nx-mock-tokens: 1000\r\n", STREAM);
    let id = client.head().get("x-request-id").unwrap().to_owned();
    client.read_until("data: ");
    proxy.process.signal(Signal::KILL);
    proxy.process.wait(SOON);
    assert!(hook.records().is_empty());
    let _proxy = start();
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["request_id"], &record["status"]), (&json!(id), &json!("aborted")));
    assert_eq!((&record["error"], &record["model"]), (&json!("gateway_killed"), &json!("m")));
}

/// Catches: refused records that are gone, dead letters that nobody can send again, and a replay
/// for which the gateway has to stop.
#[test]
fn refused_records_are_dead_letters_and_can_be_replayed() {
    let refusing = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let refuses = std::sync::Arc::clone(&refusing);
    let is_bad = |body: &[u8]| memchr::memmem::find(body, b"\"model\":\"bad\"").is_some();
    let hook = Webhook::scripted(move |_, delivery| {
        match refuses.load(std::sync::atomic::Ordering::SeqCst) && is_bad(&delivery.body) {
            true => 400,
            false => 204,
        }
    });
    let engine = Engine::start(&[]);
    let scratch = crate::harness::scratch::Scratch::new();
    let spool = scratch.file("spool");
    let yaml = Config::backend_at(engine.url()).webhook(&hook.url(), "retry: 0").yaml();
    let yaml = yaml.replace(SPOOL, &spool.display().to_string());
    let file = scratch.write("config.yaml", yaml).to_string_lossy().into_owned();
    let start = || Proxy::start_with(&["--config", &file], crate::harness::scratch::Scratch::new());
    let proxy = start();
    let bad = CHAT.replace("\"m\"", "\"bad\"");
    let bury = |proxy: &Proxy| {
        let before = proxy.metric("llmproxy_webhook_failure_total", &[]);
        assert_eq!(proxy.post(CHATS, &bad).status(), 200);
        await_until("a dead letter", SOON, || {
            assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
            pause(std::time::Duration::from_millis(20));
            proxy.metric("llmproxy_webhook_failure_total", &[]) > before
        });
        let file = crate::spool::in_a_folder(&spool, "hook.dead.jsonl").unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let letter: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert!(letter["reason"].as_str().unwrap().contains("400"), "{letter}");
        letter["record"]["request_id"].clone()
    };
    let taken = |id: &Value| hook.records().iter().filter(|r| r["request_id"] == *id).count();
    let replay = || {
        let dir = spool.to_string_lossy();
        let args = ["spool", "replay", "--reporter", "hook", "--dead-letters", "--dir", &*dir];
        let ran = crate::harness::proxy::llmproxy(&args);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    };
    // Beside the gateway: it takes them up by itself.
    let first = bury(&proxy);
    let before = taken(&first);
    refusing.store(false, std::sync::atomic::Ordering::SeqCst);
    replay();
    await_until("it came again", SOON, || taken(&first) > before);
    await_until("its file is put aside", SOON, || {
        crate::spool::in_a_folder(&spool, "hook.dead.jsonl.replayed").is_some()
    });
    // And while there is none.
    refusing.store(true, std::sync::atomic::Ordering::SeqCst);
    let second = bury(&proxy);
    proxy.process.signal(Signal::TERM);
    proxy.process.wait(SOON);
    let before = taken(&second);
    refusing.store(false, std::sync::atomic::Ordering::SeqCst);
    replay();
    let _proxy = start();
    await_until("it came again", SOON, || taken(&second) > before);
}

/// Catches: a reporter that is renamed, and whose backlog is gone without a word.
#[test]
fn a_reporter_that_left_is_told_and_gets_its_records_when_it_is_back() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let scratch = crate::harness::scratch::Scratch::new();
    let spool = scratch.file("spool").to_string_lossy().into_owned();
    let start = |name: &str, url: &str| {
        let yaml = Config::backend_at(engine.url()).webhook(url, "").yaml();
        let yaml = yaml.replace(SPOOL, &spool).replace("name: hook", &format!("name: {name}"));
        let file = scratch.write("config.yaml", yaml).to_string_lossy().into_owned();
        Proxy::start_with(&["--config", &file], crate::harness::scratch::Scratch::new())
    };
    let kill = |proxy: Proxy| {
        proxy.process.signal(Signal::KILL);
        proxy.process.wait(SOON);
    };
    let proxy = start("hook", "http://127.0.0.1:1/");
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    kill(proxy);
    let proxy = start("renamed", "http://127.0.0.1:1/");
    let warning = proxy.await_event("a warning that names it", |event| event["reporter"] == "hook");
    assert_eq!((&warning["level"], &warning["undelivered"]), (&json!("WARN"), &json!(1)));
    let hint = format!("llmproxy spool export --dir {spool}/folder-");
    assert!(warning.to_string().contains(&hint), "{warning}");
    let seen = crate::harness::proxy::llmproxy(&["spool", "inspect", "--dir", &spool]).stdout;
    assert!(seen.contains("hook is not configured any more"), "{seen}");
    assert!(!seen.contains("renamed is not"), "{seen}");
    kill(proxy);
    let _proxy = start("hook", &hook.url());
    hook.await_records(1, SOON);
}
