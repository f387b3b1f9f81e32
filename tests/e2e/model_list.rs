//! `GET /v1/models`: one list of what all engines have, by the names that clients use.

use crate::harness::client::Response;
use crate::harness::{await_some, Backend, Config, Proxy, SOON};
use crate::rig::{quiet, rejected};
use serde_json::{json, Value};
use std::net::TcpListener;

/// Without probes: these backends answer them as they answer all else.
fn config() -> Config {
    Config::new().section("health_check: {enabled: false}")
}

/// An engine that answers everything with this list.
fn listing(data: &str) -> Backend {
    let body = format!(r#"{{"object":"list","data":{data}}}"#);
    Backend::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn ids(answer: &Response) -> Vec<String> {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert_eq!(answer.head.get("content-type"), Some("application/json"));
    let list = answer.json();
    assert_eq!(list["object"], "list");
    let id = |entry: &Value| entry["id"].as_str().unwrap().to_owned();
    list["data"].as_array().unwrap().iter().map(id).collect()
}

/// Catches: a model that is missing, stands twice or is not the engine's own entry; an alias that
/// is missing or leads nowhere; a model that is listed and would not be found.
#[test]
fn the_lists_of_all_engines_are_one() {
    const ENTRY: &str = r#"{"id":"org/a:7b", "owned_by":"vllm","max_model_len":8192.0}"#;
    let a = listing(&format!(r#"[{ENTRY},{{"id":"b","owned_by":"first"}}]"#));
    let b = listing(r#"[{"id":"b","owned_by":"second"},{"id":"secret"},{"id":"c"}]"#);
    let proxy = config()
        .backend(format!("{}/base/v1", a.url()), "api_key: sk-1")
        .backend(b.url(), "models: [b, 'c*']")
        .section("routing: {model_mapping: {gpt-4: 'org/a:7b', lost: nowhere}}")
        .start();
    let list = proxy.get("/v1/models");
    assert_eq!(ids(&list), ["org/a:7b", "b", "c", "gpt-4"]);
    assert!(list.text().contains(ENTRY), "{}", list.text());
    assert_eq!(list.json()["data"][1]["owned_by"], "first");
    let alias = &list.json()["data"][3];
    assert_eq!((&alias["object"], &alias["owned_by"]), (&json!("model"), &json!("llmproxy")));
    assert!(alias["created"].as_u64().is_some_and(|created| created > 1_700_000_000), "{alias}");
    let asked = &a.requests()[0];
    assert_eq!((asked.head.method(), asked.head.target()), ("GET", "/base/v1/models"));
    assert_eq!(asked.head.get("authorization"), Some("Bearer sk-1"));
    let mut client = proxy.connect();
    for path in ["/v1/models/", "/models", "/v1/models?limit=2"] {
        assert_eq!(client.get(path).text(), list.text(), "{path}");
    }
    for path in ["/v1/models/org/a:7b", "/v1/models/org%2Fa:7b", "/v1/models/org%2Fa%3A7b"] {
        assert_eq!(client.get(path).text(), ENTRY, "{path}");
    }
    assert_eq!(client.get("/v1/models/gpt-4").json(), *alias);
    for path in ["/v1/models/secret", "/v1/models/lost", "/v1/models/org"] {
        let answer = client.get(path);
        answer.assert_refused(404, "model_not_found");
        assert_eq!(answer.json()["error"]["param"], "model", "{path}");
    }
    client.send("HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = client.response_to_head();
    let length = list.text().len().to_string();
    assert_eq!((head.status(), head.head.get("content-length")), (200, Some(&*length)));
    assert_eq!(ids(&client.get("/v1/models")).len(), 4, "the connection goes on");
    let own = [("path", "/v1/models"), ("backend", "none")];
    assert_eq!(proxy.metric("llmproxy_requests_total", &own), 5.0);
    quiet(&proxy);
}

/// Catches: an engine that is dead, hangs, or says anything but a list, and takes those of the
/// others with it.
#[test]
fn an_engine_that_gives_no_list_is_left_out() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hung = Backend::start(|served| while served.request().is_some() {});
    let torn =
        Backend::answering("HTTP/1.1 200 OK\r\nContent-Length: 20\r\nConnection: close\r\n\r\n{");
    let packed = Backend::answering(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 11\r\n\r\n{\"data\":[]}",
    );
    let missing =
        Backend::answering("HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\n\r\n{\"data\":[]}");
    let garbage = listing(r#"[{"id":"#);
    let huge = listing(&format!(r#"[{{"id":"huge","x":"{}"}}]"#, "x".repeat(1 << 20)));
    let many = listing(&format!("[{}]", vec![r#"{"id":"many"}"#; 5000].join(",")));
    let endless = Backend::start(|served| {
        if served.request().is_some() && served.begin_events() {
            while served.chunk(&" ".repeat(1 << 16)) {}
        }
    });
    let chunked = Backend::start(|served| {
        while served.request().is_some() {
            served.begin_events();
            served.chunk(r#"{"data":[{"id":"#);
            served.chunk(r#""chunked"}]}"#);
            served.send("0\r\n\r\n");
        }
    });
    let closing = Backend::start(|served| {
        if served.request().is_some() {
            served.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n{\"data\":[{\"id\":\"closing\"}]}");
        }
    });
    let good = listing(r#"[{"id":"good"}]"#);
    let bad = [&hung, &torn, &packed, &missing, &garbage, &huge, &many, &endless];
    let all = bad.into_iter().chain([&chunked, &closing, &good]);
    let config = config().backend(format!("http://{dead}"), "");
    let proxy = all.fold(config, |config, backend| config.backend(backend.url(), "")).start();
    assert_eq!(ids(&proxy.get("/v1/models")), ["chunked", "closing", "good"]);
    let told = |event: &Value| {
        let text = event["message"].as_str().unwrap_or_default();
        text.contains("list of models is left out")
    };
    let warned = await_some("each is told", SOON, || {
        let told = proxy.events().iter().filter(|event| told(event)).count();
        (told >= 9).then_some(told)
    });
    assert_eq!(warned, 9);
    quiet(&proxy);
}

/// Catches: a list of nothing where all engines fail; a failure that stays.
#[test]
fn without_any_list_it_is_a_503_until_there_is_one() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", place.local_addr().unwrap());
    let other = Backend::answering("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
    let proxy = config().backend(other.url(), "").backend(url, "").start();
    drop(place);
    let answer = proxy.get("/v1/models");
    answer.assert_refused(503, "models_unavailable");
    assert_eq!(answer.head.get("retry-after"), Some("1"));
    proxy.get("/v1/models/a").assert_refused(503, "models_unavailable");
    assert!(rejected(&proxy, "models_unavailable") >= 2.0);
    let good = listing(r#"[{"id":"a"}]"#);
    assert!(proxy.reload_with(&config().backend(other.url(), "").backend(good.url(), "")));
    assert_eq!(ids(&proxy.get("/v1/models")), ["a"], "another configuration, another list");
}

/// Catches: a question to each engine for each client; a list that outlives its configuration.
#[test]
fn a_list_is_kept_for_a_while_and_not_beyond_a_reload() {
    let a = listing(r#"[{"id":"a"}]"#);
    let ruled = |name: &str| {
        config().backend(a.url(), "").section(format!("routing: {{model_mapping: {{{name}: a}}}}"))
    };
    let proxy = ruled("x").start();
    let mut client = proxy.connect();
    for _ in 0..50 {
        assert_eq!(ids(&client.get("/v1/models")), ["a", "x"]);
    }
    assert!(a.requests().len() < 50, "{}", a.requests().len());
    assert!(proxy.reload_with(&ruled("y")));
    assert_eq!(ids(&client.get("/v1/models")), ["a", "y"]);
}

/// Catches: a single engine's own list that is not its own any more; one that is sick and is asked.
#[test]
fn one_engine_answers_for_itself_and_a_sick_one_does_not() {
    let a = listing(r#"[ {"id":"a"} ]"#);
    let proxy = config().backend(a.url(), "").start();
    assert_eq!(proxy.get("/v1/models").text(), r#"{"object":"list","data":[ {"id":"a"} ]}"#);
    assert_eq!(a.requests().pop().unwrap().head.get("user-agent"), None, "it is the client's own");
    let sick = Backend::start(|served| {
        while let Some(request) = served.request() {
            let status = if request.head.target() == "/health" { 503 } else { 200 };
            let body = r#"{"data":[{"id":"sick"}]}"#;
            served.send(format!(
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
    });
    let two = Config::new().backend(a.url(), "").backend(sick.url(), "name: sick").health_check();
    let proxy: Proxy = two.start();
    proxy.await_metric("llmproxy_backend_up", &[("backend", "sick")], 0.0);
    assert_eq!(ids(&proxy.get("/v1/models")), ["a"]);
}
