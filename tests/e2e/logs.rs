//! The access log has a line for each request, in a file that can be rotated; no log and no page
//! ever shows a secret.

use crate::harness::scratch::Scratch;
use crate::harness::secrets::secrets_of;
use crate::harness::{await_until, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{CHAT, CHATS, STREAM};
use rustix::process::Signal;
use serde_json::Value;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

/// A proxy that writes its access log in this form to a file.
fn logging(engine: &Engine, form: &str, file: &Path) -> Proxy {
    Config::new()
        .backend(engine.url(), "name: it")
        .section(format!(
            "logging: {{access: {{format: {form}, output: file, file: {{path: \"{}\"}}}}}}",
            file.display()
        ))
        .start()
}

/// Waits for so many lines.
fn lines(file: &Path, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    await_until(&format!("{count} lines in {}", file.display()), SOON, || {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        lines = text.split_inclusive('\n').map(str::to_owned).collect();
        lines.len() >= count && lines.iter().all(|line| line.ends_with('\n'))
    });
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// Catches: a line without a field that its readers go by, or a request without a line.
#[test]
fn each_request_is_a_line_of_json() {
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let file = scratch.file("access.log");
    let proxy = logging(&engine, "json", &file);
    let answer = proxy.connect().post(
        &format!("{CHATS}?api-version=1"),
        "x-request-id: mine\r\nx-mock-usage: 3,4\r\n",
        CHAT,
    );
    let parsed = |line: &String| -> Value { serde_json::from_str(line).unwrap() };
    let line = parsed(&lines(&file, 1)[0]);
    assert_eq!(line.as_object().unwrap().len(), 25, "{line}");
    for (field, value) in [
        ("client", Value::from("127.0.0.1")),
        ("method", "POST".into()),
        ("path", CHATS.into()),
        ("status", 200.into()),
        ("model", "m".into()),
        ("stream", false.into()),
        ("backend", "it".into()),
        ("backend_url", engine.url().into()),
        ("bytes", answer.body.len().into()),
        ("prompt_tokens", 3.into()),
        ("completion_tokens", 4.into()),
        ("retries", 0.into()),
        ("outcome", "complete".into()),
        ("error", Value::Null),
        ("client_request_id", "mine".into()),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    for field in ["latency_ms", "ttft_ms"] {
        assert!(line[field].is_u64(), "{field}: {line}");
    }
    assert_eq!(line["request_id"].as_str().unwrap().len(), 32, "{line}");
    assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
    // What we refuse has a line too, with its code, and so has what a client gave up.
    proxy.get("/nowhere");
    let refused = parsed(&lines(&file, 2)[1]);
    assert_eq!((&refused["status"], &refused["error"]), (&404.into(), &"unknown_path".into()));
    assert_eq!((&refused["outcome"], &refused["backend"]), (&"refused".into(), &Value::Null));
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "x-mock-stall-before-head: 1\r\n", STREAM);
    await_until("the engine has it", SOON, || engine.posts().len() == 2);
    drop(conn);
    let left = parsed(&lines(&file, 3)[2]);
    assert_eq!((&left["status"], &left["outcome"]), (&499.into(), &"client_left".into()));
}

/// Catches: a text line that the readers of combined logs do not know, or that a client can forge.
#[test]
fn each_request_is_a_line_of_text() {
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let file = scratch.file("access.log");
    let proxy = logging(&engine, "combined", &file);
    let fields = "referer: http://a/?\"x\"\r\nuser-agent: sdk/1\\ (\u{e9})\r\n";
    assert_eq!(proxy.connect().post(&format!("{CHATS}?key=hush"), fields, CHAT).status(), 200);
    let line = lines(&file, 1).remove(0);
    let (client, rest) = line.split_once(" - - [").unwrap();
    let (time, rest) = rest.split_once("] ").unwrap();
    assert_eq!((client, time.len(), &time[20..]), ("127.0.0.1", 26, " +0000"), "{line}");
    let (request, rest) = rest.split_once(" 200 ").unwrap();
    assert_eq!(request, "\"POST /v1/chat/completions HTTP/1.1\"", "{line}");
    let (bytes, rest) = rest.split_once(' ').unwrap();
    assert!(bytes.parse::<u64>().unwrap() > 0, "{line}");
    let said = "\"http://a/?\\x22x\\x22\" \"sdk/1\\x5C (\\xC3\\xA9)\"\n";
    assert_eq!(rest, said, "{line}");
}

/// Catches: lines that go on into a file that was rotated away.
#[test]
fn sigusr1_opens_the_files_anew() {
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let (file, rotated) = (scratch.file("access.log"), scratch.file("access.log.1"));
    let proxy = logging(&engine, "json", &file);
    for _ in 0..3 {
        proxy.get("/nowhere");
    }
    lines(&file, 3);
    std::fs::rename(&file, &rotated).unwrap();
    proxy.get("/nowhere");
    lines(&rotated, 4);
    proxy.process.signal(Signal::USR1);
    // The signal is heard by a thread of its own: until then lines may go to the old file.
    let mut sent = 0;
    await_until("the new file is there", SOON, || {
        proxy.get("/nowhere");
        sent += 1;
        file.exists()
    });
    let count = |file: &Path| std::fs::read_to_string(file).unwrap_or_default().lines().count();
    await_until("no line is lost", SOON, || count(&file) + count(&rotated) == 4 + sent);
    assert!(proxy.process.try_status().is_none());
}

/// Catches: a start that does not say what was started: which program, which file, which driver.
#[test]
fn a_start_says_what_is_started() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let start = proxy.await_event("the start", |event| event["message"] == "starting");
    assert_eq!(start["version"], env!("CARGO_PKG_VERSION"));
    let file = std::fs::read(start["config"].as_str().unwrap()).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &file);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(start["sha256"], hex);
    let run = proxy.await_event("the workers", |event| event["message"] == "workers run");
    let why = proxy
        .events()
        .into_iter()
        .find(|event| event["driver"] == "epoll" && event["why"] != Value::Null);
    assert_eq!(run["driver"] == "epoll", why.is_some(), "{run}");
    if let (Some(why), Ok(_)) = (why, std::env::var("MONOIO_FORCE_LEGACY_DRIVER")) {
        let why = why["why"].as_str().unwrap();
        assert_eq!(why, "asked for by MONOIO_FORCE_LEGACY_DRIVER");
    }
}

