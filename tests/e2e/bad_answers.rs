//! Answers that break HTTP: refused before their first byte, or cut so that it shows; never relayed
//! as if they were right, and never a hang or a growing heap.

use crate::harness::message::Ended;
use crate::harness::{await_until, SOON};
use crate::rig::{Rig, CHAT, STREAM};

/// Catches: framing that an engine and the client's parser would read differently.
#[test]
fn answers_with_framing_in_doubt_are_refused() {
    let rig = Rig::new();
    for bad in [
        "cl-te",
        "te-unknown",
        "dup-cl",
        "list-cl",
        "plus-cl",
        "huge-cl",
        "bare-lf",
        "obs-fold",
        "nul-header",
        "huge-header",
        "garbage",
        "many-1xx",
        "endless-1xx",
        "bad-chunk",
    ] {
        let answer = rig.ask(CHAT, &format!("x-mock-bad: {bad}\r\n")).response();
        println!("{bad}: {}", answer.text());
        answer.assert_refused(502, "bad_response");
        await_until("its connection is closed", SOON, || rig.engine.stat("connections_open") == 1);
    }
    rig.proxy.await_metric("llmproxy_faults_total", &[("kind", "bad_response")], 14.0);
    assert_eq!(rig.engine.posts().len(), 14, "a POST is never sent twice");
    rig.assert_quiet();
}

/// Catches: an answer that breaks after its head, made to look whole.
#[test]
fn answers_that_break_inside_their_body_are_cut() {
    let rig = Rig::new();
    for bad in ["short-body", "no-crlf"] {
        // In two writes, so that the head is on its way before the body is seen to be broken.
        let knobs = format!("x-mock-bad: {bad}\r\nx-mock-split: 2\r\nx-mock-split-ms: 100\r\n");
        let answer = rig.ask(CHAT, &knobs).response();
        assert_eq!((answer.status(), answer.ended), (200, Ended::Cut), "{bad}");
        await_until("its connection is closed", SOON, || rig.engine.stat("connections_open") == 1);
    }
    rig.assert_quiet();
}

/// Catches: a strictness that refuses what HTTP allows; extensions and trailers that go on.
#[test]
fn odd_answers_that_are_valid_pass_whole() {
    let rig = Rig::new();
    let plain = rig.ask(CHAT, "").response();
    for bad in ["chunk-ext", "trailers", "1xx", "http10"] {
        let answer = rig.ask(CHAT, &format!("x-mock-bad: {bad}\r\n")).response();
        assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{bad}");
        assert!(answer.interim.is_empty(), "{bad}: hints of an engine are for nobody");
        assert_eq!(answer.head.get("x-trailer"), None);
        let same = |json: serde_json::Value| json["choices"].clone();
        assert_eq!(same(answer.json()), same(plain.json()), "{bad}");
    }
    rig.assert_quiet();
}

/// Catches: a chunk of a gigabyte that is collected before it is sent on.
#[test]
fn a_huge_chunk_flows_through() {
    let rig = Rig::new();
    let before = rig.proxy.resident_bytes();
    let mut conn = rig.ask(STREAM, "x-mock-bad: huge-chunk\r\n");
    assert_eq!(conn.head().status(), 200);
    let mut taken = 0;
    while taken < 2 << 20 {
        taken += conn.next_piece().unwrap().bytes.len();
    }
    let grown = rig.proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 1 << 20, "{grown} bytes for a stream of {taken}");
    drop(conn);
    rig.await_post("the engine is freed", |post| post["ended"] == "cancelled");
    rig.assert_quiet();
}
