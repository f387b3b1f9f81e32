//! Requests that go where others were before them by the beginning of their prompt.

use crate::harness::{await_until, pause, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{CHATS, OK};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;

pub const NO_PROBES: &str = "health_check: {enabled: false}";

const BAD: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
const NAMES: [&str; 3] = ["a", "b", "c"];

/// With these keys of `routing`, and answers that say whose they are.
pub fn config<'a>(urls: impl IntoIterator<Item = &'a String>, routing: &str) -> Config {
    config_of(2, urls, routing)
}

fn config_of<'a>(
    workers: usize,
    urls: impl IntoIterator<Item = &'a String>,
    routing: &str,
) -> Config {
    let config = Config::new().server(format!("workers: {workers}"));
    let config = urls.into_iter().zip(NAMES).fold(config, |config, (url, name)| {
        config.backend(url, &format!("name: {name}, max_concurrent: 100"))
    });
    config.section(format!(
        "routing: {{{routing}, response_headers: [x-llmproxy-backend], retry: {{max_retries: 2}}}}"
    ))
}

const BY_PREFIX: &str = "load_balance: prefix_affinity";

/// A conversation: what was said so far.
#[derive(Clone)]
struct Chat(Vec<String>);

impl Chat {
    /// With words of the system that all have, and a question that nobody else has.
    fn new(number: usize) -> Chat {
        Chat::with("You are a helpful assistant", number)
    }

    fn with(system: &str, number: usize) -> Chat {
        let words = |text: &str| format!("{text} {}", "and so on ".repeat(300));
        Chat(vec![message("system", &words(system)), message("user", &words(&number.to_string()))])
    }

