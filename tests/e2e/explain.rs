//! `llmproxy explain`, and the flight recorder that it asks: what became of a request, however it
//! ended.

use crate::admin_api::{desk_of, section};
use crate::harness::client::Response;
use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, Backend, Config, Engine, Proxy, Webhook, SOON};
use crate::rig::{leave, Leave, CHAT, CHATS, OK, STREAM};
use serde_json::{json, Value};
use std::sync::mpsc::channel;
use std::sync::Mutex;

const DOWN: &str = "HTTP/1.1 503 Oh\r\nContent-Length: 0\r\n\r\n";
const NO_PROBES: &str = "health_check: {enabled: false}";

/// `llmproxy explain`, of a gateway that has an admin socket.
fn explain(proxy: &Proxy, args: &[&str]) -> Ran {
    let config = proxy.config_file();
    llmproxy(&[&["explain", "--config", &config.to_string_lossy()], args].concat())
}

/// The stories of a request, as lines of JSON, once there is one.
fn stories(proxy: &Proxy, which: &[&str]) -> Vec<Value> {
    let ran = await_some("its story", SOON, || {
        let ran = explain(proxy, &[which, &["--json"]].concat());
        (ran.code == Some(0)).then_some(ran)
    });
    assert_eq!(ran.stderr, "");
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn story(proxy: &Proxy, id: &str) -> Value {
    let mut stories = stories(proxy, &[id]);
    assert_eq!(stories.len(), 1, "{stories:?}");
    stories.remove(0)
}

/// The same for a person.
fn told(proxy: &Proxy, id: &str) -> String {
    let ran = explain(proxy, &[id]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    ran.stdout
}

fn id_of(answer: &Response) -> String {
    answer.head.get("x-request-id").unwrap().to_owned()
}

/// Before these backends, with this routing, and with an admin socket.
fn before(backends: &[(&str, &str)], routing: &str, hook: &Webhook) -> Proxy {
    let config = Config::new().section(NO_PROBES).webhook(&hook.url(), "");
    let config = backends.iter().fold(config, |config, (url, more)| config.backend(url, more));
    config.section(format!("routing: {{{routing}}}")).start()
}

/// Before an engine that has another name for a model, for the owner of one key.
fn with_a_key(engine: &Engine, hook: &Webhook) -> Config {
    Config::new()
        .backend(engine.url(), "name: only")
        .webhook(&hook.url(), "")
        .section("routing: {model_mapping: {nice: m}}")
        .section("api_keys: [{key: sk-planted-key, user_id: ann, name: laptop}]")
}

/// Catches: a request whose story lacks whose it was, who was asked and why, what came of it, or
/// when; a story that a reload takes away.
#[test]
fn one_that_came_to_its_end() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let config = with_a_key(&engine, &hook);
    let proxy = config.start();
    let key = "Authorization: Bearer sk-planted-key\r\nx-request-id: mine-1\r\n";
    let body = STREAM.replace("\"m\"", "\"nice\"");
    let answer = proxy.connect().post(CHATS, key, &body);
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let good = story(&proxy, "mine-1");
    let wanted = json!({
        "client_request_id": "mine-1", "user_id": "ann", "key_name": "laptop", "method": "POST",
        "path": CHATS, "model": "nice", "served_model": "m", "is_stream": true,
        "queue_wait_ms": null, "failed_tries": [], "failed_count": 0, "retry_count": 0, "fallback_used": false,
        "backend": "only", "picked_by": "only_one", "status_code": 200, "status": "complete",
        "error": null, "usage_source": "engine", "request_bytes": body.len(),
    });
    for (name, value) in wanted.as_object().unwrap() {
        assert_eq!(&good[name], value, "{name}: {good}");
    }
    let number = |name: &str| good[name].as_u64().unwrap_or_else(|| panic!("{name}: {good}"));
    let times = ["picked_ms", "first_byte_ms", "ttft_ms", "latency_ms"].map(number);
    assert!(times.is_sorted(), "{good}");
    for amount in ["completion_tokens", "prompt_tokens", "events", "response_bytes"] {
        assert!(number(amount) > 0, "{amount}: {good}");
    }
    let record = hook.await_records(1, SOON).remove(0);
    for same in ["request_id", "key_id", "latency_ms", "completion_tokens", "timestamp"] {
        assert_eq!(good[same], record[same], "{same}");
    }
    let own = good["request_id"].as_str().unwrap();
    assert_eq!(story(&proxy, own), good, "by our own id too");
    let text = told(&proxy, own);
    for part in [
        "(the client's: mine-1)",
        "model nice (at the engines: m), a stream",
        "user ann",
        "to only (no other one serves the model)",
        "ms  complete, status 200\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(proxy.reload_with(&config.clone().server("watch_config: false")));
    assert_eq!(story(&proxy, own), good);
}

/// Catches: a refusal that nobody can look into, a key that is told, a name that steers the
/// terminal.
#[test]
fn one_that_was_refused_and_one_with_an_odd_name() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = with_a_key(&engine, &hook).start();
    let post = |key: &str, body: &str| {
        proxy.connect().post(CHATS, &format!("Authorization: Bearer {key}\r\n"), body)
    };
    let unknown = post("sk-planted-wrong", CHAT);
    unknown.assert_refused(401, "invalid_api_key");
    let refused = story(&proxy, &id_of(&unknown));
    let said = ["status", "error", "backend", "usage_source"].map(|name| refused[name].clone());
    assert_eq!(json!(said), json!(["refused", "invalid_api_key", null, null]), "{refused}");
    let text = told(&proxy, &id_of(&unknown));
    assert!(text.contains("refused: invalid_api_key, status 401\n"), "{text}");
    assert!(!text.contains("to only"), "{text}");
    let odd = post("sk-planted-key", "{\"model\":\"\\u001b[2J\\u202e\",\"messages\":[]}");
    story(&proxy, &id_of(&odd));
    let all = told(&proxy, &id_of(&odd)) + &explain(&proxy, &["--last", "9"]).stdout;
    assert!(!all.contains(['\u{1b}', '\u{202e}']), "{all:?}");
    assert!(all.contains("model \u{fffd}[2J\u{fffd}"), "{all:?}");
    assert!(!all.contains("sk-planted"), "{all}");
}

/// Catches: a failed try that is not told, or with another backend or reason; a backend whose pick
/// is told to have another reason than it had.
#[test]
fn tries_that_fail_and_who_is_asked_instead() {
    let hook = Webhook::start();
    let (down, well) = (Backend::answering(DOWN), Backend::answering(OK));
    let (a, b) = (down.url(), well.url());
    let in_turn = [(&*a, "name: a"), (&*b, "name: b, backup: true")];
    let cases = [
        ("retry: {max_retries: 2}", "spilled", "those before it could not take it"),
        ("fallback: [{primary: a, fallback: [b]}]", "rule", "a rule of routing.fallback"),
    ];
    for (routing, picked_by, why) in cases {
        let proxy = before(&in_turn, routing, &hook);
        let answer = proxy.post(CHATS, CHAT);
        assert_eq!(answer.status(), 200);
        let id = id_of(&answer);
        let story = story(&proxy, &id);
        let [failed] = &story["failed_tries"].as_array().unwrap()[..] else { panic!("{story}") };
        assert_eq!((&failed["backend"], &failed["reason"]), (&json!("a"), &json!("status_503")));
        assert_eq!(failed["picked_by"], "round_robin", "{story}");
        assert_eq!((&story["backend"], &story["picked_by"]), (&json!("b"), &json!(picked_by)));
        assert_eq!((&story["retry_count"], &story["fallback_used"]), (&json!(1), &json!(true)));
        let ms = |value: &Value| value.as_u64().unwrap();
        assert!(ms(&failed["picked_ms"]) <= ms(&failed["failed_ms"]), "{story}");
        assert!(ms(&failed["failed_ms"]) <= ms(&story["picked_ms"]), "{story}");
        let text = told(&proxy, &id);
        let parts =
            ["to a (its turn", "a failed: status_503", &format!("to b ({why})"), "complete"];
        let places: Vec<_> = parts.iter().map(|part| text.find(part)).collect();
        assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} {text}");
    }
    let again = before(&[(&a, "name: a")], "retry: {max_retries: 1, initial_wait: 1ms}", &hook);
    let answer = again.post(CHATS, CHAT);
    assert_eq!(answer.status(), 503);
    let story = story(&again, &id_of(&answer));
    assert_eq!(story["failed_tries"][0]["reason"], "status_503", "{story}");
    assert_eq!((&story["status_code"], &story["fallback_used"]), (&json!(503), &json!(false)));
}

