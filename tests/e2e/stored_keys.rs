//! Keys of the store inside the gateway, as clients use them while they are administered.

use crate::admin_api::{desk_of, section, Desk, KEYS};
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, Backend, Config, Conn, Webhook, SOON};
use crate::rig::{CHAT, CHATS, OK};
use rustix::process::Signal;
use serde_json::{json, Value};
use std::time::Instant;

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
    // What is not written yet is written at the end.
    let last = made(&desk, json!({}));
    assert_eq!(chat(&mut conn, &last.key), 200);
    desk.proxy.process.signal(Signal::TERM);
    assert!(desk.proxy.process.wait(SOON).success());
    let (id, db) = (last.path.rsplit('/').next().unwrap(), scratch.file("keys.db"));
    let shown = llmproxy(&["keys", "--db", &db.to_string_lossy(), "show", id, "--json"]);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert!(shown["last_used_at"].is_string(), "{shown}");
}

/// Catches: a record, a line of the access log or a row without what is known of a key, with what
/// its client wrote of it, with the key itself, or with more than a record may have.
#[test]
fn records_lines_and_rows_have_the_metadata_of_a_key() {
    let (scratch, backend, hook) = (Scratch::new(), Backend::answering(OK), Webhook::start());
    let (log, db) = (scratch.file("access.log"), scratch.file("usage.db"));
    let config = Config::backend_at(backend.url())
        .section(section(&scratch.file("keys.db"), ""))
        .section(
            "auth:\n  pipeline:\n    - type: builtin\n      script: {script: \"return \
             {allow = true, metadata = {tier = metadata.team .. '-' .. request.path, \
             team = metadata.team}}\"}",
        )
        .section(format!(
            "logging: {{access: {{format: json, output: file, file: {{path: \"{}\"}}}}}}",
            log.display()
        ))
        .section(format!(
            "usage: {{reporters: [{{type: webhook, webhook: {{url: \"{}\", concurrency: 1}}}}, \
             {{type: builtin, builtin: {{path: \"{}\"}}}}]}}",
            hook.url(),
            db.display()
        ));
    let desk = desk_of(&config);
    let key = "sk-planted-000000000000000000000000";
    let metadata = json!({"team": "red", "note": format!("of {key}"), "n": {"a": [1, null]}});
    let settings = json!({"key": key, "user_id": "ann", "metadata": metadata});
    made(&desk, settings);
    let large = made(&desk, json!({"metadata": {"team": "x".repeat(1500)}}));
    let mut conn = desk.proxy.connect();
    let lies = "X-LLMProxy-Key-Metadata: {\"team\":\"mallory\"}\r\nmetadata: mallory\r\n";
    let body = CHAT.replacen('{', "{\"metadata\":{\"team\":\"mallory\"},", 1);
    for key in [key, &large.key] {
        let fields = format!("Authorization: Bearer {key}\r\n{lies}");
        assert_eq!(conn.post(CHATS, &fields, &body).status(), 200);
    }
    conn.post(CHATS, lies, &body).assert_refused(401, "missing_api_key");
    let records = hook.await_records(2, SOON);
    let want = json!({"team": "red", "note": "of ***", "n": {"a": [1, null]},
        "tier": format!("red-{CHATS}")});
    assert_eq!((&records[0]["key_metadata"], &records[0]["user_id"]), (&want, &json!("ann")));
    // Told twice, its team is too much.
    assert_eq!(records[1].get("key_metadata"), Some(&Value::Null));
    let lines = await_some("the lines are written", SOON, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() == 3).then_some(lines)
    });
    let said: Vec<&Value> = lines.iter().map(|line| &line["key_metadata"]).collect();
    assert_eq!(said, [&want, &Value::Null, &Value::Null]);
    let rows = await_some("the rows are written", SOON, || {
        let connection = rusqlite::Connection::open(&db).ok()?;
        let text = "SELECT key_metadata FROM usage_records ORDER BY timestamp";
        let mut statement = connection.prepare(text).ok()?;
        let rows = statement.query_map([], |row| row.get::<_, Option<String>>(0)).ok()?;
        Some(rows.filter_map(Result::ok).collect::<Vec<_>>()).filter(|rows| rows.len() == 2)
    });
    let first: Value = serde_json::from_str(rows[0].as_deref().unwrap()).unwrap();
    assert_eq!((first, &rows[1]), (want, &None));
    let told = format!("{records:?}{lines:?}{rows:?}{:?}", backend.requests()[0].head);
    assert!(!told.contains("planted"), "{told}");
    assert!(!format!("{records:?}{lines:?}{rows:?}").contains("mallory"), "{told}");
}

