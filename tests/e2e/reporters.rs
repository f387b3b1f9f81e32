//! Where usage records go: webhooks in batches and signed, files, Redis; and what becomes of the
//! records that a receiver does not take.

use crate::harness::backend::Received;
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, pause, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{CHAT, CHATS};
use ring::hmac;
use serde_json::Value;
use std::collections::HashSet;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const BAD: &str = r#"{"model":"bad","messages":[{"role":"user","content":"Count."}]}"#;

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
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), &more).start();
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
    for more in ["", "batch: array", "batch: ndjson, concurrency: 1"] {
        let hook = Webhook::scripted(|_, delivery| if is_bad(delivery) { 422 } else { 204 });
        let engine = Engine::start(&[]);
        let more = format!("{more}{}retry: 0", if more.is_empty() { "" } else { ", " });
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), &more).start();
        assert_eq!(proxy.post(CHATS, BAD).status(), 200);
        post(&proxy, 20);
        proxy.await_metric("llmproxy_webhook_failure_total", &[], 1.0);
        proxy.await_metric("llmproxy_webhook_success_total", &[], 20.0);
        proxy.await_metric("llmproxy_reporter_queue", &[], 0.0);
    }
}

/// Catches: one record over which a receiver stumbles, and all others behind it.
#[test]
fn a_record_that_breaks_its_receiver_holds_up_no_other() {
    let hook = Webhook::scripted(|_, delivery| if is_bad(delivery) { 500 } else { 204 });
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "retry: 100").start();
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
    for run in 1..=2 {
        let proxy = config.start();
        asked.extend(post(&proxy, 20));
        let records = await_some("all records in files", SOON, || {
            let records = folder.exists().then(|| lines_in(&folder))?;
            (records.len() >= 20 * run).then_some(records)
        });
        assert_eq!(records.len(), 20 * run);
        assert_eq!(records.iter().map(id_of).collect::<HashSet<_>>(), asked);
    }
    assert!(std::fs::read_dir(&folder).unwrap().count() > 2, "it was not rotated");
}

/// A Redis server that ends with its owner.
struct Redis {
    process: Child,
    port: u16,
    _folder: Scratch,
}

impl Redis {
    /// `None` where the program is not installed.
    fn start() -> Option<Redis> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = Scratch::new();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"]);
        let Ok(process) = command.arg(folder.path()).stdout(Stdio::null()).spawn() else {
            eprintln!("redis-server is not installed: not tested");
            return None;
        };
        let redis = Redis { process, port, _folder: folder };
        await_until("it listens", SOON, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(redis)
    }

    fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_connection().unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Catches: records that do not reach the stream, or count for another day, key or number.
#[test]
fn redis_has_every_record_and_counts_it() {
    let Some(redis) = Redis::start() else { return };
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{reporters: [{{type: redis, redis: {{addr: \"127.0.0.1:{}\", stream: s, \
             counters: c}}}}]}}",
            redis.port
        ))
        .start();
    let asked = post(&proxy, 20);
    proxy.await_metric("llmproxy_reporter_queue", &[], 0.0);
    type Entries = Vec<(String, std::collections::HashMap<String, String>)>;
    let entries: Entries = redis.ask(&["XRANGE", "s", "-", "+"]);
    assert_eq!(entries.len(), 20);
    let ids: HashSet<String> = entries.iter().map(|(_, f)| f["request_id"].clone()).collect();
    assert_eq!(ids, asked);
    let days: Vec<String> = redis.ask(&["KEYS", "c:*:-"]);
    let count = |day: &String| redis.ask::<u64>(&["HGET", day, "requests"]);
    assert_eq!(days.iter().map(count).sum::<u64>(), 20);
}
