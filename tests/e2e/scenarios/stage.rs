//! What the scenarios need: the files, mocks for their hosts, and a gateway between.

use crate::harness::client::Response;
use crate::harness::config::SPOOL;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Conn, Proxy, Redis, Webhook, SOON};
use crate::rig::CHATS;
use serde_json::{json, Value};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::Arc;

/// Of a `Host`: it answers all.
pub const FREELY: usize = usize::MAX;

/// An engine that says its name.
pub struct Host {
    pub name: String,
    backend: Backend,
    /// It answers what is asked of it with 503; its health stays well.
    pub is_down: Arc<AtomicBool>,
    /// How many more generations it may answer; the others wait.
    pub may_answer: Arc<AtomicUsize>,
}

impl Host {
    fn start(name: &str) -> Host {
        let is_down = Arc::new(AtomicBool::new(false));
        let may_answer = Arc::new(AtomicUsize::new(FREELY));
        let (down, may, own) = (Arc::clone(&is_down), Arc::clone(&may_answer), name.to_owned());
        let backend = Backend::start(move |served| {
            while let Some(request) = served.request() {
                let is_probe = request.head.method() == "GET";
                await_until("it may answer", SOON, || is_probe || take_one(&may));
                let body = match (is_probe, down.load(SeqCst)) {
                    (true, _) => json!({"object": "list", "data": []}).to_string(),
                    (false, true) => {
                        served.send("HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n");
                        continue;
                    }
                    (false, false) => chat_of(&own),
                };
                served.send(format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n{body}",
                    body.len()
                ));
            }
        });
        Host { name: name.to_owned(), backend, is_down, may_answer }
    }

    fn url(&self) -> String {
        self.backend.url()
    }

    /// Bodies of the generations that it was asked for.
    pub fn asked(&self) -> Vec<Value> {
        let posts = self.backend.requests().into_iter().filter(|it| it.head.method() == "POST");
        posts.map(|request| serde_json::from_slice(&request.body).unwrap()).collect()
    }
}

/// Takes one of what is left, if there is one.
fn take_one(left: &AtomicUsize) -> bool {
    let less = |left| if left == FREELY { Some(left) } else { usize::checked_sub(left, 1) };
    left.fetch_update(SeqCst, SeqCst, less).is_ok()
}

fn chat_of(name: &str) -> String {
    let message = json!({"role": "assistant", "content": name});
    json!({
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    })
    .to_string()
}

/// A file's hosts, where its records go, and the gateway.
pub struct Scene {
    pub hosts: Vec<Host>,
    pub hook: Webhook,
    pub proxy: Proxy,
    /// Who asks, in turn. No key: `""`.
    keys: Vec<String>,
    asked: Cell<usize>,
}

impl Scene {
    /// Of a file with this text. `billing` is the URL to which it sends its records, if it does.
    pub fn set(text: &str, billing: &str) -> Scene {
        let hook = Webhook::start();
        let mut text = text.to_owned();
        let hosts: Vec<Host> = backends(&text).iter().map(|url| Host::start(url)).collect();
        for host in &hosts {
            text = replaced(&text, &format!("\"{}\"", host.name), &format!("\"{}\"", host.url()));
        }
        if !billing.is_empty() {
            text = replaced(&text, billing, &hook.url());
        }
        let proxy = Proxy::start(&here(&text));
        Scene { hosts, hook, proxy, keys: vec![String::new()], asked: Cell::new(0) }
    }

    /// Asked by these from now on.
    pub fn asked_by(&mut self, keys: impl IntoIterator<Item = impl Into<String>>) {
        self.keys = keys.into_iter().map(Into::into).collect();
    }

    /// The answer to the next one who asks.
    pub fn ask(&self, body: &Value) -> Response {
        let number = self.asked.replace(self.asked.get() + 1);
        self.ask_as(&self.keys[number % self.keys.len()], body)
    }

    pub fn ask_as(&self, key: &str, body: &Value) -> Response {
        self.begin(key, body).response()
    }

    /// Sends a chat and awaits nothing.
    pub fn begin(&self, key: &str, body: &Value) -> Conn {
        let mut conn = self.proxy.connect();
        conn.start_post(CHATS, &shown(key), body.to_string());
        conn
    }

    /// Who answers a chat for a model.
    pub fn answering(&self, model: &str) -> String {
        let answer = self.ask(&chat(model));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// How often each host answers, of so many chats.
    pub fn shares(&self, model: &str, count: usize) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        (0..count).for_each(|_| *shares.entry(self.answering(model)).or_default() += 1);
        shares
    }

    /// The limit that is the tightest one for somebody, as a chat is told.
    pub fn assert_limit(&self, key: &str, field: &str, limit: &str, model: &str) {
        let answer = self.ask_as(key, &chat(model));
        assert_eq!((answer.status(), answer.head.get(field)), (200, Some(limit)));
    }

    /// Somebody asks for so much that it is too much at last.
    pub fn assert_limited(&self, key: &str, model: &str) {
        await_until("it is too much", SOON, || {
            let mut many: Vec<_> = (0..30).map(|_| self.begin(key, &chat(model))).collect();
            let told: Vec<u16> = many.iter_mut().map(|conn| conn.response().status()).collect();
            told.contains(&429)
        });
    }

