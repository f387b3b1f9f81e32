//! The journal rings: memory in which a worker says what happens to its requests, and from which
//! the journal's thread takes it. It lies in a file, so what was said stays when the process is
//! killed; a store is all it takes. docs/journal.md says what that promises.
//!
//! *Takes:* entries: a kind, a payload. *Gives:* the same, in order, to the journal, or to the next
//! process. *Runs on:* workers ([`spsc::Producer`]), the journal's thread ([`spsc::Consumer`]), and
//! at the start whichever thread opens the spool ([`recover`]). *May:* store into mapped memory; at
//! the start and the end, make and remove files. *Never:* waits, allocates for an entry on a
//! worker, knows what a payload says, panics on what lies in a ring.

pub mod entry;
pub mod spsc;
pub mod file;
pub mod place;
pub mod recover;

#[cfg(test)]
mod tests;
