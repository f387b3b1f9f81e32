//! The admin API on the listeners of the clients (`admin.listen: main`): the same API behind the
//! same token, without a way to it for anybody else, and never a matter of an engine.

use crate::admin_api::{KEYS, TOKEN};
use crate::harness::client::Response;
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, Backend, Config, Conn, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK};
use serde_json::{json, Value};
use std::path::Path;

/// A gateway that gives everything below `/` to its engine, but for the admin API.
fn config(scratch: &Scratch, backend: &Backend, listen: &str) -> Config {
    let db = scratch.file("keys.db");
    Config::new()
        .backend(backend.url(), "name: engine")
        .server("paths: [\"/*\"]")
        .section(format!(
            "admin: {{enabled: true, token: {TOKEN}, listen: \"{listen}\", db_path: \"{}\"}}",
            db.display()
        ))
        .section("auth: {pipeline: [{type: builtin, cache: {ttl: 0s, negative_ttl: 0s}}]}")
}

fn start(scratch: &Scratch, backend: &Backend) -> Proxy {
    config(scratch, backend, "main").start()
}

/// Sends a request on a connection that goes on.
fn ask(conn: &mut Conn, method: &str, path: &str, fields: &str, body: &str) -> Response {
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {length}\r\n\r\n");
    conn.send(head + body).response()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// Paths of the requests that the engine got.
fn of_engine(backend: &Backend) -> Vec<String> {
    backend.requests().iter().map(|request| request.head.target().to_owned()).collect()
}

/// Catches: an API that is not there, or whose answers end connections; a request to it that an
/// engine gets, or that shows a key in a log.
#[test]
fn keys_are_made_where_clients_come() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let file = scratch.file("access.log");
    let proxy = config(&scratch, &backend, "main")
        .server("cors: {enabled: true, allowed_origins: [\"https://a.example\"]}")
        .section(format!(
            "logging: {{access: {{format: json, output: file, file: {{path: \"{}\"}}}}}}",
            file.display()
        ))
        .start();
    let (mut conn, admin) = (proxy.connect(), bearer(TOKEN));
    let made = ask(&mut conn, "POST", KEYS, &admin, r#"{"name": "team-a"}"#);
    assert_eq!(made.status(), 201, "{}", made.text());
    assert_eq!(made.head.get("content-type"), Some("application/json"));
    let made = made.json();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    // The same connection is a client's, too.
    assert_eq!(conn.post(CHATS, &bearer(key), CHAT).status(), 200);
    conn.post(CHATS, &admin, CHAT).assert_refused(401, "invalid_api_key");
    let shown = ask(&mut conn, "GET", &format!("{KEYS}/{key}"), &admin, "");
    assert_eq!((shown.status(), &shown.json()["name"]), (200, &json!("team-a")));
    let listed = ask(&mut conn, "GET", &format!("{KEYS}?name=nobody"), &admin, "").json();
    assert_eq!(listed["total"], 0, "{listed}");
    let mut chunked = admin.clone() + "Transfer-Encoding: chunked\r\n";
    chunked = format!("PATCH {KEYS}/{id} HTTP/1.1\r\nHost: a\r\n{chunked}\r\n");
    let changed = conn.send(chunked + "16\r\n{\"status\": \"disabled\"}\r\n0\r\n\r\n").response();
    assert_eq!(changed.json()["status"], "disabled", "{}", changed.text());
    conn.post(CHATS, &bearer(key), CHAT).assert_refused(403, "key_disabled");
    // Refused before anybody knows what it is for, or asked beforehand by a browser.
    for path in ["/admin/keys/sk-LEAK%2fx", "/admin/keys/sk-LEAK;x", "/%61dmin/keys/sk-LEAK;x"] {
        ask(&mut proxy.connect(), "GET", path, &admin, "");
    }
    let asked = "Origin: https://a.example\r\nAccess-Control-Request-Method: DELETE\r\n";
    let asked = ask(&mut proxy.connect(), "OPTIONS", "/admin/keys/sk-LEAK", asked, "");
    assert_eq!(asked.status(), 204);
    let missing = ask(&mut conn, "PUT", KEYS, &admin, "");
    assert_eq!(missing.status(), 405, "{}", missing.text());
    assert!(missing.head.get("allow").unwrap().contains("POST"));
    assert_eq!(of_engine(&backend), [CHATS]);
    let answered = [("result", "answered")];
    proxy.await_metric("llmproxy_admin_requests_total", &answered, 5.0);
    let lines = await_some("the lines are there", SOON, || lines(&file, 12));
    assert!(lines.iter().any(|line| line["path"] == KEYS && line["status"] == 200));
    let log = proxy.process.stdout.all().concat() + &std::fs::read_to_string(&file).unwrap();
    for secret in [key, TOKEN, "LEAK"] {
        assert!(!log.contains(secret), "{secret} is in a log");
    }
}

fn lines(file: &Path, count: usize) -> Option<Vec<Value>> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<Value> = text.lines().filter_map(|it| serde_json::from_str(it).ok()).collect();
    (lines.len() >= count).then_some(lines)
}

