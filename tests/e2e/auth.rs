//! Keys of the configuration: who is let in, who is told what, and what a refused client costs.

use crate::harness::client::Response;
use crate::harness::message::Ended;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{quiet, rejected, Rig, CHAT, CHATS, OK, STREAM};
use ring::digest::{digest, SHA256};
use serde_json::{json, Value};
use std::sync::mpsc::channel;
use std::sync::Mutex;

/// Keys in all states. Their lives are long over, or begin long after this was written.
const KEYS: &str = "api_keys:
  - {key: sk-good, name: laptop, user_id: ann}
  - {key: sk-plain}
  - {key: sk-off, status: disabled, user_id: bob}
  - {key: sk-spent, status: quota_exceeded}
  - {key: sk-old, status: expired}
  - {key: sk-over, expires_at: '2020-01-01T00:00:00Z'}
  - {key: sk-early, starts_at: '2200-01-01T00:00:00Z'}
  - {key: sk-elsewhere, allowed_ips: [192.0.2.0/24]}
  - {key: sk-banned, denied_ips: [127.0.0.0/8]}
  - {key: sk-here, allowed_ips: [127.0.0.0/8]}
  - {key: sk-m, allowed_models: [m, 'small-*']}
";

/// A proxy with these sections before a backend that answers everything with OK.
fn pair_with(sections: &[&str]) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url());
    let all = sections.iter().fold(config, |config, section| config.section(section.trim_end()));
    (all.start(), backend)
}

fn get(conn: &mut Conn, path: &str, fields: &str) -> Response {
    conn.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{fields}\r\n")).response()
}

