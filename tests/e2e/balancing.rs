//! Which backend gets a request: by which strategy, from which tier, and how many it may have.

use crate::harness::{await_until, pause, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{leave, rejected, Leave, CHAT, CHATS, OK, STREAM};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

/// Nobody probes: what is known comes from requests.
const NO_PROBES: &str = "health_check: {enabled: false}";

/// An engine whose answers wait until it is let go, and that knows how many asked at a time.
struct Held {
    backend: Backend,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    let_go: Arc<AtomicBool>,
}

impl Held {
    fn start() -> Held {
        let (now, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let let_go = Arc::<AtomicBool>::default();
        let (asked, peak, go) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&let_go));
        let backend = Backend::start(move |served| {
            while served.request().is_some() {
                peak.fetch_max(asked.fetch_add(1, SeqCst) + 1, SeqCst);
                while !go.load(SeqCst) {
                    pause(Duration::from_millis(5));
                }
                // Before the answer: whoever has that may ask again at once.
                asked.fetch_sub(1, SeqCst);
                served.send(OK);
            }
        });
        Held { backend, now, most, let_go }
    }

    fn now(&self) -> usize {
        self.now.load(SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

fn ask(proxy: &Proxy) -> Conn {
    let mut client = proxy.connect();
    client.start_post(CHATS, "", CHAT);
    client
}

/// Catches: workers that count for themselves, so that a backend gets its number from each; a
/// request that waits, or is lost, where it should be told to come again.
#[test]
fn no_backend_has_more_than_it_may_and_the_others_are_told_when_to_come_again() {
    let (large, small) = (Held::start(), Held::start());
    let proxy = Config::new()
        .server("workers: 2")
        .backend(large.backend.url(), "name: large, max_concurrent: 5")
        .backend(small.backend.url(), "name: small, max_concurrent: 3")
        .section(NO_PROBES)
        .start();
    let mut clients: Vec<Conn> = (0..50).map(|_| ask(&proxy)).collect();
    await_until("the rest is refused", SOON, || rejected(&proxy, "backends_full") == 42.0);
    await_until("all places are taken", SOON, || (large.now(), small.now()) == (5, 3));
    [&large, &small].iter().for_each(|held| held.let_go.store(true, SeqCst));
    let answers: Vec<_> = clients.iter_mut().map(|client| client.response()).collect();
    let served = answers.iter().filter(|answer| answer.status() == 200).count();
    assert_eq!(served, 8);
    for refused in answers.iter().filter(|answer| answer.status() != 200) {
        refused.assert_refused(429, "backends_full");
        assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
        let seconds = refused.head.get("retry-after").map(|text| text.parse::<u32>());
        assert!(matches!(seconds, Some(Ok(1..=30))), "{seconds:?}");
    }
    assert_eq!((large.most(), small.most()), (5, 3));
    // There is room again, which nobody has to wait for: an answer's last byte makes it.
    for client in clients.iter_mut().take(8) {
        assert_eq!(client.post(CHATS, "", CHAT).status(), 200);
    }
}

/// Catches: a place that is never free again after a request that did not end as it should, until
/// none is left and all clients are told to come again.
#[test]
fn a_place_is_free_again_however_its_request_ended() {
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            match request.head.get("x-end") {
                Some("close") => return,
                Some("garbage") => drop(served.send("no answer\r\n\r\n")),
                Some("break") => {
                    served.begin_events();
                    served.chunk("data: {}\n\n");
                    return served.reset();
                }
                Some("hang") => {
                    served.begin_events();
                    served.chunk("data: {}\n\n");
                    served.left_within(SOON);
                    return;
                }
                Some("silent") => drop(served.left_within(SOON)),
                _ => drop(served.send(OK)),
            }
        }
    });
    let proxy = Config::new()
        .server("workers: 2")
        .backend(backend.url(), "max_concurrent: 1, first_byte_timeout: 300ms")
        .section(NO_PROBES)
        .start();
    let end = |how: &str| format!("x-end: {how}\r\n");
    for round in 0..3 {
        for how in ["close", "garbage", "silent", "break"] {
            let mut client = proxy.connect();
            client.start_post(CHATS, &end(how), STREAM);
            let head = client.head();
            let expected = if how == "break" { 200 } else { 500 };
            assert!(head.status() >= expected, "{how}: {head:?}");
            drop(client);
            await_free(&proxy, &format!("{how}, {round}"));
        }
        for how in [Leave::Fin, Leave::Rst] {
            let mut client = proxy.connect();
            client.start_post(CHATS, &end("hang"), STREAM);
            assert_eq!(client.head().status(), 200);
            client.read_until("data: {}");
            proxy.post(CHATS, CHAT).assert_refused(429, "backends_full");
            let half_closed = leave(client, how);
            await_free(&proxy, &format!("{how:?}, {round}"));
            drop(half_closed);
        }
    }
}

