//! Whose a request is, in what is told of it: also of one that was refused, for whatever reason.

use crate::harness::scratch::Scratch;
use crate::harness::SOON;
use crate::harness::{await_some, Backend, Config};
use crate::rig::{CHAT, CHATS, OK};
use ring::digest::{digest, SHA256};
use serde_json::{json, Value};

/// What is said of each key beside `user_id`, which is the end of its text; the status that a
/// request with it has, and the code of its refusal.
const REFUSED: &[(&str, &str, u16, &str)] = &[
    ("sk-off", "status: disabled", 403, "key_disabled"),
    ("sk-old", "expires_at: 2020-01-01", 403, "key_expired"),
    ("sk-early", "starts_at: 2999-01-01", 403, "key_not_active"),
    ("sk-far", "allowed_ips: [192.0.2.0/24]", 403, "ip_not_allowed"),
    ("sk-barred", "denied_ips: [127.0.0.0/8]", 403, "ip_not_allowed"),
    ("sk-spent", "total_quota: 5, used_quota: 5", 429, "insufficient_quota"),
    // Known by its body alone.
    ("sk-model", "allowed_models: [other]", 403, "model_not_allowed"),
    ("sk-short", "total_quota: 5, used_quota: 4", 429, "insufficient_quota"),
    // By what came before, below.
    ("sk-limit", "rate_limit: 1", 429, "rate_limit_exceeded"),
];

fn user_of(key: &str) -> &str {
    key.trim_start_matches("sk-")
}

/// Catches: a refusal of a known key, by whichever rule, whose line does not say whose it was;
/// one that names who came before on the connection; an unknown key that is somebody's.
#[test]
fn every_refusal_of_a_known_key_says_whose_it_was() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let file = scratch.file("access.log");
    let keys: String = REFUSED
        .iter()
        .map(|(key, rule, ..)| (key, user_of(key), rule))
        .map(|(key, user, rule)| format!("\n  - {{key: {key}, user_id: {user}, name: n, {rule}}}"))
        .collect();
    let proxy = Config::backend_at(backend.url())
        .section(format!("api_keys:{keys}"))
        .section(format!(
            "logging: {{access: {{format: json, output: file, file: {{path: \"{}\"}}}}}}",
            file.display()
        ))
        .start();
    let mut conn = proxy.connect();
    let field = |key: &str| format!("Authorization: Bearer {key}\r\n");
    assert_eq!(conn.post(CHATS, &field("sk-limit"), CHAT).status(), 200);
    for (key, _, status, code) in REFUSED {
        conn.post(CHATS, &field(key), CHAT).assert_refused(*status, code);
    }
    conn.post(CHATS, &field("sk-nobody"), CHAT).assert_refused(401, "invalid_api_key");
    conn.post(CHATS, "", CHAT).assert_refused(401, "missing_api_key");
    let lines = await_some("the lines are written", SOON, || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let lines: Vec<Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() == REFUSED.len() + 3).then_some(lines)
    });
    let id_of = |key: &str| -> String {
        let digest = digest(&SHA256, key.as_bytes());
        digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let told =
        |line: &Value| ["error", "user_id", "key_name", "key_id"].map(|name| line[name].clone());
    assert_eq!(told(&lines[0])[1], "limit");
    for ((key, _, _, code), line) in REFUSED.iter().zip(&lines[1..]) {
        assert_eq!(told(line), [json!(code), json!(user_of(key)), json!("n"), json!(id_of(key))]);
    }
    for (line, code) in
        lines[REFUSED.len() + 1..].iter().zip(["invalid_api_key", "missing_api_key"])
    {
        assert_eq!(told(line), [json!(code), Value::Null, Value::Null, Value::Null]);
    }
    assert_eq!(backend.requests().len(), 1);
}

/// Catches: an event of a request that does not say whose it was, or says it by the key; one that
/// names who came before on the connection.
#[test]
fn events_of_requests_say_whose_they_were() {
    const KEY: &str = "sk-event-0123456789";
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Config::new()
        .backend(format!("http://{gone}"), "name: gone")
        .section(format!("api_keys: [{{key: {KEY}, user_id: ann, allowed_models: [m]}}]"))
        .section("log: {level: debug, format: json, output: stdout}")
        .start();
    let mut conn = proxy.connect();
    let shown = format!("Authorization: Bearer {KEY}\r\n");
    conn.post(CHATS, &shown, CHAT).assert_refused(502, "connect_failed");
    let other = CHAT.replacen("\"m\"", "\"other\"", 1);
    conn.post(CHATS, &shown, &other).assert_refused(403, "model_not_allowed");
    conn.post(CHATS, "", CHAT).assert_refused(401, "missing_api_key");
    let told = |code: &str| {
        let event = proxy.await_event(code, |e| e["code"] == code && e["request_id"].is_string());
        ["message", "user_id", "key_id"].map(|name| event[name].clone())
    };
    let digest = digest(&SHA256, KEY.as_bytes());
    let id: String = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    for (code, message) in
        [("connect_failed", "request failed"), ("model_not_allowed", "request refused")]
    {
        assert_eq!(told(code), [json!(message), json!("ann"), json!(id)]);
    }
    assert_eq!(told("missing_api_key"), [json!("request refused"), Value::Null, Value::Null]);
    assert!(proxy.events().iter().all(|event| !event.to_string().contains(KEY)));
}