fn key(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// Catches: any row of the table of refusals that is another one, a body that is no error object,
/// and an engine that is asked for somebody who may not.
#[test]
fn refusals_are_those_of_the_table() {
    let (proxy, backend) = pair_with(&[KEYS]);
    let mut conn = proxy.connect();
    let rows = [
        ("", 401, "missing_api_key", "authentication_error"),
        ("sk-nobody", 401, "invalid_api_key", "authentication_error"),
        ("sk-off", 403, "key_disabled", "permission_error"),
        ("sk-old", 403, "key_expired", "permission_error"),
        ("sk-over", 403, "key_expired", "permission_error"),
        ("sk-early", 403, "key_not_active", "permission_error"),
        ("sk-elsewhere", 403, "ip_not_allowed", "permission_error"),
        ("sk-banned", 403, "ip_not_allowed", "permission_error"),
        ("sk-spent", 429, "insufficient_quota", "insufficient_quota"),
    ];
    for (sent, status, code, kind) in rows {
        let fields = if sent.is_empty() { String::new() } else { key(sent) };
        let answer = conn.post(CHATS, &fields, CHAT);
        answer.assert_refused(status, code);
        assert_eq!(answer.json()["error"]["type"], kind);
        assert_eq!(answer.head.get("www-authenticate"), (status == 401).then_some("Bearer"));
        assert_eq!(answer.head.get("x-should-retry"), (status == 429).then_some("false"));
        assert!(sent.is_empty() || !answer.text().contains(sent), "{}", answer.text());
    }
    assert_eq!(rejected(&proxy, "invalid_api_key"), 1.0);
    assert_eq!(backend.connections(), 0);
    for sent in ["sk-good", "sk-plain", "sk-here", "sk-m"] {
        assert_eq!(conn.post(CHATS, &key(sent), CHAT).text(), "ok", "{sent}");
    }
}

/// Catches: a spelling of a key that an SDK uses and that is not read; one that nobody meant; a key
/// that goes on to an engine.
#[test]
fn keys_are_read_where_they_may_stand_and_stay_here() {
    let named = "auth: {header_names: [Authorization, X-API-Key, api-key, x-goog-api-key]}";
    let (proxy, backend) = pair_with(&[KEYS, named]);
    let mut conn = proxy.connect();
    for good in [
        "Authorization: Bearer sk-good\r\n",
        "authorization: bearer   sk-good  \r\n",
        "AUTHORIZATION:\tBEARER\tsk-good\r\n",
        "x-api-key: sk-good\r\n",
        "X-Api-Key:   sk-good \r\n",
        "API-Key: sk-good\r\n",
        "X-Goog-Api-Key: sk-good\r\n",
        "Authorization: Basic eDp5\r\nX-API-Key: sk-good\r\n",
        "Authorization: Bearer sk-good\r\nX-API-Key: sk-nobody\r\n",
        "X-API-Key: sk-good\r\nX-API-Key: sk-good\r\n",
    ] {
        assert_eq!(conn.post(CHATS, good, CHAT).text(), "ok", "{good:?}");
        let seen = backend.requests().pop().unwrap();
        let is_key = |(_, value): &(String, String)| value.contains("sk-");
        assert!(!seen.head.fields.iter().any(is_key), "{:?}", seen.head);
    }
    let asked = backend.requests().len();
    for (bad, code) in [
        ("Authorization: sk-good\r\n", "missing_api_key"),
        ("Authorization: Bearer\r\n", "missing_api_key"),
        ("Authorization: Bearersk-good\r\n", "missing_api_key"),
        ("Proxy-Authorization: Bearer sk-good\r\n", "missing_api_key"),
        ("Cookie: api-key=sk-good\r\n", "missing_api_key"),
        ("Authorization: Bearer sk-good sk-good\r\n", "invalid_api_key"),
        ("Authorization: Bearer SK-GOOD\r\n", "invalid_api_key"),
        ("X-API-Key: Bearer sk-good\r\n", "invalid_api_key"),
        ("Authorization: Bearer sk-good\r\nAuthorization: Bearer sk-plain\r\n", "missing_api_key"),
        ("X-API-Key: sk-good\r\nx-api-key: sk-nobody\r\n", "missing_api_key"),
    ] {
        conn.post(CHATS, bad, CHAT).assert_refused(401, code);
    }
    let query = format!("{CHATS}?api_key=sk-good&key=sk-good");
    conn.post(&query, "", CHAT).assert_refused(401, "missing_api_key");
    assert_eq!(backend.requests().len(), asked);
}

/// Catches: a body that is asked for, or read, though its client is not let in; a connection that
/// goes on in the middle of one.
#[test]
fn a_refused_body_is_neither_asked_for_nor_read() {
    let (proxy, backend) = pair_with(&[KEYS]);
    // It is not told to go on.
    let mut conn = proxy.connect();
    let head = |more: &str| format!("POST {CHATS} HTTP/1.1\r\nHost: a\r\n{more}\r\n");
    conn.send(head("Expect: 100-continue\r\nContent-Length: 10\r\n"));
    conn.response().assert_refused(401, "missing_api_key");
    conn.assert_closes();
    // A large one is left where it is, and the answer comes before its end.
    for framing in ["Content-Length: 10485760\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut conn = proxy.connect();
        conn.send(head(framing)).send("400\r\n{");
        conn.response().assert_refused(401, "missing_api_key");
        conn.assert_closes();
    }
    // Nor is a small one waited for.
    let mut conn = proxy.connect();
    conn.send(head("Content-Length: 10\r\n")).send("{");
    conn.response().assert_refused(401, "missing_api_key");
    conn.assert_closes();
    // What has come is no reason to close.
    let mut conn = proxy.connect();
    conn.post(CHATS, "", CHAT).assert_refused(401, "missing_api_key");
    conn.send(format!("{}{CHAT}", head(&format!("Content-Length: {}\r\n", CHAT.len()))));
    conn.response().assert_refused(401, "missing_api_key");
    assert_eq!(conn.post(CHATS, &key("sk-good"), CHAT).text(), "ok");
    assert_eq!(backend.requests().len(), 1);
}

/// Catches: a request behind a refused one that is not judged by its own key, or is judged by the
/// one before.
#[test]
fn each_request_of_a_connection_shows_its_own_key() {
    let (proxy, backend) = pair_with(&[KEYS]);
    let mut conn = proxy.connect();
    let one = |fields: &str| {
        let length = CHAT.len();
        format!(
            "POST {CHATS} HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: {length}\r\n\r\n{CHAT}"
        )
    };
    let all = [one(""), one(&key("sk-good")), one(&key("sk-off")), one(""), one(&key("sk-plain"))];
    conn.send(all.concat());
    conn.response().assert_refused(401, "missing_api_key");
    assert_eq!(conn.response().text(), "ok");
    conn.response().assert_refused(403, "key_disabled");
    conn.response().assert_refused(401, "missing_api_key");
    assert_eq!(conn.response().text(), "ok");
    assert_eq!(backend.requests().len(), 2);
}

/// Catches: a model that a key may not use and gets by another name, none, or one that is not read;
/// a list that shows it.
#[test]
fn a_key_has_its_models_and_no_others() {
    let mapping = "routing: {model_mapping: {small-x: big, chat: m}}";
    let rig = Rig::with("", |config| config.section(KEYS.trim_end()).section(mapping));
    let mut conn = rig.proxy.connect();
    let key = key("sk-m");
    let body = |model: &str| CHAT.replace("\"m\"", model);
    for model in ["\"m\"", "\"small-1\"", "\"small-x\"", "\"chat\""] {
        assert_eq!(conn.post(CHATS, &key, body(model)).status(), 200, "{model}");
    }
    let none = r#"{"messages":[]}"#.to_owned();
    let posts = rig.engine.posts().len();
    for refused in [body("\"big\""), body("\"M\""), body("\"\""), body("null"), none] {
        conn.post(CHATS, &key, &refused).assert_refused(403, "model_not_allowed");
    }
    for (path, sent) in [
        ("/v1/embeddings", r#"{"input":"a"}"#),
        ("/v1/rerank", r#"{"model":"big"}"#),
        ("/tokenize", r#"{"prompt":"a"}"#),
        ("/v1/responses", r#"{"input":"a"}"#),
    ] {
        conn.post(path, &key, sent).assert_refused(403, "model_not_allowed");
    }
    assert_eq!(rig.engine.posts().len(), posts);
}

/// Catches: a list of models that shows what a key may not ask, or needs no key; one engine's own
/// list that is passed on as it is.
#[test]
fn the_list_of_models_is_that_of_the_key() {
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            assert_eq!(request.head.method(), "GET");
            let ids = ["big", "m", "small-1"].map(|id| json!({"id": id, "object": "model"}));
            let list = json!({"object": "list", "data": ids}).to_string();
            let length = list.len();
            served.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{list}"));
        }
    });
    let mapping = "routing: {model_mapping: {small-x: big, chat: m, huge: big}}";
    let config = Config::backend_at(backend.url()).section(KEYS.trim_end()).section(mapping);
    let proxy = config.start();
    let mut conn = proxy.connect();
    let list = |conn: &mut Conn, key: &str| {
        let answer = get(conn, "/v1/models", key).json();
        let models = answer["data"].as_array().unwrap().iter();
        models.map(|model| model["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = list(&mut conn, &key("sk-good"));
    assert_eq!(all.len(), 6, "{all:?}");
    let theirs = |id: &String| ["m", "chat"].contains(&id.as_str()) || id.starts_with("small-");
    let shown = list(&mut conn, &key("sk-m"));
    assert_eq!(shown, all.iter().filter(|id| theirs(id)).cloned().collect::<Vec<_>>());
    assert_eq!(shown.len(), 4, "{shown:?}");
    assert_eq!(get(&mut conn, "/v1/models/small-x", &key("sk-m")).status(), 200);
    for hidden in ["big", "huge"] {
        let path = format!("/v1/models/{hidden}");
        get(&mut conn, &path, &key("sk-m")).assert_refused(404, "model_not_found");
    }
    conn.get("/v1/models").assert_refused(401, "missing_api_key");
}

/// Catches: a page of ours that needs a key, or a path that needs none because it looks like one.
#[test]
fn some_paths_need_no_key() {
    let skip = "auth: {skip_paths: [/v1/embeddings, '/v1/score/*']}";
    let (proxy, backend) = pair_with(&[KEYS, skip]);
    let mut conn = proxy.connect();
    for page in ["/health", "/ready", "/metrics"] {
        assert_eq!(conn.get(page).status(), 200, "{page}");
    }
    for open in ["/v1/embeddings", "/v1/%65mbeddings", "/v1/embeddings/", "/v1/embeddings?a=b"] {
        assert_eq!(conn.post(open, "", CHAT).text(), "ok", "{open}");
    }
    let asked = backend.requests().len();
    for (shut, status, code) in [
        ("/v1/score", 401, "missing_api_key"),
        ("/v1/chat/completions?/v1/embeddings", 401, "missing_api_key"),
        ("/v1/Embeddings", 404, "unknown_path"),
        ("/v1/embeddings/../chat/completions", 400, "bad_path"),
        ("/v1/embeddings%2f..%2fchat/completions", 400, "bad_path"),
        ("/v1/embeddings;/../chat/completions", 400, "bad_path"),
        ("//v1/embeddings", 400, "bad_path"),
    ] {
        conn.post(shut, "", CHAT).assert_refused(status, code);
    }
    assert_eq!(backend.requests().len(), asked);
}

/// Catches: a record, or a line of the access log, that does not say whose request it was, or says
/// what its client wrote.
#[test]
fn records_and_lines_say_whose_a_request_was() {
    let scratch = Scratch::new();
    let file = scratch.file("access.log");
    let place = format!("output: file, file: {{path: \"{}\"}}", file.display());
    let log = format!("logging: {{access: {{format: combined, {place}}}}}");
    let rig = Rig::with("", |config| config.section(KEYS.trim_end()).section(log));
    let mut conn = rig.proxy.connect();
    let lies = "X-User-Id: eve\r\nX-Forwarded-User: eve\r\n";
    let body = CHAT.replacen('{', "{\"user\":\"eve\",", 1);
    for known in ["sk-good", "sk-plain"] {
        assert_eq!(conn.post(CHATS, &format!("{}{lies}", key(known)), &body).status(), 200);
    }
    conn.post(CHATS, lies, CHAT).assert_refused(401, "missing_api_key");
    // Of a key that is known and may not, the line says whose it is; what came before does not.
    conn.post(CHATS, &key("sk-off"), CHAT).assert_refused(403, "key_disabled");
    conn.post(CHATS, &key("sk-nobody"), CHAT).assert_refused(401, "invalid_api_key");
    let records = rig.hook.await_records(2, SOON);
    let id_of = |key: &str| {
        let digest = digest(&SHA256, key.as_bytes());
        let digits = digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    };
    let (known, nameless) = (&records[0], &records[1]);
    assert_eq!((&known["user_id"], &known["key_name"]), (&json!("ann"), &json!("laptop")));
    assert_eq!(known["key_id"], id_of("sk-good"));
    assert_eq!((&nameless["user_id"], nameless.get("key_name")), (&Value::Null, None));
    assert_eq!(nameless["key_id"], id_of("sk-plain"));
    let mut text = String::new();
    await_until("the lines are written", SOON, || {
        text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines().count() == 5
    });
    let starts = ["ann", "-", "-", "bob", "-"].map(|user| format!("127.0.0.1 - {user} ["));
    let fits = |(line, start): (&str, String)| line.starts_with(&start);
    assert!(text.lines().zip(starts).all(fits), "{text}");
    assert!(!text.contains("eve") && !text.contains("sk-"), "{text}");
    assert!(!format!("{records:?}").contains("sk-good"), "{records:?}");
}

/// Catches: a reload that leaves a key as it was, or ends a stream of one that it takes away.
#[test]
fn a_reload_changes_keys_and_no_stream() {
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let backend = Backend::start(move |served| {
        while let Some(request) = served.request() {
            if request.body.len() == CHAT.len() {
                served.send(OK);
                continue;
            }
            served.begin_events();
            served.chunk("data: 1\n\n");
            let _ = wait.lock().unwrap().recv_timeout(SOON);
            served.chunk("data: 2\n\ndata: [DONE]\n\n");
            served.send("0\r\n\r\n");
        }
    });
    let config =
        |keys: &str| Config::backend_at(backend.url()).section(format!("api_keys: {keys}"));
    let proxy = config("[{key: sk-a}, {key: sk-b}]").start();
    let mut stream = proxy.connect();
    stream.start_post(CHATS, &key("sk-a"), STREAM);
    assert_eq!(stream.head().status(), 200);
    stream.read_until("data: 1");
    assert!(proxy.reload_with(&config("[{key: sk-b, status: disabled}, {key: sk-c}]")));
    let mut conn = proxy.connect();
    conn.post(CHATS, &key("sk-a"), CHAT).assert_refused(401, "invalid_api_key");
    conn.post(CHATS, &key("sk-b"), CHAT).assert_refused(403, "key_disabled");
    assert_eq!(conn.post(CHATS, &key("sk-c"), CHAT).text(), "ok");
    go.send(()).unwrap();
    assert_eq!(stream.rest().1, Ended::Whole);
    // The stream's connection is judged by the keys of now.
    stream.post(CHATS, &key("sk-a"), CHAT).assert_refused(401, "invalid_api_key");
    quiet(&proxy);
}

/// Catches: a provider with keys of its own that is not asked, and `all` that lets in what only one
/// of two providers has.
#[test]
fn providers_decide_together_as_the_file_says() {
    let pipeline = "pipeline: [{type: file}, {type: static, name: own, static: {keys: \
                    [{key: sk-good}, {key: sk-own}, {key: sk-here, status: disabled}]}}]";
    let first = format!("auth: {{{pipeline}}}");
    let (proxy, _backend) = pair_with(&[KEYS, &first]);
    let mut conn = proxy.connect();
    for sent in ["sk-good", "sk-own", "sk-here", "sk-plain"] {
        assert_eq!(conn.post(CHATS, &key(sent), CHAT).text(), "ok", "{sent}");
    }
    let all =
        format!("auth: {{mode: all, {pipeline}, status_codes: {{disabled: {{http_code: 402}}}}}}");
    let (proxy, backend) = pair_with(&[KEYS, &all]);
    let mut conn = proxy.connect();
    assert_eq!(conn.post(CHATS, &key("sk-good"), CHAT).text(), "ok");
    for (sent, status, code) in [
        ("sk-own", 401, "invalid_api_key"),
        ("sk-plain", 401, "invalid_api_key"),
        ("sk-here", 402, "key_disabled"),
    ] {
        conn.post(CHATS, &key(sent), CHAT).assert_refused(status, code);
    }
    assert_eq!(backend.requests().len(), 1);
}

/// Catches: a key that two providers know and that is held to what one of them says, or whose owner
/// is lost because the first of them does not name one.
#[test]
fn what_each_of_several_providers_says_holds() {
    let usage = r#"{"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}}"#;
    let length = usage.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{usage}"
    );
    let (backend, hook) = (Backend::answering(answer), Webhook::start());
    let config = Config::backend_at(backend.url())
        .section(
            "api_keys:\n  - {key: sk-two, name: first, rate_limit: 50}\n  \
             - {key: sk-model, allowed_models: [m, a]}\n  - {key: sk-quota, total_quota: 1000}\n  - {key: sk-here, denied_ips: [127.0.0.1]}",
        )
        .section(
            "auth: {mode: all, forward_identity: {}, pipeline: [{type: file}, {type: static, \
             static: {keys: [{key: sk-two, name: other, user_id: ann, rate_limit: 2}, \
             {key: sk-model, allowed_models: [m, b]}, {key: sk-quota, total_quota: 40}, {key: sk-here}]}}]}",
        )
        .webhook(&hook.url(), "");
    let proxy = config.start();
    let mut conn = proxy.connect();
    for _ in 0..2 {
        assert_eq!(conn.post(CHATS, &key("sk-two"), CHAT).status(), 200);
    }
    conn.post(CHATS, &key("sk-two"), CHAT).assert_refused(429, "rate_limit_exceeded");
    for model in ["a", "b"] {
        let body = CHAT.replacen("\"m\"", &format!("\"{model}\""), 1);
        conn.post(CHATS, &key("sk-model"), body).assert_refused(403, "model_not_allowed");
    }
    assert_eq!(conn.post(CHATS, &key("sk-model"), CHAT).status(), 200);
    conn.post(CHATS, &key("sk-here"), CHAT).assert_refused(403, "ip_not_allowed");
    assert_eq!(conn.post(CHATS, &key("sk-quota"), CHAT).status(), 200);
    await_until("the quota of the second is used up", SOON, || {
        let answer = conn.post(CHATS, &key("sk-quota"), CHAT);
        answer.status() == 429 && answer.json()["error"]["code"] == "insufficient_quota"
    });
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["user_id"], &record["key_name"]), (&json!("ann"), &json!("first")));
    let sent = backend.requests().remove(0).head;
    assert_eq!(sent.get("x-llmproxy-user"), Some("ann"));
    assert_eq!(sent.get("x-llmproxy-key-name"), Some("first"));
}
