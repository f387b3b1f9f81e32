//! *Takes:* bytes of request bodies, answers and event streams. *Gives:* the few facts the proxy
//! needs: model, stream, limits; usage; event boundaries. *Runs on:* workers. *May:* hold a small,
//! bounded state between calls. *Never:* waits, reads a clock, copies a body, changes or delays a
//! byte, panics on any bytes.

pub mod request;
pub mod usage;
pub mod sse;
