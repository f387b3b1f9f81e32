//! What asking an engine for usage must not change: what engines do by themselves reaches the
//! client, what they moved to the usage event is put back, and an engine that is another one today
//! is found out.

use crate::harness::message::Ended;
use crate::harness::{await_until, Backend, Config, Engine, Webhook, SOON};
use crate::rig::{before, quiet, Rig, CHATS, STREAM};
use crate::stream_usage::{
    assert_alike, name, stepwise, A_WHILE, COUNTS, DONE, FINISH, HELLO, PROMPTS, REFUSING, TOLD,
};
use serde_json::{json, Value};

/// Catches: an engine that took the wish once, was restarted with another version, and fails every
/// stream from then on.
#[test]
fn an_engine_that_refuses_what_it_took_is_found_out_at_once() {
    for status in [400, 422] {
        let rig = Rig::new();
        let engine = name(&rig.engine);
        assert_eq!(rig.ask(STREAM, COUNTS).response().status(), 200);
        assert_eq!(rig.engine.posts().len(), 1);
        rig.engine.set(&format!("refuse-stream-options={status}"));
        for asked in [3, 4] {
            let answer = rig.ask(STREAM, "").response();
            assert_eq!((answer.status(), answer.ended), (200, Ended::Whole));
            assert_eq!(rig.engine.posts().len(), asked, "{status}");
            assert_eq!(rig.proxy.metric(REFUSING, &[("backend", &engine)]), 1.0);
        }
        let records = rig.hook.await_records(3, SOON);
        let retries: Vec<&Value> = records.iter().map(|record| &record["retry_count"]).collect();
        assert_eq!(retries, [0, 1, 0]);
        rig.assert_quiet();
    }
}

/// Catches: a refusal of another kind that is sent twice to an engine that takes the wish; one that
/// is cut short or doubled because it was looked into.
#[test]
fn a_refusal_that_names_something_else_is_passed_on() {
    let long = "x".repeat(40_000);
    for body in [r#"{"error":"too long"}"#.to_owned(), long] {
        let (half, rest) = body.split_at(body.len() / 2);
        let (half, rest, refusal) = (half.to_owned(), rest.to_owned(), body.clone());
        let engine = Backend::start(move |served| {
            let mut asked = 0;
            while served.request().is_some() {
                asked += 1;
                if asked == 1 {
                    served.begin_events();
                    served.chunk(DONE);
                    served.send("0\r\n\r\n");
                    continue;
                }
                let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n";
                served.send(format!("{head}Content-Length: {}\r\n\r\n{half}", refusal.len()));
                served.left_within(A_WHILE);
                served.send(&rest);
            }
        });
        let (proxy, _hook) = before(&engine, "");
        let mut conn = proxy.connect();
        assert_eq!(conn.post(CHATS, "", STREAM).text(), DONE);
        let answer = conn.post(CHATS, "", STREAM);
        assert_eq!((answer.status(), answer.text()), (400, body));
        assert_eq!(answer.ended, Ended::Whole);
        assert_eq!(engine.requests().len(), 2);
        quiet(&proxy);
    }
}

/// Catches: what was learnt of an engine that is another one since it was away.
#[test]
fn a_backend_that_could_not_be_reached_is_asked_again() {
    let (engine, hook) = (Engine::start(&[]), Webhook::start());
    let address = engine.addr().to_string();
    let proxy = Config::backend_at(format!("http://{address}")).webhook(&hook.url(), "").start();
    let ask = || proxy.connect().post(CHATS, COUNTS, STREAM).status();
    engine.set("refuse-stream-options=400");
    assert_eq!(ask(), 200);
    assert_eq!(proxy.metric(REFUSING, &[("backend", &address)]), 1.0);
    drop(engine);
    // The first 502 may be that of a connection which was kept, and which says nothing of another.
    await_until("the engine cannot be reached", SOON, || {
        assert_eq!(ask(), 502);
        proxy.metric(REFUSING, &[("backend", &address)]) == 0.0
    });
    let _engine = Engine::start(&["--listen", &address]);
    await_until("the engine is back", SOON, || ask() == 200);
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["usage_source"], "missing", "{record}");
    let told = |record: &Value| record["completion_tokens"] == 17;
    await_until("usage is told again", SOON, || hook.records().iter().any(told));
}

