//! Load testing for LLM gateways: an engine to stand behind one, and clients to stand before it.
//!
//! Nothing here uses the product's code, so that a mistake in its parsers cannot hide itself.
//! The rooms in the order in which they build on each other:

#![deny(unsafe_code)]
#![warn(missing_docs)]

/// The process: file limits, the ring, wall clock. The only room with `unsafe`.
pub mod sys;
/// Sockets, TCP and Unix alike, in readiness style.
pub mod net;
/// TLS, as a client.
pub mod tls;
/// What each engine says, as bytes: a pure function of dialect, request and seed.
pub mod script;
/// The mock engine: serves scripts, misbehaves on demand, notes what it saw.
pub mod mock;
/// The load generator.
pub mod load;
