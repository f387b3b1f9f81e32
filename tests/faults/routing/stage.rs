//! Three engines, a gateway before them, clients, and who looks on.

use super::crowd::{Crowd, Fate, Group};
use crate::harness::metrics::Metrics;
use crate::harness::{await_some, await_until, pause, Config, Conn, Engine, Proxy, SOON};
use crate::load::{CHAT, STREAM};
use crate::receiver::Receiver;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What every engine is like: a first token after 20 ms, eight tokens, 10 ms apart.
pub const PACE: [&str; 6] = ["--tokens", "8", "--ttft-ms", "20", "--gap-ms", "10"];
/// Any status that says that the engine failed, or that it is full.
pub const RETRY: &str = "retry: {max_retries: 3, initial_wait: 50ms, max_wait: 500ms, \
                         retry_on: [connect_failure, 429, 5xx, timeout]}";
/// The engine with which something is wrong is the last one.
pub const ODD: usize = 2;
/// From one look at the gateway's counters to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A backend has its share again when it got a fifth of the tries of a second; a third is fair.
const SHARE_SPAN: Duration = Duration::from_secs(1);
const SHARE_LEAST: f64 = 0.2;
const SHARE_TRIES_LEAST: f64 = 6.0;
/// The longest that an engine may take to have its share again, on any machine: the rest of an
/// ejection of five seconds, and what a machine that has other things to do adds to that.
const BACK_MAX: Duration = Duration::from_secs(30);
/// The longest that it may take until there were enough requests.
const LOAD_MAX: Duration = Duration::from_secs(120);
/// A scenario with fewer requests than that has shown nothing: it goes on until it had them.
const LOAD_LEAST: usize = 50;

/// Streams and others, some hundred requests a second.
pub const GROUPS: [Group; 2] = [
    Group { count: 6, body: CHAT, rest: Duration::from_millis(60) },
    Group { count: 6, body: STREAM, rest: Duration::from_millis(100) },
];

/// An engine on an address that nobody else takes while it is away.
pub fn engine(number: usize, more: &[&str]) -> Engine {
    engine_at(&format!("127.0.1.{}:0", number + 1), more)
}

/// One at this very place.
pub fn engine_at(place: &str, more: &[&str]) -> Engine {
    Engine::start(&[&["--listen", place], &PACE[..], more].concat())
}

/// The three of them.
pub fn engines(more: &[&str]) -> Vec<Engine> {
    (0..=ODD).map(|number| engine(number, more)).collect()
}

/// A configuration that names engines `a`, `b` and `c` at these addresses.
pub fn config(urls: &[String], receiver: &Receiver, routing: &str, more: &str) -> Config {
    let named = urls.iter().zip('a'..);
    let config = named.fold(common(receiver, routing), |config, (url, name)| {
        config.backend(url, &format!("name: {name}{more}"))
    });
    config.section(
        "health_check: {interval: 250ms, timeout: 500ms, path: /health, \
         unhealthy_threshold: 2, healthy_threshold: 1}",
    )
}

/// The same without backends and probes.
pub fn common(receiver: &Receiver, routing: &str) -> Config {
    Config::new()
        .server("workers: 2")
        .section("log: {level: info, format: json, output: stdout}")
        .section(format!("routing: {{{routing}}}"))
        .webhook(&receiver.url(), "batch: array")
}

/// All that is at work during a scenario.
pub struct Stage {
    /// The engines that are there.
    pub engines: Vec<Engine>,
    /// The gateway.
    pub proxy: Proxy,
    receiver: Receiver,
    crowd: Crowd,
    watch: Watch,
    /// Where the odd engine was, while it is not there.
    pub gone: Option<SocketAddr>,
    /// What engines had logged that are gone.
    logged: Vec<Value>,
}

/// What a scenario found.
#[derive(Debug)]
pub struct Findings {
    /// Requests of clients.
    pub requests: usize,
    /// Those that got an error, or nothing, though nothing had been sent to them.
    pub failed: Vec<Fate>,
    /// Those whose answer broke off, or told of an error, after it had begun.
    pub cut: usize,
    /// Requests that more than one engine had.
    pub twice: usize,
    /// Requests that more than one engine answered well.
    pub doubled: usize,
    /// How often requests had the odd engine ejected that was in.
    pub ejected: usize,
    /// How long the fault lasted.
    pub lasted: Duration,
    /// From the fault to the last try at the odd engine, while the fault lasted.
    pub used_for: Option<Duration>,
    /// From the end of the fault until it had its share again.
    pub back_after: Option<Duration>,
    /// The metrics at the end.
    pub metrics: Metrics,
}

