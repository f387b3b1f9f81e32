//! Keys in real SQL databases: what a row says, keys that are only similar, and servers that go.

use crate::clients::is_there;
use crate::harness::keys::KeyAsker;
use crate::harness::{MariaDb, Postgres};
use crate::sql::Server;
use llmproxy::config::plan::KeyState;
use llmproxy::keys::digest::KeyDigest;
use serde_json::json;

fn provider<S: Server>(server: &S, more: &str) -> String {
    let (driver, dsn) = (S::DRIVER, server.dsn());
    format!("type: database, database: {{driver: {driver}, dsn: '{dsn}'{more}}}")
}

/// The types that tables of keys have in practice.
fn types(driver: &str) -> [&'static str; 6] {
    match driver {
        "mysql" => ["TINYINT(1)", "DATETIME", "DATE", "DECIMAL(10,2)", "JSON", "VARCHAR(64)"],
        _ => ["BOOLEAN", "TIMESTAMPTZ", "DATE", "NUMERIC(10,2)", "JSONB", "CHAR(64)"],
    }
}

fn fill<S: Server>(server: &S) {
    let [flag, time, date, money, json, text] = types(S::DRIVER);
    server.query(&format!(
        "CREATE TABLE api_keys (api_key {text}, name TEXT, user_id BIGINT, status VARCHAR(20), \
         enabled {flag}, expires_at {time}, starts_at {date}, balance {money}, metadata {json}, \
         total_quota BIGINT, allowed_ips TEXT)"
    ));
    let (on, off) = if S::DRIVER == "mysql" { ("1", "0") } else { ("true", "false") };
    server.query(&format!(
        "INSERT INTO api_keys VALUES ('sk-A', 'Ä', 42, 'active', {on}, '2027-01-15 08:00:00', \
         '2024-01-15', 12.50, '{{\"tier\": \"gold\"}}', 1000, '10.0.0.0/8,192.0.2.1')"
    ));
    server.query(&format!(
        "INSERT INTO api_keys (api_key, status, enabled) VALUES ('sk-off', 'active', {off}), \
         ('sk-odd', 'blocked', {on}), ('sk-bare', NULL, NULL)"
    ));
}

/// Catches: a type that is not read, a row that is found by a key that is not its own (each
/// spelling would have a quota of its own), a value that becomes a part of the statement.
fn rows_become_facts<S: Server>(program: &str) {
    if !is_there(program, S::is_there()) {
        return;
    }
    let server = S::start();
    let early = KeyAsker::start(&provider(&server, ""));
    early.assert_fails("sk-A");
    assert!(KeyAsker::probe(&provider(&server, "")).unwrap_err().contains("api_keys"));
    fill(&server);
    assert_eq!(KeyAsker::probe(&provider(&server, "")), Ok(()));
    // What was missing when it was asked for the first time is there now.
    early.await_known("sk-A");
    let asker = KeyAsker::start(&(provider(&server, "") + ", script: 'return true'"));
    let facts = asker.known("sk-A");
    assert_eq!((facts.user_id.as_str(), facts.status), ("42", KeyState::Active));
    assert_eq!((facts.balance, facts.total_quota), (Some(12.5), 1000));
    assert_eq!(facts.expires_at.unwrap().as_second(), 1_800_000_000, "{facts:?}");
    assert_eq!(facts.starts_at.unwrap().to_string(), "2024-01-15T00:00:00Z");
    assert_eq!((facts.name.as_str(), &facts.metadata.object()["tier"]), ("Ä", &json!("gold")));
    assert_eq!(facts.allowed_ips.len(), 2);
    let data = facts.data.as_ref().unwrap();
    assert_eq!((&data["status"], &data["user_id"]), (&json!("active"), &json!(42)));
    assert!(data.get("llmproxy_found_key").is_none(), "{data}");
    assert_eq!(asker.known("sk-bare").status, KeyState::Active);
    for key in ["sk-off", "sk-odd"] {
        assert_eq!(asker.known(key).status, KeyState::Disabled, "{key}");
    }
    for key in
        ["sk-a", "SK-A", "sk-A ", "sk-%", "0", "' OR '1'='1", "sk-A'; DROP TABLE api_keys --"]
    {
        asker.assert_unknown(key);
    }
    asker.assert_unknown("sk-\u{1f600}");
    let few = KeyAsker::start(&provider(&server, ", fields: [status]"));
    assert_eq!(few.known("sk-A").user_id, "");
    let hex: String =
        KeyDigest::of(b"sk-hidden").as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    server.query(&format!("INSERT INTO api_keys (api_key, user_id) VALUES ('{hex}', 7)"));
    let digests = KeyAsker::start(&provider(&server, ", key_form: sha256"));
    assert_eq!(digests.known("sk-hidden").user_id, "7");
    digests.assert_unknown(&hex);
    KeyAsker::start(&provider(&server, ", key_column: token")).assert_fails("token");
}

#[test]
fn rows_of_mariadb_become_facts() {
    rows_become_facts::<MariaDb>("mariadbd");
}

#[test]
fn rows_of_postgres_become_facts() {
    rows_become_facts::<Postgres>("postgres");
}

/// Catches: a key that is let in or called unknown while the database is away, a connection to one
/// that was restarted, a provider that stays out.
fn an_outage_ends<S: Server>(program: &str) {
    if !is_there(program, S::is_there()) {
        return;
    }
    let mut server = S::start();
    fill(&server);
    let asker = KeyAsker::start(&provider(&server, ", max_open_conns: 1"));
    asker.known("sk-A");
    server.kill();
    (0..10).for_each(|_| asker.assert_fails("sk-A"));
    server.start_again();
    asker.await_known("sk-A");
    server.stop();
    server.start_again();
    asker.known("sk-A");
    server.freeze();
    (0..10).for_each(|_| asker.assert_fails("sk-A"));
    server.thaw();
    assert_eq!(asker.await_known("sk-off").status, KeyState::Disabled);
    asker.known("sk-A");
}

#[test]
fn an_outage_of_mariadb_ends() {
    an_outage_ends::<MariaDb>("mariadbd");
}

#[test]
fn an_outage_of_postgres_ends() {
    an_outage_ends::<Postgres>("postgres");
}
