//! *Takes:* one record per request, from the workers. *Gives:* the same records to every
//! configured reporter, and counters of what became of them. *Runs on:* workers ([`record`],
//! [`outbox`]) and on threads of its own ([`deliver`], [`reporter`]). *May:* block on the latter;
//! on workers only allocate a record. *Never:* holds up a worker, a stream or another reporter,
//! logs a secret, loses a record without counting it.
//!
//! The way of a record: `record` → `outbox` (bounded) → `deliver` → one `reporter` each. A durable
//! journal belongs between outbox and deliver: [`outbox::Inbox`] is the seam. What a record says of
//! a packed answer, [`unpacker`] found out before.

pub mod record;
pub mod counters;
pub mod doorbell;
pub mod outbox;
pub mod access;
pub mod unpacker;
pub mod key_form;
pub mod source;
pub mod ring;
pub mod deliver;
pub mod reporter;
pub mod spool;
pub mod journal;
