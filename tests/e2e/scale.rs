//! Many at a time: every byte right, nothing left behind, no panic. One of these at a time.

use crate::clients::is_there;
use crate::harness::config::PLAIN;
use crate::harness::process::{program, run};
use crate::harness::{await_until, heavy, Config, Conn, Engine, Proxy};
use crate::rig::{quiet, CHAT, CHATS};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit, Signal};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);

/// Raises this process' limit of open files; false (or, under `scripts/test`, a failed test) when
/// it stays too low.
fn files_suffice(test: &str, needed: u64) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let current = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    is_there(
        &format!("{test}: {needed} open files, where {current} are allowed"),
        current >= needed,
    )
}

/// Waits until the proxy has as many files open as it had, and nothing in hand.
fn assert_back_to(proxy: &Proxy, files: usize) {
    quiet(proxy);
    let mut now = 0;
    await_until(&format!("{files} files again"), MINUTE, || {
        now = proxy.open_files();
        now <= files
    });
    // The scrape is the one.
    proxy.await_metric("llmproxy_connections_open", &[], 1.0);
    assert_eq!(proxy.metric("llmproxy_panics_total", &[]), 0.0);
}

/// Catches: streams that get each other's bytes, lose some or stall when there are many;
/// descriptors that never come back.
#[test]
fn two_thousand_streams_are_right_to_the_last_byte() {
    const STREAMS: &str = "2000";
    if !files_suffice("two_thousand_streams_are_right_to_the_last_byte", 6000) {
        return;
    }
    let _alone = heavy();
    let (one, two) = (Engine::start(&["--log", "0"]), Engine::start(&["--log", "0"]));
    // The generator of the load speaks no TLS.
    let proxy = Config::new()
        .server(PLAIN)
        .backend(one.url(), "keepalive_timeout: 1s, max_idle_conns: 5000")
        .backend(two.url(), "keepalive_timeout: 1s, max_idle_conns: 5000")
        .section("log: {level: info, format: json, output: stdout}")
        .start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    let files = proxy.open_files();
    let target = format!("http://{}", proxy.addr());
    let args = [
        &["--target", &target, "--stream", "--include-usage", "--verify", "--quiet"][..],
        &["--json", "-", "--seeds", "50", "--connections", STREAMS, "--requests", STREAMS],
        // Slow enough that all run together, and that a debug build keeps up.
        &["--tokens", "10", "--ttft-ms", "2000", "--gap-ms", "400", "--ramp", "0"],
        &["--duration", "60", "--drain", "30"],
    ]
    .concat();
    let ran = std::thread::spawn({
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            run(&program("loadgen"), &args, MINUTE)
        }
    });
    await_until("all run together", MINUTE, || {
        proxy.metric("llmproxy_inflight", &[]) >= 2000.0 || ran.is_finished()
    });
    assert!(!ran.is_finished(), "{:?}", ran.join().unwrap());
    let ran = ran.join().unwrap();
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["requests"], 2000, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    assert_eq!((one.stat("streams"), two.stat("streams")), (1000, 1000));
    assert_eq!(proxy.metric("llmproxy_faults_total", &[]), 0.0);
    assert_back_to(&proxy, files);
}

/// Catches: a wave of cancelled waits that overruns the ring: hung connections, lost descriptors, a
/// panic of the runtime.
#[test]
fn thousands_that_time_out_in_one_tick_are_all_closed() {
    const IDLE: usize = 3000;
    if !files_suffice("thousands_that_time_out_in_one_tick_are_all_closed", IDLE as u64 + 1000) {
        return;
    }
    let _alone = heavy();
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url()).server("idle_timeout: 1s");
    let proxy = config.section("log: {level: info, format: json, output: stdout}").start();
    let files = proxy.open_files();
    // Stopped, it accepts none of them; continued, it accepts all at once.
    proxy.process.signal(Signal::STOP);
    let mut idle: Vec<TcpStream> =
        (0..IDLE).map(|_| TcpStream::connect(proxy.addr()).expect("room in the queue")).collect();
    proxy.process.signal(Signal::CONT);
    await_until("all are in", MINUTE, || proxy.open_files() >= files + IDLE);
    for stream in &mut idle {
        stream.set_read_timeout(Some(MINUTE)).unwrap();
        assert_eq!(stream.read(&mut [0]).expect("a close, not a hang or a reset"), 0);
    }
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    drop(idle);
    proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    assert_back_to(&proxy, files);
}

