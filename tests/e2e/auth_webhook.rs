//! Keys that a service decides about, and services that lie, hang, or are gone.

use crate::harness::keys::KeyAsker;
use crate::harness::{await_until, Backend, SOON};
use llmproxy::config::plan::KeyState;
use llmproxy::state::lookup::KeyAnswer;
use serde_json::{json, Value};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

/// What a service says that lets a key in.
const YES: &str = r#"{"code":0,"message":"ok","user_id":"u","balance":3}"#;

fn provider(url: &str, more: &str) -> String {
    format!("type: webhook, webhook: {{url: '{url}/auth?token=t0ken', {more}}}")
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Catches: a question that is not the documented one, an answer of which something is lost.
#[test]
fn a_service_is_asked_and_believed() {
    let service = Backend::answering(answer(200, YES));
    let more = "headers: {Authorization: Bearer ours}";
    let asker = KeyAsker::start(&provider(&service.url(), more));
    let facts = asker.known("sk-\"1\"");
    assert_eq!((facts.user_id.as_str(), facts.balance), ("u", Some(3.0)));
    assert_eq!((facts.status, &facts.data), (KeyState::Active, &None));
    let asked = service.requests().remove(0);
    assert_eq!((asked.head.method(), asked.head.target()), ("POST", "/auth?token=t0ken"));
    assert_eq!(asked.head.get("content-type"), Some("application/json"));
    assert_eq!(asked.head.get("authorization"), Some("Bearer ours"));
    let body: Value = serde_json::from_slice(&asked.body).unwrap();
    assert_eq!(body["api_key"], "sk-\"1\"");
    let now = crate::rig::unix_ms() / 1e3;
    assert!((body["timestamp"].as_f64().unwrap() - now).abs() < 60.0, "{body}");
    assert_eq!(body.as_object().unwrap().len(), 2);
    let get = KeyAsker::start(&provider(&service.url(), "method: GET"));
    assert_eq!(get.known("sk-2").user_id, "u");
    let asked = service.requests().remove(1);
    assert_eq!((asked.head.method(), asked.head.target()), ("GET", "/auth?token=t0ken"));
    assert_eq!((asked.head.get("x-api-key"), asked.body.len()), (Some("sk-2"), 0));
    get.assert_unknown("sk\r\nX-Admin: 1");
    assert_eq!(KeyAsker::probe(&provider(&service.url(), more)), Ok(()));
    assert_eq!(service.requests().len(), 2);
}

/// Catches: a script that does not get what the service said.
#[test]
fn a_script_gets_all_that_was_said() {
    let service = Backend::answering(answer(201, YES));
    let script = ", script: 'return {allow = true}'";
    let asker = KeyAsker::start(&(provider(&service.url(), "timeout: 10s") + script));
    let mut said: Value = serde_json::from_str(YES).unwrap();
    said["_http_status"] = json!(201);
    assert_eq!(asker.known("k").data, Some(said));
}

/// Catches: a service that is broken, or a page of something before it, and that lets keys in.
#[test]
fn whatever_is_no_clear_yes_is_none() {
    let other = Backend::answering(answer(200, YES));
    let redirect =
        format!("HTTP/1.1 307 X\r\nLocation: {}/\r\nContent-Length: 0\r\n\r\n", other.url());
    let failing = [
        answer(500, YES),
        answer(503, YES),
        answer(429, YES),
        answer(200, "<html>Please log in</html>"),
        answer(200, ""),
        "HTTP/1.1 204 X\r\n\r\n".to_owned(),
        redirect,
        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"code\":0}".to_owned(),
        "garbage\r\n\r\n".to_owned(),
    ];
    for said in failing {
        let text = said.clone();
        let service = Backend::start(move |served| {
            if served.request().is_some() {
                served.send(&text);
            }
        });
        let answer = KeyAsker::start(&provider(&service.url(), "timeout: 10s")).ask("k");
        assert!(matches!(answer, KeyAnswer::Failed), "{said}: {answer:?}");
    }
    assert_eq!(other.requests().len(), 0, "a key went where nobody configured");
    for status in [401, 404] {
        let service = Backend::answering(answer(status, YES));
        KeyAsker::start(&provider(&service.url(), "timeout: 10s")).assert_unknown("k");
    }
    for said in [
        answer(403, r#"{"message":"no money"}"#),
        answer(200, r#"{"code":7,"message":"no money"}"#),
    ] {
        let service = Backend::answering(said);
        let answer = KeyAsker::start(&provider(&service.url(), "timeout: 10s")).ask("k");
        assert!(
            matches!(&answer, KeyAnswer::Denied(Some(why)) if &**why == "no money"),
            "{answer:?}"
        );
    }
    let service = Backend::answering(answer(200, r#"{"code":0,"status":"blocked"}"#));
    let asker = KeyAsker::start(&provider(&service.url(), "timeout: 10s"));
    assert_eq!(asker.known("k").status, KeyState::Disabled);
}

/// Catches: a service whose answer never ends, and a thread or memory that is lost to it.
#[test]
fn an_answer_that_never_ends_is_a_failure() {
    let left = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&left);
    let service = Backend::start(move |served| {
        if served.request().is_some()
            && served.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{")
        {
            while served.send([b' '; 4096]) {}
            seen.store(true, Relaxed);
        }
    });
    KeyAsker::start(&provider(&service.url(), "timeout: 30s")).assert_fails("k");
    await_until("the service is left alone", SOON, || left.load(Relaxed));
}

/// Catches: questions that hang with their service, one outage that costs every question its time,
/// a service that is back and not asked.
#[test]
fn a_service_that_hangs_is_left_alone_and_tried_again() {
    let well = Arc::new(AtomicBool::new(false));
    let is_well = Arc::clone(&well);
    let service = Backend::start(move |served| {
        while served.request().is_some() {
            match is_well.load(Relaxed) {
                true => drop(served.send(answer(200, YES))),
                false => drop(served.left_within(SOON)),
            }
        }
    });
    let asker = KeyAsker::start(&provider(&service.url(), "timeout: 300ms"));
    (0..50).for_each(|_| asker.assert_fails("k"));
    // Three make the outage; after that one tries in a second, if as much has passed.
    assert!(service.requests().len() < 25, "{}", service.requests().len());
    well.store(true, Relaxed);
    asker.await_known("k");
    assert_eq!(asker.known("other").user_id, "u");
}
