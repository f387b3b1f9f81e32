//! Reloads under load: the configuration changes all the time, every fifth file is broken, backends
//! come, go and are renamed, and no client notices.
//!
//! A short form runs with the other tests; `LLMPROXY_RELOADS=1000` is the long one.

use crate::harness::message::Ended;
use crate::harness::metrics::{Metrics, Sample};
use crate::harness::{await_until, heavy, pause, Backend, Config, Conn, Proxy, Webhook, SOON};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// From one reload to the next.
const PERIOD: Duration = Duration::from_millis(20);
/// Events of a stream, and the time between two.
const EVENTS: u64 = 20;
const GAP: Duration = Duration::from_millis(60);
/// Each client that does not stream asks so often.
const ASKS_EVERY: Duration = Duration::from_millis(50);
/// Names of backends.
const NAMES: u64 = 8;
/// Memory that may be more at the end than it was after the first quarter.
const GROWTH_MAX: u64 = 12 << 20;

/// As llama.cpp says that it is loading. Its connection ends with that.
const LOADING: &str = "HTTP/1.1 503 X\r\nContent-Type: application/json\r\nContent-Length: 75\r\n\
                       Connection: close\r\n\r\n\
                       {\"error\":{\"message\":\"Loading model\",\"type\":\"unavailable_error\",\
                       \"code\":503}}";

/// An engine that signs its answers, and that knows a request which was meant for another one: the
/// proxy sends each backend a field with the name of its engine.
struct Engine {
    backend: Backend,
    signature: String,
    strangers: Arc<AtomicU64>,
    /// It says that it is loading its model, to whatever it is asked, and closes.
    is_sick: Arc<AtomicBool>,
}

impl Engine {
    fn start(number: usize) -> Engine {
        let strangers = Arc::new(AtomicU64::new(0));
        let (signature, counted) = (format!("engine-{number}"), Arc::clone(&strangers));
        let own = signature.clone();
        let is_sick = Arc::new(AtomicBool::new(false));
        let sick = Arc::clone(&is_sick);
        let backend = Backend::start(move |served| {
            while let Some(request) = served.request() {
                if sick.load(Ordering::Relaxed) {
                    served.send(LOADING);
                    return;
                }
                if request.head.get("x-engine") != Some(&own) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                let id = request.head.get("x-client").unwrap_or_default().to_owned();
                if memchr::memmem::find(&request.body, b"\"stream\":true").is_none() {
                    let body = format!("{own} {id}");
                    served.send(format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    continue;
                }
                served.begin_events();
                for n in 0..EVENTS {
                    served.chunk(&event(&own, &id, n));
                    pause(GAP);
                }
                served.chunk("data: [DONE]\n\n");
                served.send("0\r\n\r\n");
            }
        });
        Engine { backend, signature, strangers, is_sick }
    }
}

fn event(signature: &str, id: &str, n: u64) -> String {
    format!("data: {{\"engine\":\"{signature}\",\"client\":\"{id}\",\"n\":{n}}}\n\n")
}

/// Clients that go on until they are told not to. Whatever is not as it should be is a panic.
struct Clients {
    running: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Clients {
    fn start(proxy: SocketAddr, streams: u32, others: u32) -> Clients {
        let running = Arc::new(AtomicBool::new(true));
        let start = |number: u32| {
            let running = Arc::clone(&running);
            let streams = number < streams;
            let body = move || {
                // Not all at the same moment.
                pause(GAP * (number % 16));
                let mut conn = Conn::open(proxy);
                let mut count = 0;
                while running.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    let id = format!("{number}-{count}");
                    match streams {
                        true => stream(&mut conn, &id),
                        false => {
                            ask(&mut conn, &id);
                            pause(ASKS_EVERY.saturating_sub(began.elapsed()));
                        }
                    }
                    count += 1;
                }
                count
            };
            thread::Builder::new().stack_size(256 << 10).spawn(body).unwrap()
        };
        let threads = (0..streams + others).map(start).collect();
        Clients { running, threads }
    }