/// Catches: an engine's own way to tell that is taken from clients who would have got it without
/// us; and counts that clients get because we asked.
#[test]
fn what_an_engine_tells_by_itself_reaches_the_client() {
    const ALONE: &str = r#"{"model":"m","stream":true,"stream_options":{"continuous_usage_stats":true},"messages":[]}"#;
    // (dialect, the engine is forced to tell, the client's wish)
    for (dialect, forced, body) in [
        ("vllm", true, STREAM),
        ("vllm", false, ALONE),
        ("sglang", false, ALONE),
        ("sglang", false, STREAM),
        ("tgi", false, ALONE),
        ("llamacpp", false, ALONE),
        ("ollama", false, ALONE),
    ] {
        let (engine, hook) = (Engine::start(&["--dialect", dialect]), Webhook::start());
        let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
        let mut sent = 0;
        for path in [CHATS, PROMPTS] {
            for how in ["exact", "merged", "3"] {
                let forced = u8::from(forced);
                let knobs = format!(
                    "{COUNTS}x-mock-tokens: 5\r\nx-mock-split: {how}\r\n\
                     x-mock-force-usage: {forced}\r\n"
                );
                let direct = engine.connect().post(path, &knobs, body).text();
                let answer = proxy.connect().post(path, &knobs, body);
                let shown = format!("{dialect} {forced} {path} {how} {body}");
                assert_alike(&answer.text(), &direct, how == "merged", &shown);
                sent += 1;
                let record = hook.await_records(sent, SOON).pop().unwrap();
                assert_eq!(record["completion_tokens"], 17, "{shown}: {record}");
            }
        }
        quiet(&proxy);
    }
}

/// Catches: the end of a text that is shown late, or never, because the usage does not follow it.
#[test]
fn the_end_of_a_text_waits_for_the_usage_and_not_for_long() {
    const TIMED: &str = "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"timings\":{}}\n\n";
    let told = TOLD.replace("}}\n", "},\"timings\":{}}\n");
    // At once: the client cannot have the end of its text before the record has the usage.
    let at_once = FINISH.to_owned() + &told;
    let (engine, go) = stepwise(&[HELLO, &at_once, FINISH, &told]);
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    for wanted in [HELLO, TIMED, FINISH] {
        go.send(()).unwrap();
        assert_eq!(conn.next_piece().unwrap().bytes, wanted.as_bytes());
    }
    // Too late: the event goes all the same, without what it gave away.
    go.send(()).unwrap();
    conn.assert_silent(A_WHILE);
    go.send(()).unwrap();
    assert!(matches!(conn.next_piece(), Err(Ended::Whole)));
    let record = hook.await_records(1, SOON).remove(0);
    let told = (&record["usage_source"], &record["events"]);
    assert_eq!(told, (&json!("engine"), &json!(3)), "{record}");
    quiet(&proxy);
}

/// Catches: the end of a text that is lost, or told after the word that the stream broke.
#[test]
fn an_engine_that_dies_behind_the_end_of_its_text_leaves_it() {
    let engine = Backend::start(move |served| {
        served.request();
        served.begin_events();
        served.chunk(HELLO);
        served.chunk(FINISH);
    });
    let (proxy, hook) = before(&engine, "");
    let answer = proxy.connect().post(CHATS, "", STREAM);
    let (text, begin) = (answer.text(), HELLO.to_owned() + FINISH);
    assert_eq!(answer.ended, Ended::Cut);
    assert!(text.starts_with(&begin) && text.contains("after 2 events"), "{text}");
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!((&record["usage_source"], &record["events"]), (&json!("missing"), &json!(2)));
    quiet(&proxy);
}

