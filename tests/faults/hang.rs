//! A disk that hangs: no call of the proxy that changes a file comes back, whichever of its threads
//! makes it, for as long as the test wants. A worker that made one would stand still.

use crate::harness::process::Process;
use crate::harness::{await_until, Config, Conn, Engine, Proxy, SOON};
use crate::load::CHAT;
use crate::receiver::Receiver;
use crate::trace::{may_trace, TRACE};
use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

const CHATS: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"a"}]}"#;
/// Requests that are more than the smallest ring holds.
const MANY: usize = 1500;
/// How long all that waited may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A proxy, and what is around it.
struct Stage {
    engine: Engine,
    receiver: Receiver,
    proxy: Proxy,
    /// Ids of requests that were answered.
    asked: HashSet<String>,
}

impl Stage {
    /// `None` where processes may not be traced.
    fn set(policy: &str) -> Option<Stage> {
        if !may_trace() {
            return None;
        }
        let (engine, receiver) = (Engine::start(&["--log", "200000"]), Receiver::start());
        let yaml = Config::backend_at(engine.url())
            .section(format!(
                "usage: {{spool: {{dir: @spool@, ring_size: 64KiB, on_spool_failure: {policy}}}, \
                 reporters: [{{name: hook, type: webhook, webhook: {{url: \"{}\"}}}}]}}",
                receiver.url()
            ))
            .section("log: {level: info, format: json, output: stdout}")
            .yaml();
        let proxy = Proxy::start_through(&["python3", TRACE, "allow"], &yaml);
        let mut stage = Stage { engine, receiver, proxy, asked: HashSet::new() };
        let mut conn = stage.proxy.connect();
        assert!(stage.ask(&mut conn));
        let (seen, asked) = (&stage.receiver, &stage.asked);
        await_until("a first record", SOON, || has_all(seen, asked));
        Some(stage)
    }

    /// One request: true when it was answered, false when it was refused for want of a record.
    fn ask(&mut self, conn: &mut Conn) -> bool {
        let answer = conn.post(CHATS, "", CHAT);
        if answer.status() == 503 {
            answer.assert_refused(503, "usage_unavailable");
            // It may have closed the connection.
            *conn = self.proxy.connect();
            return false;
        }
        assert_eq!(answer.status(), 200, "{}", answer.text());
        self.asked.insert(answer.head.get("x-request-id").unwrap().to_owned())
    }

    /// From now on the disk hangs, at each of these calls; at all where none is named.
    fn hang(&self, calls: &[&str]) -> Hanging {
        let pid = self.proxy.process.pid().to_string();
        let args = [&[TRACE, "hold", &pid], calls].concat();
        let tracer = Process::start(Path::new("python3"), &args);
        tracer.await_line(SOON, |line| (line == "holding").then_some(()));
        Hanging(tracer)
    }

    /// A stream that began before the disk hangs.
    fn stream(&mut self) -> Conn {
        let mut conn = self.proxy.connect();
        conn.start_post(CHATS, "x-mock-gap-ms: 20\r\nx-mock-tokens: 100\r\n", STREAM);
        self.asked.insert(conn.head().get("x-request-id").unwrap().to_owned());
        conn.read_until("data: ");
        conn
    }
}

fn has_all(receiver: &Receiver, asked: &HashSet<String>) -> bool {
    let seen = receiver.seen();
    asked.iter().all(|id| seen.contains_key(id))
}

/// A disk that hangs until it is let go.
struct Hanging(Process);

impl Hanging {
    /// The threads that wait for it.
    fn held(&self) -> Vec<String> {
        let lines = self.0.stdout.all();
        lines.iter().filter_map(|line| line.strip_prefix("held ")).map(str::to_owned).collect()
    }

    /// The disk works again, for which this thread has waited.
    fn let_go(self, thread: &str) {
        let held = self.held();
        println!("held: {held:?}");
        assert!(held.iter().any(|of| of.starts_with(thread)), "it did not wait: {held:?}");
        let waits = |of: &&String| of.starts_with("worker-") || of.starts_with("llmproxy ");
        assert_eq!(held.iter().find(waits), None, "a worker waits for the disk");
        self.0.kill();
    }
}