    /// Requests that were answered, all of them well.
    fn stop(self) -> u64 {
        self.running.store(false, Ordering::Relaxed);
        let counts = self.threads.into_iter().map(JoinHandle::join);
        counts.map(|count| count.expect("a client saw something wrong")).sum()
    }
}

fn ask(conn: &mut Conn, id: &str) {
    let fields = format!("X-Client: {id}\r\n");
    let answer = conn.post("/v1/chat/completions", &fields, "{\"model\":\"m\"}");
    assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{}", answer.text());
    let text = answer.text();
    let (engine, client) = text.split_once(' ').unwrap();
    assert!(engine.starts_with("engine-") && client == id, "{text} for {id}");
}

fn stream(conn: &mut Conn, id: &str) {
    let fields = format!("X-Client: {id}\r\n");
    let body = "{\"stream\":true,\"model\":\"m\"}";
    let answer = conn.post("/v1/chat/completions", &fields, body);
    assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{}", answer.text());
    let text = answer.text();
    let engine = text.split('"').nth(3).unwrap_or_default();
    let events: String = (0..EVENTS).map(|n| event(engine, id, n)).collect();
    assert_eq!(text, events + "data: [DONE]\n\n", "every byte as it was sent");
}

/// Numbers without a pattern, the same for the same seed.
pub struct Random(pub u64);

impl Random {
    /// The next, from 0 on.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

/// Some of the engines, under some of their names.
fn some(engines: &[Engine], hook: &Webhook, random: &mut Random) -> Config {
    let mut config = Config::new()
        .webhook(&hook.url(), "batch: array")
        .server("workers: 2")
        .server(format!("max_body_size: {}KiB", 64 + random.below(64)))
        .section("log: {level: info, format: json, output: stdout}");
    config = match random.below(2) {
        0 => config.health_check(),
        _ => config.section("health_check: {enabled: false}"),
    };
    // One stays all the time, so that its numbers can be followed. At another place nobody is.
    let (weight, always) = (1 + random.below(3), &engines[0]);
    let more = format!("name: always, weight: {weight}, headers: {{X-Engine: engine-0}}");
    config = config.backend(always.backend.url(), &more);
    if random.below(2) == 0 {
        config = config.backend("http://127.0.0.1:1", "name: nobody");
    }
    // Names change hands: what went to the backend of a name must not go there any more when it is
    // another engine's.
    let first_name = random.below(NAMES);
    for (number, engine) in engines.iter().enumerate().skip(1) {
        if random.below(3) == 0 {
            continue;
        }
        let (name, weight) = ((first_name + number as u64) % NAMES, 1 + random.below(3));
        let signature = &engine.signature;
        let more = format!("name: n{name}, weight: {weight}, headers: {{X-Engine: {signature}}}");
        config = config.backend(engine.backend.url(), &more);
    }
    config
}

/// A file that is not taken: cut off, emptied, huge, or wrong in itself.
fn broken(yaml: &str, random: &mut Random) -> String {
    match random.below(5) {
        0 => yaml.split_at(yaml.rfind(", weight").unwrap()).0.to_owned(),
        1 => String::new(),
        2 => format!("{yaml}# {}", "x".repeat(2 << 20)),
        3 => yaml.replace("weight: ", "weight: x"),
        _ => yaml.replace("name: ", "nmae: ") + "usage: [\n",
    }
}

/// The records of all batches.
fn all_of(hook: &Webhook) -> Vec<Value> {
    let batches = hook.records().into_iter();
    batches.flat_map(|batch| batch.as_array().cloned().unwrap_or_default()).collect()
}

/// Reads the log for what becomes of reloads, each line once.
struct Outcomes(usize);

impl Outcomes {
    fn next(&mut self, proxy: &Proxy) -> bool {
        let began = Instant::now();
        loop {
            for line in proxy.process.stdout.from(self.0) {
                self.0 += 1;
                if line.contains("\"configuration reloaded\"") {
                    return true;
                }
                if line.contains("\"configuration not reloaded") {
                    return false;
                }
            }
            assert!(began.elapsed() < SOON, "no word of a reload");
            pause(Duration::from_millis(2));
        }
    }
}

/// The counters of a page that go on over every reload: those of the backend that stays, and those
/// of no backend.
fn lasting(page: &Metrics) -> BTreeMap<String, f64> {
    let is_counter = |name: &str| {
        ["_total", "_count", "_sum", "_bucket"].iter().any(|suffix| name.ends_with(suffix))
    };
    let lasts = |sample: &&Sample| {
        let is_backend = |name: &str| matches!(name, "backend" | "server_address");
        let of = sample.labels.iter().find(|(name, _)| is_backend(name));
        is_counter(&sample.name) && of.is_none_or(|(_, backend)| backend == "always")
    };
    let named = |it: &Sample| (format!("{} {:?}", it.name, it.labels), it.value);
    page.samples.iter().filter(lasts).map(named).collect()
}

/// Catches: a request that fails or is cut because the configuration changed, bytes of another
/// engine or of another request, connections that are lent to another backend than the one they
/// lead to, records that are lost, counters that fall or begin anew, and what a reload leaves
/// behind: memory, connections, numbers. One of the engines is not well half of the time.
#[test]
fn reloads_under_load_are_not_noticed() {
    let _alone = heavy();
    let reloads: u64 = std::env::var("LLMPROXY_RELOADS").map_or(100, |n| n.parse().unwrap());
    let (streams, others) = if reloads >= 1000 { (300, 25) } else { (40, 5) };
    let engines: Vec<Engine> = (0..6).map(Engine::start).collect();
    let mut random = Random(7);
    let hook = Webhook::start();
    let proxy = Proxy::start(&some(&engines, &hook, &mut random).yaml());
    let files = proxy.open_files();
    let clients = Clients::start(proxy.addr(), streams, others);
    let (mut outcomes, mut failed, mut quarter) = (Outcomes(0), 0, 0);
    for n in 0..reloads {
        let began = Instant::now();
        engines[5].is_sick.store(n / 7 % 2 == 1, Ordering::Relaxed);
        let yaml = some(&engines, &hook, &mut random).yaml();
        let before = lasting(&proxy.metrics());
        let is_broken = n % 5 == 4;
        match is_broken {
            true => std::fs::write(proxy.config_file(), broken(&yaml, &mut random)).unwrap(),
            false => proxy.rewrite(&yaml),
        }
        proxy.process.signal(Signal::HUP);
        assert_eq!(outcomes.next(&proxy), !is_broken, "{n}: {yaml}");
        failed += u64::from(is_broken);
        let after = lasting(&proxy.metrics());
        for (series, value) in &before {
            let now = after.get(series);
            assert!(now.is_some_and(|now| now >= value), "{n}: {series} {value} then {now:?}");
        }
        if n == reloads / 4 {
            quarter = proxy.resident_bytes();
        }
        pause(PERIOD.saturating_sub(began.elapsed()));
    }
    let answered = clients.stop();
    let end = proxy.resident_bytes();
    println!("{reloads} reloads, {failed} broken; {answered} answers; {quarter} then {end} bytes");
    assert!(end < quarter + GROWTH_MAX, "{quarter} bytes after a quarter, {end} at the end");
    assert!(answered >= u64::from(streams + others));
    assert!(proxy.metrics().sum("llmproxy_retries_total", &[]) > 0.0, "nobody was sick");
    engines.iter().for_each(|engine| assert_eq!(engine.strangers.load(Ordering::Relaxed), 0));
    proxy.await_metric("llmproxy_config_reload_failure_total", &[], failed as f64);
    proxy.await_metric("llmproxy_config_reload_success_total", &[], (reloads - failed) as f64);
    proxy.await_metric("llmproxy_inflight", &[], 0.0);
    let mut records = Vec::new();
    await_until("each request has its record", 2 * SOON, || {
        let settled = proxy.metric("llmproxy_reporter_queue", &[]) == 0.0;
        records = if settled { all_of(&hook) } else { Vec::new() };
        records.len() as u64 >= answered
    });
    let ids: HashSet<&str> = records.iter().filter_map(|it| it["request_id"].as_str()).collect();
    assert_eq!((records.len() as u64, ids.len() as u64), (answered, answered));
    assert!(records.iter().all(|record| record["status"] == "complete"));
    let last = Config::new().server("workers: 2").webhook(&hook.url(), "batch: array");
    let last = last.backend(engines[0].backend.url(), "name: last");
    assert!(proxy.reload_with(&last));
    await_until("what the others left is gone", SOON, || {
        let page = proxy.metrics().text;
        let is_gone = |n: u64| !page.contains(&format!("backend=\"n{n}\""));
        (0..NAMES).all(is_gone) && proxy.open_files() <= files + 4
    });
}
