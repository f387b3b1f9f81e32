//! An engine, the proxy before it, and a receiver of its usage records, wired together.

use crate::harness::{
    await_some, await_until, pause, Backend, Config, Conn, Engine, Proxy, Webhook, SOON,
};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An unstreamed chat.
pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;
/// The same, streamed.
pub const STREAM: &str =
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Count."}]}"#;
/// Where both go.
pub const CHATS: &str = "/v1/chat/completions";

/// The three, running.
pub struct Rig {
    /// The mock engine.
    pub engine: Engine,
    /// The product.
    pub proxy: Proxy,
    /// Where its records go.
    pub hook: Webhook,
}

impl Rig {
    /// With the product's defaults.
    pub fn new() -> Rig {
        Rig::with("", |config| config)
    }

    /// With further properties of the backend, and whatever `tune` adds.
    pub fn with(properties: &str, tune: impl FnOnce(Config) -> Config) -> Rig {
        let (engine, hook) = (Engine::start(&[]), Webhook::start());
        let config = Config::new().backend(engine.url(), properties).webhook(&hook.url(), "");
        let proxy = tune(config).start();
        Rig { engine, proxy, hook }
    }

    /// A client that posted a chat with these knobs for the mock (each line with its CRLF).
    pub fn ask(&self, body: &str, knobs: &str) -> Conn {
        let mut conn = self.proxy.connect();
        conn.start_post(CHATS, knobs, body);
        conn
    }

    /// The engine's note of its last generation, once `fits` holds of it.
    pub fn await_post(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        await_some(what, SOON, || self.engine.posts().pop().filter(&fits))
    }

    /// The only record, once it is there.
    pub fn record(&self) -> Value {
        self.hook.await_records(1, SOON).remove(0)
    }

    /// Asserts that nothing is left behind: no request, no connection to the engine in use.
    pub fn assert_quiet(&self) {
        quiet(&self.proxy);
    }
}

/// The product before a backend that does what a test tells it, and a receiver of records.
pub fn before(backend: &Backend, properties: &str) -> (Proxy, Webhook) {
    let hook = Webhook::start();
    let config = Config::new().backend(backend.url(), properties).webhook(&hook.url(), "");
    (config.start(), hook)
}

/// Asserts that the gauges of a proxy are back at zero.
pub fn quiet(proxy: &Proxy) {
    proxy.await_metric("llmproxy_inflight", &[], 0.0);
    // The scrape itself is a request too.
    proxy.await_metric("llmproxy_requests_active", &[], 1.0);
}

/// How a client goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// It closes.
    Fin,
    /// It resets.
    Rst,
}

/// Lets a client go. Gives the connection back when it only sent its FIN: dropped with answer bytes
/// unread it would be a reset.
pub fn leave(mut conn: Conn, how: Leave) -> Option<Conn> {
    match how {
        Leave::Fin => {
            conn.shutdown(std::net::Shutdown::Write);
            Some(conn)
        }
        Leave::Rst => {
            let linger = Some(Duration::ZERO);
            socket2::SockRef::from(conn.stream().tcp()).set_linger(linger).unwrap();
            None
        }
    }
}

/// Milliseconds since 1970, as the mock writes them.
pub fn unix_ms() -> f64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() * 1e3
}

/// The answer of a backend that has nothing to say.
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A proxy with these server lines before a backend that answers everything with OK.
pub fn pair(server: &[&str]) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = server.iter().fold(Config::backend_at(backend.url()), |c, line| c.server(*line));
    (config.start(), backend)
}

/// Requests refused for this reason.
pub fn rejected(proxy: &Proxy, code: &str) -> f64 {
    proxy.metric("llmproxy_rejected_total", &[("reason", code)])
}

/// Waits until nothing more is taken from an engine that counts what is; gives the count.
pub fn await_stall(taken: &AtomicU64) -> u64 {
    let mut last = 0;
    await_until("the engine stalls", SOON, || {
        pause(Duration::from_millis(100));
        let before = std::mem::replace(&mut last, taken.load(Ordering::Relaxed));
        before > 0 && before == last
    });
    last
}
