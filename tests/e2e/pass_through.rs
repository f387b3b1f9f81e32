//! What goes through is what was sent: answers, requests, their fields and their bytes.

use crate::harness::{Config, Engine};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;

/// Catches: an answer that is not byte for byte the engine's own, status and body.
#[test]
fn an_answer_is_what_the_engine_sent() {
    let engine = Engine::start(&[]);
    let proxy = Config::backend_at(engine.url()).health_check().start();
    let direct = engine.connect().post("/v1/chat/completions", "", CHAT);
    let through = proxy.post("/v1/chat/completions", CHAT);
    assert_eq!(through.status(), 200);
    assert_eq!(through.body, direct.body);
    proxy.await_metric("llmproxy_requests_total", &[("status", "200")], 1.0);
}
