//! The load generator against the mock engine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test stops loudly"
)]

mod common;

use std::process::Command;

use common::Engine;
use serde_json::Value;

/// Runs loadgen; gives its exit code and its JSON.
fn loadgen(target: &str, args: &[&str]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["--target", target, "--quiet", "--json", "-"]).args(args);
    let output = command.output().expect("loadgen runs");
    let json = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    (output.status.code().expect("an exit code"), json)
}

fn load(engine: &Engine, args: &[&str]) -> (i32, Value) {
    loadgen(&format!("http://{}", engine.address), args)
}

fn number(json: &Value, name: &str) -> u64 {
    json[name].as_u64().unwrap_or_else(|| panic!("{name}"))
}

#[test]
fn verified_streams_of_every_dialect_have_no_error() {
    for dialect in ["vllm", "sglang", "tgi", "llamacpp", "ollama"] {
        let engine = Engine::start(&["--dialect", dialect]);
        let (code, json) = load(
            &engine,
            &[
                "--stream",
                "--tokens",
                "20",
                "--include-usage",
                "--verify",
                "--seeds",
                "7",
                "--dialect",
                dialect,
                "--requests",
                "300",
                "--connections",
                "8",
            ],
        );
        assert_eq!((code, number(&json, "errors")), (0, 0), "{dialect}: {json}");
        assert_eq!(number(&json, "requests"), 300);
        assert!(number(&json, "events") >= 300 * 22, "{json}");
        assert_eq!(number(&json["ttft_us"], "count"), 300);
    }
}

#[test]
fn every_path_is_verified_on_any_number_of_threads() {
    for (dialect, path) in [
        ("vllm", "/v1/completions"),
        ("vllm", "/v1/responses"),
        ("vllm", "/v1/messages"),
        ("sglang", "/generate"),
        ("tgi", "/generate_stream"),
        ("llamacpp", "/completion"),
        ("ollama", "/api/chat"),
        ("ollama", "/api/generate"),
    ] {
        let engine = Engine::start(&["--dialect", dialect, "--threads", "2"]);
        let args = ["--path", path, "--dialect", dialect, "--verify", "--requests", "20"];
        let streamed = [&args[..], &["--stream", "--threads", "2"]].concat();
        let (code, json) = load(&engine, &streamed);
        assert_eq!((code, number(&json, "requests")), (0, 20), "{dialect} {path}: {json}");
        assert!(number(&json, "events") >= 20 * 16, "{dialect} {path}: {json}");
        if path != "/generate_stream" {
            let (code, json) = load(&engine, &args);
            assert_eq!((code, number(&json, "requests")), (0, 20), "{dialect} {path}: {json}");
        }
    }
}

#[test]
fn verification_finds_other_bytes() {
    let engine = Engine::start(&[]);
    let (code, json) = load(&engine, &["--verify", "--mock", "seed=5", "--requests", "10"]);
    assert_eq!(code, 1);
    assert_eq!(number(&json["errors_by_kind"], "mismatch"), 10);
}

#[test]
fn failures_are_counted_by_kind() {
    let engine = Engine::start(&[]);
    for (knob, kind) in [
        ("status=503", "status_503"),
        ("bad=cl-te", "bad_framing"),
        ("bad=bad-chunk", "bad_chunk_size"),
        ("die-before-head=1", "reset"),
    ] {
        let (code, json) =
            load(&engine, &["--mock", knob, "--requests", "5", "--connections", "2"]);
        assert_eq!(code, 1, "{knob}");
        assert_eq!(number(&json["errors_by_kind"], kind), 5, "{knob}: {json}");
    }
    let (_, json) =
        load(&engine, &["--mock", "stall-before-head=1", "--timeout-ms", "100", "--requests", "2"]);
    assert_eq!(number(&json["errors_by_kind"], "timeout"), 2, "{json}");
    let (code, json) = loadgen("http://127.0.0.1:1", &["--requests", "2", "--connections", "1"]);
    assert_eq!(code, 1);
    assert_eq!(number(&json["errors_by_kind"], "connect_connection_refused"), 2, "{json}");
}

#[test]
fn aborts_reach_the_engine() {
    let engine = Engine::start(&["--gap-ms", "20"]);
    let args = ["--stream", "--abort-after-events", "3", "--requests", "20", "--connections", "4"];
    let (code, json) = load(&engine, &args);
    assert_eq!((code, number(&json, "aborted")), (0, 20), "{json}");
    let (_, json) = load(
        &engine,
        &["--stream", "--ttft-ms", "60000", "--abort-after-ms", "50", "--requests", "4"],
    );
    assert_eq!(number(&json, "aborted"), 4, "{json}");
    let begun = std::time::Instant::now();
    let cancelled = || engine.log().iter().filter(|entry| entry["ended"] == "cancelled").count();
    while cancelled() < 24 {
        assert!(begun.elapsed().as_secs() < 30, "only {} of 24 leaves noticed", cancelled());
    }
}

#[test]
fn the_open_loop_keeps_its_rate_and_counts_what_it_made_wait() {
    let engine = Engine::start(&[]);
    let (code, json) = load(&engine, &["--rate", "500", "--duration", "1"]);
    assert_eq!(code, 0);
    let requests = number(&json, "requests");
    assert!((480..=510).contains(&requests), "{requests}");

    // One connection and 20 ms an answer: 50 a second can be served of the 200 that are due.
    // Measured from the send alone every answer would take 20 ms.
    let args = ["--rate", "200", "--connections", "1", "--ttft-ms", "20", "--duration", "1"];
    let (_, json) = load(&engine, &args);
    assert!(number(&json["total_us"], "max") > 500_000, "{json}");
}

#[test]
fn few_active_exchanges_go_round_all_connections() {
    let engine = Engine::start(&[]);
    let args = ["--connections", "100", "--active", "4", "--requests", "400", "--verify"];
    let (code, json) = load(&engine, &args);
    assert_eq!(code, 0, "{json}");
    assert_eq!(number(&json, "connections_max"), 100);
    let mut per_connection = std::collections::HashMap::new();
    for entry in engine.log() {
        *per_connection.entry(entry["conn"].as_u64().expect("a number")).or_insert(0) += 1;
    }
    assert_eq!(per_connection.len(), 100);
    assert!(per_connection.values().all(|n| (3..=5).contains(n)), "{per_connection:?}");
}

#[test]
fn request_ids_differ_and_slow_readers_are_slow() {
    let engine = Engine::start(&[]);
    load(&engine, &["--request-ids", "--requests", "50", "--threads", "2"]);
    let ids: std::collections::HashSet<_> =
        engine.log().iter().map(|e| e["x_request_id"].to_string()).collect();
    assert_eq!(ids.len(), 50);

    let args = [
        "--answer-bytes",
        "20000",
        "--read-bytes-per-sec",
        "40000",
        "--requests",
        "1",
        "--connections",
        "1",
        "--verify",
    ];
    let (code, json) = load(&engine, &args);
    assert_eq!(code, 0, "{json}");
    assert!(number(&json["total_us"], "max") > 400_000, "{json}");
}

#[test]
fn connections_closed_by_the_server_are_made_anew() {
    let engine = Engine::start(&["--max-requests", "3"]);
    let (code, json) = load(&engine, &["--requests", "30", "--connections", "1"]);
    assert_eq!((code, number(&json, "requests")), (0, 30), "{json}");
    let (code, json) = load(&engine, &["--requests", "5", "--no-keepalive"]);
    assert_eq!((code, number(&json, "requests")), (0, 5), "{json}");
    assert_eq!(number(&json, "stale_reconnects"), 0);
}
