//! Moves the answer to the client: head, then body, each byte the moment it arrives.
//!
//! *Takes:* an exchange. *Gives:* an [`Relayed`]: how it ended, and what the tap saw. *Runs on:*
//! workers. *May:* wait on both sockets, hold one pooled buffer or pipe while bytes move. *Never:*
//! holds policy, copies a body, reads from the engine while the client has not taken the last
//! bytes.

pub mod copy;
pub mod drain;
pub mod framing;
pub mod last;
pub mod packed;
pub mod parts;
pub mod strip;
pub mod tap;

use crate::base::fault::Fault;

/// What a client gets while its stream is silent: a comment, and the empty line behind it, for some
/// readers wait for that before they look at anything.
pub const COMMENT: &[u8] = b": keep-alive\n\n";

/// How a relay ended.
#[derive(Debug, Clone, Copy)]
pub struct Relayed {
    /// `None`: the whole answer reached the client.
    pub fault: Option<Fault>,
    /// The engine's answer was read to its exact end, and nothing was behind it.
    pub upstream_at_end: bool,
    /// The client's connection may carry another request.
    pub client_clean: bool,
    /// The engine's body was complete.
    pub upstream_finished: bool,
    /// The engine sent bytes behind its end.
    pub upstream_extra: bool,
    /// Body bytes forwarded.
    pub bytes: u64,
}
