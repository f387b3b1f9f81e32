//! What every end-to-end test stands on: processes that cannot outlive the tests, a raw client and
//! a raw backend that share no parser with the product, a webhook receiver, and waiting for a
//! condition instead of for a time.

#![allow(dead_code, unused_imports, reason = "a tool may wait here for the test that needs it")]

pub mod acme;
pub mod backend;
pub mod between;
pub mod client;
pub mod config;
pub mod dns;
pub mod engine;
pub mod keys;
pub mod message;
pub mod metrics;
pub mod process;
pub mod proxy;
pub mod scratch;
pub mod secrets;
pub mod services;
pub mod stream;
pub mod terminal;
pub mod tls;
pub mod webhook;

pub use acme::{AcmeMood, AcmeServer};
pub use backend::Backend;
pub use client::Conn;
pub use config::Config;
pub use dns::{Mood, NameServer, Record};
pub use engine::Engine;
pub use proxy::Proxy;
pub use services::{MariaDb, Postgres, Redis};
pub use webhook::Webhook;

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a condition may take that should hold at once. Generous: the machine may be busy with
/// anything, and a test that passes does not wait for it.
pub const SOON: Duration = Duration::from_secs(30);

/// Polls until the condition holds. Panics with `what` when it does not within `limit`.
pub fn await_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    await_some(what, limit, || condition().then_some(()));
}

/// Polls until there is a value, and gives it.
pub fn await_some<T>(what: &str, limit: Duration, mut get: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        pause(Duration::from_millis(5));
    }
}

/// Says that a test is not for this machine, past what keeps the words of tests that pass: the
/// script that runs all tests lists these.
pub fn skip(why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}

/// Lets the processor go between two polls.
pub fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// Tests that need the machine for themselves (many streams, tight times) hold this meanwhile, so
/// that only one of them runs at a time.
pub fn heavy() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
