//! LLMProxy: the gateway for self-hosted LLM inference.
//!
//! This file is the map. The rooms stand in the order in which data flows; who may use whom is
//! the table in `tests/tidy.rs`, and `docs/architecture.md` draws the same picture.

#![deny(unsafe_code)]
#![warn(missing_docs)]

/// Words that every room may use: limits, identities, refusals. Imports nothing of ours.
pub mod base;
/// A file becomes a valid, immutable [`config::plan::Plan`]. Cold code.
pub mod config;
/// HTTP/1.1 without I/O and without a clock: bytes in, facts out.
pub mod http;
/// What LLM clients and engines say inside HTTP bodies, without I/O: bytes in, facts out.
pub mod llm;
/// What is known of API keys, and the rules that decide about them. No I/O, no clock.
pub mod keys;
/// Lua that decides about keys, under a budget of time and memory.
pub mod script;
/// The ring: sockets, timers, threads. The only room with `unsafe`, in its part `sys`.
pub mod rt;
/// The only memory that both planes share.
pub mod state;
/// Other people's servers: connections to SQL, Redis and HTTP services. Off the workers.
pub mod store;
/// Usage records: made on the workers, delivered by a thread of their own.
pub mod usage;
/// The data plane: one thread, one ring; a request walks this room from top to bottom.
pub mod proxy;
/// The control plane: its own threads, may block, never touches a request.
pub mod control;
