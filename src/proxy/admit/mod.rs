//! Who are you, may you: the path, the method, the key, the shape of the body, rate limits.
//!
//! *Takes:* a request whose head (then body) was read. *Gives:* what kind of request it is, whose
//! it is and the facts of its body, or a refusal. *Runs on:* workers. *May:* read the plan and the
//! keys that the view brings, count. *Never:* waits, touches the upstream.

pub mod body;
pub mod cors;
pub mod credential;
pub mod gate;
pub mod hop;
pub mod identity;
pub mod key_cache;
pub mod model;
pub mod path;
pub mod rate;
