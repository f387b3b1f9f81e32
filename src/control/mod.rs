//! The control plane: everything that may be slow.
//!
//! *Takes:* the plan, signals, requests for the metrics page. *Gives:* health and
//! addresses to the members, pages, log lines. *Runs on:* threads of its own. *May:* block, resolve
//! names, open files. *Never:* runs on a worker's thread, touches a request.

pub mod tls;
pub mod acme;
mod scripts;
pub mod resolve;
pub mod circle;
mod visit;
mod engine;
pub mod engine_load;
pub mod health;
pub mod models;
pub mod discovery;
pub mod keys;
pub mod metrics;
pub mod page;
mod roster;
pub mod socket_file;
mod stories;
mod admin;
pub mod counters;
mod delivery;
pub mod shared_limits;
pub mod admin_door;
#[cfg(feature = "sql")]
pub mod admin_api;
#[cfg(not(feature = "sql"))]
#[path = "no_admin_api.rs"]
pub mod admin_api;
#[cfg(feature = "sql")]
pub mod key_store;
pub mod log;
pub mod access;
pub mod traces;
pub mod memory;
pub mod watchdog;
pub mod next;
pub mod reload;
pub mod process;
pub mod watch;
pub mod pid_file;
pub mod signals;
pub mod notify;
pub mod handover;
pub mod supervisor;
pub mod tool;

use std::panic::{catch_unwind, AssertUnwindSafe};

/// Does one piece of a job that must go on: a panic ends the piece, and is told.
fn survive(job: &str, piece: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(piece)).is_err() {
        tracing::error!(job, "panicked; the job goes on, please report this");
    }
}
