//! A client that leaves when all of its text is there: the engine is read on for what it counted,
//! and for no more than that.

use crate::harness::SOON;
use crate::rig::{before, quiet, Rig, CHATS, STREAM};
use crate::stream_usage::{stepwise, ASKING, COUNTS, FINISH, HELLO, TOLD};
use serde_json::{json, Value};

/// An event with text of another choice.
const OTHER: &str = "data: {\"choices\":[{\"index\":1,\"delta\":{\"content\":\"x\"}}]}\n\n";
/// The event that ends it.
const FINISH_OTHER: &str = "data: {\"choices\":[{\"index\":1,\"finish_reason\":\"stop\"}]}\n\n";

/// A client that reads a stream up to the end of its text, and leaves.
fn leave_at_the_end(rig: &Rig, body: &str, knobs: &str) {
    let mut conn = rig.ask(body, knobs);
    conn.head();
    conn.read_until(r#""finish_reason":"stop""#);
    drop(conn);
}

/// Catches: tokens that nobody pays for, because a client has its text and leaves before the engine
/// says what it was.
#[test]
fn a_client_that_leaves_behind_its_text_is_recorded_with_its_usage() {
    for body in [STREAM, ASKING] {
        let rig = Rig::new();
        let knobs = "x-mock-tokens: 2\r\nx-mock-gap-ms: 100\r\nx-mock-usage-steps: 5\r\n";
        leave_at_the_end(&rig, body, &(COUNTS.to_owned() + knobs));
        let record = rig.record();
        assert_eq!(record["status"], "client_left", "{record}");
        let told = (&record["usage_source"], &record["completion_tokens"], &record["events"]);
        assert_eq!(told, (&json!("engine"), &json!(17), &json!(4)), "{record}");
        rig.assert_quiet();
    }
}

/// Catches: an engine that works on for nobody, because its client might have had all of its text.
#[test]
fn an_engine_is_read_on_for_its_usage_and_no_longer() {
    // The usage comes too late; another choice goes on.
    let late = "x-mock-tokens: 2\r\nx-mock-gap-ms: 100\r\nx-mock-usage-steps: 100\r\n";
    let rig = Rig::new();
    leave_at_the_end(&rig, STREAM, &(COUNTS.to_owned() + late));
    let record = rig.record();
    let told = (&record["status"], &record["usage_source"]);
    assert_eq!(told, (&json!("client_left"), &json!("missing")), "{record}");
    rig.await_post("the generation is cancelled", |post| post["ended"] == "cancelled");
    rig.assert_quiet();

    let (engine, go) = stepwise(&[FINISH, OTHER, OTHER, TOLD]);
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    go.send(()).unwrap();
    conn.read_until("stop");
    drop(conn);
    proxy.await_metric("llmproxy_client_abort_total", &[], 1.0);
    go.send(()).unwrap();
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["usage_source"], "missing", "{record}");
    quiet(&proxy);
}

/// The record of a stream whose client leaves behind the first of these pieces, and whose engine
/// sends the others then.
fn left_behind(path: &str, pieces: [&str; 2]) -> Value {
    let (engine, go) = stepwise(&pieces);
    let (proxy, hook) = before(&engine, "");
    let mut conn = proxy.connect();
    conn.start_post(path, "", ASKING);
    conn.head();
    go.send(()).unwrap();
    conn.read_until(pieces[0]);
    drop(conn);
    proxy.await_metric("llmproxy_client_abort_total", &[], 1.0);
    // The engine may have been cut off.
    let _ = go.send(());
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["status"], "client_left", "{record}");
    quiet(&proxy);
    record
}

/// Catches: an interface whose clients need not pay, because it tells the usage behind another mark
/// than a `finish_reason`.
#[test]
fn every_dialect_knows_where_its_text_ends() {
    let created = "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n";
    let delta = "data: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n";
    let text_done = "data: {\"type\":\"response.output_text.done\",\"text\":\"a\"}\n\n";
    let item_added =
        "data: {\"type\":\"response.output_item.added\",\"item\":{\"type\":\"message\"}}\n\n";
    let completed = "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\
                     \"input_tokens\":3,\"output_tokens\":4,\"total_tokens\":7}}}\n\n";
    let block = "data: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\
                 \"text\":\"a\"}}\n\n";
    let block_stop = "data: {\"type\":\"content_block_stop\",\"index\":0}\n\n";
    let block_start = "data: {\"type\":\"content_block_start\",\"index\":1,\
                       \"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
    let message_delta = "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\
                         \"end_turn\"},\"usage\":{\"input_tokens\":3,\"output_tokens\":4}}\n\n";
    let timed = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2},\
                 \"timings\":{\"prompt_n\":3,\"predicted_n\":2}}\n\n";
    let (responses, messages) = ("/v1/responses", "/v1/messages");
    for (path, text, rest, completion) in [
        (responses, [created, delta, text_done].concat(), completed.to_owned(), Some(4)),
        // Another item, or another block, goes on.
        (responses, [delta, text_done, item_added].concat(), completed.to_owned(), None),
        (responses, [delta, text_done, delta].concat(), completed.to_owned(), None),
        (messages, [block, block_stop].concat(), message_delta.to_owned(), Some(4)),
        (messages, [block, block_stop, block_start].concat(), message_delta.to_owned(), None),
        (messages, [block, block_stop, block].concat(), message_delta.to_owned(), None),
        (CHATS, [HELLO, OTHER, FINISH_OTHER, FINISH].concat(), TOLD.to_owned(), Some(4)),
        (CHATS, [HELLO, OTHER, FINISH].concat(), TOLD.to_owned(), None),
        // llama.cpp counts each choice as a task of its own.
        (CHATS, [HELLO, OTHER, FINISH, timed, FINISH_OTHER].concat(), timed.to_owned(), Some(4)),
    ] {
        let record = left_behind(path, [&text, &rest]);
        let told = (&record["usage_source"], record["completion_tokens"].as_u64());
        let source = if completion.is_some() { "engine" } else { "missing" };
        assert_eq!(told, (&json!(source), completion), "{path} {text}: {record}");
    }
}
