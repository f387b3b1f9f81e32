//! What requests are charged that no engine counted: the quota of their key, its token limit and
//! their records say the same number.

use crate::admin_api::{desk_of, section, Desk, KEYS};
use crate::harness::client::Response;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Webhook, SOON};
use crate::rig::{leave, Leave, CHATS};
use serde_json::{json, Value};
use std::time::Instant;

/// Tokens that the prompt of each request is estimated at, and a few more for what is around it.
const PROMPT: u64 = 10_000;
/// What a token limit gives back in a second.
const PER_SECOND: u64 = 1000;

fn prompt(stream: bool) -> String {
    let text = "x".repeat(4 * PROMPT as usize);
    json!({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]})
        .to_string()
}

/// A gateway with the admin API, before an engine that is not asked for usage.
struct Till {
    hook: Webhook,
    desk: Desk,
    key: String,
    usage: String,
    seen: usize,
    began: Instant,
    _scratch: Scratch,
}

impl Till {
    fn open(engine: &str) -> Till {
        let (scratch, hook) = (Scratch::new(), Webhook::start());
        let config = Config::new()
            .backend(engine, "name: engine, stream_usage: never")
            .webhook(&hook.url(), "")
            .section(section(&scratch.file("keys.db"), ""))
            .section("auth: {pipeline: [{type: builtin}]}");
        let desk = desk_of(&config);
        let limit = json!({"tokens_per_minute": 60 * PER_SECOND});
        let settings = json!({"name": "n", "total_quota": 10_000_000, "rate_limit": limit});
        let (status, made) = desk.ask("POST", KEYS, settings);
        assert_eq!(status, 201, "{made}");
        let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
        let (key, usage) =
            (format!("Authorization: Bearer {key}\r\n"), format!("{KEYS}/{id}/usage"));
        Till { hook, desk, key, usage, seen: 0, began: Instant::now(), _scratch: scratch }
    }

    fn begin(&self, fields: &str, stream: bool) -> Conn {
        let mut conn = self.desk.proxy.connect();
        conn.start_post(CHATS, &format!("{}{fields}", self.key), prompt(stream));
        conn
    }

    fn ask(&self, fields: &str, stream: bool) -> Response {
        let fields = format!("{}{fields}", self.key);
        self.desk.proxy.connect().post(CHATS, &fields, prompt(stream))
    }

    /// The record of the request that was just made; what is used of the quota is the sum of all.
    fn charged(&mut self) -> (u64, Value) {
        self.seen += 1;
        let records = self.hook.await_records(self.seen, SOON);
        let of = |record: &Value| record["quota_tokens"].as_u64().expect("it has a quota");
        let sum: u64 = records.iter().map(of).sum();
        let used = || self.desk.ask("GET", &self.usage, Value::Null).1["used_quota"].clone();
        await_until("the quota is the sum of the records", SOON, || used() == json!(sum));
        let last = records.last().unwrap().clone();
        (of(&last), last)
    }

