//! Who are you, may you: today the path, the method and the shape of the body; keys, quotas and
//! rate limits will stand here too.
//!
//! *Takes:* a request whose head (then body) was read. *Gives:* what kind of request it is and the
//! facts of its body, or a refusal. *Runs on:* workers. *May:* read the plan. *Never:* waits,
//! touches the upstream.

pub mod body;
pub mod credential;
pub mod hop;
pub mod model;
pub mod path;