/// Catches: a wait for a place that nobody is told of, be it for something or in vain.
#[test]
fn one_that_waited_and_one_that_waited_in_vain() {
    let (go, going) = channel();
    let going = Mutex::new(going);
    let engine = Backend::start(move |served| {
        while served.request().is_some() {
            if going.lock().unwrap().recv_timeout(SOON).is_err() || !served.send(OK) {
                return;
            }
        }
    });
    let hook = Webhook::start();
    let one = [(&*engine.url(), "name: engine, max_concurrent: 1")];
    let proxy = before(&one, "queue: {timeout: 60s}", &hook);
    let ask = |proxy: &Proxy| {
        let mut conn = proxy.connect();
        conn.start_post(CHATS, "", CHAT);
        conn
    };
    let mut first = ask(&proxy);
    await_until("it is there", SOON, || engine.requests().len() == 1);
    let mut second = ask(&proxy);
    proxy.await_metric("llmproxy_queue_waiting", &[], 1.0);
    (0..2).for_each(|_| go.send(()).unwrap());
    let answers = [first.response(), second.response()].map(|answer| id_of(&answer));
    let [straight, waited] = answers.map(|id| story(&proxy, &id));
    assert_eq!(straight["queue_wait_ms"], Value::Null, "{straight}");
    let wait = waited["queue_wait_ms"].as_u64().unwrap();
    assert!(wait <= waited["picked_ms"].as_u64().unwrap(), "{waited}");
    let text = told(&proxy, waited["request_id"].as_str().unwrap());
    assert!(text.contains(&format!("its turn, after {wait} ms of waiting")), "{text}");

    let brief = before(&one, "queue: {timeout: 50ms}", &hook);
    let _first = ask(&brief);
    await_until("it is there", SOON, || engine.requests().len() == 3);
    let refused = ask(&brief).response();
    refused.assert_refused(429, "backends_full");
    let story = story(&brief, &id_of(&refused));
    assert_eq!((&story["status"], &story["backend"]), (&json!("refused"), &Value::Null));
    let wait = story["queue_wait_ms"].as_u64().unwrap();
    let text = told(&brief, &id_of(&refused));
    assert!(text.contains(&format!("has waited for {wait} ms in vain")), "{text}");
}

