//! What is known of API keys, and what follows from it: digests, the facts that every provider
//! gives in the same form, and the rules that decide about them.
//!
//! *Takes:* what a provider knows of a key, a moment, an address. *Gives:* facts, or why the key is
//! not good. *Runs on:* any thread. *May:* digest, compare, compute. *Never:* a socket, a file or a
//! clock of its own; a key in a text that somebody could read.

pub mod check;
pub mod digest;
pub mod facts;
pub mod fields;
pub mod metadata;
pub mod table;
pub mod together;
pub mod window;
