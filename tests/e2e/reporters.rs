//! Where usage records go: webhooks in batches and signed, files, Redis; and what becomes of the
//! records that a receiver does not take.

use crate::clients::is_there;
use crate::harness::backend::Received;
use crate::harness::scratch::Scratch;
use crate::harness::services::free_port;
use crate::harness::{await_some, await_until, pause, Config, Engine, Proxy, Redis, Webhook, SOON};
use crate::rig::{CHAT, CHATS};
use ring::hmac;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

const BAD: &str = r#"{"model":"bad","messages":[{"role":"user","content":"Count."}]}"#;

/// The product before an engine, with a webhook that is configured to the letter.
fn hooked(engine: &Engine, hook: &Webhook, more: &str) -> Proxy {
    let url = hook.url();
    let section = format!("usage: {{reporters: [{{webhook: {{url: \"{url}\", {more}}}}}]}}");
    Config::backend_at(engine.url()).section(section).start()
}

/// Posts so many chats; the ids that the clients saw.
fn post(proxy: &Proxy, count: usize) -> HashSet<String> {
    let mut client = proxy.connect();
    let mut ask = || {
        let answer = client.post(CHATS, "", CHAT);
        assert_eq!(answer.status(), 200);
        answer.head.get("x-request-id").unwrap().to_owned()
    };
    let ids: HashSet<String> = (0..count).map(|_| ask()).collect();
    assert_eq!(ids.len(), count);
    ids
}

fn id_of(record: &Value) -> String {
    record["request_id"].as_str().unwrap().to_owned()
}

/// The records of a delivery, in either form of a batch.
fn records_of(delivery: &Received) -> Vec<Value> {
    let text = std::str::from_utf8(&delivery.body).unwrap();
    match delivery.head.get("content-type").unwrap() {
        "application/x-ndjson" => {
            assert!(text.ends_with('\n'), "{text}");
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
        _ => serde_json::from_str(text).unwrap(),
    }
}

fn is_bad(delivery: &Received) -> bool {
    memchr::memmem::find(&delivery.body, b"\"model\":\"bad\"").is_some()
}

/// Catches: records lost or doubled between batches, batches of one only, a receiver that cannot
/// tell a repeated one or who sent it.
#[test]
fn a_webhook_takes_signed_batches() {
    for (batch, content_type) in [("array", "application/json"), ("ndjson", "application/x-ndjson")]
    {
        // Slower than the requests come, so that they gather; and the first is sent again.
        let hook = Webhook::scripted(|n, _| {
            pause(Duration::from_millis(50));
            if n == 0 {
                503
            } else {
                204
            }
        });
        let engine = Engine::start(&[]);
        let more = format!("batch: {batch}, batch_size: 8, concurrency: 1, hmac_secret: s3cret");
        let proxy = hooked(&engine, &hook, &more);
        let asked = post(&proxy, 30);
        proxy.await_metric("llmproxy_webhook_success_total", &[], 30.0);
        let deliveries = hook.deliveries();
        let mut seen = Vec::new();
        let mut keys = HashSet::new();
        for delivery in &deliveries[1..] {
            assert_eq!(delivery.head.get("content-type"), Some(content_type));
            let records = records_of(delivery);
            assert!(records.len() <= 8);
            let key = delivery.head.get("idempotency-key").unwrap();
            assert!(keys.insert(key), "two batches with one key");
            assert!(key.starts_with(&format!("{}-{}-", id_of(&records[0]), records.len())));
            seen.extend(records.iter().map(id_of));
            let signature = delivery.head.get("x-llmproxy-signature").unwrap();
            let digits = signature.strip_prefix("sha256=").unwrap();
            let bytes: Vec<u8> = (0..digits.len() / 2)
                .map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap())
                .collect();
            let secret = hmac::Key::new(hmac::HMAC_SHA256, b"s3cret");
            hmac::verify(&secret, &delivery.body, &bytes).unwrap();
        }
        assert_eq!(seen.len(), 30, "{batch}");
        assert_eq!(seen.into_iter().collect::<HashSet<_>>(), asked);
        assert!(deliveries.len() < 15, "{} deliveries of 30 records", deliveries.len());
    }
}

