//! What the command line does beside serving.
//!
//! *Takes:* a task and where to write. *Gives:* text for a person or a program. *Runs on:* the main
//! thread of a process that serves nobody. *May:* block, read and write files, connect. *Never:*
//! runs in a process that serves.

pub mod backends;
pub mod connect;
pub mod explain;
pub mod files;
pub mod health;
pub mod lua;
pub mod reload;
pub mod spool;
pub mod upgrade;
#[cfg(feature = "sql")]
pub mod keys;
#[cfg(not(feature = "sql"))]
#[path = "no_keys.rs"]
pub mod keys;
mod figures;
mod gateways;
mod socket;
pub mod top;
#[cfg(feature = "sql")]
pub mod usage;
#[cfg(not(feature = "sql"))]
#[path = "no_usage.rs"]
pub mod usage;