    /// A request that may come to this many tokens.
    pub fn ask_for_tokens(&self, key: &str, model: &str, tokens: u32) -> Response {
        self.ask_as(key, &json!({"model": model, "messages": [], "max_tokens": tokens}))
    }

    /// Nobody is let in without a key that is known, and no engine hears of it.
    pub fn assert_keys_are_asked_for(&self, model: &str) {
        let before = self.heard();
        self.ask_as("", &chat(model)).assert_refused(401, "missing_api_key");
        for unknown in ["sk-nobody", "sk-llmproxy", "*"] {
            self.ask_as(unknown, &chat(model)).assert_refused(401, "invalid_api_key");
        }
        assert_eq!(self.heard(), before);
    }

    /// How many generations were asked of all hosts.
    pub fn heard(&self) -> usize {
        self.hosts.iter().map(|host| host.asked().len()).sum()
    }

    pub fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name.contains(name)).unwrap()
    }

    /// A request for this model has a record with the engine's counts.
    pub fn await_record(&self, model: &str) {
        await_until("its record", SOON, || {
            let records = self.hook.records();
            records.iter().any(|it| it["model"] == model && it["total_tokens"] == 5)
        });
    }
}

pub fn chat(model: &str) -> Value {
    json!({"model": model, "messages": []})
}

/// A key as clients show it.
fn shown(key: &str) -> String {
    if key.is_empty() {
        return String::new();
    }
    format!("Authorization: Bearer {key}\r\n")
}

/// The text with another one for what stands in it.
pub fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from}: {text}");
    text.replace(from, to)
}

/// The file of this name, which waits for these things.
pub fn file_that_waits_for(name: &str, waits_for: &[&str]) -> String {
    let text = file(name);
    assert_waits_for(&text, waits_for);
    text
}

/// A Redis with a hundred keys, `sk-0` and so on, and the keys' names.
pub fn redis_with_keys() -> (Redis, Vec<String>) {
    let server = Redis::start();
    let mut client = redis::Client::open(server.url()).unwrap();
    let keys: Vec<String> = (0..100).map(|n| format!("sk-{n}")).collect();
    for key in &keys {
        let set = ["HSET", &format!("llmproxy:key:{key}"), "user_id", key, "status", "active"]
            .map(str::to_owned);
        redis::cmd(&set[0]).arg(&set[1..]).exec(&mut client).unwrap();
    }
    let off = ["llmproxy:key:sk-0", "status", "disabled"];
    redis::cmd("HSET").arg(&off).exec(&mut client).unwrap();
    (server, keys)
}

pub fn file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

/// The file with what a test needs and what is no matter of the file: a free port, and a spool, a
/// table of counters and a log of its own.
fn here(text: &str) -> String {
    // With records, the counters lie in the folder of the spool.
    let dir = if text.contains("usage_hook:") { String::new() } else { format!("dir: {SPOOL}, ") };
    let text = text
        .replace("listen: \":8000\"\n", "")
        .replace("usage_hook:\n", &format!("usage_hook:\n  spool: {{dir: {SPOOL}}}\n"));
    format!(
        "log: {{level: info, format: json, output: stdout}}\n\
         server: {{listen: \"127.0.0.1:0\", workers: 1, cpu_affinity: \"off\"}}\n\
         counters: {{{dir}entries: 4096}}\n{text}"
    )
}

/// The file without these sections: each ends where the next one begins.
pub fn without(text: &str, sections: &[&str]) -> String {
    let mut is_out = false;
    let lines = text.lines().filter(|line| {
        let begins = line.chars().next().is_some_and(|first| first.is_ascii_lowercase());
        if begins {
            is_out = sections.iter().any(|section| line.starts_with(&format!("{section}:")));
        }
        !is_out
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The URLs of its backends.
fn backends(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("- url: \""));
    lines.map(|rest| rest.trim_end_matches('"').to_owned()).collect()
}

/// Asserts that the file is valid, and that these, and nothing else, keep it from starting.
fn assert_waits_for(text: &str, waits_for: &[&str]) {
    let scratch = Scratch::new();
    let path = scratch.write("config.yaml", text).to_string_lossy().into_owned();
    let check = llmproxy(&["check", &path]);
    if waits_for.is_empty() {
        return assert_eq!(check.code, Some(0), "{check:?}");
    }
    for ran in [check, llmproxy(&["--config", &path])] {
        assert_eq!(ran.code, Some(1), "{ran:?}");
        let lines = ran.stderr.lines().filter_map(|line| line.split("cannot start: ").nth(1));
        let obstacles: Vec<_> = lines.collect();
        assert_eq!(obstacles.len(), waits_for.len(), "{obstacles:?}");
        let fits = |(said, wanted): (&&str, &&str)| said.starts_with(*wanted);
        assert!(obstacles.iter().zip(waits_for).all(fits), "{obstacles:?}");
    }
}

/// As many answers from each as the weights, which are all alike, say.
pub fn assert_even(shares: &BTreeMap<String, usize>, hosts: usize) {
    assert_eq!(shares.len(), hosts, "{shares:?}");
    let (least, most) = (shares.values().min().unwrap(), shares.values().max().unwrap());
    assert!(most - least <= 1, "{shares:?}");
}
