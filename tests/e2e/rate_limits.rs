//! Limits on requests, tokens and requests at one time: exact over all workers, told in every
//! answer, given back when a request goes wrong, kept over a restart, a kill and a reload.

use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{leave, rejected, Leave, CHAT, CHATS, OK, STREAM};
use rustix::process::Signal;
use std::thread;
use std::time::Instant;

/// A proxy with these limits before a backend that answers everything with OK.
fn limited(limits: &str) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url()).server("workers: 2");
    (config.section(format!("rate_limit: {{{limits}}}")).start(), backend)
}

fn key(name: &str) -> String {
    format!("Authorization: Bearer {name}\r\n")
}

/// So many clients at once, each on a connection of its own; how many got through.
fn at_once(proxy: &Proxy, clients: usize, fields: &str) -> usize {
    let ask = || proxy.connect().post(CHATS, fields, CHAT).status();
    thread::scope(|scope| {
        let all: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        all.into_iter()
            .filter(|_| true)
            .map(|one| one.join().unwrap())
            .filter(|s| *s == 200)
            .count()
    })
}

/// Catches: two workers that each let a whole limit through; a key that uses up another one's; a
/// key that is told by its text in one field and its text in another.
#[test]
fn a_limit_holds_over_all_workers_and_for_each_key() {
    let (proxy, backend) =
        limited("per_key: {requests_per_minute: 10}, global: {requests_per_minute: 27}");
    assert_eq!(at_once(&proxy, 24, &key("a")), 10);
    assert_eq!(at_once(&proxy, 12, "X-API-Key: b\r\n"), 10);
    assert_eq!(proxy.connect().post(CHATS, &key("b"), CHAT).status(), 429);
    // No key: the address. What the keys were refused for cost the whole nothing.
    assert_eq!(at_once(&proxy, 12, ""), 7);
    let refused = proxy.connect().post(CHATS, &key("c"), CHAT);
    refused.assert_refused(429, "rate_limit_exceeded");
    assert!(refused.text().contains("Global"), "{}", refused.text());
    assert_eq!(backend.requests().len(), 27);
    assert_eq!(rejected(&proxy, "rate_limit_exceeded"), 14.0 + 2.0 + 1.0 + 5.0 + 1.0);
    // Our own pages are no business of a limit.
    assert_eq!(proxy.get("/health").status(), 200);
}

/// Catches: fields that are missing or wrong, an answer that keeps an engine's, a time to wait
/// after which it is refused again.
#[test]
fn every_answer_tells_how_the_limit_stands_and_the_wait_is_honest() {
    let engine = Backend::answering(
        "HTTP/1.1 200 OK\r\nX-RateLimit-Limit: 5\r\nx-ratelimit-remaining-requests: 4\r\n\
         Content-Length: 2\r\n\r\nok",
    );
    let limits = "rate_limit: {per_key: {requests_per_second: 1, burst_size: 2}}";
    let proxy = Config::backend_at(engine.url()).section(limits).start();
    let mut conn = proxy.connect();
    let first = conn.post(CHATS, &key("a"), CHAT);
    for (name, value) in [
        ("x-ratelimit-limit", "2"),
        ("x-ratelimit-remaining", "1"),
        ("x-ratelimit-reset", "1"),
        ("ratelimit-policy", "\"requests\";q=2;w=2"),
        ("ratelimit", "\"requests\";r=1;t=1"),
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "1"),
    ] {
        assert_eq!(first.head.all(name), [value], "{name}");
    }
    assert_eq!(first.head.all("x-ratelimit-limit-tokens"), [""; 0]);
    let mut refused = conn.post(CHATS, &key("a"), CHAT);
    await_until("it is refused", SOON, || {
        refused = conn.post(CHATS, &key("a"), CHAT);
        refused.status() == 429
    });
    let began = Instant::now();
    refused.assert_refused(429, "rate_limit_exceeded");
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert_eq!(refused.head.get("x-ratelimit-remaining"), Some("0"));
    let wait: u64 = refused.head.get("retry-after").unwrap().parse().unwrap();
    assert_eq!(wait, 1);
    await_until("the wait is over", SOON, || began.elapsed().as_secs() >= wait);
    assert_eq!(conn.post(CHATS, &key("a"), CHAT).status(), 200);
}