/// Catches: buffers of connections that are gone, held for ever; a pool that stays as large as the
/// largest burst made it.
#[test]
fn the_buffers_of_a_burst_are_given_back() {
    const CLIENTS: usize = 300;
    // As `base::limits` has them.
    const KEPT_AFTER_A_BURST: f64 = 256.0;
    const KEPT_IN_THE_END: f64 = 8.0;
    let _alone = heavy();
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).server(PLAIN).start();
    let buffers = |state| proxy.metric("llmproxy_buffers", &[("state", state)]);
    let begin = |_| {
        let mut client = TcpStream::connect(proxy.addr()).expect("room in the queue");
        // A head without an end: what came of it is kept.
        client.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\n").unwrap();
        client
    };
    let burst: Vec<TcpStream> = (0..CLIENTS).map(begin).collect();
    await_until("each holds a buffer", MINUTE, || buffers("in_use") >= CLIENTS as f64);
    drop(burst);
    // The scrape itself has one.
    await_until("none is in use", MINUTE, || buffers("in_use") <= 1.0);
    assert!(buffers("idle") <= KEPT_AFTER_A_BURST);
    await_until("few are kept", MINUTE, || buffers("idle") <= KEPT_IN_THE_END);
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
}

/// Catches: the same for waits at engines, each of which has two sockets to lose.
#[test]
fn hundreds_that_wait_for_an_engine_time_out_in_one_tick() {
    const WAITING: usize = 600;
    if !files_suffice("hundreds_that_wait_for_an_engine_time_out", WAITING as u64 * 2 + 1000) {
        return;
    }
    let _alone = heavy();
    let engine = Engine::start(&["--stall-before-head", "1", "--log", "0"]);
    let config = Config::new().backend(engine.url(), "first_byte_timeout: 1s");
    let proxy = config.section("log: {level: info, format: json, output: stdout}").start();
    let files = proxy.open_files();
    let mut waiting: Vec<Conn> = (0..WAITING).map(|_| proxy.connect()).collect();
    for conn in &mut waiting {
        conn.start_post(CHATS, "", CHAT);
    }
    for conn in &mut waiting {
        conn.response().assert_refused(504, "first_byte_timeout");
    }
    let kind = [("kind", "first_byte_timeout")];
    proxy.await_metric("llmproxy_faults_total", &kind, WAITING as f64);
    drop(waiting);
    assert_back_to(&proxy, files);
    await_until("the engine is free", MINUTE, || engine.stat("connections_open") == 1);
}

/// Catches: bytes that make a worker panic, hang or spin, whatever they are.
#[test]
fn hostile_bytes_harm_nobody() {
    const CONNECTIONS: u64 = 2000;
    let _alone = heavy();
    let engine = Engine::start(&["--log", "0"]);
    let config = Config::backend_at(engine.url()).server("header_timeout: 1s");
    let config = config.server("body_timeout: 1s").server("idle_timeout: 1s");
    let proxy = config.section("log: {level: info, format: json, output: stdout}").start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    let files = proxy.open_files();
    let mut held = Vec::new();
    for seed in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(proxy.addr()).unwrap();
        stream.set_nonblocking(true).unwrap();
        // What it does not take, it does not take.
        let _ = stream.write(&hostile(seed));
        match seed % 3 {
            0 => drop(stream),
            1 => {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                held.push(stream);
            }
            _ => held.push(stream),
        }
        if held.len() > 200 {
            held.drain(..100);
        }
    }
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    drop(held);
    proxy.await_metric("llmproxy_upstream_idle", &[], 0.0);
    assert_back_to(&proxy, files);
    assert!(proxy.process.try_status().is_none());
}

/// A request that was cut, stuffed, repeated or overwritten; or noise. The seed says which.
fn hostile(seed: u64) -> Vec<u8> {
    const CHUNKED: &str = "POST /v1/completions HTTP/1.1\r\nHost: t\r\n\
        Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;a=b\r\n{\"a\":\r\n3\r\n\"\\u\r\n0\r\nT: x\r\n\r\n";
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let whole = crate::harness::client::post_bytes(CHATS, "Connection: keep-alive, te\r\n", CHAT);
    let mut bytes = match random.below(4) {
        0 => whole,
        1 => CHUNKED.as_bytes().to_vec(),
        2 => [whole.as_slice(), CHUNKED.as_bytes()].concat(),
        _ => (0..random.below(3000)).map(|_| random.next() as u8).collect(),
    };
    for _ in 0..random.below(5) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next() as u8),
            2 => {
                let again = bytes[at / 2..at].to_vec();
                bytes.splice(at..at, again);
            }
            3 => bytes.splice(at..at, *b"\r\n\0 \xff").for_each(drop),
            _ => bytes.iter_mut().skip(at).take(3).for_each(|byte| *byte ^= 1 << (seed % 8)),
        }
    }
    bytes
}

/// xorshift64: the same bytes on every machine, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}
