//! Limits that several gateways hold together in a real Redis: exact over all of them, given back
//! by whoever does not use them, and what becomes of requests while Redis is not there.

use crate::clients::is_there;
use crate::harness::between::{Between, Passing};
use crate::harness::proxy::llmproxy;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, Redis, SOON};
use crate::rig::{rejected, CHAT, CHATS, OK, STREAM};
use rustix::process::Signal;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a busy machine: a server that seems to be gone would not hold the limits.
const PATIENT: &str = "dial_timeout: 20s, read_timeout: 20s, write_timeout: 20s";
/// Short, for servers that are frozen.
const HASTY: &str = "dial_timeout: 300ms, read_timeout: 300ms, write_timeout: 300ms";
const KEY: &str = "Authorization: Bearer a\r\n";

fn config(url: &str, server: &Redis, terms: (&str, &str)) -> Config {
    config_at(url, &server.addr().to_string(), terms)
}

/// With a server at this address.
fn config_at(url: &str, addr: &str, (timeouts, limits): (&str, &str)) -> Config {
    let shared = format!("storage: redis, redis: {{addr: '{addr}', {timeouts}}}, {limits}");
    let config = Config::backend_at(url).server("workers: 2");
    config.section(format!("rate_limit: {{{shared}}}"))
}

/// A gateway with limits in this Redis.
fn gateway(url: &str, server: &Redis, terms: (&str, &str)) -> Proxy {
    config(url, server, terms).start()
}

fn two(url: &str, server: &Redis, limits: &str) -> [Proxy; 2] {
    [(); 2].map(|()| gateway(url, server, (PATIENT, limits)))
}

fn status(proxy: &Proxy) -> u16 {
    proxy.connect().post(CHATS, KEY, CHAT).status()
}

fn is_up(proxy: &Proxy) -> bool {
    proxy.metric("llmproxy_shared_limits_up", &[]) == 1.0
}

/// Names on the server that say something of limits.
fn names(server: &Redis, pattern: &str) -> Vec<String> {
    let mut client = redis::Client::open(server.url()).unwrap();
    redis::cmd("KEYS").arg(format!("{{llmproxy}}:limit:{pattern}")).query(&mut client).unwrap()
}

/// Catches: two gateways that each let a whole limit through, a bucket that one of them keeps from
/// the other, what one refuses and the other has to pay.
#[test]
fn two_gateways_hold_one_limit() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, backend) = (Redis::start(), Backend::answering(OK));
    let limits = "per_key: {requests_per_minute: 10}, global: {requests_per_minute: 100}";
    let both = two(&backend.url(), &server, limits);
    let began = Instant::now();
    let passed = thread::scope(|scope| {
        let ask = |proxy| scope.spawn(move || status(proxy));
        let all: Vec<_> = both.iter().cycle().take(30).map(ask).collect();
        all.into_iter().map(|one| usize::from(one.join().unwrap() == 200)).sum::<usize>()
    });
    // One flows in every six seconds.
    let flown = began.elapsed().as_secs() as usize / 6;
    assert!((10..=10 + flown).contains(&passed), "{passed}");
    assert_eq!(backend.requests().len(), passed);
    let refused = both.iter().map(|proxy| rejected(proxy, "rate_limit_exceeded")).sum::<f64>();
    assert_eq!(refused, (30 - passed) as f64);
    let answer = both[0].connect().post(CHATS, KEY, CHAT);
    answer.assert_refused(429, "rate_limit_exceeded");
    assert!(answer.head.get("retry-after").unwrap().parse::<u32>().unwrap() <= 6);
}