/// Catches: a disk that is filled by the log lines of an engine that is down.
#[test]
fn what_fails_again_and_again_is_counted_not_repeated() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Config::new().backend(format!("http://{gone}"), "name: gone").start();
    let told = |message: &str| {
        let mut events = proxy.events();
        events.retain(|e| e["message"] == message && e["code"] == "connect_failed");
        events
    };
    const MORE: &str = "and so many more like this in the last second";
    let mut asked = 0;
    let mut conn = proxy.connect();
    await_until("lines are held back", SOON, || {
        for _ in 0..20 {
            // 503 once it is known to be down.
            assert!([502, 503].contains(&conn.post(CHATS, "", CHAT).status()));
        }
        asked += 20;
        !told(MORE).is_empty()
    });
    await_until("every failure is a line or counted", SOON, || {
        let more = told(MORE).iter().map(|e| e["more"].as_u64().unwrap()).sum::<u64>();
        told("request failed").len() as u64 + more == asked
    });
    let one = &told("request failed")[0];
    assert_eq!(one["backend"], "gone", "{one}");
}

/// Catches: a key in a log line, a metric, a record, or an answer of ours, at the most talkative
/// level.
#[test]
fn no_secret_is_ever_shown() {
    const SECRETS: [&str; 7] = [
        "hush-authorization",
        "hush-x-api-key",
        "hush-query",
        "hush-cookie",
        "hush-backend-key",
        "hush-backend-header",
        "hush-webhook",
    ];
    let (engine, hook, scratch) = (Engine::start(&[]), Webhook::start(), Scratch::new());
    let file = scratch.file("access.log");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Config::new()
        .backend(
            engine.url(),
            "api_key: hush-backend-key, headers: {X-Token: hush-backend-header}, \
             first_byte_timeout: 300ms",
        )
        .section("log: {level: trace, format: json, output: stdout}")
        .section(format!(
            "logging: {{access: {{output: file, file: {{path: \"{}\"}}}}}}",
            file.display()
        ))
        .section(format!(
            "usage: {{reporters: [{{name: good, type: webhook, webhook: {{url: \"{}\", \
             headers: {{Authorization: hush-webhook}}}}}}, {{name: dead, type: webhook, \
             webhook: {{url: \"http://{dead}/hush-webhook?t=hush-webhook\", \
             retry: 0}}}}]}}",
            hook.url()
        ))
        .health_check()
        .start();
    let fields = "Authorization: Bearer hush-authorization\r\nX-API-Key: hush-x-api-key\r\n\
                  Cookie: k=hush-cookie\r\n";
    let target = format!("{CHATS}?api_key=hush-query&key=hush-query");
    let mut shown = String::new();
    for (target, knobs) in [
        (target.as_str(), ""),
        (target.as_str(), "x-mock-stall-before-head: 1\r\n"),
        (target.as_str(), "x-mock-die-before-head: 1\r\n"),
        (target.as_str(), "x-mock-bad: nul-header\r\n"),
        ("/nowhere?api_key=hush-query", ""),
        ("/v1/../x?api_key=hush-query", ""),
        (target.as_str(), "Bad Field: x\r\n"),
    ] {
        let answer = proxy.connect().post(target, &format!("{fields}{knobs}"), STREAM);
        shown.push_str(&format!("{:?} {}", answer.head, answer.text()));
    }
    // It is dead, and each record is tried until it is not.
    proxy.await_metric("llmproxy_reporter_queue", &[], 4.0);
    hook.await_records(4, SOON);
    hook.records().iter().for_each(|record| shown.push_str(&record.to_string()));
    shown.push_str(&proxy.metrics().text);
    proxy.process.signal(Signal::TERM);
    assert!(proxy.process.wait(SOON).success());
    shown.push_str(&std::fs::read_to_string(&file).unwrap());
    shown.push_str(&proxy.process.stdout.text());
    shown.push_str(&proxy.process.stderr.text());
    assert!(shown.contains("listening") && shown.contains("first_byte_timeout"), "{shown}");
    for secret in SECRETS {
        let at = shown.find(secret);
        let around =
            at.map(|at| String::from_utf8_lossy(&shown.as_bytes()[at.saturating_sub(200)..at]));
        assert_eq!(around, None, "{secret}");
    }
    // They did their work all the same.
    let head = engine.posts()[0]["head"].to_string();
    assert!(head.contains("Bearer hush-backend-key") && head.contains("hush-backend-header"));
    assert!(!head.contains("hush-authorization") && !head.contains("hush-x-api-key"), "{head}");
    assert_eq!(hook.deliveries()[0].head.get("authorization"), Some("hush-webhook"));
}

