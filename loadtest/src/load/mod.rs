//! The load generator.
//!
//! Connections are tasks; a gate tells each when to send. An exchange is timed from the moment
//! it was meant to start, so that a stalled target cannot hide the requests it kept waiting.

/// Reading answers: HTTP/1.1 responses in pieces of any size.
pub mod codec;
/// One connection: connect, exchange, again.
mod client;
/// One exchange: request out, answer in, everything noted.
mod exchange;
/// Who may send, and when: closed and open loop.
mod gate;
/// What a run does.
pub mod plan;
/// Results as JSON and as a table.
pub mod report;
/// Threads, phases and the progress line.
pub mod run;
/// Counts and histograms.
pub mod stats;