/// Catches: gateways that together let more through than the limit, and a limit of which a part is
/// lost between gateways that borrow ahead.
#[test]
fn two_busy_gateways_use_one_limit_up_and_no_more() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    const RATE: f64 = 40.0;
    const SIZE: f64 = 80.0;
    const TIME: f64 = 4.0;
    let (server, backend) = (Redis::start(), Backend::answering(OK));
    let limits = "per_key: {requests_per_second: 40, burst_size: 80}";
    let both = two(&backend.url(), &server, limits);
    let (began, is_over) = (Instant::now(), AtomicBool::new(false));
    let passed: usize = thread::scope(|scope| {
        let ask = |proxy: &Proxy| {
            let (mut conn, mut passed) = (proxy.connect(), 0);
            loop {
                let is_in = conn.post(CHATS, KEY, CHAT).status() == 200;
                passed += usize::from(is_in);
                // It is used up when the time is over, however slow the machine was.
                if !is_in && (is_over.load(SeqCst) || began.elapsed().as_secs_f64() > TIME) {
                    is_over.store(true, SeqCst);
                    return passed;
                }
            }
        };
        let all: Vec<_> =
            both.iter().cycle().take(6).map(|proxy| scope.spawn(move || ask(proxy))).collect();
        all.into_iter().map(|one| one.join().unwrap()).sum()
    });
    let most = SIZE + RATE * began.elapsed().as_secs_f64();
    assert!(passed as f64 <= most, "{passed} of {most}");
    assert!(passed as f64 >= 0.95 * (SIZE + RATE * TIME), "{passed} of {most}");
    let granted = |proxy: &Proxy| {
        proxy.metric("llmproxy_shared_limits_questions_total", &[("result", "granted")])
    };
    assert!(both.iter().all(|proxy| granted(proxy) > 0.0 && is_up(proxy)));
    let calls = both[0].metric("llmproxy_shared_limits_call_seconds_count", &[]);
    assert!(calls > 0.0 && both[0].metric("llmproxy_shared_limits_lost_total", &[]) == 0.0);
}

/// Catches: a key that asks for each of its requests however busy it is, what it borrows and does
/// not use and keeps, and a reload that does not begin to ask, or to ask another server.
#[test]
fn who_is_busy_does_not_ask_for_each_request() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    const BATCH: usize = 100;
    let (servers, backend) = ([Redis::start(), Redis::start()], Backend::answering(OK));
    let limits = "per_key: {requests_per_second: 100000}";
    let memory = Config::backend_at(backend.url()).server("workers: 2");
    let proxy = memory.section(format!("rate_limit: {{{limits}}}")).start();
    let granted =
        || proxy.metric("llmproxy_shared_limits_questions_total", &[("result", "granted")]);
    for server in &servers {
        assert!(proxy.reload_with(&config(&backend.url(), server, (PATIENT, limits))));
        let mut conn = proxy.connect();
        assert_eq!((conn.post(CHATS, KEY, CHAT).status(), granted()), (200, 1.0));
        await_until("it borrows ahead", SOON, || {
            let before = granted();
            let all = (0..BATCH).all(|_| conn.post(CHATS, KEY, CHAT).status() == 200);
            all && granted() - before < BATCH as f64 / 2.0
        });
        // More than once: a pause can come when all that was lent has just been used.
        let mut requests = 0;
        await_until("what it did not use is given back", SOON, || {
            requests += 1;
            assert!((0..requests).all(|_| conn.post(CHATS, KEY, CHAT).status() == 200));
            proxy.metric("llmproxy_shared_limits_returned_total", &[]) > 0.0
        });
    }
}

/// Catches: tokens that one gateway reserves and another one does not see, and an estimate that
/// stays on the server when the engine says what was used.
#[test]
fn tokens_settle_for_all() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    let both = two(&engine.url(), &server, "per_key: {tokens_per_minute: 1000}");
    let body = |max: u32| {
        format!(
            r#"{{"model":"m","stream":true,"max_tokens":{max},"messages":[{{"role":"user"}}]}}"#
        )
    };
    let mut one = both[0].connect();
    one.start_post(CHATS, &format!("{KEY}x-mock-tokens: 10\r\nx-mock-gap-ms: 150\r\n"), body(800));
    assert_eq!(one.head().status(), 200);
    let other = || both[1].connect().post(CHATS, KEY, body(700));
    other().assert_refused(429, "token_rate_limit_exceeded");
    one.rest();
    await_until("what was not used is free for the other", SOON, || other().status() == 200);
}

/// Catches: places, and tokens that were not used, which a gateway that ended in order leaves taken
/// on the server.
#[test]
fn who_ends_gives_back_what_it_has() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    // Whatever is given back by then was given back because of the end.
    let limits = "redis_lease: 10s, per_key: {max_concurrent: 4, tokens_per_minute: 1000}";
    let [one, two] = two(&engine.url(), &server, limits);
    let body =
        |max: u32| format!(r#"{{"model":"m","max_tokens":{max},"messages":[{{"role":"user"}}]}}"#);
    let ask = |proxy: &Proxy, max: u32| proxy.connect().post(CHATS, KEY, body(max)).status();
    assert_eq!(ask(&one, 800), 200);
    one.process.signal(Signal::TERM);
    one.process.wait(SOON);
    assert_eq!(names(&server, "*:3"), Vec::<String>::new(), "its places are free");
    assert_eq!(ask(&two, 800), 200, "so are its tokens");
}

