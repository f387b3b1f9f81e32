//! What must hold while things break: the proxy is killed, receivers and databases come and go,
//! disks fill up. Whole programs, real servers, real signals.
//!
//! `LLMPROXY_KILLS` is the number of kills of the metering test (50 unless set), `LLMPROXY_RELOADS`
//! that of reloads under load (100; from 1000 on with 300 streams), `LLMPROXY_STARTS` that of
//! rounds of kills into starts (6), `LLMPROXY_UPGRADES` that of hot restarts (3); `scripts/faults`
//! sets all of them, and those of `routing`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops loudly")]

#[path = "../e2e/harness/mod.rs"]
mod harness;
mod backlog;
mod disk;
mod load;
mod metering;
mod receiver;
mod reload;
mod routing;
mod hang;
mod starts;
mod trace;
mod upgrade;
