//! Quotas that several gateways count together beside the keys in a real Redis
//! (`auth.quota_storage: redis`).

use crate::clients::is_there;
use crate::harness::between::{Between, Passing};
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Config, Engine, Proxy, Redis, SOON};
use crate::rig::CHATS;
use rustix::process::Signal;
use std::collections::HashMap;
use std::time::Duration;

const KEY: &str = "Authorization: Bearer sk-shared\r\n";
const NAME: &str = "llmproxy:key:sk-shared";
/// Long enough for a busy machine.
const PATIENT: &str = "dial_timeout: 20s, read_timeout: 20s, write_timeout: 20s";
/// Short, for a server that is frozen.
const HASTY: &str = "dial_timeout: 200ms, read_timeout: 200ms, write_timeout: 200ms";

fn ask<T: redis::FromRedisValue>(server: &Redis, command: &[&str]) -> T {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).unwrap()
}

/// What all have used, as Redis has it.
fn used(server: &Redis) -> u64 {
    let used: Option<u64> = ask(server, &["HGET", NAME, "used_quota"]);
    used.unwrap_or(0)
}

/// A gateway whose counters lie in this folder.
fn gateway(engine: &Engine, server: &Redis, counters: &Scratch, timeouts: &str) -> Proxy {
    // What is remembered of a key is short, so that one that comes back is looked up again.
    gateway_at(engine, &server.addr().to_string(), counters, (timeouts, "300ms", 2))
}

/// The same with a server at this address, and so many workers that remember keys for so long.
fn gateway_at(
    engine: &Engine,
    server: &str,
    counters: &Scratch,
    (timeouts, ttl, workers): (&str, &str, usize),
) -> Proxy {
    let redis = format!("redis: {{addr: '{server}', {timeouts}}}");
    let provider = format!("{{type: redis, {redis}, cache: {{ttl: {ttl}}}}}");
    Config::backend_at(engine.url())
        .server(format!("workers: {workers}"))
        .section(format!("auth: {{quota_storage: redis, pipeline: [{provider}]}}"))
        .section(format!("counters: {{entries: 1024, dir: '{}'}}", counters.file("c").display()))
        .start()
}

fn chat(tokens: u64) -> (String, String) {
    let knobs = format!("{KEY}x-mock-tokens: {tokens}\r\n");
    (knobs, r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"a"}]}"#.into())
}

/// The status of a chat, and the tokens that it cost.
fn status(proxy: &Proxy) -> (u16, u64) {
    let (knobs, body) = chat(20);
    let answer = proxy.connect().post(CHATS, &knobs, body);
    match answer.status() {
        200 => (200, answer.json()["usage"]["total_tokens"].as_u64().unwrap()),
        status => (status, 0),
    }
}

fn spend(proxy: &Proxy) -> u64 {
    let (status, tokens) = status(proxy);
    assert_eq!(status, 200);
    tokens
}

/// Catches: a quota that each gateway gives anew, tokens that are not told or told twice, a key
/// whose starting value is forgotten.
#[test]
fn two_gateways_share_a_quota() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    let folders = [Scratch::new(), Scratch::new()];
    let quota = ["HSET", NAME, "user_id", "u", "total_quota", "600", "used_quota", "100"];
    let _: u64 = ask(&server, &quota);
    let both = folders.each_ref().map(|folder| gateway(&engine, &server, folder, PATIENT));
    let mut spent = 100;
    for proxy in both.iter().cycle().take(6) {
        spent += spend(proxy);
    }
    await_until("all of it is told", SOON, || used(&server) == spent);
    // One of them uses the rest; the other one learns of it without a request.
    while let (200, tokens) = status(&both[0]) {
        spent += tokens;
        assert!(spent < 1000, "no end");
    }
    // Until it knows it lets through what it has left by its own count.
    await_until("the other one knows", SOON, || {
        let (status, tokens) = status(&both[1]);
        spent += tokens;
        status == 429
    });
    await_until("what was used is told, and no more", SOON, || used(&server) == spent);
    // An operator gives some back.
    let _: u64 = ask(&server, &["HSET", NAME, "used_quota", "0"]);
    for proxy in &both {
        await_until("it is open again", SOON, || status(proxy).0 == 200);
    }
    let told = [("result", "told")];
    assert!(both.iter().all(|proxy| proxy.metric("llmproxy_quota_calls_total", &told) > 0.0));
}

