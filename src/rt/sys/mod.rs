//! *Takes:* sockets of monoio's, files. *Gives:* their descriptors, what sockets have, and memory
//! that outlives the process. *Runs on:* any thread. *May:* hold `unsafe`, which no other room may,
//! with the reason beside each; block when a mapping is made. *Never:* knows what its memory is
//! used for.

pub(super) mod descriptor;
pub mod inherited;
pub mod mapping;
pub(super) mod receive;
