//! Asking engines for the usage of streams whose clients did not ask: the engine's counts stand in
//! the record, and the client sees the stream that it would have got without us.

use crate::harness::client::in_chunks;
use crate::harness::message::Ended;
use crate::harness::{Backend, Config, Conn, Engine, Proxy, Webhook, SOON};
use crate::rig::{before, quiet, Rig, CHATS, STREAM};
use serde_json::{json, Value};
use std::sync::mpsc::Sender;
use std::time::Duration;

/// Text completions.
pub const PROMPTS: &str = "/v1/completions";
const PROMPT_STREAM: &str = r#"{"model":"m","prompt":"Count.","stream":true}"#;
/// [`STREAM`] as an engine gets it.
pub const ASKING: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Count."}]}"#;
/// What the mock is told to report.
pub const COUNTS: &str = "x-mock-usage: 31,17\r\n";
/// 1 for an engine that refused to be asked.
pub const REFUSING: &str = "llmproxy_backend_refuses_stream_usage";

/// A stream without what engines put on its last event: where the event that ends a choice is
/// followed too late, it goes without.
fn unmoved(text: &str) -> String {
    let mut text = text.to_owned();
    for name in [r#","timings":{"#, r#","system_fingerprint":"vllm"#] {
        let Some(at) = text.find(name) else { continue };
        let end = at + text[at..].find("}\n").expect("the end of the event");
        text.replace_range(at..end, "");
    }
    text
}

/// The answer is the engine's own, but for what came too late; where it comes in one piece, nothing
/// does.
pub fn assert_alike(got: &str, wanted: &str, in_one_piece: bool, shown: &str) {
    if in_one_piece || got != unmoved(wanted) {
        assert_eq!(got, wanted, "{shown}");
    }
}

/// Catches: a client that sees an event it did not ask for, misses one of its own, or is billed
/// by a guess.
#[test]
fn a_client_that_did_not_ask_gets_its_stream_and_the_record_the_counts() {
    for dialect in ["vllm", "sglang", "tgi", "llamacpp", "ollama"] {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
        let mut sent = 0;
        let mut client = proxy.connect();
        for (path, body) in [(CHATS, STREAM), (PROMPTS, PROMPT_STREAM)] {
            for how in ["split: exact", "split: merged", "split: byte", "split: 3", "text: tricky"]
            {
                let knobs = format!("{COUNTS}x-mock-tokens: 7\r\nx-mock-{how}\r\n");
                let direct = engine.connect().post(path, &knobs, body);
                let answer = client.post(path, &knobs, body);
                sent += 1;
                let shown = format!("{dialect} {path} {how}");
                assert_eq!((answer.status(), &answer.ended), (200, &Ended::Whole), "{shown}");
                assert_alike(&answer.text(), &direct.text(), how.contains("merged"), &shown);
                let record = hook.await_records(sent, SOON).pop().unwrap();
                let told = [&record["prompt_tokens"], &record["completion_tokens"]];
                assert_eq!(told, [31, 17], "{shown}: {record}");
                assert_eq!(record["usage_source"], "engine", "{shown}");
                assert_eq!(record["events"], events(&answer.text()), "{shown}");
                assert_eq!(record["response_bytes"], answer.body.len(), "{shown}");
                assert_eq!(record["retry_count"], 0, "{shown}");
            }
        }
        quiet(&proxy);
        assert_eq!(proxy.metric(REFUSING, &[("backend", &name(&engine))]), 0.0);
    }
}

fn events(text: &str) -> usize {
    text.matches("data: {").count()
}

/// A backend's name.
pub fn name(engine: &Engine) -> String {
    engine.url().trim_start_matches("http://").to_owned()
}