    /// That so many tokens are gone from the limit, but for those that came back meanwhile.
    fn assert_limited_by(&mut self, tokens: u64, how: &str) {
        let mut conn = self.desk.proxy.connect();
        let answer = conn.post(CHATS, &self.key, r#"{"model":"m","messages":[]}"#);
        let left: u64 = answer.head.get("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
        let back = self.began.elapsed().as_millis() as u64 * PER_SECOND / 1000 + 1;
        assert!(left <= (60 * PER_SECOND - tokens) + back, "{how}: {left} left, {back} back");
        self.charged();
    }
}

/// Catches: a client that has its prompts read for nothing, because it leaves before the end, or
/// before the beginning, or asks for an answer without counts.
#[test]
fn whoever_leaves_is_charged_for_the_prompt() {
    for (stream, knob) in
        [(true, "stall-after: 2"), (true, "stall-before-head: 1"), (false, "ttft-ms: 60000")]
    {
        let engine = Engine::start(&[]);
        let mut till = Till::open(&engine.url());
        let mut conn = till.begin(&format!("x-mock-{knob}\r\n"), stream);
        if knob == "stall-after: 2" {
            assert_eq!(conn.head().status(), 200);
            conn.read_until("data: ");
        }
        await_until("the engine has it", SOON, || !engine.posts().is_empty());
        leave(conn, Leave::Rst);
        let (charged, record) = till.charged();
        assert_eq!(record["status"], "client_left", "{knob}: {record}");
        assert!((PROMPT..PROMPT + 100).contains(&charged), "{knob}: {charged}");
        assert_eq!(record["total_tokens"], Value::Null, "an estimate is no count of an engine's");
        till.assert_limited_by(charged, knob);
    }
}

/// Catches: a whole answer whose engine did not count that costs nothing, or less than its prompt.
#[test]
fn a_whole_answer_without_counts_is_charged() {
    let engine = Engine::start(&[]);
    let mut till = Till::open(&engine.url());
    assert_eq!(till.ask("x-mock-tokens: 20\r\n", true).status(), 200);
    let (charged, record) = till.charged();
    assert!((PROMPT + 20..PROMPT + 120).contains(&charged), "{record}");

    let words = "word ".repeat(400);
    let body = json!({"choices": [{"message": {"content": words}}]}).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
    let engine = Backend::answering(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
    let mut till = Till::open(&engine.url());
    assert_eq!(till.ask("", false).status(), 200);
    let (charged, record) = till.charged();
    let answer = body.len() as u64 / 4;
    assert!((PROMPT + answer..PROMPT + answer + 100).contains(&charged), "{record}");
    till.assert_limited_by(charged, "a whole answer");
}

/// Catches: a client that pays for a prompt that its engine lost, or refused.
#[test]
fn what_an_engine_loses_costs_what_the_client_has() {
    let engine = Engine::start(&[]);
    let mut till = Till::open(&engine.url());
    for (knob, stream, most) in [
        ("die-after: 3", true, 3),
        ("die-before-head: 1", true, 0),
        ("status: 500", false, 0),
        ("status: 400", false, 0),
        ("error: in-stream", true, 0),
    ] {
        drop(till.ask(&format!("x-mock-{knob}\r\n"), stream));
        let (charged, record) = till.charged();
        assert!(charged <= most, "{knob}: {record}");
    }
}

/// Catches: a client that pays for the prompt of an answer that says that it is an error, because
/// it leaves when it has read that; or of one that is empty, or half an answer.
#[test]
fn an_answer_that_is_none_costs_nothing() {
    let engine = Engine::start(&[]);
    let mut till = Till::open(&engine.url());
    let mut conn = till.begin("x-mock-error: in-stream\r\nx-mock-stall-after: 1\r\n", true);
    assert_eq!(conn.head().status(), 200);
    conn.read_until("error");
    leave(conn, Leave::Rst);
    let (charged, record) = till.charged();
    assert!(charged <= 1, "{record}");
    for body in ["", "{\"choices\": [{\"message\": {\"content\": \"half"] {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        let length = body.len();
        let engine = Backend::answering(format!("{head}Content-Length: {length}\r\n\r\n{body}"));
        let mut till = Till::open(&engine.url());
        assert_eq!(till.ask("", false).status(), 200);
        let (charged, record) = till.charged();
        assert_eq!((charged, &record["status"]), (0, &json!("backend_error")), "{record}");
    }
}

/// Catches: embeddings whose digits count as tokens, or whose prompt costs nothing because nobody
/// reads them.
#[test]
fn embeddings_cost_their_prompt() {
    let body = json!({"model": "m", "prompt": "x".repeat(4 * PROMPT as usize)}).to_string();
    let vector = json!({"embedding": vec![0.123_456_789; 1024]}).to_string();
    for (path, kind) in [
        ("/api/embeddings", "application/json"),
        ("/v1/embeddings", "application/json"),
        ("/v1/embeddings", "application/octet-stream"),
    ] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n");
        let answer = format!("{head}Content-Length: {}\r\n\r\n{vector}", vector.len());
        let engine = Backend::answering(answer);
        let mut till = Till::open(&engine.url());
        let answer = till.desk.proxy.connect().post(path, &till.key, &body);
        assert_eq!(answer.status(), 200);
        let (charged, record) = till.charged();
        assert!((PROMPT..PROMPT + 100).contains(&charged), "{path} {kind}: {record}");
    }
}

/// Catches: a picture that is taken for as many tokens as it has bytes, and uses up the limit.
#[test]
fn a_picture_is_not_counted_by_its_bytes() {
    let engine = Engine::start(&[]);
    let mut till = Till::open(&engine.url());
    let url = format!("data:image/png;base64,{}", "QUJD".repeat(250_000));
    let part = json!({"type": "image_url", "image_url": {"url": url}});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": [part]}]});
    let answer = till.desk.proxy.connect().post(CHATS, &till.key, body.to_string());
    assert_eq!(answer.status(), 200);
    let left: u64 = answer.head.get("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!(left > 50 * PER_SECOND, "{left}");
    till.charged();
}
