//! The control plane: everything that may be slow.
//!
//! *Takes:* the plan, the fleet, signals, requests for the metrics page. *Gives:* health and
//! addresses to the fleet, pages, log lines. *Runs on:* threads of its own. *May:* block, resolve
//! names, open files. *Never:* runs on a worker's thread, touches a request.

pub mod tls;
pub mod resolve;
pub mod health;
pub mod metrics;
pub mod page;
pub mod log;
pub mod access;
pub mod watchdog;
pub mod signals;
pub mod supervisor;