fn await_free(proxy: &Proxy, what: &str) {
    await_until(what, SOON, || proxy.post(CHATS, CHAT).status() == 200);
    proxy.await_metric("llmproxy_inflight", &[], 0.0);
}

/// Posts so many times over one connection; all must be served.
fn post_all(proxy: &Proxy, count: usize, body: &str) {
    let mut client = proxy.connect();
    for _ in 0..count {
        let answer = client.post(CHATS, "", body);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
}

fn strategy(name: &str) -> String {
    format!("routing: {{load_balance: {name}}}")
}

/// Catches: a strategy that forgets the weights; workers whose shares do not add up.
#[test]
fn two_workers_share_by_weight_with_each_strategy() {
    for (name, off) in [
        ("round_robin", 12),
        ("least_connections", 50),
        ("random", 50),
        ("latency_based", 50),
        ("prefix_affinity", 50),
    ] {
        let (heavy, light) = (Backend::answering(OK), Backend::answering(OK));
        let proxy = Config::new()
            .server("workers: 2")
            .backend(heavy.url(), "weight: 3")
            .backend(light.url(), "")
            .section(strategy(name))
            .section(NO_PROBES)
            .start();
        (0..16).for_each(|_| post_all(&proxy, 25, CHAT));
        let shares = (heavy.requests().len(), light.requests().len());
        assert_eq!(shares.0 + shares.1, 400);
        assert!(shares.1.abs_diff(100) <= off, "{name}: {shares:?}");
    }
}

/// Catches: new requests that go to an engine that has not even begun to answer the last one; a
/// load that is forgotten, or a strategy that is not changed, with a reload.
#[test]
fn an_engine_that_is_busy_gets_no_more_while_others_are_free() {
    let (busy, free) = (Held::start(), Backend::answering(OK));
    let config = |name| {
        Config::new()
            .server("workers: 2")
            .backend(busy.backend.url(), "name: busy")
            .backend(free.url(), "name: free")
            .section(strategy(name))
            .section(NO_PROBES)
    };
    let proxy = config("round_robin").start();
    let mut waiting = Vec::new();
    // Two: the last answer of the free one may be counted for a moment after its client has it.
    await_until("two wait", SOON, || {
        waiting.push(ask(&proxy));
        busy.now() > 1
    });
    assert!(proxy.reload_with(&config("least_connections")));
    // Those that were on their way before the reload are where they are.
    await_until("all are somewhere", SOON, || {
        busy.backend.requests().len() + free.requests().len() == waiting.len()
    });
    let before = busy.backend.requests().len();
    (0..4).for_each(|_| post_all(&proxy, 10, CHAT));
    assert_eq!(busy.backend.requests().len(), before);
    busy.let_go.store(true, SeqCst);
    waiting.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
}

/// Catches: an engine whose streams wait long for their first token and that gets its full share.
#[test]
fn the_engine_that_answers_sooner_gets_the_streams() {
    let (slow, quick) = (Engine::start(&[]), Engine::start(&[]));
    slow.set("ttft-ms=500");
    let proxy = Config::new()
        .backend(slow.url(), "name: slow")
        .backend(quick.url(), "name: quick")
        .section(strategy("latency_based"))
        .section(NO_PROBES)
        .start();
    post_all(&proxy, 30, STREAM);
    let asked = slow.posts().len();
    assert!(asked <= 6, "{asked}");
}

/// Catches: a standby that gets traffic while it need not, or goes on having it; a far region
/// before the near one; the regions in another order than the configuration's.
#[test]
fn standbys_and_far_regions_are_for_what_does_not_fit() {
    let near = Held::start();
    let [second, third, standby] = [(); 3].map(|()| Held::start());
    [&second, &third, &standby].iter().for_each(|held| held.let_go.store(true, SeqCst));
    let proxy = Config::new()
        .server("workers: 2")
        .server("region: us")
        .backend(standby.backend.url(), "name: standby, region: us, backup: true")
        .backend(second.backend.url(), "name: second, region: eu")
        .backend(near.backend.url(), "name: near, region: us, max_concurrent: 2")
        .backend(third.backend.url(), "name: third, region: asia")
        .section(NO_PROBES)
        .start();
    let asked = || [&near, &second, &third, &standby].map(|held| held.backend.requests().len());
    let mut clients = [ask(&proxy), ask(&proxy)];
    await_until("the near one is full", SOON, || near.now() == 2);
    assert_eq!(proxy.metric("llmproxy_backend_full", &[("backend", "near")]), 1.0);
    post_all(&proxy, 10, CHAT);
    assert_eq!(asked(), [2, 10, 0, 0]);
    assert_eq!(proxy.metric("llmproxy_spilled_total", &[]), 10.0);
    near.let_go.store(true, SeqCst);
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    proxy.await_metric("llmproxy_inflight", &[], 0.0);
    post_all(&proxy, 10, CHAT);
    assert_eq!(asked(), [12, 10, 0, 0]);
    assert_eq!(proxy.metric("llmproxy_backend_full", &[("backend", "near")]), 0.0);
}

#[test]
fn a_standby_serves_while_the_others_are_sick_and_no_longer() {
    let (engine, standby) = (Engine::start(&[]), Backend::answering(OK));
    let proxy = Config::new()
        .backend(standby.url(), "name: standby, backup: true")
        .backend(engine.url(), "name: engine")
        .health_check()
        .start();
    let up = |up| proxy.await_metric("llmproxy_backend_up", &[("backend", "engine")], up);
    // What is probed at the standby is noted there too.
    let served = || standby.requests().iter().filter(|r| r.head.method() == "POST").count();
    post_all(&proxy, 10, CHAT);
    assert_eq!((engine.posts().len(), served()), (10, 0));
    engine.set_health(503);
    up(0.0);
    post_all(&proxy, 10, CHAT);
    assert_eq!((engine.posts().len(), served()), (10, 10));
    engine.set_health(200);
    up(1.0);
    post_all(&proxy, 10, CHAT);
    assert_eq!((engine.posts().len(), served()), (20, 10));
}

/// Catches: an engine that says that it is full, and how long for, and is asked all the same; one
/// that nobody asks although all say so.
#[test]
fn an_engine_that_says_that_it_is_full_is_spared_while_there_are_others() {
    const FULL: &str = "HTTP/1.1 429 X\r\nretry-after: 3000\r\ncontent-length: 0\r\n\r\n";
    /// The other form that the field may have.
    const UNTIL: &str = "HTTP/1.1 429 X\r\nretry-after: Fri, 31 Dec 2100 23:59:59 GMT\r\n\
                         content-length: 0\r\n\r\n";
    let (full, well) = (Backend::answering(UNTIL), Backend::answering(OK));
    let config = |more: &Backend| {
        let config = Config::new().backend(full.url(), "name: full").section(NO_PROBES);
        config.backend(more.url(), "name: other")
    };
    let proxy = config(&well).start();
    let mut client = proxy.connect();
    let statuses: Vec<_> = (0..20).map(|_| client.post(CHATS, "", CHAT).status()).collect();
    let refused = statuses.iter().filter(|status| **status == 429).count();
    assert_eq!((refused, full.requests().len(), well.requests().len()), (1, 1, 19));
    assert_eq!(proxy.metric("llmproxy_backend_full", &[("backend", "full")]), 1.0);
    let also = Backend::answering(FULL);
    let proxy = config(&also).start();
    let mut client = proxy.connect();
    (0..6).for_each(|_| assert_eq!(client.post(CHATS, "", CHAT).status(), 429));
    assert_eq!((full.requests().len(), also.requests().len()), (4, 3));
}

/// Catches: an engine with cold caches that gets its full share in the moment in which it comes.
#[test]
fn one_that_is_added_gets_its_share_little_by_little() {
    let (old, new) = (Backend::answering(OK), Backend::answering(OK));
    let config = || Config::new().backend(old.url(), "slow_start: 5m").section(NO_PROBES);
    let proxy = config().start();
    post_all(&proxy, 10, CHAT);
    assert!(proxy.reload_with(&config().backend(new.url(), "slow_start: 5m")));
    post_all(&proxy, 60, CHAT);
    let asked = new.requests().len();
    assert!((1..=15).contains(&asked), "{asked}");
}