    fn body(&self) -> String {
        format!(r#"{{"model":"m","messages":[{}]}}"#, self.0.join(","))
    }

    /// Asks on a connection of its own, which may be any worker's; gives who answered. The
    /// conversation goes on.
    fn ask(&mut self, proxy: &Proxy) -> String {
        let answer = proxy.post(CHATS, self.body());
        assert_eq!(answer.status(), 200, "{}", answer.text());
        self.0.push(message("assistant", "Yes."));
        self.0.push(message("user", "Why?"));
        answer.head.get("x-llmproxy-backend").unwrap().to_owned()
    }
}

fn message(role: &str, text: &str) -> String {
    format!(r#"{{"role":"{role}","content":"{text}"}}"#)
}

pub fn counted(proxy: &Proxy, kind: &str, result: &str) -> f64 {
    proxy.metric("llmproxy_affinity_total", &[("kind", kind), ("result", result)])
}

/// Catches: a conversation that changes its engine with each turn, or with each worker, or with a
/// reload; conversations that all go to one engine.
#[test]
fn a_conversation_stays_with_the_engine_that_has_read_it() {
    let engines = [(); 3].map(|()| Engine::start(&[]));
    let urls = engines.each_ref().map(Engine::url);
    let proxy = config(&urls, BY_PREFIX).section(NO_PROBES).start();
    let mut chats: Vec<_> = (0..24).map(Chat::new).collect();
    let homes: Vec<_> = chats.iter_mut().map(|chat| chat.ask(&proxy)).collect();
    let all: BTreeSet<_> = homes.iter().collect();
    assert!(all.len() > 1, "{homes:?}");
    for turn in 0..4 {
        if turn == 2 {
            let other = format!("{BY_PREFIX}, sse_keepalive: 10s");
            assert!(proxy.reload_with(&config(&urls, &other).section(NO_PROBES)));
        }
        let now: Vec<_> = chats.iter_mut().map(|chat| chat.ask(&proxy)).collect();
        assert_eq!(now, homes, "turn {turn}");
    }
    let [hits, misses, spilled] =
        ["hit", "miss", "spilled"].map(|result| counted(&proxy, "prefix", result));
    // The first turns begin with words that somebody has read, but for the very first.
    assert!(hits >= 96.0 && misses == 1.0 && hits + misses + spilled == 120.0, "{hits} {misses}");
    assert_eq!(counted(&proxy, "session", "hit"), 0.0);
}

/// Catches: a request that fails because its engine is gone; conversations that go back to an
/// engine which has forgotten them, or that move once more.
#[test]
fn conversations_move_when_their_engine_dies_and_stay_where_they_are() {
    let mut engines = [(); 3].map(|()| Some(Engine::start(&[])));
    let urls = engines.each_ref().map(|engine| engine.as_ref().unwrap().url());
    let proxy = config(&urls, BY_PREFIX).health_check().start();
    let mut chats: Vec<_> = (0..24).map(Chat::new).collect();
    let homes: Vec<_> = chats.iter_mut().map(|chat| chat.ask(&proxy)).collect();
    let gone = homes[0].as_str();
    let engine = engines[NAMES.iter().position(|name| *name == gone).unwrap()].take().unwrap();
    let address = engine.addr();
    drop(engine);
    let moved: Vec<_> = chats.iter_mut().map(|chat| chat.ask(&proxy)).collect();
    for (home, now) in homes.iter().zip(&moved) {
        assert!(now != gone && (home == gone || home == now), "{homes:?} {moved:?}");
    }
    proxy.await_metric("llmproxy_backend_up", &[("backend", gone)], 0.0);
    let _back = Engine::start(&["--listen", &address.to_string()]);
    // One request of others is let through to see whether it is there.
    let mut numbers = 100..;
    let mut ask_anew = || {
        let number = numbers.next().unwrap();
        Chat::with(&format!("You are number {number}"), number).ask(&proxy)
    };
    await_until("it is back", 3 * SOON, || {
        ask_anew();
        proxy.metric("llmproxy_backend_up", &[("backend", gone)]) == 1.0
    });
    let after: Vec<_> = chats.iter_mut().map(|chat| chat.ask(&proxy)).collect();
    assert_eq!(after, moved);
    await_until("it gets new conversations", SOON, || ask_anew() == gone);
}

/// Catches: a prompt that is read in slices and whose beginning gets lost between two of them; a
/// conversation that is not known where another engine answered it in the place of its own.
#[test]
fn long_prompts_are_known_too_and_so_is_who_answered_instead() {
    const DOWN: &str = "HTTP/1.1 503 X\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    let is_down = [(); 3].map(|()| Arc::<AtomicBool>::default());
    let backends = is_down.each_ref().map(|is_down| {
        let is_down = Arc::clone(is_down);
        Backend::start(move |served| {
            while served.request().is_some() {
                served.send(if is_down.load(SeqCst) { DOWN } else { OK });
            }
        })
    });
    let urls = backends.each_ref().map(Backend::url);
    let proxy = config(&urls, BY_PREFIX).section(NO_PROBES).start();
    for bytes in [2_000, 700_000] {
        let own = format!("{bytes} {}", "x".repeat(bytes));
        let mut chat = Chat(vec![message("user", &own)]);
        let home = chat.ask(&proxy);
        assert_eq!([(); 3].map(|()| chat.ask(&proxy)), [(); 3].map(|()| home.clone()));
        let at = NAMES.iter().position(|name| *name == home).unwrap();
        is_down[at].store(true, SeqCst);
        let other = chat.ask(&proxy);
        assert_ne!(other, home);
        // It is spared for a second, and the other one has read the conversation meanwhile.
        let stays: Vec<_> = (0..3).map(|_| chat.ask(&proxy)).collect();
        is_down[at].store(false, SeqCst);
        if bytes < 100_000 {
            assert!(stays.iter().all(|now| *now == other), "{stays:?}");
        }
    }
}

/// What a request says that an engine is to refuse.
const FAILS: &str = "Fail.";

/// An engine whose answers wait until it is let go.
pub struct Held {
    pub backend: Backend,
    /// Requests that wait there.
    pub now: Arc<AtomicUsize>,
    pub let_go: Arc<AtomicBool>,
}

impl Held {
    pub fn start() -> Held {
        let (now, let_go) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (asked, go) = (Arc::clone(&now), Arc::clone(&let_go));
        let backend = Backend::start(move |served| {
            while let Some(request) = served.request() {
                asked.fetch_add(1, SeqCst);
                while !go.load(SeqCst) {
                    pause(Duration::from_millis(5));
                }
                asked.fetch_sub(1, SeqCst);
                let is_bad = String::from_utf8_lossy(&request.body).contains(FAILS);
                served.send(if is_bad { BAD } else { OK });
            }
        });
        Held { backend, now, let_go }
    }
}

/// Catches: an engine that has to answer for all because it was the first to read what all say.
#[test]
fn a_prefix_that_all_have_is_shared_by_as_many_engines_as_it_takes() {
    let held = [(); 3].map(|()| Held::start());
    let urls = held.each_ref().map(|held| held.backend.url());
    let proxy = config(&urls, BY_PREFIX).section(NO_PROBES).start();
    let system = message("system", &"Do as you are told. ".repeat(500));
    let ask = |number: usize| {
        let mut client = proxy.connect();
        let own = message("user", &number.to_string());
        let body = format!(r#"{{"model":"m","messages":[{system},{own}]}}"#);
        client.start_post(CHATS, "", body);
        client
    };
    let load = || held.each_ref().map(|held| held.now.load(SeqCst));
    let mut clients: Vec<Conn> = Vec::new();
    for number in 0..2 {
        clients.push(ask(number));
        await_until("it is there", SOON, || load().iter().sum::<usize>() == number + 1);
    }
    assert!(load().contains(&2), "there is room: {:?}", load());
    clients.extend((2..30).map(ask));
    await_until("all are there", SOON, || load().iter().sum::<usize>() == 30);
    // No more than 1.25 times the mean, and two: 14. Of two workers that pick at the same moment
    // one may not know of the other's, which makes 15.
    assert!(load().iter().all(|n| (1..=15).contains(n)), "{:?}", load());
    assert!(counted(&proxy, "prefix", "spilled") > 0.0);
    held.iter().for_each(|held| held.let_go.store(true, SeqCst));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
}

/// All that was counted of prompts.
fn counts(proxy: &Proxy) -> [f64; 3] {
    ["hit", "miss", "spilled"].map(|result| counted(proxy, "prefix", result))
}

/// Catches: a client that is sent back to the engine that refused its prompt, or failed over it, as
/// to one that has read it.
#[test]
fn an_engine_that_failed_over_a_prompt_has_not_read_it() {
    for answer in ["400 Bad Request", "422 No", "501 No", ""] {
        let engines = [(); 2].map(|()| {
            Backend::start(move |served| {
                while served.request().is_some() && !answer.is_empty() {
                    served.send(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n"));
                }
            })
        });
        let urls = engines.each_ref().map(Backend::url);
        let proxy = config(&urls, BY_PREFIX).section(NO_PROBES).start();
        let body = Chat::new(1).body();
        for _ in 0..3 {
            assert!(proxy.post(CHATS, &body).status() >= 400);
        }
        assert_eq!(counts(&proxy), [0.0, 3.0, 0.0], "{answer}");
    }
}

/// Catches: the same where other prompts were read while the answer was waited for, and an engine
/// that has read the beginning of a conversation and is forgotten because it failed over the rest.
#[test]
fn what_an_engine_has_read_before_stays_when_it_fails_over_more() {
    let held = [(); 2].map(|()| Held::start());
    let urls = held.each_ref().map(|held| held.backend.url());
    let proxy = config_of(1, &urls, BY_PREFIX).section(NO_PROBES).start();
    let load = || held.iter().map(|held| held.now.load(SeqCst)).sum::<usize>();
    let let_go = |go| held.iter().for_each(|held| held.let_go.store(go, SeqCst));
    let ask = |chat: &Chat| {
        let (mut client, before) = (proxy.connect(), load());
        client.start_post(CHATS, "", chat.body());
        await_until("it is there", SOON, || load() == before + 1);
        client
    };
    let fails = |chat: &Chat| {
        let mut chat = chat.clone();
        chat.0.push(message("user", &format!("{FAILS}{}", "and more ".repeat(600))));
        chat
    };
    let mut chats = [1, 2].map(|number| Chat::with(&format!("You are number {number}"), number));
    let_go(true);
    let homes = chats.each_mut().map(|chat| chat.ask(&proxy));
    let_go(false);
    let mut clients = chats.each_ref().map(|chat| ask(&fails(chat)));
    let_go(true);
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 400));
    assert_eq!(counts(&proxy)[1], 2.0);
    assert_eq!(chats.each_mut().map(|chat| chat.ask(&proxy)), homes);
    // Of these nearly all is what failed: what is left is too little to go anywhere for it.
    let long = fails(&Chat(vec![message("system", &"x".repeat(600))]));
    for _ in 0..2 {
        let_go(false);
        let mut clients = [&long, &fails(&chats[0])].map(ask);
        let_go(true);
        clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 400));
    }
    assert_eq!(counts(&proxy)[1], 4.0, "{:?}", counts(&proxy));
}