/// Catches: an event taken from a client that asked for it, or a request of its changed.
#[test]
fn a_client_that_asked_sees_what_it_asked_for() {
    let rig = Rig::new();
    let direct = rig.engine.connect().post(CHATS, COUNTS, ASKING);
    let answer = rig.ask(ASKING, COUNTS).response();
    assert_eq!(answer.text(), direct.text());
    assert!(answer.text().contains(r#""choices":[],"usage":{"prompt_tokens":31"#));
    let posts = rig.engine.posts();
    assert_eq!(posts[0]["body_hash"], posts[1]["body_hash"]);
}

/// Catches: a wish that is refused or changed because it is written in another way than most write
/// it, and a no that nobody reads as one: the stream would not be counted.
#[test]
fn a_wish_is_read_as_engines_read_it() {
    for dialect in ["vllm", "sglang"] {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
        let mut client = proxy.connect();
        let words = ["1", "1.0", "\"true\"", "\"YES\"", "0", "0.0", "\"false\"", "\"Off\"", "null"];
        for (sent, word) in words.into_iter().enumerate() {
            let body =
                ASKING.replace("\"include_usage\":true", &format!("\"include_usage\":{word}"));
            let direct = engine.connect().post(CHATS, COUNTS, &body);
            let answer = client.post(CHATS, COUNTS, &body);
            let shown = format!("{dialect} {word}");
            assert_eq!(answer.status(), 200, "{shown}");
            assert_alike(&answer.text(), &direct.text(), false, &shown);
            let record = hook.await_records(sent + 1, SOON).pop().unwrap();
            let told = (&record["usage_source"], &record["completion_tokens"]);
            assert_eq!(told, (&json!("engine"), &json!(17)), "{shown}: {record}");
        }
    }
    // What no engine takes is for the engine to refuse.
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
    for word in ["2", "\"maybe\"", "[]"] {
        let body = ASKING.replace("\"include_usage\":true", &format!("\"include_usage\":{word}"));
        assert_eq!(echoed(&proxy, CHATS, &body)["body"], body);
    }
}

/// The request as the engine got it.
fn echoed(proxy: &Proxy, path: &str, body: &str) -> Value {
    let fields = "x-mock-echo: headers\r\nAccept-Encoding: gzip\r\n";
    proxy.connect().post(path, fields, body).json()
}

fn accepts_gzip(request: &Value) -> bool {
    request["head"].as_str().unwrap().to_lowercase().contains("accept-encoding: gzip")
}

/// Catches: a byte of a request that changes although nobody needs it to, and an engine that is
/// not asked although somebody does.
#[test]
fn a_request_is_spliced_when_it_must_and_is_untouched_else() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let with = |properties: &str, usage: &str| {
        Config::new().backend(engine.url(), properties).section(usage).start()
    };
    let hooked = |more: &str| {
        format!(
            "usage: {{{more}reporters: [{{type: webhook, webhook: {{url: \"{}\"}}}}]}}",
            hook.url()
        )
    };
    let off = hooked("inject_stream_usage: false, ");
    let on = hooked("");
    for (properties, usage, asks) in [
        ("", "", false),
        ("", on.as_str(), true),
        ("", off.as_str(), false),
        ("stream_usage: never", on.as_str(), false),
        ("stream_usage: always", "", true),
        ("stream_usage: always", off.as_str(), true),
    ] {
        let proxy = with(properties, usage);
        let shown = format!("{properties} {usage}");
        let request = echoed(&proxy, CHATS, STREAM);
        let wanted = if asks { ASKING } else { STREAM };
        assert_eq!(request["body"], wanted, "{shown}");
        assert_eq!(request["body_len"], wanted.len(), "{shown}");
        // What is to be read on its way must come readable.
        assert_eq!(accepts_gzip(&request), !asks, "{shown}");
        for (path, body) in [
            (CHATS, r#"{"model":"m","messages":[]}"#),
            (CHATS, r#"{"model":"m","stream":false,"messages":[]}"#),
            ("/v1/embeddings", r#"{"model":"m","stream":true}"#),
            ("/v1/responses", r#"{"model":"m","stream":true}"#),
            (CHATS, ASKING),
        ] {
            let request = echoed(&proxy, path, body);
            assert_eq!(request["body"], body, "{shown} {path}");
            assert!(accepts_gzip(&request), "{shown} {path}");
        }
    }
}

/// Catches: a splice that fails where the body came in chunks, or is larger than a socket takes.
#[test]
fn long_and_chunked_bodies_are_spliced() {
    let rig = Rig::new();
    let filler = "x".repeat(3_000_000);
    let body = format!(r#"{{"stream": true , "messages":[],"filler":"{filler}"}}"#);
    let asking = body.replacen("true", r#"true,"stream_options":{"include_usage":true}"#, 1);
    let direct = rig.engine.connect().post(CHATS, "", &asking);
    assert_eq!(direct.status(), 200);
    let mut conn = rig.proxy.connect();
    assert_eq!(conn.post(CHATS, "", &body).status(), 200);
    conn.send(format!(
        "POST {CHATS} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\n\r\n"
    ));
    conn.send(in_chunks(body.as_bytes(), &[1, 5, 70_000]));
    assert_eq!(conn.response().status(), 200);
    let posts = rig.engine.posts();
    assert_eq!(posts.len(), 3);
    for post in &posts {
        assert_eq!(post["body_hash"], posts[0]["body_hash"]);
        assert_eq!(post["body_len"], asking.len());
    }
}

/// Catches: `always` that means "when a record wants it", and an event shown for it.
#[test]
fn always_asks_and_strips_without_any_reporter() {
    let engine = Engine::start(&[]);
    let proxy = Config::new().backend(engine.url(), "stream_usage: always").start();
    let direct = engine.connect().post(CHATS, COUNTS, STREAM);
    let answer = proxy.connect().post(CHATS, COUNTS, STREAM);
    assert_alike(&answer.text(), &direct.text(), false, "always");
    proxy.await_metric("llmproxy_usage_tokens_total", &[("type", "completion")], 17.0);
    // It goes on asking, and no client fails for it.
    engine.set("refuse-stream-options=400");
    for asked in [2, 4] {
        assert_eq!(proxy.connect().post(CHATS, "", STREAM).status(), 200);
        assert_eq!(engine.posts().len(), 2 + asked);
    }
    assert_eq!(proxy.metric(REFUSING, &[("backend", &name(&engine))]), 0.0);
}

/// Catches: clients that pay for an engine that knows no `stream_options`, once or each time.
#[test]
fn an_engine_that_refuses_to_be_asked_is_asked_once() {
    for status in [400, 422] {
        let rig = Rig::new();
        rig.engine.set(&format!("refuse-stream-options={status}"));
        let labels = [("backend", name(&rig.engine))];
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        for asked in [2, 3, 4] {
            let answer = rig.ask(STREAM, "").response();
            assert_eq!((answer.status(), answer.ended), (200, Ended::Whole));
            assert_eq!(rig.engine.posts().len(), asked, "{status}");
            assert_eq!(rig.proxy.metric(REFUSING, &labels), 1.0);
        }
        let records = rig.hook.await_records(3, SOON);
        let retries: Vec<&Value> = records.iter().map(|record| &record["retry_count"]).collect();
        assert_eq!(retries, [1, 0, 0]);
        assert_eq!(records[0]["usage_source"], "missing");
        assert_eq!(rig.proxy.metric("llmproxy_retries_total", &[]), 1.0);
        let tells = |event: &Value| {
            event["level"] == "INFO"
                && event["backend"] == name(&rig.engine).as_str()
                && event["message"].as_str().is_some_and(|text| text.contains("include_usage"))
        };
        rig.proxy.await_event("the refusal is told", tells);
        assert_eq!(rig.proxy.events().into_iter().filter(tells).count(), 1);
        // Who asks for itself is told by the engine.
        assert_eq!(rig.ask(ASKING, "").response().status(), status);
        rig.assert_quiet();
    }
}

/// Catches: an engine that is never asked again because a client sent it nonsense, and a client's
/// own mistake that costs two requests for ever.
#[test]
fn a_mistake_of_the_client_teaches_nothing() {
    let rig = Rig::new();
    let engine = name(&rig.engine);
    let wrong = "x-mock-status: 400\r\n";
    let direct = rig.engine.connect().post(CHATS, wrong, STREAM);
    let answer = rig.ask(STREAM, wrong).response();
    assert_eq!((answer.status(), answer.text()), (400, direct.text()));
    assert_eq!(rig.engine.posts().len(), 3, "asked with and without");
    assert_eq!(rig.proxy.metric(REFUSING, &[("backend", &engine)]), 0.0);
    // What fails otherwise is never sent twice.
    assert_eq!(rig.ask(STREAM, "x-mock-status: 500\r\n").response().status(), 500);
    assert_eq!(rig.engine.posts().len(), 4);
    let answer = rig.ask(STREAM, COUNTS).response();
    assert!(!answer.text().contains("\"usage\""), "{}", answer.text());
    assert_eq!(rig.engine.posts().len(), 5);
    // It is known to take the wish: its 400 is about something else.
    assert_eq!(rig.ask(STREAM, wrong).response().status(), 400);
    assert_eq!(rig.engine.posts().len(), 6);
    let records = rig.hook.await_records(4, SOON);
    assert_eq!(records[2]["completion_tokens"], 17, "{}", records[2]);
    rig.assert_quiet();
}

/// Catches: a body whose length or end is wrong once an event is gone from it.
#[test]
fn old_clients_and_closing_engines_get_whole_streams() {
    for dialect in ["vllm", "llamacpp"] {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
        let direct = engine.connect().post(CHATS, COUNTS, STREAM).text();
        let mut sent = 0;
        for close in ["never", "header", "delimited"] {
            for version in ["1.0", "1.1"] {
                let mut conn = proxy.connect();
                conn.send(format!(
                    "POST {CHATS} HTTP/{version}\r\nHost: t\r\nContent-Type: application/json\r\n\
                     {COUNTS}x-mock-close: {close}\r\nContent-Length: {}\r\n\r\n{STREAM}",
                    STREAM.len()
                ));
                let answer = conn.response();
                sent += 1;
                let shown = format!("{dialect} {close} {version}");
                let end = if version == "1.0" { Ended::Closed } else { Ended::Whole };
                assert_eq!(answer.ended, end, "{shown}");
                assert_alike(&answer.text(), &direct, false, &shown);
                let record = hook.await_records(sent, SOON).pop().unwrap();
                assert_eq!(record["completion_tokens"], 17, "{shown}: {record}");
            }
        }
        quiet(&proxy);
    }
}

/// An event with text.
pub const HELLO: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n";
/// The usage event.
pub const TOLD: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\
                    \"total_tokens\":7}}\n\n";
/// The event that ends a choice.
pub const FINISH: &str = "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\n";
/// The end mark.
pub const DONE: &str = "data: [DONE]\n\n";

/// Catches: a stream with a length that is one event too long, so that its client waits for ever.
#[test]
fn a_stream_of_announced_length_may_become_shorter() {
    let body = [HELLO, TOLD, DONE].concat();
    let engine = Backend::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    for sent in [1, 2] {
        let answer = conn.post(CHATS, "", STREAM);
        assert_eq!((answer.text(), answer.ended), ([HELLO, DONE].concat(), Ended::Whole));
        assert_eq!(answer.head.get("content-length"), None);
        let record = hook.await_records(sent, SOON).pop().unwrap();
        assert_eq!((&record["total_tokens"], &record["events"]), (&json!(7), &json!(1)));
    }
    let mut old = proxy.connect();
    old.send(format!(
        "POST {CHATS} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n\
         {STREAM}",
        STREAM.len()
    ));
    assert_eq!(old.response().text(), [HELLO, DONE].concat());
    quiet(&proxy);
}

/// Catches: bytes that stay with us when an engine ends its stream inside of an event.
#[test]
fn what_is_held_at_the_end_goes_out() {
    const OPEN: &str = "data: {\"choices\":[{}]}\n";
    let chunks = format!("{:x}\r\n{HELLO}\r\n{:x}\r\n{OPEN}\r\n", HELLO.len(), OPEN.len());
    for (framing, body) in [
        ("Transfer-Encoding: chunked", format!("{chunks}0\r\n\r\n")),
        ("Connection: close", [HELLO, OPEN].concat()),
    ] {
        let engine = Backend::start(move |served| {
            served.request();
            served.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n"
            ));
            // The end in a read of its own.
            let (most, end) = body.split_at(body.len() - 5);
            served.send(most);
            served.left_within(A_WHILE);
            served.send(end);
        });
        let (proxy, hook) = before(&engine, "");
        let answer = proxy.post(CHATS, STREAM);
        assert_eq!((answer.text(), answer.ended), ([HELLO, OPEN].concat(), Ended::Whole));
        let record = hook.await_records(1, SOON).remove(0);
        assert_eq!(record["response_bytes"], HELLO.len() + OPEN.len(), "{record}");
        quiet(&proxy);
    }
}

/// A backend that sends each of these pieces when the test says so, in chunks, and then the end;
/// when the test lets go of it, it resets the connection instead.
pub fn stepwise(pieces: &[&str]) -> (Backend, Sender<()>) {
    let pieces: Vec<String> = pieces.iter().map(|piece| (*piece).to_owned()).collect();
    let (go, may) = std::sync::mpsc::channel();
    let may = std::sync::Mutex::new(may);
    let engine = Backend::start(move |served| {
        let may = may.lock().unwrap();
        if served.request().is_none() {
            return;
        }
        served.begin_events();
        for piece in &pieces {
            if may.recv().is_err() {
                return served.reset();
            }
            served.chunk(piece);
        }
        match may.recv() {
            Ok(()) => drop(served.send("0\r\n\r\n")),
            Err(_) => served.reset(),
        }
    });
    (engine, go)
}

/// For what must not happen, or must happen in a read of its own.
pub const A_WHILE: Duration = Duration::from_millis(80);

/// Catches: a zero-length chunk where an event went, which would end the body; half an event that
/// is shown before it is known what it is; an event that waits for the next one.
#[test]
fn an_event_in_pieces_is_held_until_it_is_whole() {
    let (begin, end) = HELLO.split_at(9);
    let (half, rest) = TOLD.split_at(30);
    let (engine, go) = stepwise(&[HELLO, begin, end, half, rest, DONE]);
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    let step = |conn: &mut Conn, shown: &str| {
        go.send(()).unwrap();
        match shown {
            "" => conn.assert_silent(A_WHILE),
            _ => assert_eq!(conn.next_piece().unwrap().bytes, shown.as_bytes()),
        }
    };
    step(&mut conn, HELLO);
    step(&mut conn, "");
    step(&mut conn, HELLO);
    step(&mut conn, "");
    step(&mut conn, "");
    step(&mut conn, DONE);
    go.send(()).unwrap();
    assert!(matches!(conn.next_piece(), Err(Ended::Whole)));
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["total_tokens"], &record["events"]), (&json!(7), &json!(2)), "{record}");
    assert_eq!(record["response_bytes"], 2 * HELLO.len() + DONE.len(), "{record}");
}

/// Catches: half an event before the one that says what went wrong; counts that are lost with the
/// end of a stream.
#[test]
fn an_engine_that_dies_inside_an_event_leaves_whole_ones_and_its_counts() {
    let (half, _) = HELLO.split_at(9);
    let (engine, go) = stepwise(&[HELLO, TOLD, half]);
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    go.send(()).unwrap();
    assert_eq!(conn.read_until("\n\n"), HELLO);
    go.send(()).unwrap();
    go.send(()).unwrap();
    conn.assert_silent(A_WHILE);
    drop(go);
    let (pieces, ended) = conn.rest();
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(ended, Ended::Cut);
    assert!(text.starts_with("data: {\"error\":") && text.contains("backend_broke"), "{text}");
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["total_tokens"], &record["events"]), (&json!(7), &json!(1)), "{record}");
    quiet(&proxy);
}

/// Catches: what is held for a client that left, or a relay that waits for it.
#[test]
fn a_client_that_leaves_inside_an_asked_stream_is_settled() {
    let rig = Rig::new();
    let knobs = "x-mock-tokens: 1000\r\nx-mock-gap-ms: 20\r\nx-mock-split: 3\r\n";
    let mut conn = rig.ask(STREAM, knobs);
    conn.head();
    conn.read_until("\n\n");
    drop(conn);
    let record = rig.record();
    assert_eq!((&record["status_code"], &record["usage_source"]), (&json!(200), &json!("missing")));
    rig.await_post("the generation is cancelled", |post| post["ended"] == "cancelled");
    rig.assert_quiet();
}

/// Catches: compressed bytes, or an answer that is no stream, searched for events and changed.
#[test]
fn what_cannot_be_read_passes_as_it_is() {
    let body = [HELLO, TOLD, DONE].concat();
    for fields in [
        "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
        "Content-Type: application/json\r\n",
    ] {
        let engine = Backend::answering(format!(
            "HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        let (proxy, _hook) = before(&engine, "");
        let answer = proxy.connect().post(CHATS, "", STREAM);
        assert_eq!(answer.text(), body, "{fields}");
        assert_eq!(answer.head.get("content-length"), Some(body.len().to_string().as_str()));
    }
}
