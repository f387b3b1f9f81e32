//! *Takes:* bytes of an HTTP/1.1 connection. *Gives:* heads, framing and pieces of bodies, or a
//! refusal; and writes heads for the other side. *Runs on:* any thread. *May:* grow the vectors it
//! is lent. *Never:* waits, reads a clock, panics on any bytes, or relays framing it did not check.
//!
//! The rules are RFC 9110 and RFC 9112, read strictly: where a receiver may refuse, we refuse.
//! A head is found by [`scan`] and split by `httparse`, or, when it is plain, by `plain` alone; it
//! is judged by [`target`], [`framing`] and [`hop`], and comes out as a [`request::RequestHead`] or
//! [`response::ResponseHead`]. [`path`] judges its path.

pub mod admin_token;
pub mod fault;
pub mod head;
pub mod field;
pub mod scan;
mod plain;
pub mod target;
pub mod path;
pub mod framing;
pub mod forwarded;
pub mod proxy_protocol;
pub mod hop;
pub mod request;
pub mod response;
pub mod chunked;
pub mod date;
pub mod reference;
pub mod traceparent;
pub mod write;
pub mod number;
pub mod reason;
