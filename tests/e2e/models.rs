//! Requests go to the engines that have their model, under the name that these know.

use crate::harness::{Backend, Config, Conn, Engine, Proxy, Webhook, SOON};
use crate::rig::{quiet, rejected, CHATS};
use crate::stream_usage::COUNTS;
use serde_json::{json, Value};

/// A backend that says its name in each answer.
fn named(name: &str) -> Backend {
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

/// Without probes: these backends answer them as they answer all else.
fn config() -> Config {
    Config::new().section("health_check: {enabled: false}")
}

fn mapping(names: &str) -> String {
    format!("routing: {{model_mapping: {names}}}")
}

fn chat(model: &str) -> String {
    json!({"model": model, "messages": []}).to_string()
}

fn body_of(backend: &Backend, number: usize) -> String {
    String::from_utf8(backend.requests()[number].body.clone()).unwrap()
}

/// Who answers a chat with this model.
fn answering(proxy: &Proxy, model: &str) -> String {
    proxy.post(CHATS, chat(model)).text()
}

/// Catches: a model that goes to an engine which does not have it, is not found under a pattern, or
/// whose name has something in it that a name may have.
#[test]
fn each_model_goes_to_its_engines() {
    let (a, b) = (named("a"), named("b"));
    let proxy = config()
        .backend(a.url(), "models: ['llama-3*', 'org/Model: 7b@v1.5']")
        .backend(b.url(), "models: ['llama-3-8b', 'mistral:7b']")
        .start();
    for _ in 0..4 {
        for model in ["llama-3-70b", "llama-3", "org/Model: 7b@v1.5"] {
            assert_eq!(answering(&proxy, model), "a", "{model}");
        }
        assert_eq!(answering(&proxy, "mistral:7b"), "b");
    }
    let both: String = (0..4).map(|_| answering(&proxy, "llama-3-8b")).collect();
    assert_eq!((both.matches('a').count(), both.matches('b').count()), (2, 2), "{both}");
    let bare: String = (0..4).map(|_| proxy.post(CHATS, r#"{"messages":[]}"#).text()).collect();
    assert_eq!((bare.matches('a').count(), bare.matches('b').count()), (2, 2), "{bare}");
    let escaped = r#"{"model":"org\/\u004dodel: 7b@v1.5"}"#;
    assert_eq!(proxy.post(CHATS, escaped).text(), "a");
    assert_eq!(body_of(&a, a.requests().len() - 1), escaped, "nothing is to be changed");
}

/// Catches: a name that is not replaced, replaced twice, in the wrong place or badly quoted; a body
/// of which more than that changes, or whose length is not told right.
#[test]
fn an_alias_changes_the_name_and_nothing_else() {
    let backend = named("a");
    let names = r#"{gpt-4: 'llama "3"/é\', 'a b:c': x, x: y}"#;
    let proxy = config().backend(backend.url(), "").section(mapping(names)).start();
    let mut client = proxy.connect();
    for (sent, received) in [
        (
            r#"{"a":{"model":"gpt-4"}, "model" : "gpt-4" ,"n":1.0,"model2":"gpt-4"}"#,
            r#"{"a":{"model":"gpt-4"}, "model" : "llama \"3\"/é\\" ,"n":1.0,"model2":"gpt-4"}"#,
        ),
        (r#"{"model":"\u0067pt-4"}"#, r#"{"model":"llama \"3\"/é\\"}"#),
        (r#"{"model":"a b:c"}"#, r#"{"model":"x"}"#),
        (r#"{"model":"gpt-4 "}"#, r#"{"model":"gpt-4 "}"#),
        (r#"{"model":null}"#, r#"{"model":null}"#),
        (r#"[{"model":"gpt-4"}]"#, r#"[{"model":"gpt-4"}]"#),
    ] {
        assert_eq!(client.post(CHATS, "", sent).text(), "a");
        let request = backend.requests().pop().unwrap();
        assert_eq!(String::from_utf8(request.body).unwrap(), received);
        assert_eq!(request.head.all("content-length"), [received.len().to_string()]);
    }
    for (body, code) in [
        (r#"{"model":"gpt-4","model":"x"}"#, "duplicate_key"),
        (r#"{"\u006dodel":"gpt-4"}"#, "escaped_key"),
        (r#"{"Model":"gpt-4"}"#, "ambiguous_key"),
        (r#"{"model":["gpt-4"]}"#, "invalid_type"),
    ] {
        client.post(CHATS, "", body).assert_refused(400, code);
    }
    assert_eq!(client.post("/api/show", "", r#"{"name":"gpt-4"}"#).text(), "a");
    assert_eq!(backend.requests().pop().unwrap().body, r#"{"name":"llama \"3\"/é\\"}"#.as_bytes());
    // One that is read in slices, and one that came packed.
    let filler: String = (0..200_000u64).map(|n| (n * 7919 % 65_521).to_string()).collect();
    let large = |model: &str| format!(r#"{{"x":"{filler}","model":"{model}","y":"{filler}"}}"#);
    assert_eq!(client.post(CHATS, "", large("x")).text(), "a");
    assert!(backend.requests().pop().unwrap().body == large("y").as_bytes());
    let packed = crate::classify::packed("gzip", large("x").as_bytes());
    assert_eq!(client.post(CHATS, "Content-Encoding: gzip\r\n", packed).text(), "a");
    assert!(backend.requests().pop().unwrap().body == large("y").as_bytes());
}

/// Catches: a record that tells another name than the client's; an alias that hinders the wish for
/// usage, or the wish the alias.
#[test]
fn a_record_has_the_clients_name_and_the_engine_is_asked_for_usage() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = Config::new()
        .backend(engine.url(), "models: [llama]")
        .section(mapping("{gpt-4: llama}"))
        .webhook(&hook.url(), "")
        .start();
    for (n, body) in [
        r#"{"model":"gpt-4","stream":true,"messages":[]}"#,
        r#"{"stream":true,"messages":[],"model":"gpt-4"}"#,
    ]
    .iter()
    .enumerate()
    {
        let mut client = proxy.connect();
        let answer = client.post(CHATS, COUNTS, body);
        assert!(answer.text().contains(r#""model":"llama""#), "{}", answer.text());
        let record = hook.await_records(n + 1, SOON).remove(n);
        assert_eq!(record["model"], "gpt-4", "{record}");
        assert_eq!(
            (&record["prompt_tokens"], &record["completion_tokens"]),
            (&json!(31), &json!(17))
        );
        proxy.await_metric(
            "llmproxy_tokens_total",
            &[("model", "gpt-4"), ("type", "prompt")],
            31.0 * (n + 1) as f64,
        );
    }
    quiet(&proxy);
}

/// Catches: a model that nobody has and that goes to an engine, is billed, or is answered in a way
/// that clients do not understand; one that is refused though no rule is configured.
#[test]
fn a_model_that_nobody_has_is_a_404() {
    let (a, hook) = (named("a"), Webhook::start());
    let ruled = config().backend(a.url(), "models: [llama]");
    let proxy = ruled.section(mapping("{gpt-4: gone}")).webhook(&hook.url(), "").start();
    let mut client = proxy.connect();
    for model in ["mistral \"7b\"", "gpt-4"] {
        let answer = client.post(CHATS, "", chat(model));
        answer.assert_refused(404, "model_not_found");
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!("invalid_request_error"), &json!("model"))
        );
        assert!(error["message"].as_str().unwrap().contains(model), "{error}");
    }
    assert_eq!(rejected(&proxy, "model_not_found"), 2.0);
    assert_eq!(client.post(CHATS, "", chat("llama")).text(), "a", "the connection goes on");
    assert_eq!(hook.await_records(1, SOON).len(), 1);
    assert_eq!(a.requests().len(), 1);
    let free = config().backend(a.url(), "").start();
    assert_eq!(answering(&free, "whatever"), "a");
    let none = config().start();
    let answer = none.post(CHATS, chat("llama"));
    answer.assert_refused(503, "no_backend");
    assert_eq!(answer.head.get("retry-after"), Some("1"));
}

/// Catches: an engine that is down and whose model is said not to exist, or is asked of another.
#[test]
fn a_model_whose_engine_is_down_is_not_a_404() {
    let (a, b) = (Engine::start(&[]), Engine::start(&[]));
    a.set_health(503);
    a.set("status=503");
    let proxy = Config::new()
        .backend(a.url(), "name: a, models: [llama]")
        .backend(b.url(), "name: b, models: [mistral]")
        .health_check()
        .start();
    proxy.await_metric("llmproxy_backend_up", &[("backend", "a")], 0.0);
    assert_eq!(proxy.post(CHATS, chat("llama")).status(), 503);
    assert_eq!(proxy.post(CHATS, chat("mistral")).status(), 200);
    assert_eq!(b.posts().len(), 1);
}

/// Catches: weights that are one thing for all models and another one for each: traffic for one
/// model that takes turns away from others.
#[test]
fn weights_hold_for_each_model() {
    let (heavy, light, other) = (named("a"), named("b"), named("c"));
    let proxy = config()
        .backend(heavy.url(), "weight: 3, models: [x]")
        .backend(light.url(), "weight: 1, models: [x, y]")
        .backend(other.url(), "weight: 1, models: [y]")
        .start();
    let mut client = proxy.connect();
    for _ in 0..40 {
        for _ in 0..9 {
            client.post(CHATS, "", chat("y"));
        }
        client.post(CHATS, "", chat("x"));
    }
    let asked = |backend: &Backend, model: &str| {
        let is_for = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["model"] == model;
        backend.requests().iter().filter(|request| is_for(&request.body)).count()
    };
    assert_eq!((asked(&heavy, "x"), asked(&light, "x")), (30, 10));
    assert_eq!((asked(&light, "y"), asked(&other, "y")), (180, 180));
}

/// Catches: a reload that leaves models, aliases or 404s as they were.
#[test]
fn a_reload_changes_models_and_aliases() {
    let (a, b) = (named("a"), named("b"));
    let with = |first: &str, second: &str, names: &str| {
        config()
            .backend(a.url(), &format!("models: [{first}]"))
            .backend(b.url(), &format!("models: [{second}]"))
            .section(mapping(names))
    };
    let proxy = with("x", "y", "{z: x}").start();
    let answers = || {
        ["x", "y", "z"].map(|model| answering(&proxy, model)).map(|mut text| {
            text.truncate(1);
            text
        })
    };
    assert_eq!(answers(), ["a", "b", "a"]);
    assert!(proxy.reload_with(&with("y", "x", "{z: y}")));
    assert_eq!(answers(), ["b", "a", "a"]);
    assert!(proxy.reload_with(&with("y", "z", "{q: y}")));
    assert_eq!(answers(), ["{", "a", "b"]);
    assert!(proxy.reload_with(&config().backend(b.url(), "")));
    assert_eq!(answers(), ["b", "b", "b"]);
}

/// Catches: a form whose model is not found behind its file, is not renamed, or is renamed with a
/// wrong length; a form that engines read in another way than we do.
#[test]
fn the_model_of_a_form_is_read_wherever_it_stands() {
    let (a, b) = (named("a"), named("b"));
    let proxy = config()
        .backend(a.url(), "models: [whisper]")
        .backend(b.url(), "models: ['other*']")
        .section(mapping("{hear: whisper}"))
        .start();
    const PATH: &str = "/v1/audio/transcriptions";
    let file = "x".repeat(3 << 20);
    let part = |name: &str, value: &str| {
        format!("--x-1\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let form = |model: &str| {
        let file = part("file\"; filename=\"a.wav", &file);
        format!("{file}{}{}--x-1--\r\n", part("model", model), part("n", "1"))
    };
    let post = |client: &mut Conn, body: String| {
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x-1\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        client.send(head).send(body).response()
    };
    let mut client = proxy.connect();
    assert_eq!(post(&mut client, form("other-1")).text(), "b");
    assert!(b.requests().pop().unwrap().body == form("other-1").as_bytes());
    assert_eq!(post(&mut client, form("hear")).text(), "a");
    let request = a.requests().pop().unwrap();
    assert!(request.body == form("whisper").as_bytes());
    assert_eq!(request.head.all("content-length"), [request.body.len().to_string()]);
    post(&mut client, form("gone")).assert_refused(404, "model_not_found");
    let twice = format!("{}{}--x-1--", part("model", "hear"), part("model", "other-1"));
    post(&mut client, twice.clone()).assert_refused(400, "duplicate_key");
    let bare = form("hear").replacen("\r\n\r\n", "\n\n", 1);
    post(&mut client, bare).assert_refused(400, "bad_multipart");
    let free = config().backend(a.url(), "").start();
    assert_eq!(free.post(CHATS, chat("m")).text(), "a");
    assert_eq!(post(&mut free.connect(), twice).text(), "a", "no rule depends on it");
}