impl Stage {
    /// Before these engines, under load, when each of the backends with these names has had some.
    pub fn start(
        engines: Vec<Engine>,
        (receiver, config): (Receiver, &Config),
        (groups, names, well): (&[Group], [&'static str; 3], usize),
    ) -> Stage {
        let proxy = config.start();
        let crowd = Crowd::start(proxy.addr(), engines[0].addr(), groups);
        let watch = Watch::start(proxy.addr(), names);
        let (gone, logged) = (None, Vec::new());
        let stage = Stage { engines, proxy, receiver, crowd, watch, gone, logged };
        await_until("all that are well are asked", SOON, || {
            stage.watch.last().is_some_and(|tries| tries[..well].iter().all(|n| *n >= 5.0))
        });
        stage
    }

    /// The odd engine is killed.
    pub fn kill(&mut self) {
        let engine = self.engines.remove(ODD);
        self.logged.append(&mut engine.posts());
        self.gone = Some(engine.addr());
        engine.process.signal(Signal::KILL);
        engine.process.wait(SOON);
    }

    /// One starts in its place.
    pub fn revive(&mut self, more: &[&str]) {
        let place = self.gone.take().unwrap();
        self.engines.push(engine_at(&place.to_string(), more));
    }

    /// Waits until the odd engine has its share; gives how long that took since then.
    pub fn await_share(&self, since: Instant) -> Duration {
        await_some("it has its share", BACK_MAX, || self.watch.has_share_at(since)) - since
    }

    /// From a moment to the last try at the odd engine before another one.
    pub fn used_for(&self, from: Instant, to: Instant) -> Duration {
        self.watch.last_try(from, to).map_or(Duration::ZERO, |at| at - from)
    }

    /// The share of the odd engine between two moments.
    pub fn share(&self, from: Instant, to: Instant) -> f64 {
        self.watch.share(from, to)
    }

    /// Ends the load, waits until each request has its record, and counts.
    pub fn finish(mut self, used_for: Option<Duration>, back: Option<Duration>) -> Findings {
        await_until("there was a load", LOAD_MAX, || self.crowd.count() > LOAD_LEAST);
        let fates = self.crowd.stop();
        self.watch.stop();
        let requests = fates.len();
        await_until("each request has its record", 2 * SOON, || {
            self.receiver.seen().len() >= requests
        });
        let records = self.receiver.seen();
        assert_eq!(records.len(), requests, "a record for each request, and no other");
        assert!(records.values().all(|record| record.times == 1), "a record that came twice");
        self.proxy.await_metric("llmproxy_inflight", &[], 0.0);
        self.engines.iter().for_each(|engine| self.logged.append(&mut engine.posts()));
        let mut had = HashMap::<&str, [usize; 2]>::new();
        for post in &self.logged {
            // What was asked of an engine to know what is to come has no id.
            let Some(id) = post["x_request_id"].as_str() else { continue };
            let [times, served] = had.entry(id).or_default();
            *times += 1;
            *served += usize::from(post["served"] == true);
        }
        let is_ejection =
            |event: &&Value| event["message"] == "backend is ejected" && event["backend"] == "c";
        let count = |fate: Fate| fates.iter().filter(|it| **it == fate).count();
        assert_eq!(count(Fate::Wrong), 0, "every byte as it was sent");
        Findings {
            requests,
            failed: fates.iter().filter(|it| matches!(it, Fate::Failed(_))).copied().collect(),
            cut: count(Fate::Cut),
            twice: had.values().filter(|[times, _]| *times > 1).count(),
            doubled: had.values().filter(|[_, served]| *served > 1).count(),
            ejected: self.proxy.events().iter().filter(is_ejection).count(),
            lasted: Duration::ZERO,
            used_for,
            back_after: back,
            metrics: self.proxy.metrics(),
        }
    }
}

/// Tries at each of three backends, at a moment.
type Look = (Instant, [f64; 3]);

/// Looks at the gateway's counters now and then.
struct Watch {
    running: Arc<AtomicBool>,
    looks: Arc<Mutex<Vec<Look>>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(proxy: SocketAddr, names: [&'static str; 3]) -> Watch {
        let (running, looks) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<_>>>::default());
        let (goes_on, kept) = (Arc::clone(&running), Arc::clone(&looks));
        let thread = std::thread::spawn(move || {
            let mut conn = Conn::open(proxy);
            while goes_on.load(Ordering::SeqCst) {
                let page = Metrics::parse(&conn.get("/metrics").text());
                let name = "llmproxy_backend_picked_total";
                let tries = names.map(|backend| page.sum(name, &[("backend", backend)]));
                kept.lock().unwrap().push((Instant::now(), tries));
                pause(LOOK_EVERY);
            }
        });
        Watch { running, looks, thread: Some(thread) }
    }

    fn stop(&mut self) {
        self.running.store(false, Ordering::SeqCst);
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }

    fn last(&self) -> Option<[f64; 3]> {
        self.looks.lock().unwrap().last().map(|(_, tries)| *tries)
    }

    /// When the odd one last got a try between two moments.
    fn last_try(&self, from: Instant, to: Instant) -> Option<Instant> {
        let looks = self.looks.lock().unwrap();
        let pairs = looks.windows(2).filter(|pair| pair[1].0 > from && pair[1].0 <= to);
        pairs.filter(|pair| pair[1].1[ODD] > pair[0].1[ODD]).map(|pair| pair[1].0).next_back()
    }

    fn share(&self, from: Instant, to: Instant) -> f64 {
        let looks = self.looks.lock().unwrap();
        let within: Vec<_> = looks.iter().filter(|(at, _)| *at >= from && *at <= to).collect();
        let (Some(first), Some(last)) = (within.first(), within.last()) else { return 0.0 };
        let tries = |at: usize| last.1[at] - first.1[at];
        tries(ODD) / (0..3).map(tries).sum::<f64>().max(1.0)
    }

    /// The first moment after this one by which the odd one had its share of the last second.
    fn has_share_at(&self, since: Instant) -> Option<Instant> {
        let looks = self.looks.lock().unwrap();
        looks.iter().filter(|(at, _)| *at > since).find_map(|(at, tries)| {
            let begin = looks.iter().rfind(|(before, _)| *before + SHARE_SPAN <= *at)?;
            let got = |place: usize| tries[place] - begin.1[place];
            let all: f64 = (0..3).map(got).sum();
            (all >= SHARE_TRIES_LEAST && got(ODD) >= SHARE_LEAST * all).then_some(*at)
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A scenario that failed must not leave it behind, asking a gateway that is gone.
        self.running.store(false, Ordering::SeqCst);
    }
}