/// Catches: a conversation that is not found where a rule has sent it; and a request that is led to
/// an engine, and counted, for a cache that is not used for it.
#[test]
fn who_a_rule_names_has_read_the_prompt_and_some_prompts_are_read_anew() {
    const DOWN: &str = "HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n";
    let asked = Arc::<AtomicUsize>::default();
    let backends = [(); 3].map(|()| {
        let asked = Arc::clone(&asked);
        Backend::start(move |served| {
            while served.request().is_some() {
                // Each of two conversations fails once, at its first engine.
                let number = asked.fetch_add(1, SeqCst);
                served.send(if matches!(number, 0 | 3) { DOWN } else { OK });
            }
        })
    });
    let urls = backends.each_ref().map(Backend::url);
    let rules = "fallback: [{primary: a, fallback: [b]}, {primary: b, fallback: [c]}, \
                 {primary: c, fallback: [a]}]";
    // One worker: its budget of retries is enough for both, however soon one follows the other.
    let routing = format!("{BY_PREFIX}, {rules}");
    let proxy = config_of(1, &urls, &routing).section(NO_PROBES).start();
    for number in 0..2 {
        let mut chat = Chat::with(&format!("You are number {number}"), number);
        let home = chat.ask(&proxy);
        assert_eq!(chat.ask(&proxy), home, "{number}");
    }
    assert_eq!(counts(&proxy), [2.0, 2.0, 0.0]);
    let body = Chat::with("You are number 1", 1)
        .body()
        .replace("{\"model", "{\"cache_prompt\":false,\"model");
    assert_eq!(proxy.post(CHATS, body).status(), 200);
    assert_eq!(counts(&proxy), [2.0, 2.0, 0.0]);
}

