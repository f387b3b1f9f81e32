//! Requests whose keys live elsewhere, from the client's end: who is let in, who is not, and what
//! clients are told while nobody can say.

use crate::clients::is_there;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, Redis, SOON};
use crate::rig::{CHAT, CHATS};
use llmproxy::control::key_store::{KeyRef, KeyStore, StoredKey};
use llmproxy::keys::digest::KeyDigest;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

/// The product before an engine, with these providers.
fn proxy(engine: &Engine, pipeline: &str) -> Proxy {
    config(engine, pipeline).start()
}

fn config(engine: &Engine, pipeline: &str) -> Config {
    Config::backend_at(engine.url()).section(format!("auth: {{pipeline: [{pipeline}]}}"))
}

/// Posts a chat with a key.
fn post(proxy: &Proxy, key: &str) -> crate::harness::client::Response {
    proxy.connect().post(CHATS, &format!("Authorization: Bearer {key}\r\n"), CHAT)
}

fn status(proxy: &Proxy, key: &str) -> u16 {
    post(proxy, key).status()
}

fn tell(server: &Redis, command: &[&str]) {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_connection().unwrap();
    redis::cmd(command[0]).arg(&command[1..]).exec(&mut connection).unwrap();
}

/// Catches: a client that is told that its key is none while Redis is away; one that is let in
/// then; a gateway that needs a restart afterwards.
#[test]
fn redis_decides_and_its_outage_is_no_verdict() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (mut server, engine) = (Redis::start(), Engine::start(&[]));
    tell(&server, &["HSET", "llmproxy:key:sk-good", "user_id", "u"]);
    tell(&server, &["HSET", "llmproxy:key:sk-off", "status", "disabled"]);
    let cache = "cache: {ttl: 0, negative_ttl: 0}";
    let redis = format!("{{type: redis, {cache}, redis: {{addr: '{}'}}}}", server.addr());
    let proxy = proxy(&engine, &redis);
    assert_eq!(status(&proxy, "sk-good"), 200);
    post(&proxy, "sk-none").assert_refused(401, "invalid_api_key");
    post(&proxy, "sk-off").assert_refused(403, "key_disabled");
    server.kill();
    for _ in 0..10 {
        let refused = post(&proxy, "sk-good");
        refused.assert_refused(503, "auth_unavailable");
        assert!(refused.head.get("retry-after").is_some());
    }
    proxy.await_event("the outage is told", |event| {
        event["provider"] == "redis" && event["message"] == "the provider of keys cannot be asked"
    });
    server.start_again();
    await_until("the key is good again", SOON, || status(&proxy, "sk-good") == 200);
    proxy.await_event("the end of the outage is told", |event| {
        event["provider"] == "redis" && event["message"] == "the provider of keys answers again"
    });
    let seen = engine.posts().len();
    post(&proxy, "sk-none").assert_refused(401, "invalid_api_key");
    assert_eq!(engine.posts().len(), seen, "the engine saw a request without a key");
    let known = [("provider", "redis"), ("result", "known")];
    assert!(proxy.metric("llmproxy_key_lookups_total", &known) >= 2.0);
    assert!(!proxy.process.stdout.text().contains("sk-good"), "a key in the log");
}

/// Catches: a worker that waits for a provider and serves nobody meanwhile; a body that is read
/// before it is known whether its client may send it.
#[test]
fn a_slow_provider_holds_up_only_those_who_wait_for_it() {
    let (slow, engine) = (Arc::new(AtomicBool::new(true)), Engine::start(&[]));
    let is_slow = Arc::clone(&slow);
    let service = Backend::start(move |served| {
        while let Some(asked) = served.request() {
            let is_slow_key = asked.body.windows(7).any(|part| part == b"sk-slow");
            if is_slow_key {
                await_until("the test goes on", SOON, || !is_slow.load(Relaxed));
            }
            let said = if is_slow_key { "{\"code\":1}" } else { "{\"code\":0}" };
            served.send(format!("HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{said}", said.len()));
        }
    });
    let url = service.url();
    let proxy =
        proxy(&engine, &format!("{{type: webhook, webhook: {{url: '{url}', timeout: 60s}}}}"));
    let mut waiting: Conn = proxy.connect();
    waiting.send(format!(
        "POST {CHATS} HTTP/1.1\r\nHost: x\r\nX-API-Key: sk-slow\r\nContent-Length: {}\r\n\
         Expect: 100-continue\r\n\r\n",
        CHAT.len()
    ));
    await_until("the service is asked", SOON, || service.requests().len() == 1);
    for _ in 0..3 {
        assert_eq!(status(&proxy, "sk-fast"), 200);
    }
    slow.store(false, Relaxed);
    let answer = waiting.response();
    answer.assert_refused(403, "access_denied");
    assert!(answer.interim.is_empty(), "it was told to send its body");
}

/// Catches: a provider that is asked although an earlier one knew the key, one whose failure stops
/// a pipeline that was to go on, a reload that asks at the old place.
#[test]
fn providers_are_asked_in_their_order_and_a_reload_changes_them() {
    let says = |said: &'static str| {
        Backend::answering(format!(
            "HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{said}",
            said.len()
        ))
    };
    let (yes, no, engine) = (says("{\"code\":0}"), says("{\"code\":9}"), Engine::start(&[]));
    let hook = |name: &str, url: &str, more: &str| {
        format!("{{name: {name}, type: webhook, webhook: {{url: '{url}'}}{more}}}")
    };
    let dead = format!("http://127.0.0.1:{}", crate::harness::services::free_port());
    let pipeline =
        [hook("gone", &dead, ""), hook("first", &yes.url(), ""), hook("second", &no.url(), "")];
    let proxy = proxy(&engine, &pipeline.join(", "));
    assert_eq!(status(&proxy, "sk-1"), 200);
    assert_eq!((yes.requests().len(), no.requests().len()), (1, 0));
    let strict = [hook("gone", &dead, ", on_error: deny"), hook("first", &yes.url(), "")];
    assert!(proxy.reload_with(&config(&engine, &strict.join(", "))));
    post(&proxy, "sk-2").assert_refused(503, "auth_unavailable");
    assert!(proxy.reload_with(&config(&engine, &hook("first", &no.url(), ""))));
    post(&proxy, "sk-2").assert_refused(403, "access_denied");
    assert_eq!(yes.requests().len(), 1);
}

/// Catches: a store that is not asked, or a key of it that is good after it was taken away.
#[test]
fn the_store_inside_the_gateway_is_a_provider() {
    let (scratch, engine) = (Scratch::new(), Engine::start(&[]));
    let path = scratch.file("keys.db");
    let store = KeyStore::open(&path).unwrap();
    store.create(&StoredKey::new(KeyDigest::of(b"sk-own"), "sk-own".into(), 1)).unwrap();
    let admin = format!(
        "admin: {{enabled: true, token: 0123456789abcdef0123456789abcdef, \
         listen: '127.0.0.1:0', db_path: '{}'}}",
        path.display()
    );
    let builtin = "{type: builtin, cache: {ttl: 0, negative_ttl: 0}}";
    let proxy = config(&engine, builtin).section(admin).start();
    assert_eq!(status(&proxy, "sk-own"), 200);
    post(&proxy, "sk-other").assert_refused(401, "invalid_api_key");
    store.delete(&KeyRef::Text("sk-own".into())).unwrap();
    post(&proxy, "sk-own").assert_refused(401, "invalid_api_key");
}