/// Catches: records that the receiver does not want and that cost others, in any form.
#[test]
fn what_is_refused_in_a_batch_costs_no_other() {
    for more in ["batch: single", "batch: array", "batch: ndjson, concurrency: 1"] {
        let hook = Webhook::scripted(|_, delivery| if is_bad(delivery) { 422 } else { 204 });
        let engine = Engine::start(&[]);
        let more = format!("{more}, retry: 0");
        let proxy = hooked(&engine, &hook, &more);
        assert_eq!(proxy.post(CHATS, BAD).status(), 200);
        let mut good = 0;
        // It takes others that pass to tell that it is the record.
        await_until("a dead letter", SOON, || {
            good += post(&proxy, 1).len();
            pause(Duration::from_millis(20));
            proxy.metric("llmproxy_webhook_failure_total", &[]) > 0.0
        });
        proxy.await_metric("llmproxy_webhook_success_total", &[], good as f64);
        proxy.await_metric("llmproxy_reporter_queue", &[], 0.0);
        assert_eq!(proxy.metric("llmproxy_webhook_failure_total", &[]), 1.0);
    }
}

/// Catches: records that are thrown out because their receiver lost its token or its route, and an
/// alarm that does not sound, or does not end.
#[test]
fn a_receiver_that_refuses_everything_is_waited_for() {
    let refusing = Arc::new(AtomicBool::new(true));
    let refuses = Arc::clone(&refusing);
    let statuses = [401, 403, 404, 405, 410, 422];
    let hook = Webhook::scripted(move |n, _| match refuses.load(SeqCst) {
        true => statuses[n % statuses.len()],
        false => 204,
    });
    let engine = Engine::start(&[]);
    let proxy = hooked(&engine, &hook, "retry: 0");
    let asked = post(&proxy, 30);
    let reporter = [("reporter", "webhook")];
    proxy.await_metric("llmproxy_reporter_up", &reporter, 0.0);
    let told = |message| move |event: &Value| event["message"] == message;
    let event = proxy.await_event("an alarm", told("usage reports cannot be delivered"));
    assert!(event["cause"].as_str().unwrap().starts_with("it answered 4"), "{event}");
    await_until("it was asked again", SOON, || hook.deliveries().len() > 3);
    assert_eq!(proxy.metric("llmproxy_reporter_dead_letters_total", &reporter), 0.0);
    refusing.store(false, SeqCst);
    // By now it may be asked every half minute only, and a record may go twice.
    await_until("all are taken", 3 * SOON, || {
        proxy.metric("llmproxy_webhook_success_total", &[]) >= 30.0
    });
    proxy.await_event("the end of the alarm", told("usage reports are delivered again"));
    assert_eq!(proxy.metric("llmproxy_reporter_up", &reporter), 1.0);
    assert_eq!(proxy.metric("llmproxy_reporter_dead_letters_total", &reporter), 0.0);
    let taken = hook.records().iter().map(id_of).collect::<HashSet<_>>();
    assert_eq!(taken, asked);
}

/// Catches: bad records of many keys in front of good ones, which stop the lane because each of
/// them is taken for a sign that the receiver is away.
#[test]
fn many_refused_records_in_front_hold_up_no_other() {
    for more in ["retry: 2", "retry: 2, batch: array, batch_size: 50, concurrency: 1"] {
        // Nobody is there yet, so that all of it waits when the receiver comes.
        let is_there = Arc::new(AtomicBool::new(false));
        let comes = Arc::clone(&is_there);
        let hook = Webhook::scripted(move |_, delivery| match comes.load(SeqCst) {
            false => 503,
            true if is_bad(delivery) => 422,
            true => 204,
        });
        let (engine, scratch) = (Engine::start(&[]), Scratch::new());
        let spool = scratch.file("spool");
        let proxy = Config::backend_at(engine.url())
            .section(format!(
                "usage: {{spool: {{dir: \"{}\"}}, reporters: [{{name: hook, webhook: {{url: \
                 \"{}\", {more}}}}}]}}",
                spool.display(),
                hook.url()
            ))
            .start();
        let mut client = proxy.connect();
        let mut bad = HashSet::new();
        for i in 0..30 {
            let field = format!("Authorization: Bearer sk-bad-0123456789-{i}\r\n");
            let answer = client.post(CHATS, &field, BAD);
            bad.insert(answer.head.get("x-request-id").unwrap().to_owned());
        }
        let mut good = post(&proxy, 300);
        is_there.store(true, SeqCst);
        let reporter = [("reporter", "hook")];
        // Records are told to be bad by others that pass between their tries.
        await_until("dead letters", SOON, || {
            good.extend(post(&proxy, 1));
            pause(Duration::from_millis(20));
            proxy.metric("llmproxy_reporter_dead_letters_total", &reporter) >= 30.0
        });
        proxy.await_metric("llmproxy_reporter_queue", &reporter, 0.0);
        let deliveries = hook.deliveries();
        let taken: HashSet<String> = deliveries
            .iter()
            .filter(|delivery| !is_bad(delivery))
            .flat_map(|delivery| match serde_json::from_slice(&delivery.body).unwrap() {
                Value::Array(records) => records,
                record => vec![record],
            })
            .map(|record| id_of(&record))
            .collect();
        assert_eq!(taken, good, "{more}");
        let letters = crate::spool::in_a_folder(&spool, "hook.dead.jsonl").unwrap();
        let letters = std::fs::read_to_string(letters).unwrap();
        assert_eq!(letters.lines().count(), 30, "{more}");
        assert!(bad.iter().all(|id| letters.contains(id)), "{more}");
    }
}

