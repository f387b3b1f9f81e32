//! *Takes:* bytes of request bodies, answers and event streams. *Gives:* the few facts the proxy
//! needs: model, stream, limits; usage; event boundaries; how a stream ended; and errors as LLM
//! clients read them. *Runs on:* workers (`inflate`: elsewhere). *May:* hold a small, bounded state
//! between calls; hold back half an event (`extra_event` alone). *Never:* waits, reads a clock,
//! copies a body, changes a byte, panics on any bytes.

pub mod request;
pub mod form;
pub mod media;
pub mod dialect;
pub mod operation;
pub mod usage;
pub mod tokens;
pub mod answer_id;
pub mod header_usage;
pub mod inflate;
pub mod unpack;
pub mod sse;
pub mod ending;
pub mod extra_event;
pub mod engine_load;
pub mod error;
pub mod cut;
pub mod json;
