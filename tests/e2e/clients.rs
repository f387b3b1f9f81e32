//! The openai packages of Python and Node, curl, and what a browser does, as their users use them:
//! in clear text and over TLS.

use crate::harness::process::run;
use crate::harness::tls::{self, Pki};
use crate::harness::{Config, Engine, Proxy};
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
        against(program, script, (dialect, &engine), &proxy, tls::everywhere());
    }
    let (pki, engine) = (Pki::new(), Engine::start(&[]));
    let proxy = secured(&pki, Config::backend_at(engine.url()));
    against(program, script, ("over TLS", &engine), &proxy, Some(&pki));
}

/// A proxy that serves over TLS.
fn secured(pki: &Pki, config: Config) -> Proxy {
    let mut proxy = config.server(pki.server_line("")).start();
    proxy.tls = Some(pki.client());
    proxy
}

/// Where clients find a proxy, and what they are told of whom to trust.
fn root_of(proxy: &Proxy, pki: Option<&Pki>) -> (String, Vec<String>) {
    let Some(pki) = pki else { return (format!("http://{}", proxy.addr()), Vec::new()) };
    let authority = pki.path("ca.pem");
    let trust = ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"].map(|it| format!("{it}={authority}"));
    (format!("https://localhost:{}", proxy.addr().port()), trust.to_vec())
}

fn against(
    program: &Path,
    script: &str,
    (dialect, engine): (&str, &Engine),
    proxy: &Proxy,
    pki: Option<&Pki>,
) {
    let (root, trust) = root_of(proxy, pki);
    let program = program.to_string_lossy();
    let mut args: Vec<&str> = trust.iter().map(String::as_str).collect();
    args.extend([&*program, script, &root]);
    let ran = run(Path::new("env"), &args, Duration::from_secs(60));
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
    let (root, trust) = root_of(&proxy, tls::everywhere());
    let python = folder.join("python/bin/python").display().to_string();
    let mut args: Vec<&str> = trust.iter().map(String::as_str).collect();
    args.extend([python.as_str(), script, &root]);
    let ran = run(Path::new("env"), &args, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let raised: Vec<Value> = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(raised.len(), 3);
    for error in raised {
        assert_eq!(error["code"], "backend_broke", "{error}");
        assert!(error["message"].as_str().unwrap().ends_with("after 4 events."), "{error}");
    }
}

/// Catches: an answer over TLS that curl takes for cut, or a version of HTTP that is agreed upon
/// and not spoken.
#[test]
fn curl_works_over_tls() {
    let is_there_too = Path::new("/usr/bin/curl").exists();
    if !is_there("curl_works_over_tls", is_there_too) {
        return;
    }
    let (pki, engine) = (Pki::new(), Engine::start(&[]));
    let proxy = secured(&pki, Config::backend_at(engine.url()));
    let url = format!("https://localhost:{}/v1/chat/completions", proxy.addr().port());
    let authority = pki.path("ca.pem");
    for version in ["--http1.1", "--http2"] {
        let body = r#"{"model":"m","stream":true,"messages":[]}"#;
        let told = "\n%{http_version} %{http_code} %{ssl_verify_result}";
        let args = ["-sSN", version, "--cacert", &authority, "-w", told, "-d", body, &url];
        let ran = run(Path::new("curl"), &args, Duration::from_secs(60));
        assert_eq!(ran.code, Some(0), "{version}: {ran:?}");
        assert!(ran.stdout.ends_with("data: [DONE]\n\n\n1.1 200 0"), "{version}: {ran:?}");
    }
    // Who does not know the authority is told by the handshake, and sends nothing.
    let ran = run(Path::new("curl"), &["-sS", &url], Duration::from_secs(60));
    assert_eq!(ran.code, Some(60), "{ran:?}");
    assert_eq!(engine.posts().len(), 2);
}

/// Catches: a page of another origin that a browser keeps from its stream: a preflight that goes to
/// an engine or says too little, an answer without the fields that let the page read it.
#[test]
fn a_page_reads_a_stream_over_tls() {
    let found = run(Path::new("node"), &["--version"], Duration::from_secs(60)).code == Some(0);
    if !is_there("a_page_reads_a_stream_over_tls", found) {
        return;
    }
    let (pki, engine) = (Pki::new(), Engine::start(&[]));
    let cors = "cors: {enabled: true, allowed_origins: [\"https://chat.example\"], \
                expose_headers: [X-Request-Id], max_age: 60s}";
    let proxy = secured(&pki, Config::backend_at(engine.url()).server(cors));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/page.mjs");
    let (root, trust) = root_of(&proxy, Some(&pki));
    let mut args: Vec<&str> = trust.iter().map(String::as_str).collect();
    args.extend(["node", script, &root]);
    let ran = run(Path::new("env"), &args, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert!(report["events"].as_u64().unwrap() > 2, "{report}");
    assert!(report["pieces"].as_u64().unwrap() > 1, "they come one by one: {report}");
    assert_eq!(engine.posts().len(), 1, "the preflight, and the stranger's, go to no engine");
}