/// Catches: a client that left, a quota that ended and an engine that broke off, told as one
/// another.
#[test]
fn streams_that_did_not_come_to_their_end() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = Config::new()
        .backend(engine.url(), "name: only")
        .webhook(&hook.url(), "")
        .section("auth: {quota_reserve: none, quota_on_exhausted: cut}")
        .section("api_keys: [{key: k, total_quota: 40}, {key: free}]")
        .start();
    let mut conn = proxy.connect();
    let knobs = "Authorization: Bearer free\r\nx-mock-stall-after: 3\r\nx-request-id: gone\r\n";
    conn.start_post(CHATS, knobs, STREAM);
    conn.head();
    conn.read_until("data:");
    let _conn = leave(conn, Leave::Fin);
    let gone = story(&proxy, "gone");
    assert_eq!((&gone["status"], &gone["error"]), (&json!("client_left"), &json!("client_left")));
    assert!(told(&proxy, "gone").contains("aborted by the client: client_left\n"));
    let knobs = "Authorization: Bearer k\r\nx-mock-tokens: 2000\r\nx-mock-gap-ms: 20\r\n";
    let cut = proxy.connect().post(CHATS, knobs, STREAM);
    assert_eq!(cut.status(), 200);
    let id = id_of(&cut);
    let story_of_cut = story(&proxy, &id);
    assert_eq!(story_of_cut["error"], "quota_exhausted", "{story_of_cut}");
    let text = told(&proxy, &id);
    assert!(text.contains("cut where the quota of its key ended: quota_exhausted"), "{text}");

    let breaks = Backend::start(|served| {
        if served.request().is_some() {
            served.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"half\":");
        }
    });
    let proxy = before(&[(&breaks.url(), "name: breaks")], "", &hook);
    let broken = proxy.post(CHATS, CHAT);
    let story = story(&proxy, &id_of(&broken));
    assert_eq!(
        (&story["status"], &story["error"]),
        (&json!("backend_error"), &json!("backend_broke"))
    );
    let text = told(&proxy, &id_of(&broken));
    assert!(text.contains("breaks failed: backend_broke, status 200\n"), "{text}");
}