fn stream(proxy: &Proxy) -> Option<Conn> {
    let mut conn = proxy.connect();
    conn.start_post(CHATS, &format!("{KEY}x-mock-stall-after: 2\r\n"), STREAM);
    (conn.head().status() == 200).then_some(conn)
}

/// Catches: streams that only their own gateway counts, a place that stays taken when its stream
/// has ended or its gateway was killed.
#[test]
fn streams_of_all_gateways_are_counted_together() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    let [one, two] = two(&engine.url(), &server, "per_key: {max_concurrent: 2}");
    let (first, second) = (stream(&one), stream(&two));
    assert!(first.is_some() && second.is_some());
    for proxy in [&one, &two] {
        let refused = proxy.connect().post(CHATS, KEY, CHAT);
        refused.assert_refused(429, "concurrent_limit_exceeded");
    }
    drop(second);
    let mut third = None;
    await_until("the place is free for the other", SOON, || {
        third = stream(&one);
        third.is_some()
    });
    assert_eq!(status(&two), 429);
    one.process.signal(Signal::KILL);
    one.process.wait(SOON);
    await_until("what a dead gateway had is free", SOON, || status(&two) == 200);
    await_until("nothing is left", SOON, || names(&server, "*:3").is_empty());
}

/// Catches: requests that fail, or wait each for a server that is gone; a limit that nobody holds
/// meanwhile; a server that is back and not used.
#[test]
fn in_an_outage_each_gateway_holds_its_own_limits() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (mut server, backend) = (Redis::start(), Backend::answering(OK));
    let limits = (HASTY, "on_error: local, per_key: {requests_per_minute: 20}");
    let proxy = gateway(&backend.url(), &server, limits);
    await_until("it is used", SOON, || status(&proxy) == 200 && is_up(&proxy));
    server.kill();
    assert_eq!(status(&proxy), 200);
    await_until("the outage is seen", SOON, || !is_up(&proxy));
    server.start_again();
    await_until("it is used again", SOON, || is_up(&proxy));
    server.freeze();
    assert_eq!(status(&proxy), 200);
    await_until("a silent one is an outage too", SOON, || !is_up(&proxy));
    let asked =
        |result| proxy.metric("llmproxy_shared_limits_questions_total", &[("result", result)]);
    let before = asked("failed");
    assert!(before > 0.0);
    await_until("its own limit holds", SOON, || status(&proxy) == 429);
    assert_eq!(asked("failed"), before, "nobody waits for it");
    server.thaw();
    await_until("it is used when it goes on", SOON, || is_up(&proxy));
    // One that is restarted between two calls, and has lost its scripts.
    server.stop();
    server.start_again();
    await_until("and when it was restarted", SOON, || is_up(&proxy));
    let told = |text: &str| {
        let events = proxy.events();
        events.iter().filter(|event| event["message"].as_str().unwrap().contains(text)).count()
    };
    assert!(told("cannot be held together") >= 1 && told("are held together again") >= 1);
    // A master that has become a replica says no to what writes.
    let mut client = redis::Client::open(server.url()).unwrap();
    redis::cmd("REPLICAOF").arg(&["127.0.0.1", "1"]).exec(&mut client).unwrap();
    await_until("one that may not be written to is none", SOON, || {
        status(&proxy);
        !is_up(&proxy)
    });
    redis::cmd("REPLICAOF").arg(&["NO", "ONE"]).exec(&mut client).unwrap();
    await_until("the outage is over", SOON, || is_up(&proxy));
}