/// Catches: a backend that is counted as picked, and as one that has read the prompt, because the
/// client of another one left.
#[test]
fn who_would_be_next_has_read_nothing_when_the_client_leaves() {
    let held = [(); 2].map(|()| Held::start());
    let urls = held.each_ref().map(|held| held.backend.url());
    let proxy = config(&urls, BY_PREFIX).section(NO_PROBES).start();
    let body = Chat::new(1).body();
    let load = || held.each_ref().map(|held| held.now.load(SeqCst));
    let mut client = proxy.connect();
    client.start_post(CHATS, "", &body);
    await_until("it is there", SOON, || load().iter().sum::<usize>() == 1);
    let (own, other) = if load() == [1, 0] { ("a", "b") } else { ("b", "a") };
    drop(client);
    let left = [("path", CHATS), ("status", "499"), ("backend", own)];
    await_until("it is over", SOON, || proxy.metric("llmproxy_requests_total", &left) == 1.0);
    let picked = |name| proxy.metric("llmproxy_backend_picked_total", &[("backend", name)]);
    assert_eq!((picked(own), picked(other)), (1.0, 0.0));
    held.iter().for_each(|held| held.let_go.store(true, SeqCst));
    // The engine that has read it is the only one.
    for _ in 0..6 {
        assert_eq!(home(&proxy, "", &body), own);
    }
}

/// Who answers a request of this session.
pub fn home(proxy: &Proxy, fields: &str, body: &str) -> String {
    let answer = proxy.connect().post(CHATS, fields, body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    answer.head.get("x-llmproxy-backend").unwrap().to_owned()
}
