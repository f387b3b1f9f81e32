//! Engines' own forms, where what is told depends on the engine and on what its client wrote.

use crate::harness::{Backend, Config, Webhook, SOON};
use crate::rig::{before, quiet};
use crate::stream_usage::{DONE, FINISH, HELLO, TOLD};
use serde_json::{json, Value};

const PROMPT: &str = r#"{"model":"m","prompt":"Count.","stream":true}"#;

/// Catches: an engine that speaks OpenAI's form on a path of llama.cpp's and is not asked for
/// usage, and one of llama.cpp's own form that suffers from it.
#[test]
fn completions_without_a_version_are_asked_for_their_usage() {
    let native =
        "data: {\"content\":\"a\",\"stop\":false}\n\ndata: {\"content\":\"\",\"stop\":true,\
                  \"tokens_predicted\":4,\"tokens_evaluated\":3}\n\n";
    for (pieces, seen) in [
        (vec![HELLO, FINISH, TOLD, DONE], [HELLO, FINISH, DONE].concat()),
        (vec![native], native.to_owned()),
    ] {
        let engine = Backend::start(move |served| {
            while served.request().is_some() {
                served.begin_events();
                for piece in &pieces {
                    served.chunk(piece);
                }
                served.send("0\r\n\r\n");
            }
        });
        let (proxy, hook) = before(&engine, "");
        let mut conn = proxy.connect();
        assert_eq!(conn.post("/completions", "", PROMPT).text(), seen);
        let body: Value = serde_json::from_slice(&engine.requests()[0].body).unwrap();
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        let record = hook.await_records(1, SOON).remove(0);
        let told = [&record["prompt_tokens"], &record["completion_tokens"]];
        assert_eq!((told, &record["status"]), ([&json!(3), &json!(4)], &json!("complete")));
        quiet(&proxy);
    }
}

/// Catches: an answer without figures that passes for one of no tokens, or says nothing of it.
#[test]
fn what_an_engine_does_not_tell_is_said_to_be_missing() {
    let token = |n: u8, text: &str| {
        format!(
            "data: {{\"index\":{n},\"token\":{{\"text\":\"a\"}},\"generated_text\":{text}}}\n\n"
        )
    };
    let tgi = token(1, "null") + &token(2, "null") + &token(3, "\"aaa\"");
    let llama =
        "data: {\"content\":\"a\"}\n\ndata: {\"content\":\"b\"}\n\ndata: {\"content\":\"\",\
                 \"stop\":true}\n\n";
    let background = r#"{"id":"resp_1","status":"queued","background":true,"usage":null}"#;
    let (sse, json_type) = ("text/event-stream", "application/json");
    for (path, kind, answer, counted) in [
        ("/generate_stream", sse, tgi.as_str(), Some(3)),
        ("/completion", sse, llama, Some(2)),
        ("/completion", json_type, r#"{"content":"ab"}"#, None),
        ("/v1/responses", json_type, background, None),
        ("/v1/chat/completions", sse, &[HELLO, FINISH, DONE].concat(), Some(1)),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        for estimates in [false, true] {
            let (engine, hook) = (Backend::answering(&*answer), Webhook::start());
            let proxy = Config::backend_at(engine.url())
                .section(format!(
                    "usage: {{estimate_on_abort: {estimates}, reporters: \
                     [{{name: hook, type: webhook, webhook: {{url: \"{}\"}}}}]}}",
                    hook.url()
                ))
                .start();
            proxy.connect().post(path, "", PROMPT);
            let record = hook.await_records(1, SOON).remove(0);
            let counted = counted.filter(|_| estimates);
            let source = if counted.is_some() { "counted" } else { "missing" };
            assert_eq!(record["status"], "complete", "{record}");
            assert_eq!(record["usage_missing_reason"], "not_told", "{record}");
            assert_eq!(record["usage_source"], source, "{path}: {record}");
            assert_eq!(record["completion_tokens"], json!(counted), "{path}: {record}");
            assert_eq!((&record["usage"], &record["prompt_tokens"]), (&Value::Null, &Value::Null));
        }
    }
}
