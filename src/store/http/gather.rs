//! One system call for a request: the library writes the head and the body each by itself, which
//! a receiver then reads as two packets and, with TLS, decrypts as two records. Here what is
//! written is held back until the answer is awaited. With the second probe of a kept connection
//! (see [`Gathered::is_open`]) that is nearly a third of the time that a request costs here.

use std::fmt;
use std::time::{Duration, Instant};
use ureq::unversioned::transport::time::Duration as Left;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::Error;

/// Bytes that are sent at once; more go in pieces of so many. A TLS record holds no more.
const PIECE_BYTES: usize = 16 * 1024;

/// Bytes of the library's buffers, each way of a connection: a piece with the frame of its record.
/// The head of an answer must fit too; one that does not counts as a failed try.
pub const BUFFER_BYTES: usize = PIECE_BYTES + 1024;

/// The end of a chain of connectors: whatever was connected gathers what it sends.
#[derive(Debug)]
pub struct Gather;

impl<In: Transport> Connector<In> for Gather {
    type Out = Gathered<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Gathered<In>>, Error> {
        Ok(chained.map(|inner| Gathered { inner, held: Vec::new(), answered: false }))
    }
}

/// A connection that holds back what is written until the answer is awaited.
pub struct Gathered<T> {
    inner: T,
    /// Written, and not sent yet: never as much as a piece.
    held: Vec<u8>,
    /// An answer was read since the last probe.
    answered: bool,
}

impl<T: Transport> Gathered<T> {
    /// Sends what is held: whole pieces, and the rest of it when that is wanted `all`. Gives what
    /// then is left of the time.
    fn send(&mut self, all: bool, limit: NextTimeout) -> Result<NextTimeout, Error> {
        let mut left = limit;
        let began = Instant::now();
        let mut sent = 0;
        for piece in self.held.chunks(PIECE_BYTES).filter(|p| all || p.len() == PIECE_BYTES) {
            self.inner.buffers().output()[..piece.len()].copy_from_slice(piece);
            self.inner.transmit_output(piece.len(), left)?;
            sent += piece.len();
            left = less(limit, began.elapsed());
        }
        self.held.drain(..sent);
        Ok(left)
    }
}

/// A limit of which so much is over. Of nothing left the layers below make a time-out.
fn less(mut limit: NextTimeout, over: Duration) -> NextTimeout {
    if let Left::Exact(after) = limit.after {
        limit.after = Left::Exact(after.saturating_sub(over));
    }
    limit
}

impl<T: Transport> Transport for Gathered<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.answered = false;
        self.held.extend_from_slice(&self.inner.buffers().output()[..amount]);
        self.send(false, timeout).map(drop)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let left = self.send(true, timeout)?;
        self.answered = true;
        self.inner.await_input(left)
    }

    /// The library probes a connection when it puts it aside and when it takes it up again, with
    /// three system calls each time. The second one finds what the first one would.
    fn is_open(&mut self) -> bool {
        std::mem::take(&mut self.answered) || self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// Without what is held: it may have credentials in it.
impl<T: Transport> fmt::Debug for Gathered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[cfg(test)]
mod tests;