/// Catches: what was used during an outage and is never told, requests that wait for a server that
/// hangs, what was used before a kill and is told twice, or not at all.
#[test]
fn outages_and_kills_lose_nothing_and_count_nothing_twice() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    let folder = Scratch::new();
    let _: u64 = ask(&server, &["HSET", NAME, "total_quota", "100000"]);
    let mut proxy = gateway(&engine, &server, &folder, HASTY);
    let mut spent = spend(&proxy);
    await_until("it is told", SOON, || used(&server) == spent);
    // Known keys go on while it is frozen: what was remembered of them is not over yet, or the
    // look-up fails and they are not.
    server.freeze();
    for _ in 0..3 {
        spent += status(&proxy).1;
    }
    server.thaw();
    await_until("it is well again", SOON, || {
        let (status, tokens) = status(&proxy);
        spent += tokens;
        status == 200
    });
    await_until("what was used meanwhile is told", SOON, || used(&server) == spent);
    for _ in 0..5 {
        spent += spend(&proxy);
        proxy.process.signal(Signal::KILL);
        proxy.process.wait(SOON);
        proxy = gateway(&engine, &server, &folder, HASTY);
        spent += spend(&proxy);
        await_until("all of before the kill is told", SOON, || used(&server) == spent);
    }
}

/// Catches: a key that was taken away and comes back by what is told of it, a key that is a text
/// and whose quota counts for each gateway alone, a period that goes on when it is over, a value
/// that cannot be counted and stops all others.
#[test]
fn what_stands_there_decides_how_it_is_counted() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, engine) = (Redis::start(), Engine::start(&[]));
    let folders = [Scratch::new(), Scratch::new()];
    let both = folders.each_ref().map(|folder| gateway(&engine, &server, folder, PATIENT));
    // Of yesterday: nothing of it counts.
    let old = ["HSET", NAME, "total_quota", "200", "used_quota", "200", "quota_reset_period"];
    let _: u64 = ask(&server, &[&old[..], &["daily", "last_reset_at", "1700000000"]].concat());
    let spent = spend(&both[0]);
    await_until("today's are told", SOON, || used(&server) == spent);
    let fields: HashMap<String, String> = ask(&server, &["HGETALL", NAME]);
    assert!(fields["last_reset_at"].parse::<u64>().unwrap() > 1_750_000_000, "{fields:?}");
    // A key that goes stays away.
    let _: u64 = ask(&server, &["DEL", NAME]);
    await_until("it is unknown", SOON, || status(&both[0]).0 == 401);
    let there: u64 = ask(&server, &["EXISTS", NAME]);
    assert_eq!(there, 0);
    // As a text it is counted beside it.
    let text = r#"{"total_quota": 300, "used_quota": 50}"#;
    let _: String = ask(&server, &["SET", NAME, text]);
    let mut count = 0;
    for proxy in both.iter().cycle() {
        count += 1;
        if status(proxy).0 == 429 {
            break;
        }
        assert!(count < 100, "no end");
    }
    await_until("the other one knows too", SOON, || both.iter().all(|it| status(it).0 == 429));
    // What is no number.
    let _: u64 = ask(&server, &["DEL", NAME]);
    let _: u64 = ask(&server, &["HSET", NAME, "total_quota", "100000", "used_quota", "7.5"]);
    await_until("each gateway goes on by its own count", SOON, || status(&both[0]).0 == 200);
    both[0].await_event("it is told", |event| event["what"] == "used_quota is no whole number");
}

/// Catches: what was used while the server was gone, slow, read its file or might not be written
/// to, and is never told, or told again when an answer to it was late; a client that waits for it.
#[test]
fn no_fault_of_the_server_changes_what_is_counted() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (mut server, engine, folder) = (Redis::start(), Engine::start(&[]), Scratch::new());
    let between = Between::before(server.addr());
    let _: u64 = ask(&server, &["HSET", NAME, "total_quota", "100000"]);
    let addr = between.addr().to_string();
    let proxy = gateway_at(&engine, &addr, &folder, (HASTY, "1h", 1));
    let mut spent = spend(&proxy);
    let all_told = |server: &Redis, what: &str, spent: u64| {
        await_until(what, SOON, || used(server) == spent);
    };
    all_told(&server, "it is told", spent);
    // Slow, but in time; and so slow that nobody waits for its answer.
    for late in [20, 500] {
        between.set(Passing::Late(Duration::from_millis(late)));
        (0..3).for_each(|_| spent += spend(&proxy));
        between.set(Passing::AtOnce);
        spent += spend(&proxy);
        all_told(&server, &format!("{late} ms late"), spent);
    }
    let calls = |result| proxy.metric("llmproxy_quota_calls_total", &[("result", result)]);
    between.set(Passing::Loading);
    let before = calls("failed");
    await_until("it says that it is loading", SOON, || {
        spent += spend(&proxy);
        calls("failed") > before
    });
    between.set(Passing::AtOnce);
    all_told(&server, "it has loaded", spent);
    server.kill();
    (0..3).for_each(|_| spent += spend(&proxy));
    server.start_again();
    all_told(&server, "it was killed", spent);
    server.stop();
    (0..3).for_each(|_| spent += spend(&proxy));
    server.start_again();
    all_told(&server, "it was restarted", spent);
    let _: String = ask(&server, &["REPLICAOF", "127.0.0.1", "1"]);
    (0..3).for_each(|_| spent += spend(&proxy));
    let _: String = ask(&server, &["REPLICAOF", "NO", "ONE"]);
    all_told(&server, "it was a replica", spent);
}