/// Catches: a request that waits for a disk that hangs, or fails for it; a record that is lost
/// though there was room for it, or is not counted when there was none; a proxy that does not go on
/// when the disk does.
#[test]
fn with_serve_a_disk_that_hangs_holds_nobody_up() {
    let Some(mut stage) = Stage::set("serve") else { return };
    let mut stream = stage.stream();
    let hanging = stage.hang(&[]);
    let mut conn = stage.proxy.connect();
    let mut slowest = Duration::ZERO;
    let mut ask = |stage: &mut Stage| {
        let begun = Instant::now();
        assert!(stage.ask(&mut conn), "refused");
        slowest = slowest.max(begun.elapsed());
    };
    await_until("it counts as one that fails", SOON, || {
        ask(&mut stage);
        stage.proxy.get("/ready").text().contains("warning")
    });
    assert_eq!(stage.proxy.get("/ready").status(), 200);
    for _ in 0..MANY {
        ask(&mut stage);
    }
    println!("the slowest of {}: {slowest:?}", stage.asked.len());
    stream.read_until("[DONE]");
    let dropped = |stage: &Stage| {
        stage.proxy.metric("llmproxy_usage_dropped_total", &[("kind", "record")]) as usize
    };
    assert!(dropped(&stage) > 0, "the ring was never full");
    assert!(stage.proxy.metric("llmproxy_usage_ring_bytes", &[]) > 32.0 * 1024.0);
    hanging.let_go("journal ");
    stage.proxy.await_metric("llmproxy_journal_failing", &[], 0.0);
    let mut conn = stage.proxy.connect();
    (0..20).for_each(|_| assert!(stage.ask(&mut conn)));
    let dropped = dropped(&stage);
    await_until("all records that were not dropped", PATIENCE, || {
        let seen = stage.receiver.seen();
        stage.asked.iter().filter(|id| !seen.contains_key(*id)).count() == dropped
    });
    println!("{} requests, {dropped} records dropped", stage.asked.len());
}

/// Catches: service without a record where that was ruled out, one that hangs instead of being
/// refused, a record that is lost, and a refusal that does not end.
#[test]
fn with_refuse_a_disk_that_hangs_costs_no_record() {
    let Some(mut stage) = Stage::set("refuse") else { return };
    let mut stream = stage.stream();
    let hanging = stage.hang(&[]);
    let mut conn = stage.proxy.connect();
    await_until("requests are refused", SOON, || !stage.ask(&mut conn));
    let engine_had = stage.engine.posts().len();
    await_until("it is not ready", SOON, || stage.proxy.get("/ready").status() == 503);
    (0..50).for_each(|_| assert!(!stage.ask(&mut conn)));
    assert_eq!(stage.engine.posts().len(), engine_had, "an engine was asked");
    stream.read_until("[DONE]");
    hanging.let_go("journal ");
    await_until("requests are served again", SOON, || stage.ask(&mut conn));
    await_until("all records", PATIENCE, || has_all(&stage.receiver, &stage.asked));
    let dropped = stage.proxy.metric("llmproxy_usage_dropped_total", &[("kind", "record")]);
    assert_eq!(dropped, 0.0);
    let served = stage.engine.posts().len();
    await_until("none without one", PATIENCE, || stage.receiver.seen().len() >= served);
}

/// Catches: an answer, a record or a delivery that waits for a sync, where the plan has it come
/// behind.
#[test]
fn a_disk_that_hangs_at_a_sync_holds_no_delivery_up() {
    let Some(mut stage) = Stage::set("refuse") else { return };
    let hanging = stage.hang(&["fsync", "fdatasync"]);
    let mut conn = stage.proxy.connect();
    await_until("a sync waits", SOON, || {
        assert!(stage.ask(&mut conn), "refused");
        !hanging.held().is_empty()
    });
    (0..50).for_each(|_| assert!(stage.ask(&mut conn), "refused"));
    await_until("all records, meanwhile", PATIENCE, || has_all(&stage.receiver, &stage.asked));
    hanging.let_go("spool-sync ");
}