/// Catches: a limit that is not held while each answer is late; a server that is too late, or that
/// reads its file, and is taken for one that lends, or for good.
#[test]
fn a_server_that_is_slow_holds_limits_and_one_that_loads_does_not() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, backend) = (Redis::start(), Backend::answering(OK));
    let between = Between::before(server.addr());
    let addr = between.addr().to_string();
    between.set(Passing::Late(Duration::from_millis(20)));
    let begun = Instant::now();
    let limit = "per_key: {requests_per_minute: 12}";
    let slow = [(); 2].map(|()| config_at(&backend.url(), &addr, (PATIENT, limit)).start());
    let mut passed = 0;
    for proxy in slow.iter().cycle() {
        match status(proxy) {
            200 => passed += 1,
            other => {
                assert_eq!(other, 429);
                break;
            }
        }
    }
    // One flows in every five seconds, however long this took.
    let most = 12 + begun.elapsed().as_secs() / 5 + 1;
    assert!((12..=most).contains(&passed), "{passed} of {most}");
    assert!(slow.iter().all(is_up), "it is late, not gone");
    let terms = (HASTY, "on_error: local, per_key: {requests_per_minute: 600}");
    between.set(Passing::AtOnce);
    let proxy = config_at(&backend.url(), &addr, terms).start();
    await_until("it is used", SOON, || status(&proxy) == 200 && is_up(&proxy));
    for fault in [Passing::Late(Duration::from_secs(1)), Passing::Loading] {
        between.set(fault);
        await_until(&format!("{fault:?} is an outage"), SOON, || {
            assert_eq!(status(&proxy), 200, "its own limit counts");
            !is_up(&proxy)
        });
        between.set(Passing::AtOnce);
        await_until(&format!("{fault:?} is over"), SOON, || is_up(&proxy));
        assert_eq!(status(&proxy), 200);
    }
}

/// Catches: somebody who is served though nobody knows whether they may be, and a refusal that
/// stays when the server is back.
#[test]
fn without_redis_nobody_is_served_where_the_file_says_so() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (mut server, backend) = (Redis::start(), Backend::answering(OK));
    let limits = (HASTY, "on_error: deny, per_key: {requests_per_minute: 600, max_concurrent: 9}");
    let proxy = gateway(&backend.url(), &server, limits);
    await_until("it is used", SOON, || status(&proxy) == 200);
    server.kill();
    // One that starts meanwhile knows it before it is asked.
    let late = gateway(&backend.url(), &server, limits);
    await_until("it is missed", SOON, || !is_up(&late));
    let check = || {
        let file = late.config_file();
        llmproxy(&["check", "--connect", file.to_str().unwrap()]).stderr
    };
    assert!(check().contains("rate_limit.redis: not reached: redis://"), "{}", check());
    for _ in 0..3 {
        let refused = proxy.connect().post(CHATS, KEY, CHAT);
        refused.assert_refused(503, "limits_unavailable");
        assert_eq!(refused.head.get("retry-after"), Some("1"));
    }
    assert_eq!(proxy.get("/health").status(), 200);
    server.start_again();
    await_until("it is back", SOON, || status(&proxy) == 200);
    assert!(check().contains("rate_limit.redis: reached"), "{}", check());
}

/// Catches: what is granted to a client that has left, and stays granted.
#[test]
fn who_leaves_while_asking_holds_nothing() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, backend) = (Redis::start(), Backend::answering(OK));
    let limits = "per_key: {requests_per_minute: 600, max_concurrent: 1}";
    let proxy = gateway(&backend.url(), &server, (PATIENT, limits));
    assert_eq!(status(&proxy), 200);
    await_until("it is forgotten", SOON, || names(&server, "[ks]*").is_empty());
    server.freeze();
    let mut conn = proxy.connect();
    conn.start_post(CHATS, KEY, CHAT);
    proxy.await_metric("llmproxy_requests_active", &[], 2.0);
    drop(conn);
    await_until("the gateway has seen it leave", SOON, || {
        proxy.metric("llmproxy_client_abort_total", &[]) >= 1.0
    });
    server.thaw();
    await_until("it has a place and units again", SOON, || status(&proxy) == 200);
    await_until("nothing is left", SOON, || names(&server, "[ks]*").is_empty());
    assert_eq!(backend.requests().len(), 2);
}

const SCRIPT: &str = include_str!("../../src/control/shared_limits/script.lua");
/// One unit flows in in a thousand seconds: nothing, for as long as the test runs.
const EACH: i64 = 64_000_000_000;
const LIMIT: i64 = 20;

/// What is asked of the script in one call.
#[derive(Default)]
struct Ask {
    amounts: Vec<(usize, i64)>,
    slots: Option<(usize, i64)>,
    /// Items: a bucket or, beyond, slots; units, and how many more may be lent.
    groups: Vec<Vec<(usize, i64, i64)>>,
}

/// Names of buckets and, from the third on, of slots.
fn name(which: usize) -> String {
    format!("{{llmproxy}}:limit:k{which}")
}