/// Catches: somebody without the token, or with a client's key, who is answered; a spelling of the
/// path that goes by the door; an address that may guess for ever; a body that is read before its
/// sender may ask; clients who are held up by all this.
#[test]
fn only_who_shows_the_token_is_answered() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let proxy = start(&scratch, &backend);
    let made = ask(&mut proxy.connect(), "POST", KEYS, &bearer(TOKEN), "{}").json();
    let key = bearer(made["key"].as_str().unwrap());
    let with_both = bearer(TOKEN) + "X-Admin-Token: planted-other\r\n";
    for fields in ["", "X-API-Key: planted-admin-token\r\n"] {
        let answer = ask(&mut proxy.connect(), "POST", KEYS, fields, "{}");
        assert_eq!(answer.status(), 401, "{}", answer.text());
        assert_eq!(answer.head.get("www-authenticate"), Some("Bearer"));
    }
    for path in [KEYS, "//admin/api-keys", "/v1/../admin/stats", "/%61dmin/stats", "/admin/x"] {
        let answer = ask(&mut proxy.connect(), "GET", path, "", "");
        assert!([400, 401].contains(&answer.status()), "{path}: {}", answer.text());
    }
    let head = format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n{key}Content-Length: 9\r\n\r\n");
    assert_eq!(proxy.connect().send(head).response().status(), 401, "its body did not come");
    assert_eq!(ask(&mut proxy.connect(), "GET", KEYS, &with_both, "").status(), 401);
    await_until("it has to wait", SOON, || {
        let answer = ask(&mut proxy.connect(), "GET", KEYS, &bearer("planted-guess"), "");
        assert!([401, 429].contains(&answer.status()), "{}", answer.text());
        answer.status() == 429
    });
    let waits = ask(&mut proxy.connect(), "GET", KEYS, &bearer(TOKEN), "");
    assert_eq!(waits.status(), 429, "nobody tries on between wrong ones");
    assert!(waits.head.get("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    let throttled = proxy.metric("llmproxy_admin_requests_total", &[("result", "throttled")]);
    assert!(throttled >= 2.0, "{throttled}");
    assert_eq!(proxy.connect().post(CHATS, &key, CHAT).status(), 200);
    assert_eq!(of_engine(&backend), [CHATS]);
}

/// Catches: a body that takes as much memory as one for an engine may.
#[test]
fn a_body_has_a_megabyte_at_most() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let proxy = start(&scratch, &backend);
    let head = format!("POST {KEYS} HTTP/1.1\r\nHost: a\r\n{}", bearer(TOKEN));
    let counted = format!("{head}Content-Length: 1048577\r\n\r\n");
    proxy.connect().send(counted).response().assert_refused(413, "body_too_large");
    let mut chunked = proxy.connect();
    chunked.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
    let piece = format!("10000\r\n{}\r\n", "y".repeat(0x10000));
    for _ in 0..17 {
        chunked.try_send(&piece);
    }
    chunked.response().assert_refused(413, "body_too_large");
    let largest = format!("{{\"name\": \"n\"}}{}", " ".repeat(1_000_000));
    let made = ask(&mut proxy.connect(), "POST", KEYS, &bearer(TOKEN), &largest);
    assert_eq!(made.status(), 201, "{}", made.text());
    assert!(of_engine(&backend).is_empty());
}

/// Catches: an API that is where clients come though nobody asked for that.
#[test]
fn a_listener_of_its_own_keeps_it_from_the_clients() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let yaml = config(&scratch, &backend, "127.0.0.1:0").yaml();
    let proxy = Proxy::start(&yaml.replace("  paths: [\"/*\"]\n", ""));
    let answer = ask(&mut proxy.connect(), "GET", KEYS, &bearer(TOKEN), "");
    answer.assert_refused(404, "unknown_path");
    assert!(backend.requests().is_empty());
}
