//! `routing.queue`: requests that wait for room at a backend instead of being refused.

use crate::harness::{await_until, pause, Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{quiet, rejected, CHAT, CHATS, OK, STREAM};
use std::sync::mpsc::{channel, Sender};
use std::sync::Mutex;
use std::time::Duration;

/// An engine that answers each request once it is told to.
fn engine() -> (Backend, Sender<()>) {
    let (go, going) = channel();
    let going = Mutex::new(going);
    let backend = Backend::start(move |served| {
        while served.request().is_some() {
            if going.lock().unwrap().recv_timeout(SOON).is_err() || !served.send(OK) {
                return;
            }
        }
    });
    (backend, go)
}

/// One place at one engine, and this queue.
fn one_place(engine: &Backend, queue: &str) -> Config {
    Config::new()
        .server("workers: 2")
        .backend(engine.url(), "name: engine, max_concurrent: 1")
        .section("health_check: {enabled: false}")
        .section(format!("routing: {{queue: {{{queue}}}}}"))
}

/// A request of somebody, known to the engine by a number.
fn ask(proxy: &Proxy, who: &str, number: usize) -> Conn {
    let mut conn = proxy.connect();
    let fields = format!("Authorization: Bearer {who}\r\nx-number: {who}-{number}\r\n");
    conn.start_post(CHATS, &fields, CHAT);
    conn
}

/// The numbers of those that the engine had, in order.
fn had(engine: &Backend) -> Vec<String> {
    let number = |head: &str| head.to_owned();
    engine.requests().iter().filter_map(|r| r.head.get("x-number").map(number)).collect()
}

fn await_waiting(proxy: &Proxy, count: usize) {
    proxy.await_metric("llmproxy_queue_waiting", &[], count as f64);
}

fn ended(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric("llmproxy_queue_total", &[("result", result)])
}

/// Catches: a client that is refused though it could have waited; two at a backend that may have
/// one; a place that nobody gets; a flood of one client that all others wait behind.
#[test]
fn who_sends_little_does_not_wait_behind_who_sends_much() {
    const HOGS: usize = 30;
    let (engine, go) = engine();
    let hook = Webhook::start();
    let proxy = one_place(&engine, "timeout: 60s").webhook(&hook.url(), "").start();
    let mut hogs = vec![ask(&proxy, "hog", 0)];
    await_until("one is there", SOON, || had(&engine).len() == 1);
    hogs.extend((1..=HOGS).map(|n| ask(&proxy, "hog", n)));
    await_waiting(&proxy, HOGS);
    let mut polite: Vec<_> = (0..3).map(|n| ask(&proxy, "polite", n)).collect();
    await_waiting(&proxy, HOGS + polite.len());
    for served in 1..=HOGS + 1 + polite.len() {
        await_until("the next one is there", SOON, || had(&engine).len() == served);
        go.send(()).unwrap();
    }
    for conn in hogs.iter_mut().chain(&mut polite) {
        assert_eq!(conn.response().status(), 200);
    }
    let order = had(&engine);
    let last = order.iter().rposition(|who| who.starts_with("polite")).unwrap();
    assert!(last <= 7, "turn by turn: {order:?}");
    let records = hook.await_records(order.len(), SOON);
    assert!(records.iter().all(|record| record["status"] == "complete"));
    assert_eq!(ended(&proxy, "served"), (HOGS + 3) as f64);
    await_waiting(&proxy, 0);
    quiet(&proxy);
}

/// Catches: more that wait than may; a client that is told nothing when its time is over; one that
/// leaves and keeps its place, so that a request without a client goes to the engine.
#[test]
fn who_may_not_wait_is_told_and_who_leaves_gives_its_place_up() {
    let (engine, go) = engine();
    let proxy = one_place(&engine, "timeout: 300ms, max_waiting: 2").start();
    let mut first = ask(&proxy, "a", 0);
    await_until("it is there", SOON, || had(&engine).len() == 1);
    let mut late = ask(&proxy, "a", 1);
    let refused = late.response();
    refused.assert_refused(429, "backends_full");
    assert!(refused.head.get("retry-after").is_some());
    assert_eq!(ended(&proxy, "timed_out"), 1.0);
    go.send(()).unwrap();
    assert_eq!(first.response().status(), 200);
    // The time that a request takes is known by now, but for the first one: `max_waiting` alone.
    let proxy = one_place(&engine, "timeout: 60s, max_waiting: 2").start();
    let _first = ask(&proxy, "a", 10);
    await_until("it is there", SOON, || had(&engine).len() == 2);
    let (second, mut third) = (ask(&proxy, "a", 11), ask(&proxy, "a", 12));
    await_waiting(&proxy, 2);
    ask(&proxy, "a", 13).response().assert_refused(429, "backends_full");
    assert_eq!(ended(&proxy, "no_room") + ended(&proxy, "displaced"), 1.0);
    drop(second);
    await_until("it has left", SOON, || ended(&proxy, "left") == 1.0);
    await_waiting(&proxy, 1);
    go.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(third.response().status(), 200);
    assert!(!had(&engine).contains(&"a-11".to_owned()), "nobody waits for its answer");
    quiet(&proxy);
}

/// Catches: a client that waits although it is known that its time will not do, or is told nothing
/// of how long it would have been.
#[test]
fn who_would_wait_in_vain_is_told_at_once() {
    let (engine, go) = engine();
    let proxy = one_place(&engine, "timeout: 200ms").start();
    let mut first = ask(&proxy, "a", 0);
    await_until("it is there", SOON, || had(&engine).len() == 1);
    // What requests take here is learned from this one, and is more than anybody may wait.
    pause(Duration::from_millis(1100));
    go.send(()).unwrap();
    assert_eq!(first.response().status(), 200);
    let _second = ask(&proxy, "a", 1);
    await_until("the place is taken", SOON, || had(&engine).len() == 2);
    let refused = ask(&proxy, "b", 2).response();
    refused.assert_refused(429, "backends_full");
    let wait: u32 = refused.head.get("retry-after").unwrap().parse().unwrap();
    assert!(wait >= 1, "{wait}");
    assert_eq!((ended(&proxy, "hopeless"), ended(&proxy, "timed_out")), (1.0, 0.0));
    go.send(()).unwrap();
}

/// Catches: a wait that goes on though there is room now: because the limit was raised or the queue
/// was taken away by a reload, or an engine has come.
#[test]
fn a_reload_is_heard_by_those_who_wait() {
    let ((engine, go), (other, other_go)) = (engine(), engine());
    let config = one_place(&engine, "timeout: 60s");
    let proxy = config.start();
    let mut waiting: Vec<_> = (0..4).map(|n| ask(&proxy, "a", n)).collect();
    await_until("one is there", SOON, || had(&engine).len() == 1);
    await_waiting(&proxy, 3);
    let more = config.backend(other.url(), "name: other, max_concurrent: 2");
    assert!(proxy.reload_with(&more));
    await_until("two go to the other one", SOON, || had(&other).len() == 2);
    await_waiting(&proxy, 1);
    let without = Config::new()
        .server("workers: 2")
        .backend(engine.url(), "name: engine, max_concurrent: 1")
        .backend(other.url(), "name: other, max_concurrent: 2")
        .section("health_check: {enabled: false}");
    assert!(proxy.reload_with(&without));
    await_until("the last one is refused", SOON, || rejected(&proxy, "backends_full") == 1.0);
    go.send(()).unwrap();
    [(); 2].iter().for_each(|()| other_go.send(()).unwrap());
    let served = waiting.iter_mut().map(|conn| conn.response().status());
    assert_eq!(served.filter(|status| *status == 200).count(), 3);
    await_waiting(&proxy, 0);
    quiet(&proxy);
}

/// Catches: a stream that is silent while it waits, though it is to hear something; a refusal that
/// comes as a second head behind the early one.
#[test]
fn streams_hear_something_while_they_wait() {
    let (engine, go) = engine();
    let routing = |timeout: &str| {
        let queue = format!("queue: {{timeout: {timeout}}}");
        format!("routing: {{sse_keepalive: 100ms, early_head: true, {queue}}}")
    };
    let config = |timeout: &str| {
        Config::new()
            .backend(engine.url(), "max_concurrent: 1")
            .section("health_check: {enabled: false}")
            .section(routing(timeout))
            .start()
    };
    for (timeout, ending) in [("60s", "served"), ("1s", "timed_out")] {
        let proxy = config(timeout);
        let before = had(&engine).len();
        let mut first = ask(&proxy, "a", 0);
        await_until("it is there", SOON, || had(&engine).len() == before + 1);
        let mut conn = proxy.connect();
        conn.start_post(CHATS, "x-number: stream\r\n", STREAM);
        assert_eq!(conn.head().status(), 200);
        conn.read_until(": keep-alive\n\n: keep-alive\n\n");
        if ending == "timed_out" {
            conn.read_until("\"code\":\"backends_full\"");
        }
        go.send(()).unwrap();
        assert_eq!(first.response().status(), 200);
        if ending == "served" {
            await_until("the stream is there", SOON, || had(&engine).len() == before + 2);
            go.send(()).unwrap();
            // The engine answers with no stream, which is told inside of ours.
            conn.read_until("\"error\"");
        }
        assert_eq!(ended(&proxy, ending), 1.0);
        await_waiting(&proxy, 0);
    }
}

/// Catches: requests that wait while the process is to end, and are cut off instead of served.
#[test]
fn who_waits_is_served_before_the_process_ends() {
    let (engine, go) = engine();
    let proxy = one_place(&engine, "timeout: 60s").start();
    let mut both = [ask(&proxy, "a", 0), ask(&proxy, "a", 1)];
    await_until("one is there", SOON, || had(&engine).len() == 1);
    await_waiting(&proxy, 1);
    proxy.process.signal(rustix::process::Signal::TERM);
    [(); 2].iter().for_each(|()| go.send(()).unwrap());
    both.iter_mut().for_each(|conn| assert_eq!(conn.response().status(), 200));
    assert!(proxy.process.wait(SOON).success());
}