/// Catches: more stories than are wanted, or in another order; somebody who is not told why there
/// is none; one that goes on being kept though none are to be.
#[test]
fn the_last_ones_and_those_that_are_not_there() {
    let (engine, hook) = (Backend::answering(OK), Webhook::start());
    let start = |log: &str| {
        let config = Config::backend_at(engine.url()).webhook(&hook.url(), "");
        config.section(format!("log: {{level: debug, {log}}}")).start()
    };
    let proxy = start("flight_recorder: 2");
    let none = explain(&proxy, &["--last", "5"]);
    assert!(none.code == Some(1) && none.stderr.contains("no request is over"), "{none:?}");
    let ids: Vec<String> = (0..3)
        .map(|_| {
            let id = id_of(&proxy.post(CHATS, CHAT));
            story(&proxy, &id);
            id
        })
        .collect();
    assert_eq!(proxy.get("/health").status(), 200);
    let last: Vec<Value> = stories(&proxy, &["--last", "5"]);
    let told: Vec<_> = last.iter().map(|story| story["request_id"].as_str().unwrap()).collect();
    assert_eq!(told, [&*ids[2], &*ids[1]]);
    assert_eq!(stories(&proxy, &["--last", "1"]).len(), 1);
    let gone = explain(&proxy, &[&ids[0]]);
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(1), ""), "{gone:?}");
    let why = format!("no story of a request {}, or it is no longer kept", ids[0]);
    assert!(gone.stderr.contains(&why) && gone.stderr.contains("the last 2"), "{gone:?}");
    let odd = explain(&proxy, &["a/../b\u{1b}"]);
    assert!(odd.code == Some(1) && odd.stderr.contains("is no id"), "{odd:?}");
    assert!(!odd.stderr.contains('\u{1b}'), "{odd:?}");
    let off = start("flight_recorder: 0");
    let id = id_of(&off.post(CHATS, CHAT));
    let ran = explain(&off, &[&id]);
    assert!(ran.code == Some(1) && ran.stderr.contains("`log.flight_recorder` is 0"), "{ran:?}");
    drop((proxy, off));
    let nowhere = llmproxy(&["explain", "--last", "1", "--socket", "/nonexistent.sock"]);
    assert!(nowhere.code == Some(1) && nowhere.stdout.is_empty(), "{nowhere:?}");
}

/// Catches: a story that administrators are told otherwise, or not; one that everybody is told.
#[test]
fn administrators_are_told_too() {
    let (scratch, backend) = (Scratch::new(), Backend::answering(OK));
    let section = section(&scratch.file("keys.db"), "");
    let desk = desk_of(&Config::new().backend(backend.url(), "name: engine").section(section));
    let ids = [0; 2].map(|_| id_of(&desk.proxy.post(CHATS, CHAT)));
    await_until("both are told", SOON, || {
        desk.ask("GET", "/admin/requests", Value::Null).1["written"] == 2
    });
    let (status, list) = desk.ask("GET", "/admin/requests?limit=1", Value::Null);
    assert_eq!((status, list["requests"].as_array().unwrap().len()), (200, 1), "{list}");
    assert_eq!(list["kept_per_worker"], 1024);
    let (status, story) = desk.ask("GET", &format!("/admin/requests/{}", ids[0]), Value::Null);
    assert_eq!((status, &story["status"]), (200, &json!("complete")), "{story}");
    assert_eq!(story["request_id"], *ids[0]);
    let by_command = explain(&desk.proxy, &[&ids[0], "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&by_command.stdout).unwrap(), story);
    let (status, fault) = desk.ask("GET", "/admin/requests/other", Value::Null);
    assert_eq!((status, &fault["error"]["code"]), (404, &json!("request_not_found")));
    let (status, _) = desk.ask("GET", "/admin/requests?limit=1001", Value::Null);
    assert_eq!(status, 400);
    for path in ["/requests", "/admin/requests"] {
        assert_eq!(desk.proxy.get(path).status(), 404, "not where clients ask");
    }
}
