//! *Takes:* what happens to each request, from the workers. *Gives:* one record of it to every
//! configured reporter, and counters of what became of them. *Runs on:* workers ([`outbox`]) and on
//! threads of its own ([`journal`], [`deliver`], [`reporter`]). *May:* block on the latter; on
//! workers nothing but store into memory. *Never:* holds up a worker, a stream or another reporter,
//! logs a secret, loses a record without counting it.
//!
//! The way of a record: `outbox` → `ring` → `journal` → `spool` → `deliver` → one `reporter` each.
//! What a record says of a packed answer, [`unpacker`] found out before.

pub mod record;
pub mod counters;
pub mod doorbell;
pub mod flight;
pub mod outbox;
pub mod access;
pub mod spans;
pub mod unpacker;
pub mod key_form;
pub mod source;
pub mod ring;
pub mod deliver;
pub mod reporter;
pub mod spool;
pub mod journal;
