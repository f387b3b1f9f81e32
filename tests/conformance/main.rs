//! The HTTP room against the corpora of others, and against itself.
//!
//! `relay.rs` plays the proxy without sockets: bytes of a client in, what a backend would get out.
//! Each corpus is replayed through it, whole and cut at every byte, and what comes out is read
//! back by our strict parser and by a second reader that shares no rule with it. A difference
//! between them is a leak. `sockets.rs` sends them to the real binary.
//! `cargo test --test conformance -- --nocapture` prints the figures.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test stops loudly"
)]

#[path = "../e2e/harness/mod.rs"]
mod harness;

mod relay;
mod readback;
mod gunicorn;
mod guardian;
mod properties;
mod sockets;
