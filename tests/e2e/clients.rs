//! The openai packages of Python and Node, as their users use them.

use crate::harness::process::run;
use crate::harness::{Config, Engine};
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Set by `scripts/test`, which installs the packages there.
const FOLDER: &str = "LLMPROXY_TEST_CLIENTS";

/// The folder of the installed packages; `None`, said loudly, when there is none.
pub fn folder(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(FOLDER).map(PathBuf::from);
    is_there(test, folder.is_some());
    folder
}

/// Whether what a test needs of the machine is there. `scripts/test` sees to it, so that there its
/// lack fails the test; elsewhere the test says that it did not run.
pub fn is_there(test: &str, found: bool) -> bool {
    if !found {
        assert!(std::env::var_os(FOLDER).is_none(), "{test}: what it needs is missing");
        // Written past the harness of cargo, which shows nothing that a passing test prints.
        let line =
            format!("NOT RUN: {test}: what it needs is missing (scripts/test installs tools)\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

/// Runs a client against a proxy before an engine of each dialect that it can talk to.
fn against_all(program: &Path, script: &str) {
    for dialect in ["vllm", "sglang", "llamacpp", "ollama"] {
        let engine = Engine::start(&["--dialect", dialect]);
        let proxy = Config::backend_at(engine.url()).start();
        let root = format!("http://{}", proxy.addr());
        let ran = run(program, &[script, &root], Duration::from_secs(60));
        assert_eq!(ran.code, Some(0), "{dialect}: {ran:?}");
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        println!("{dialect}: {report}");
        assert_eq!(report["refused"]["code"], "unknown_path");
        // Nothing was tried twice and nothing was lost: two answers, two streams, one vector.
        let counted =
            |path| proxy.metric("llmproxy_requests_total", &[("path", path), ("status", "200")]);
        assert_eq!(counted("/v1/chat/completions"), 3.0, "{dialect}");
        assert_eq!(counted("/v1/embeddings"), 1.0, "{dialect}");
        assert_eq!(proxy.metric("llmproxy_faults_total", &[]), 0.0, "{dialect}");
        assert_eq!(proxy.metric("llmproxy_client_abort_total", &[]), 0.0, "{dialect}");
        for post in engine.posts() {
            let head = post["head"].as_str().unwrap();
            assert!(!head.contains("sk-test"), "{head}");
        }
    }
}

/// Catches: anything that the Python package does or expects and that our own client does not.
#[test]
fn the_python_client_works() {
    let Some(folder) = folder("the_python_client_works") else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_client.py");
    against_all(&folder.join("python/bin/python"), script);
}

/// Catches: the same for the Node package (undici underneath, which keeps connections).
#[test]
fn the_node_client_works() {
    let Some(folder) = folder("the_node_client_works") else { return };
    let script = folder.join("node/openai_client.mjs");
    against_all(Path::new("node"), &script.to_string_lossy());
}

/// Catches: an error of ours that the Python package takes for one more event of the stream.
#[test]
fn the_python_client_raises_when_an_engine_dies() {
    let Some(folder) = folder("the_python_client_raises_when_an_engine_dies") else { return };
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/openai_broken.py");
    let root = format!("http://{}", proxy.addr());
    let python = folder.join("python/bin/python");
    let ran = run(&python, &[script, &root], Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let raised: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(raised.len(), 3);
    for error in raised {
        assert_eq!(error["code"], "backend_broke", "{error}");
        assert!(error["message"].as_str().unwrap().ends_with("after 4 events."), "{error}");
    }
}