/// Catches: senders that overtake each other within a key, and keys that wait for each other.
#[test]
fn records_of_a_key_keep_their_order_among_several_senders() {
    // The first of each four takes its time.
    let hook = Webhook::scripted(|n, _| {
        pause(Duration::from_millis(if n % 4 == 0 { 30 } else { 0 }));
        if n % 7 == 6 {
            0
        } else {
            204
        }
    });
    let engine = Engine::start(&[]);
    let proxy = hooked(&engine, &hook, "concurrency: 4");
    let mut client = proxy.connect();
    let mut asked: HashMap<usize, Vec<String>> = HashMap::new();
    for i in 0..12 {
        let field = format!("Authorization: Bearer sk-{}-0123456789-{}\r\n", i % 3, i % 3);
        let answer = client.post(CHATS, &field, CHAT);
        asked.entry(i % 3).or_default().push(answer.head.get("x-request-id").unwrap().to_owned());
    }
    proxy.await_metric("llmproxy_webhook_success_total", &[], 12.0);
    let mut seen = hook.records().iter().map(id_of).collect::<Vec<_>>();
    // Each where it came last: that is when it was taken.
    seen.reverse();
    let mut known = HashSet::new();
    seen.retain(|id| known.insert(id.clone()));
    seen.reverse();
    for ids in asked.values() {
        let of_key: Vec<&String> = seen.iter().filter(|id| ids.contains(id)).collect();
        assert_eq!(of_key, ids.iter().collect::<Vec<_>>());
    }
}

/// Catches: one record over which a receiver stumbles, and all others behind it.
#[test]
fn a_record_that_breaks_its_receiver_holds_up_no_other() {
    let hook = Webhook::scripted(|_, delivery| if is_bad(delivery) { 500 } else { 204 });
    let engine = Engine::start(&[]);
    let proxy = hooked(&engine, &hook, "retry: 100");
    assert_eq!(proxy.post(CHATS, BAD).status(), 200);
    post(&proxy, 20);
    proxy.await_metric("llmproxy_webhook_success_total", &[], 20.0);
    assert_eq!(proxy.metric("llmproxy_webhook_failure_total", &[]), 0.0);
}

