//! Keys of the store inside the gateway, as clients use them while they are administered.

use crate::admin_api::{desk_of, section, Desk, KEYS};
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, Backend, Config, Conn, SOON};
use crate::rig::{CHAT, CHATS, OK};
use serde_json::{json, Value};

/// What an administrator gets who makes a key.
struct Made {
    key: String,
    /// Its path.
    path: String,
}

/// A gateway whose clients need a key of its store.
fn gateway(scratch: &Scratch, backend: &Backend, provider: &str, workers: usize) -> Desk {
    let config = Config::backend_at(backend.url())
        .server(format!("workers: {workers}"))
        .section(section(&scratch.file("keys.db"), ""))
        .section(format!("auth: {{pipeline: [{{type: builtin{provider}}}]}}"));
    desk_of(&config)
}

fn made(desk: &Desk, settings: Value) -> Made {
    let (status, made) = desk.ask("POST", KEYS, settings);
    assert_eq!(status, 201, "{made}");
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    Made { key: text("key"), path: format!("{KEYS}/{}", text("id")) }
}

fn chat(conn: &mut Conn, key: &str) -> u16 {
    conn.post(CHATS, &format!("Authorization: Bearer {key}\r\n"), CHAT).status()
}

/// When a key was used, as its page says.
fn last_used(desk: &Desk, path: &str) -> Option<String> {
    let (status, shown) = desk.ask("GET", path, Value::Null);
    assert_eq!(status, 200, "{shown}");
    shown["last_used_at"].as_str().map(str::to_owned)
}

/// Catches: a use that is only written when somebody else comes, and never where nobody does; one
/// that was answered from a worker's memory and counts as none.
#[test]
fn a_key_shows_when_it_was_used() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = gateway(&scratch, &backend, ", cache: {ttl: 1h}", 1);
    let (once, often) = (made(&desk, json!({})), made(&desk, json!({})));
    assert_eq!(last_used(&desk, &once.path), None);
    let mut conn = desk.proxy.connect();
    assert_eq!(chat(&mut conn, &once.key), 200);
    let first = await_some("the only request is noted", SOON, || last_used(&desk, &once.path));
    assert_eq!(chat(&mut conn, &often.key), 200);
    let before = await_some("the look-up is noted", SOON, || last_used(&desk, &often.path));
    await_until("a request without a look-up is noted", SOON, || {
        assert_eq!(chat(&mut conn, &often.key), 200);
        last_used(&desk, &often.path).is_some_and(|last| last > before)
    });
    let metric = |name: &str, labels: &[(&str, &str)]| desk.proxy.metric(name, labels) as u64;
    assert_eq!(metric("llmproxy_key_lookups_total", &[("result", "known")]), 2);
    assert_eq!(metric("llmproxy_key_uses_lost_total", &[("provider", "builtin")]), 0);
    assert_eq!(last_used(&desk, &once.path), Some(first));
}