/// As many clients as it takes until each of four workers has been asked about this key. Each
/// worker remembers what it was told: the key is asked about once by each.
fn clients_of_all_workers(desk: &Desk, key: &str) -> Vec<Conn> {
    let mut conns = Vec::new();
    await_until("all workers know the key", SOON, || {
        let mut conn = desk.proxy.connect();
        assert_eq!(chat(&mut conn, key), 200);
        conns.push(conn);
        desk.proxy.metric("llmproxy_auth_cache_total", &[("result", "miss")]) as u64 == 4
    });
    conns
}

/// Catches: a worker that goes on by what it remembers of a key when a change of it was answered;
/// one that forgets what was not changed for the worse.
#[test]
fn an_answered_change_holds_at_every_worker() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let desk = gateway(&scratch, &backend, ", cache: {ttl: 1h, negative_ttl: 1h}", 4);
    let made = made(&desk, json!({"name": "n"}));
    let mut conns = clients_of_all_workers(&desk, &made.key);
    let mut all = |key: &str, want: u16, since: Instant| {
        for conn in &mut conns {
            assert_eq!(chat(conn, key), want);
        }
        println!("{} clients of 4 workers heard {want} within {:?}", conns.len(), since.elapsed());
    };
    let change = |method: &str, path: &str, body: Value| {
        let began = Instant::now();
        let (status, told) = desk.ask(method, path, body);
        assert_eq!(status, 200, "{told}");
        (began, told)
    };
    let path = &made.path;
    for (settings, want) in [
        (json!({"status": "disabled"}), 403),
        (json!({"status": "active"}), 200),
        (json!({"denied_ips": ["127.0.0.1"]}), 403),
        (json!({"denied_ips": null, "allowed_models": ["other"]}), 403),
        (json!({"allowed_models": null, "expires_at": "2020-01-01"}), 403),
        (json!({"expires_at": null, "total_quota": 1, "used_quota": 1}), 429),
        (json!({"total_quota": null}), 200),
    ] {
        let (began, _) = change("PATCH", path, settings);
        all(&made.key, want, began);
    }
    let rotate = format!("{path}/rotate");
    let (began, told) = change("POST", &rotate, json!({"grace_period": "1h"}));
    let second = told["key"].as_str().unwrap().to_owned();
    all(&second, 200, began);
    all(&made.key, 200, began);
    let (began, told) = change("POST", &rotate, json!({"grace_period": 0}));
    let third = told["key"].as_str().unwrap().to_owned();
    all(&made.key, 401, began);
    all(&second, 401, began);
    all(&third, 200, began);
    let (began, _) = change("DELETE", path, Value::Null);
    all(&third, 401, began);
}

/// Catches: another gateway on the same store that goes on by what it remembers for longer than it
/// may, or that does not remember at all.
#[test]
fn another_gateway_hears_of_a_change_when_it_has_forgotten() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let first = gateway(&scratch, &backend, "", 1);
    let (short, long) = (", cache: {ttl: 1s}", ", cache: {ttl: 1h}");
    let others = [short, long].map(|cache| gateway(&scratch, &backend, cache, 2));
    let made = made(&first, json!({}));
    let mut conns = others.each_ref().map(|desk| desk.proxy.connect());
    conns.iter_mut().for_each(|conn| assert_eq!(chat(conn, &made.key), 200));
    assert_eq!(first.ask("DELETE", &made.path, Value::Null).0, 200);
    await_until("it has forgotten", SOON, || chat(&mut conns[0], &made.key) == 401);
    assert_eq!(chat(&mut conns[1], &made.key), 200, "it remembers");
    assert_eq!(chat(&mut first.proxy.connect(), &made.key), 401);
}