/// All records of a file and of those that it was rotated to.
fn lines_in(folder: &Path) -> Vec<Value> {
    let mut records = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        // One that is moved meanwhile is there under its new name the next time.
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        records.extend(whole.map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    records
}

/// Catches: records lost at a rotation or a restart, and lines that are no JSON.
#[test]
fn a_file_has_every_record_across_rotations_and_restarts() {
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let folder = scratch.file("usage");
    let config = Config::backend_at(engine.url()).section(format!(
        "usage: {{reporters: [{{type: file, file: {{path: \"{}\", max_size: 4096}}}}]}}",
        folder.join("usage.jsonl").display()
    ));
    let mut asked = HashSet::new();
    for _ in 0..2 {
        let proxy = config.start();
        // Records of a moment go in one batch, which is not parted for a rotation.
        for _ in 0..2 {
            asked.extend(post(&proxy, 10));
            let records = await_some("all records in files", SOON, || {
                let records = folder.exists().then(|| lines_in(&folder))?;
                (records.len() >= asked.len()).then_some(records)
            });
            assert_eq!(records.len(), asked.len());
            assert_eq!(records.iter().map(id_of).collect::<HashSet<_>>(), asked);
        }
    }
    assert!(std::fs::read_dir(&folder).unwrap().count() > 2, "it was not rotated");
}

/// Catches: a client that writes a record of its own into a file, a delivery or an export, and one
/// that makes its own record unreadable.
#[test]
fn a_request_body_cannot_forge_a_record() {
    let (engine, scratch, hook) = (Engine::start(&[]), Scratch::new(), Webhook::start());
    let (file, spool) = (scratch.file("usage.jsonl"), scratch.file("spool"));
    // The second file stands still, so that the spool keeps all of it for the export.
    let still = scratch.file("a-folder");
    std::fs::create_dir(&still).unwrap();
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{include_request_body: true, spool: {{dir: \"{}\"}}, reporters: [\
             {{type: file, file: {{path: \"{}\"}}}}, \
             {{name: still, type: file, file: {{path: \"{}\"}}}}, \
             {{webhook: {{url: \"{}\", batch: ndjson}}}}]}}",
            spool.display(),
            file.display(),
            still.display(),
            hook.url()
        ))
        .start();
    let forged = "{\"request_id\":\"forged\",\"api_key\":\"sk-victim\",\"total_tokens\":1}";
    let bodies = [
        format!("{{\"model\":\"m\",\"messages\":[],\"x\":\n{forged}\n}}"),
        "{\r\n \"model\": \"m\",\r\n \"messages\": [{\"content\": \"\u{2028}{}\"}]\n}".to_owned(),
    ];
    let mut asked = HashSet::new();
    for body in &bodies {
        let answer = proxy.post(CHATS, body);
        assert_eq!(answer.status(), 200, "{body}");
        asked.insert(answer.head.get("x-request-id").unwrap().to_owned());
    }
    let text = await_some("the lines of the file", SOON, || {
        let text = std::fs::read_to_string(&file).ok()?;
        (text.matches("\"request_bytes\"").count() >= 2).then_some(text)
    });
    await_some("the deliveries", SOON, || {
        let sent: Vec<Value> = hook.deliveries().iter().flat_map(records_of).collect();
        (sent.len() >= 2).then_some(())
    });
    let spool = spool.to_string_lossy().into_owned();
    let export = crate::harness::proxy::llmproxy(&["spool", "export", "--dir", &spool]);
    let sent = hook.deliveries().iter().map(|d| d.body.clone()).collect::<Vec<_>>().concat();
    for lines in [text, export.stdout, String::from_utf8(sent).unwrap()] {
        let records: Vec<Value> = lines
            .split_inclusive(['\n', '\r', '\u{2028}'])
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(records.iter().map(id_of).collect::<HashSet<_>>(), asked, "{lines}");
        assert_eq!(records.len(), 2);
        for record in &records {
            let sent = bodies.iter().map(|body| serde_json::from_str::<Value>(body).unwrap());
            assert!(sent.into_iter().any(|body| record["request_body"] == body), "{record}");
        }
    }
}

/// Catches: records that do not reach the stream, or count for another day, key or number; a server
/// that is away for a while and costs any, or has some twice.
#[test]
fn redis_has_every_record_and_counts_it() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let mut server = Redis::start();
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{reporters: [{{type: redis, redis: {{addr: \"{}\", stream: s, \
             counters: c}}}}]}}",
            server.addr()
        ))
        .start();
    let mut asked = post(&proxy, 20);
    server.kill();
    asked.extend(post(&proxy, 10));
    server.start_again();
    asked.extend(post(&proxy, 10));
    proxy.await_metric("llmproxy_reporter_queue", &[], 0.0);
    type Entries = Vec<(String, HashMap<String, String>)>;
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let mut told = redis::cmd("XRANGE");
    let entries: Entries = told.arg(&["s", "-", "+"]).query(&mut connection).unwrap();
    assert_eq!(entries.len(), 40);
    let ids: HashSet<String> = entries.iter().map(|(_, f)| f["request_id"].clone()).collect();
    assert_eq!(ids, asked);
    let days: Vec<String> = redis::cmd("KEYS").arg("c:*:-").query(&mut connection).unwrap();
    let mut count = |day: &String| -> u64 {
        redis::cmd("HGET").arg(&[day, "requests"]).query(&mut connection).unwrap()
    };
    assert_eq!(days.iter().map(&mut count).sum::<u64>(), 40);
}

/// Catches: a user, a certificate or a socket that is not taken as Redis' own clients take it; a
/// server whose certificate nobody vouches for, and that gets records.
#[test]
fn redis_is_reached_as_its_clients_reach_it() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (files, port) = (Scratch::new(), free_port());
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let ca = files.write("server.pem", made.cert.pem()).display().to_string();
    let key = files.write("server.key", made.signing_key.serialize_pem()).display().to_string();
    let socket = files.file("redis.sock").display().to_string();
    let port = port.to_string();
    let more = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &ca,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
        "--unixsocket",
        &socket,
    ];
    let more = more.iter().map(|argument| (*argument).to_owned()).collect();
    let server = Redis::start_with(Scratch::new(), more);
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    let user = ["SETUSER", "metering", "on", ">hunter2", "~s*", "+@all"];
    redis::cmd("ACL").arg(&user).exec(&mut connection).unwrap();
    let reporters = [
        format!("addr: 'rediss://metering:hunter2@localhost:{port}/2', ca_file: '{ca}'"),
        format!(
            "addr: '127.0.0.1:{port}', tls: true, ca_file: '{ca}', username: metering, \
             password: hunter2, db: 2"
        ),
        format!("addr: 'unix://{socket}', username: metering, password: hunter2, db: 2"),
        format!("addr: 'rediss://metering:hunter2@localhost:{port}/2'"),
        format!("addr: 'redis://metering:hunter3@{}/2'", server.addr()),
    ];
    let listed = reporters.iter().enumerate().map(|(index, more)| {
        format!("{{name: r{index}, type: redis, redis: {{stream: s{index}, {more}}}}}")
    });
    let listed: Vec<String> = listed.collect();
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url())
        .section(format!("usage: {{reporters: [{}]}}", listed.join(", ")))
        .start();
    post(&proxy, 3);
    for name in ["r0", "r1", "r2"] {
        proxy.await_metric("llmproxy_reporter_delivered_total", &[("reporter", name)], 3.0);
    }
    redis::cmd("SELECT").arg(2).exec(&mut connection).unwrap();
    for (stream, count) in [("s0", 3), ("s1", 3), ("s2", 3), ("s3", 0), ("s4", 0)] {
        let len: u64 = redis::cmd("XLEN").arg(stream).query(&mut connection).unwrap();
        assert_eq!(len, count, "{stream}");
    }
    for (name, words) in [("r3", "certificate"), ("r4", "refuses the user or the password")] {
        let event = proxy.await_event(name, |event| {
            event["message"] == "usage reports cannot be delivered" && event["reporter"] == name
        });
        let cause = event["cause"].as_str().unwrap();
        assert!(cause.contains(words) && !event.to_string().contains("hunter"), "{event}");
    }
}

/// Catches: a destination that is not there and of which nothing is said before the first record;
/// a start that waits for it.
#[test]
fn destinations_are_looked_at_when_the_proxy_starts() {
    let (scratch, hook) = (Scratch::new(), Webhook::start());
    scratch.write("file", "");
    let below = scratch.file("file").join("usage.jsonl").display().to_string();
    let dead = free_port();
    let proxy = Config::backend_at("http://127.0.0.1:1")
        .section(format!(
            "usage: {{reporters: [{{name: well, type: webhook, webhook: {{url: '{}'}}}}, \
             {{name: path, type: file, file: {{path: '{below}'}}}}, \
             {{name: port, type: redis, redis: {{addr: '127.0.0.1:{dead}'}}}}, \
             {{name: name, type: webhook, webhook: {{url: 'http://no-such-host.invalid/'}}}}]}}",
            hook.url()
        ))
        .start();
    for (name, words) in
        [("path", "Not a directory"), ("port", "refused"), ("name", "no-such-host.invalid")]
    {
        let event =
            proxy.await_event(name, |event| event["level"] == "WARN" && event["reporter"] == name);
        assert!(event["cause"].as_str().unwrap().contains(words), "{event}");
        assert_eq!(proxy.metric("llmproxy_reporter_up", &[("reporter", name)]), 0.0);
    }
    assert_eq!(proxy.metric("llmproxy_reporter_up", &[("reporter", "well")]), 1.0);
    assert_eq!(hook.deliveries().len(), 0);
}