fn call(client: &mut redis::Client, (number, who): (u64, &str), ask: &Ask) -> Vec<i64> {
    let mut keys = vec![format!("{{llmproxy}}:limit:told:{who}")];
    let mut numbers = vec![ask.amounts.len() as i64];
    for (which, units) in &ask.amounts {
        keys.push(name(*which));
        numbers.extend([EACH, LIMIT, *units]);
    }
    numbers.push(i64::from(ask.slots.is_some()));
    if let Some((which, slots)) = &ask.slots {
        keys.push(name(*which));
        numbers.push(*slots);
    }
    numbers.push(ask.groups.len() as i64);
    for group in &ask.groups {
        numbers.push(group.len() as i64);
        for (which, units, more) in group {
            keys.push(name(*which));
            numbers.extend([if *which < 2 { EACH } else { 0 }, LIMIT, *units, *more]);
        }
    }
    let mut command = redis::cmd("EVAL");
    command.arg(SCRIPT).arg(keys.len()).arg(&keys).arg(number).arg(who).arg(60_000).arg(&numbers);
    command.query(client).unwrap()
}

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn to(&mut self, end: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as i64 % end
    }
}

/// What the script should do: two buckets, and the slots of two gateways.
struct Model {
    left: [i64; 2],
    slots: [[i64; 2]; 2],
}

impl Model {
    fn lacks(&self, (which, units, _): (usize, i64, i64)) -> bool {
        match which {
            0 | 1 => units > self.left[which],
            _ => self.slots[which - 2].iter().sum::<i64>() + units > LIMIT,
        }
    }

    /// What a group gets of it, without the time to wait.
    fn group(&mut self, who: usize, group: &[(usize, i64, i64)]) -> Option<Vec<i64>> {
        if group.iter().any(|item| self.lacks(*item)) {
            return None;
        }
        let take = |(which, units, more): &(usize, i64, i64)| {
            if *which >= 2 {
                self.slots[which - 2][who] += units;
                return 0;
            }
            let more = (*more).min((self.left[*which] - units) / 2);
            self.left[*which] -= units + more;
            more
        };
        Some(group.iter().map(take).collect())
    }
}

/// Catches: a script that grants what is not there or refuses what is, takes a part of what it
/// refuses, counts an amount twice that was sent twice, or mixes up what belongs to whom.
#[test]
fn the_script_does_what_a_simple_model_does() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let server = Redis::start();
    let mut client = redis::Client::open(server.url()).unwrap();
    let mut model = Model { left: [LIMIT; 2], slots: [[0; 2]; 2] };
    let mut dice = Dice(7);
    let (mut granted, mut refused) = (0, 0);
    for number in 1..=3000 {
        let who = dice.to(2) as usize;
        let mut ask = Ask::default();
        if dice.to(2) == 0 {
            let which = dice.to(2) as usize;
            // A debt of three at most, as the script forgives what is an hour old.
            let most = (model.left[which] + 3).min(4);
            let units = dice.to(most + 9) - 8;
            ask.amounts.push((which, units));
        }
        if dice.to(2) == 0 {
            ask.slots = Some((2 + dice.to(2) as usize, dice.to(6)));
        }
        for _ in 0..dice.to(4) {
            let mut group = Vec::new();
            for which in 0..4 {
                if dice.to(3) == 0 {
                    let more = if which < 2 { dice.to(5) } else { 0 };
                    group.push((which, 1 + dice.to(4), more));
                }
            }
            if !group.is_empty() {
                ask.groups.push(group);
            }
        }
        if let [(which, units)] = ask.amounts[..] {
            model.left[which] = (model.left[which] - units).min(LIMIT);
        }
        if let Some((which, slots)) = ask.slots {
            model.slots[which - 2][who] = slots;
        }
        let name = ["one", "two"][who];
        if ask.amounts.len() == 1 && dice.to(2) == 0 {
            // A call whose answer was lost: its amounts are there, and it is sent again.
            let (amounts, slots) = (ask.amounts.clone(), None);
            call(&mut client, (number, name), &Ask { amounts, slots, groups: Vec::new() });
        }
        let mut said = call(&mut client, (number, name), &ask).into_iter();
        for group in &ask.groups {
            match model.group(who, group) {
                Some(more) => {
                    assert_eq!(said.next(), Some(0), "{number}: {group:?}");
                    assert_eq!(said.by_ref().take(more.len()).collect::<Vec<_>>(), more);
                    granted += 1;
                }
                None => {
                    assert!(said.next().unwrap() < 0, "{number}: {group:?}");
                    assert!(said.next().unwrap() >= 0);
                    refused += 1;
                }
            }
        }
        assert_eq!(said.next(), None);
    }
    assert!(granted > 500 && refused > 500, "{granted} {refused}");
}