/// Catches: an engine that is asked for what it tells anyway, and one that is not asked any more
/// although it tells nothing by itself.
#[test]
fn an_engine_whose_own_figures_say_enough_is_not_asked() {
    let (engine, hook) = (Engine::start(&["--dialect", "llamacpp"]), Webhook::start());
    let proxy = Config::backend_at(engine.url()).webhook(&hook.url(), "").start();
    let knobs = "x-mock-usage: 31,17,8\r\n";
    let direct = engine.connect().post(CHATS, knobs, STREAM).text();
    for sent in 1..=3 {
        let answer = proxy.connect().post(CHATS, knobs, STREAM);
        assert_eq!(answer.text(), direct, "{sent}");
        let record = hook.await_records(sent, SOON).pop().unwrap();
        let told = [&record["prompt_tokens"], &record["completion_tokens"]];
        assert_eq!(told, [31, 17], "{sent}: {record}");
        // The first time nobody knows it.
        let asked = engine.posts().pop().unwrap()["body_len"] != STREAM.len();
        assert_eq!(asked, sent == 1);
    }
    let timed =
        FINISH.replace("}]}", r#"}],"timings":{"cache_n":1,"prompt_n":2,"predicted_n":3}}"#);
    let engine = Backend::start(move |served| {
        for stream in [timed.as_str(), FINISH, FINISH, FINISH] {
            served.request();
            served.begin_events();
            served.chunk(stream);
            served.chunk(DONE);
            served.send("0\r\n\r\n");
        }
    });
    let (proxy, _hook) = before(&engine, "");
    let mut conn = proxy.connect();
    for asked in [true, false, true, true] {
        assert_eq!(conn.post(CHATS, "", STREAM).status(), 200);
        let request = engine.requests().pop().unwrap();
        assert_eq!(request.body.len() != STREAM.len(), asked);
    }
}

/// Catches: models behind one URL whose usage nobody asks for, because the engine of another model
/// there tells by itself or refuses to be asked.
#[test]
fn what_is_learnt_of_one_model_says_nothing_of_the_others() {
    const REFUSAL: &str = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\
        Content-Length: 37\r\n\r\n{\"error\":\"no stream_options, please\"}";
    let timed =
        FINISH.replace("}]}", r#"}],"timings":{"cache_n":1,"prompt_n":2,"predicted_n":3}}"#);
    let asks = |body: &[u8]| String::from_utf8_lossy(body).contains("include_usage");
    let engine = Backend::start(move |served| {
        while let Some(request) = served.request() {
            let model = serde_json::from_slice::<Value>(&request.body).unwrap()["model"].clone();
            let is_asked = asks(&request.body);
            if is_asked && model == "refusing" {
                served.send(REFUSAL);
                continue;
            }
            served.begin_events();
            match (model.as_str(), is_asked) {
                (Some("timed"), _) => served.chunk(&timed),
                (Some("asked"), true) => served.chunk(&(FINISH.to_owned() + TOLD)),
                _ => served.chunk(FINISH),
            };
            served.chunk(DONE);
            served.send("0\r\n\r\n");
        }
    });
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    let mut tries = 0;
    // (model, what the engine gets: with the wish, or not, at each try), in this order, twice.
    let first: [(&str, &[bool]); 3] =
        [("timed", &[true]), ("refusing", &[true, false]), ("asked", &[true])];
    let then: [(&str, &[bool]); 3] =
        [("timed", &[false]), ("refusing", &[false]), ("asked", &[true])];
    for (model, wanted) in first.into_iter().chain(then).chain(then) {
        let body = STREAM.replacen("\"m\"", &format!("\"{model}\""), 1);
        assert_eq!(conn.post(CHATS, "", &body).status(), 200);
        let got: Vec<bool> =
            engine.requests().iter().skip(tries).map(|request| asks(&request.body)).collect();
        assert_eq!(got, wanted, "{model}");
        tries += got.len();
    }
    let records = hook.await_records(9, SOON);
    for record in records {
        let is_told = record["model"] != "refusing";
        let source = if is_told { "engine" } else { "missing" };
        assert_eq!(record["usage_source"], source, "{record}");
    }
    assert_eq!(proxy.metric(REFUSING, &[("backend", &engine.addr().to_string())]), 1.0);
    quiet(&proxy);
}