/// Catches: a search for secrets, which every proxy of every test ends with, that finds none.
#[test]
fn every_proxy_is_searched_for_its_secrets() {
    let yaml =
        "admin: {token: planted-1}\nx:\n  password: \"planted-2\"\n  keys: [{key: planted-3}]\n\
                url: redis://:planted-4@host:1/0, key_pattern: planted-5, key: ${PLANTED}\n\
                tls: {key: /etc/planted}";
    let wanted = ["planted-1", "planted-2", "planted-3", "planted-4"];
    assert_eq!(secrets_of(yaml).into_iter().collect::<Vec<_>>(), wanted);
    let fails = |act: &mut dyn FnMut()| catch_unwind(AssertUnwindSafe(act)).is_err();
    // What is no secret at all is told everywhere: the name of a backend.
    let start = |key: &str| {
        Config::new()
            .backend("http://127.0.0.1:9", &format!("name: planted-name, api_key: {key}"))
            .start()
    };
    let told = start("planted-name");
    assert!(fails(&mut || drop(told.metrics())), "it is on the metrics page");
    told.post(CHATS, CHAT);
    told.await_event("its name", |event| event.to_string().contains("planted-name"));
    let mut told = Some(told);
    assert!(fails(&mut || drop(told.take())), "it is in the log");
    let quiet = start("planted-key");
    quiet.metrics();
    quiet.post(CHATS, CHAT);
}
