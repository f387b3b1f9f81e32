//! A process that stands still for longer than its timeouts: a paused container, a busy machine.
//! What came meanwhile lies in its sockets, and its clocks have run out. The peers were in time.

use crate::harness::backend::Served;
use crate::harness::{await_until, pause, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK};
use rustix::process::Signal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All timeouts: long enough for a busy machine to get the test ready.
const TIMEOUT: &str = "4s";
/// Longer than that.
const STANDSTILL: Duration = Duration::from_secs(6);

/// What the backend does when.
#[derive(Default)]
struct Play {
    /// Probes are answered late from now on.
    holds_probes: AtomicBool,
    /// What is answered late is answered now.
    goes_on: AtomicBool,
    /// Requests that wait for that.
    waiting: AtomicUsize,
    probes: AtomicUsize,
}

impl Play {
    /// Waits with an answer until the process stands still.
    fn wait(&self) {
        self.waiting.fetch_add(1, Relaxed);
        await_until("the process stands still", SOON, || self.goes_on.load(Relaxed));
    }

    fn serve(&self, served: &mut Served) {
        while let Some(request) = served.request() {
            if request.head.target() == "/health" {
                self.probes.fetch_add(1, Relaxed);
                if self.holds_probes.load(Relaxed) {
                    self.wait();
                }
                served.send(OK);
            } else if request.head.get("x-late").is_some() {
                self.wait();
                served.send(OK);
            } else if request.head.get("x-halves").is_some() {
                served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
                self.wait();
                served.send("k");
            } else {
                served.send(OK);
            }
        }
    }
}

fn start(backend: &Backend) -> Proxy {
    let of_backend = "connect_timeout: T, first_byte_timeout: T, idle_timeout: T";
    let check =
        "health_check: {interval: 200ms, timeout: T, path: /health, unhealthy_threshold: 1}";
    let of_server = ["header_timeout: T", "body_timeout: T", "idle_timeout: T"];
    let timed = |text: &str| text.replace('T', TIMEOUT);
    let config = Config::new().backend(backend.url(), &timed(of_backend)).section(timed(check));
    of_server.iter().fold(config, |config, line| config.server(timed(line))).start()
}

/// Catches: a timeout that is held against a peer though its bytes were there in time, or though it
/// was never given the time: for the first byte of an answer, for the next one, for a probe, for
/// the rest of a head or a body, for the next request, for a connect that follows.
#[test]
fn what_came_while_the_process_stood_still_is_in_time() {
    let play = Arc::new(Play::default());
    let acting = Arc::clone(&play);
    let backend = Backend::start(move |served| acting.serve(served));
    let proxy = start(&backend);
    await_until("it is probed", SOON, || play.probes.load(Relaxed) > 0);
    let request =
        format!("POST {CHATS} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{CHAT}", CHAT.len());
    let in_head = request.split_at(10);
    let in_body = request.split_at(request.len() - 10);
    let begin = |bytes: &str| {
        let mut conn = proxy.connect();
        conn.send(bytes);
        conn
    };
    let mut idle = proxy.connect();
    assert_eq!(idle.get("/health").status(), 200);
    play.holds_probes.store(true, Relaxed);
    let (mut heading, mut sending) = (begin(in_head.0), begin(in_body.0));
    let mut late = proxy.connect();
    late.start_post(CHATS, "X-Late: 1\r\n", CHAT);
    let mut halves = proxy.connect();
    halves.start_post(CHATS, "X-Halves: 1\r\n", CHAT);
    assert_eq!(halves.head().status(), 200);
    await_until("all wait", SOON, || play.waiting.load(Relaxed) == 3);
    stop(&proxy);
    let began = Instant::now();
    play.goes_on.store(true, Relaxed);
    play.holds_probes.store(false, Relaxed);
    heading.send(in_head.1);
    sending.send(in_body.1);
    idle.send(&request);
    while began.elapsed() < STANDSTILL {
        pause(STANDSTILL);
    }
    let probes = play.probes.load(Relaxed);
    proxy.process.signal(Signal::CONT);
    for conn in [&mut late, &mut heading, &mut sending, &mut idle] {
        let answer = conn.response();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let whole = |conn: &mut Conn| conn.rest().0.into_iter().flat_map(|piece| piece.bytes).collect();
    let rest: Vec<u8> = whole(&mut halves);
    assert!(rest.ends_with(b"k"), "{rest:?}");
    await_until("the probes go on", SOON, || play.probes.load(Relaxed) >= probes + 2);
    let is_sick = |event: &serde_json::Value| event["message"] == "backend is unhealthy";
    assert!(!proxy.events().iter().any(is_sick));
    assert_eq!(proxy.metric("llmproxy_faults_total", &[]), 0.0);
    assert_eq!(proxy.metric("llmproxy_rejected_total", &[]), 0.0);
}

/// Stops the process, and returns when none of its threads runs any more.
fn stop(proxy: &Proxy) {
    proxy.process.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", proxy.process.pid());
    let stands = |stat: String| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'));
    await_until("it stands still", SOON, || {
        let tasks = std::fs::read_dir(&tasks).expect("its threads can be listed");
        tasks
            .flatten()
            .all(|task| std::fs::read_to_string(task.path().join("stat")).is_ok_and(stands))
    });
}

/// Catches: a prompt that is run twice, because the time in which an engine worked on it was one in
/// which the proxy stood still.
#[test]
fn a_request_is_not_sent_again_when_its_engine_had_time_to_work_on_it() {
    let play = Arc::new(Play::default());
    let acting = Arc::clone(&play);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.head.get("x-late").is_some() {
                acting.wait();
                return;
            }
            served.send(OK);
        }
    });
    let proxy = start(&backend);
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", CHAT);
    assert_eq!(conn.response().status(), 200);
    conn.start_post(CHATS, "X-Late: 1\r\n", CHAT);
    await_until("the engine has it", SOON, || play.waiting.load(Relaxed) == 1);
    stop(&proxy);
    play.goes_on.store(true, Relaxed);
    // Much longer than a kept connection takes to be closed under us.
    pause(Duration::from_secs(1));
    proxy.process.signal(Signal::CONT);
    let answer = conn.response();
    assert_eq!(answer.status(), 502, "{}", answer.text());
    assert!(answer.text().contains("backend_closed_reused"), "{}", answer.text());
    assert_eq!(play.waiting.load(Relaxed), 1);
}
