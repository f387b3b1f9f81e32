//! Keys that a service knows: what the gateway makes of its answers, what it remembers, and what
//! becomes of clients while the service is away.

use crate::harness::{await_until, Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{CHAT, CHATS, OK};
use serde_json::{json, Value};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn key(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// A service of keys.
struct Service {
    backend: Backend,
    is_down: Arc<AtomicBool>,
    /// Lets one question about `sk-slow` be answered.
    go: Sender<()>,
}

impl Service {
    fn start() -> Service {
        let is_down = Arc::new(AtomicBool::new(false));
        let (go, wait) = channel::<()>();
        let (down, wait) = (Arc::clone(&is_down), Mutex::new(wait));
        let backend = Backend::start(move |served| {
            while let Some(question) = served.request() {
                let asked: Value = serde_json::from_slice(&question.body).unwrap();
                let (status, body) = match asked["api_key"].as_str().unwrap() {
                    _ if down.load(SeqCst) => (500, json!({})),
                    "sk-a" => (200, json!({"code": 0, "user_id": "ann", "name": "a"})),
                    "sk-off" => (200, json!({"code": 0, "status": "disabled"})),
                    "sk-poor" => (200, json!({"code": 0, "balance": 0})),
                    "sk-no" => (403, json!({"message": "Pay first."})),
                    "sk-slow" => {
                        let _ = wait.lock().unwrap().recv_timeout(SOON);
                        (200, json!({"code": 0, "user_id": "slow"}))
                    }
                    _ => (404, json!({})),
                };
                let body = body.to_string();
                let length = body.len();
                served
                    .send(format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}"));
            }
        });
        Service { backend, is_down, go }
    }

    /// A gateway that asks it, with more of `auth`, before a backend that says OK.
    fn gateway(&self, provider: &str, auth: &str) -> (Proxy, Backend) {
        let backend = Backend::answering(OK);
        let url = self.backend.url();
        let hook = format!("{{type: webhook, webhook: {{url: '{url}', timeout: 20s}}{provider}}}");
        let auth = format!("auth: {{pipeline: [{hook}, {{type: file}}]{auth}}}");
        let config = Config::backend_at(backend.url()).section("api_keys: [{key: sk-file}]");
        (config.section(auth).start(), backend)
    }

    fn asked(&self, key: &str) -> usize {
        let requests = self.backend.requests();
        let is_it = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["api_key"] == key;
        requests.iter().filter(|request| is_it(&request.body)).count()
    }
}

fn chat(conn: &mut Conn, sent: &str) -> String {
    conn.post(CHATS, &key(sent), CHAT).text()
}

/// Catches: an answer of a service that is not what its clients hear, a question for each request,
/// and an answer that is remembered for another key.
#[test]
fn a_service_decides_and_is_asked_once() {
    let service = Service::start();
    let (proxy, backend) = service.gateway(", cache: {ttl: 1h, negative_ttl: 1h}", "");
    let mut conn = proxy.connect();
    for _ in 0..3 {
        assert_eq!(chat(&mut conn, "sk-a"), "ok");
        assert_eq!(chat(&mut conn, "sk-file"), "ok", "the next provider has it");
        let mut refused = |sent: &str, status, code| {
            let answer = conn.post(CHATS, &key(sent), CHAT);
            answer.assert_refused(status, code);
            answer.json()["error"]["message"].as_str().unwrap().to_owned()
        };
        refused("sk-nobody", 401, "invalid_api_key");
        refused("sk-off", 403, "key_disabled");
        refused("sk-poor", 429, "insufficient_quota");
        assert_eq!(refused("sk-no", 403, "access_denied"), "Pay first.");
    }
    for sent in ["sk-a", "sk-file", "sk-nobody", "sk-off", "sk-poor", "sk-no"] {
        assert_eq!(service.asked(sent), 1, "{sent}");
    }
    assert_eq!(backend.requests().len(), 6);
    let cached = |result| proxy.metric("llmproxy_auth_cache_total", &[("result", result)]);
    // Of the three rounds: known keys in two of them, those that nobody knows or that are denied
    // in two, and all six once.
    assert_eq!([cached("hit"), cached("negative_hit"), cached("miss")], [6.0, 6.0, 6.0]);
}

/// Catches: an answer that is remembered although the file says that it must not be.
#[test]
fn nothing_is_remembered_where_nothing_shall_be() {
    let service = Service::start();
    let (proxy, _backend) = service.gateway(", cache: {ttl: 0s, negative_ttl: 0s}", "");
    let mut conn = proxy.connect();
    for asked in 1..4 {
        assert_eq!(chat(&mut conn, "sk-a"), "ok");
        conn.post(CHATS, &key("sk-nobody"), CHAT).assert_refused(401, "invalid_api_key");
        assert_eq!((service.asked("sk-a"), service.asked("sk-nobody")), (asked, asked));
    }
}

/// Catches: a service that is away and lets everybody in, or tells good clients that their keys are
/// bad; a provider behind it that is not asked; a key that is forgotten because of it.
#[test]
fn a_service_that_is_away_is_no_answer() {
    let service = Service::start();
    let (proxy, backend) = service.gateway("", "");
    let mut conn = proxy.connect();
    assert_eq!(chat(&mut conn, "sk-a"), "ok");
    service.is_down.store(true, SeqCst);
    assert_eq!(chat(&mut conn, "sk-a"), "ok", "it is remembered");
    assert_eq!(chat(&mut conn, "sk-file"), "ok");
    let answer = conn.post(CHATS, &key("sk-b"), CHAT);
    answer.assert_refused(503, "auth_unavailable");
    assert!(answer.head.get("retry-after").is_some(), "{:?}", answer.head);
    conn.post(CHATS, "", CHAT).assert_refused(401, "missing_api_key");
    let (strict, others) = service.gateway(", on_error: deny", "");
    let mut conn = strict.connect();
    conn.post(CHATS, &key("sk-file"), CHAT).assert_refused(503, "auth_unavailable");
    assert_eq!((backend.requests().len(), others.requests().len()), (3, 0));
}

/// Catches: a body that is asked for, or read, before it is known whose it is; other clients that
/// wait as well; and a client that leaves and is waited for.
#[test]
fn nothing_of_a_body_is_read_while_a_service_is_asked() {
    let service = Service::start();
    let (proxy, backend) = service.gateway("", "");
    let mut conn = proxy.connect();
    let fields = format!("{}Expect: 100-continue\r\n", key("sk-slow"));
    let length = CHAT.len();
    conn.send(format!(
        "POST {CHATS} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {length}\r\n\r\n"
    ));
    await_until("the service is asked", SOON, || service.asked("sk-slow") == 1);
    conn.assert_silent(Duration::from_millis(100));
    assert_eq!(chat(&mut proxy.connect(), "sk-file"), "ok", "others go on");
    service.go.send(()).unwrap();
    assert_eq!(conn.any_head().unwrap().status(), 100);
    assert_eq!(conn.send(CHAT).response().text(), "ok");
    assert_eq!(backend.requests().len(), 2);
    proxy.await_metric("llmproxy_requests_active", &[], 1.0);
}

/// Catches: a record without the user of a service, or with one that its client wrote.
#[test]
fn a_record_names_the_user_of_the_service() {
    let (service, hook) = (Service::start(), Webhook::start());
    let backend = Backend::answering(OK);
    let url = service.backend.url();
    let auth = format!(
        "auth: {{forward_identity: {{}}, pipeline: [{{type: webhook, webhook: {{url: '{url}'}}}}]}}"
    );
    let config = Config::backend_at(backend.url()).section(auth).webhook(&hook.url(), "");
    let proxy = config.start();
    let lies = "X-LLMProxy-User: eve\r\nx-llmproxy-key-id: 0\r\nX_LLMProxy_User: eve\r\n";
    let answer = proxy.connect().post(CHATS, &format!("{}{lies}", key("sk-a")), CHAT);
    assert_eq!(answer.text(), "ok");
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["user_id"], &record["key_name"]), (&json!("ann"), &json!("a")));
    let sent = backend.requests().remove(0).head;
    assert_eq!(sent.get("x-llmproxy-user"), Some("ann"));
    assert_eq!(sent.get("x-llmproxy-key-name"), Some("a"));
    assert_eq!(sent.get("x-llmproxy-key-id"), record["key_id"].as_str());
    assert!(!format!("{sent:?}").contains("eve") && !format!("{sent:?}").contains("sk-a"));
}
