//! Large bodies: read with large buffers, and passed from socket to socket where nobody needs to
//! see them.

use super::{Relay, RelayStep, READS_FOR_SLOW};
use crate::base::fault::Fault;
use crate::base::limits::{BUFFER_BYTES, PIPE_BYTES};
use crate::proxy::relay::framing::Inbound;
use crate::rt::pipe::Pipe;
use crate::rt::tls::Link;
use std::io;

/// An answer of which so much is announced is read with large buffers from the start.
const BULK_BYTES_MIN: u64 = 4 * BUFFER_BYTES as u64;
/// Bytes at the beginning and at the end of an answer that the tap always sees.
const HEAD_BYTES: u64 = BUFFER_BYTES as u64 / 2;
const TAIL_BYTES: u64 = 4 * BUFFER_BYTES as u64;

impl Relay<'_> {
    /// Much is to come, and it goes out in few sends: chunks that are framed anew, a few in each
    /// send, would hold up the other streams of the worker if very many came at a time. What is put
    /// together anew would need two large buffers.
    pub(super) fn reads_in_bulk(&self) -> bool {
        let much = self.state.in_bulk || self.inbound.announced() >= BULK_BYTES_MIN;
        much && self.strip.is_none()
            && (self.is_chunked() || !matches!(self.inbound, Inbound::Chunked(_)))
    }

    /// Takes the next bytes from the engine without reading them, where nobody needs to see them:
    /// in the middle of an answer that has its usage at one end.
    pub(super) fn fill_pipe(&mut self, link: &Link) -> Option<Pipe> {
        let middle = self.inbound.announced().saturating_sub(TAIL_BYTES);
        let seen = self.state.bytes >= HEAD_BYTES && self.tap.may_skip();
        if !seen || self.client.post.is_sealed() || middle < PIPE_BYTES as u64 / 2 {
            return None;
        }
        let pipe = Pipe::fill(link.bare()?, middle.min(PIPE_BYTES as u64) as usize)?;
        self.inbound.pass(pipe.held() as u64);
        self.tap.skip();
        Some(pipe)
    }

    /// Passes a pipe's bytes to the client.
    pub(super) async fn pass_on(&mut self, mut pipe: Pipe) -> RelayStep {
        let mut result = Ok(());
        while pipe.held() > 0 && result.is_ok() {
            let held = pipe.held();
            result = match pipe.empty(self.client.post.socket()) {
                Ok(()) => Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.state.slow_reads = READS_FOR_SLOW;
                    self.client.room().await
                }
                Err(_) => Err(Fault::ClientLeft),
            };
            self.state.bytes += (held - pipe.held()) as u64;
        }
        self.tick();
        result.map_or_else(RelayStep::Broken, |()| RelayStep::Goes)
    }
}
