//! *Takes:* descriptors and futures. *Gives:* sockets, listeners, timers and threads that run on a
//! ring (or on epoll where io_uring is denied). *Runs on:* workers. *May:* wait on sockets, make
//! system calls that return at once. *Never:* blocks, resolves names, knows HTTP.
//!
//! The style is readiness over io_uring: wait until a socket is readable, then read without
//! waiting. A wait can be dropped at any time and loses nothing, and an idle connection holds no
//! buffer. `docs/architecture.md` says why. `sys` is the only room that may hold `unsafe`.

pub mod sys;
pub mod ring;
pub mod socket;
pub mod listen;
pub mod connect;
pub mod moment;
pub mod wait;
pub mod patrol;
pub mod budget;
pub mod buffer;
pub mod pipe;
pub mod guard;
pub mod turns;
pub mod tls;
mod seal;

pub use monoio::spawn;
pub use monoio::time::{sleep, timeout};
pub use wait::await_peer;
