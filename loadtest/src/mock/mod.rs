//! The mock engine.
//!
//! One thread per listener, one task per connection. A request is read, its script is looked up
//! or rendered, and the script's writes are played at their times while the client is watched.

/// The story of one connection: receive, decide, play, note.
pub mod connection;
/// What tests may ask of the engine itself, under /mock/.
mod control;
/// Answers that break HTTP on purpose.
mod bad;
/// Every adjustable property, on the command line and per request.
pub mod knobs;
/// What was received and how it ended.
pub mod log;
/// Scripts as HTTP messages: heads, chunks, and when each write is due.
mod message;
/// Packed answers.
pub mod pack;
/// Reading requests.
mod receive;
/// From a request to what shall be played.
mod reply;
/// Threads, listeners and what they share.
pub mod server;
/// Noticing that a client left, at once.
mod watch;
