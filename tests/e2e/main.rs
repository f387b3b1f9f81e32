//! The real binary, started as its users start it, against the mock engines and real sockets.
//! Everything passes on both drivers: `MONOIO_FORCE_LEGACY_DRIVER=1` in the environment reaches
//! every process that is started here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::string_slice,
    reason = "a test stops loudly"
)]

mod abort;
mod bad_answers;
mod engine_faults;
mod harness;
mod health;
mod kept_connections;
mod logs;
mod metrics;
mod pass_through;
mod rig;
mod scale;
mod slow_reader;
mod stop;
mod usage;
