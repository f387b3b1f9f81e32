//! The HTTP room against the corpora of others, and against itself.
//!
//! `relay.rs` plays the proxy without sockets: bytes of a client in, what a backend would get out.
//! Each corpus is replayed through it, whole and cut at every byte, and what comes out is read
//! back by our strict parser and by a second reader that shares no rule with it. A difference
//! between them is a leak. `cargo test --test conformance -- --nocapture` prints the figures.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops loudly")]

mod relay;
mod readback;
mod gunicorn;
mod guardian;
mod properties;