/// Catches: tokens that are not reserved, an estimate that stays when the engine says what was
/// used, a model that is limited under another name.
#[test]
fn tokens_are_reserved_and_settled_by_model() {
    let engine = Engine::start(&[]);
    let limits = "rate_limit: {per_model: {'m*': {tokens_per_minute: 1000}}}";
    let proxy = Config::backend_at(engine.url()).section(limits).start();
    let body = |model: &str, max: u32| {
        format!(r#"{{"model":"{model}","max_tokens":{max},"messages":[{{"role":"user"}}]}}"#)
    };
    let mut conn = proxy.connect();
    let left = |conn: &mut Conn| -> u64 {
        let answer = conn.post(CHATS, "x-mock-tokens: 10\r\n", body("m1", 1));
        answer.head.get("x-ratelimit-remaining-tokens").unwrap().parse().unwrap()
    };
    assert_eq!(conn.post(CHATS, "x-mock-tokens: 10\r\n", body("m1", 900)).status(), 200);
    // What was reserved is free again but for what the engine counted.
    await_until("it is settled", SOON, || left(&mut conn) > 700);
    assert_eq!(conn.post(CHATS, "", body("other", 100_000)).status(), 200);
    // What may write more than there ever is needs all of it, and it is not all there: models of
    // one pattern share it. Whoever is refused holds nothing.
    let streamed = body("m2", 5000).replace("\"max", "\"stream\":true,\"max");
    for _ in 0..3 {
        conn.post(CHATS, "", &streamed).assert_refused(429, "token_rate_limit_exceeded");
    }
    assert!(left(&mut conn) > 500, "a refusal took tokens");
}

/// Catches: a slot that is freed before the last byte, or not when a client leaves, resets, or its
/// stream ends; one that a refusal took.
#[test]
fn slots_are_held_to_the_last_byte_and_freed_by_every_end() {
    let engine = Engine::start(&[]);
    let limits = "rate_limit: {per_key: {max_concurrent: 2}}";
    let proxy = Config::backend_at(engine.url()).server("workers: 2").section(limits).start();
    let begin = |knobs: &str| {
        let mut conn = proxy.connect();
        conn.start_post(CHATS, &(key("a") + knobs), STREAM);
        assert_eq!(conn.head().status(), 200);
        conn.read_until("data: ");
        conn
    };
    let try_one = || proxy.connect().post(CHATS, &key("a"), CHAT);
    let await_free = |what: &str| await_until(what, SOON, || try_one().status() == 200);
    let stall = "x-mock-stall-after: 2\r\n";
    for how in [Leave::Fin, Leave::Rst] {
        let (one, two) = (begin(stall), begin(stall));
        let refused = try_one();
        refused.assert_refused(429, "concurrent_limit_exceeded");
        assert_eq!(refused.head.get("retry-after"), Some("1"));
        assert_eq!(proxy.connect().post(CHATS, &key("b"), CHAT).status(), 200);
        let gone = leave(one, how);
        await_free("a place is free");
        let gone = (gone, leave(two, how));
        await_free("both are");
        drop(gone);
    }
    let (mut one, _two) = (begin("x-mock-gap-ms: 20\r\n"), begin(stall));
    try_one().assert_refused(429, "concurrent_limit_exceeded");
    one.rest();
    await_free("a whole stream has left");
    // Refusals hold nothing: a request without a model that is known, one that breaks.
    for _ in 0..5 {
        let two_models = r#"{"model":"m","model":"n"}"#;
        assert_eq!(proxy.connect().post(CHATS, &key("a"), two_models).status(), 400);
        proxy.connect().post(CHATS, &(key("a") + "x-mock-die-after: 0\r\n"), CHAT);
    }
    await_free("what was refused or broke holds nothing");
}

/// Catches: a client that has all of its answer, asks again, and is refused for the place of it.
#[test]
fn whoever_has_its_answer_can_ask_again() {
    let engine = Engine::start(&[]);
    let limits = "rate_limit: {per_key: {max_concurrent: 1}}";
    let proxy = Config::backend_at(engine.url()).server("workers: 2").section(limits).start();
    for n in 0..200 {
        let body = if n % 2 == 0 { CHAT } else { STREAM };
        // Over a connection of its own, so that either worker may have it.
        assert_eq!(proxy.connect().post(CHATS, &key("a"), body).status(), 200, "{n}");
    }
}

/// Catches: a body that is read before its request is refused.
#[test]
fn a_refused_body_is_not_asked_for() {
    let (proxy, backend) = limited("per_key: {requests_per_minute: 1}");
    assert_eq!(proxy.connect().post(CHATS, &key("a"), CHAT).status(), 200);
    let mut conn = proxy.connect();
    let head = format!(
        "POST {CHATS} HTTP/1.1\r\nHost: a\r\n{}Content-Length: 9999999\r\n\
         Expect: 100-continue\r\n\r\n",
        key("a")
    );
    conn.send(head).response().assert_refused(429, "rate_limit_exceeded");
    assert_eq!(backend.requests().len(), 1);
}

/// A folder for counters, and proxies that use it.
struct Stage {
    scratch: Scratch,
    engine: Backend,
}

impl Stage {
    fn new() -> Stage {
        Stage { scratch: Scratch::new(), engine: Backend::answering(OK) }
    }

    fn start(&self, limits: &str) -> Proxy {
        Config::backend_at(self.engine.url()).section(self.counters()).section(limits).start()
    }

    fn counters(&self) -> String {
        format!("counters: {{dir: '{}', entries: 1024}}", self.scratch.file("counters").display())
    }
}

const FIVE: &str = "rate_limit: {per_key: {requests_per_minute: 5}}";

/// Catches: a restart, a kill or a reload by which used requests are forgotten, or limits that stay
/// as they were.
#[test]
fn what_was_used_outlives_the_process() {
    let stage = Stage::new();
    let proxy = stage.start(FIVE);
    assert_eq!(at_once(&proxy, 3, &key("a")), 3);
    proxy.process.signal(Signal::KILL);
    proxy.process.wait(SOON);
    let proxy = stage.start(FIVE);
    assert_eq!(at_once(&proxy, 8, &key("a")), 2);
    proxy.process.signal(Signal::TERM);
    proxy.process.wait(SOON);
    let proxy = stage.start(FIVE);
    assert_eq!(at_once(&proxy, 2, &key("a")), 0);
    let more = "rate_limit: {per_key: {requests_per_minute: 9}}";
    let config = Config::backend_at(stage.engine.url()).section(stage.counters()).section(more);
    assert!(proxy.reload_with(&config));
    // What was used stays used, by the new measure too.
    let told = proxy.connect().post(CHATS, &key("a"), CHAT);
    assert_eq!(told.head.get("x-ratelimit-limit"), Some("9"));
    assert_eq!(told.status(), 429);
    let none = Config::backend_at(stage.engine.url()).section(stage.counters());
    assert!(proxy.reload_with(&none));
    assert_eq!(at_once(&proxy, 9, &key("a")), 9);
}

/// Catches: two processes that each have a whole limit while one takes over from the other; the
/// requests of a killed one that hold places for ever.
#[test]
fn two_processes_hold_one_limit() {
    let stage = Stage::new();
    let (old, new) = (stage.start(FIVE), stage.start(FIVE));
    let both = at_once(&old, 6, &key("a")) + at_once(&new, 6, &key("a"));
    assert_eq!(both, 5);
    drop((old, new));
    let slots = "rate_limit: {per_key: {max_concurrent: 2}}";
    let engine = Engine::start(&[]);
    let start =
        || Config::backend_at(engine.url()).section(stage.counters()).section(slots).start();
    let (old, new) = (start(), start());
    let held: Vec<Conn> = (0..2)
        .map(|_| {
            let mut conn = old.connect();
            conn.start_post(CHATS, &(key("b") + "x-mock-stall-after: 2\r\n"), STREAM);
            assert_eq!(conn.head().status(), 200);
            conn.read_until("data: ");
            conn
        })
        .collect();
    let ask = || new.connect().post(CHATS, &key("b"), CHAT).status();
    assert_eq!(ask(), 429);
    old.process.signal(Signal::KILL);
    await_until("its places are free", SOON, || ask() == 200);
    drop(held);
}

/// Catches: strangers that push out each other's use, or grow the table.
#[test]
fn a_flood_of_invented_keys_frees_nobody() {
    let (proxy, _backend) =
        limited("per_key: {requests_per_minute: 3}, global: {requests_per_second: 100000}");
    assert_eq!(at_once(&proxy, 5, &key("victim")), 3);
    let mut conn = proxy.connect();
    for n in 0..3000 {
        conn.post(CHATS, &key(&format!("invented-{n}")), CHAT);
    }
    assert_eq!(at_once(&proxy, 3, &key("victim")), 0);
    assert!(proxy.metric("llmproxy_counters_full_total", &[]) > 0.0);
    assert_eq!(proxy.metric("llmproxy_counters_entries", &[("part", "strangers")]), 1024.0);
}
