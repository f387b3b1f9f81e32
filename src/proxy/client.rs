//! The client's side of one connection: its socket on the patrol's round, the bytes that were read
//! and not yet used, and the one way to write to it.

use crate::base::fault::Fault;
use crate::base::limits::BUFFER_BYTES;
use crate::base::refusal::Refusal;
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Post};
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::time::Duration;

/// What a client that is being closed may still send before it is cut off.
const LINGER_BYTES_MAX: usize = crate::base::limits::DRAIN_BYTES_MAX;
const LINGER_TIME: Duration = Duration::from_secs(1);

const NO_TURN: Refusal =
    Refusal::new(503, "overloaded", "Too many large request bodies wait to be read.");

/// One client connection.
pub struct Client {
    /// The socket, watched.
    pub post: Post,
    /// A client that takes no byte for so long is aborted.
    pub write_timeout: Duration,
    /// Bytes read: the current request, and what was pipelined behind it. `None` when empty, so
    /// that an idle connection holds no buffer.
    pub inbox: Option<Buffer>,
}

impl Client {
    /// Bytes in the inbox.
    pub fn bytes(&self) -> &[u8] {
        self.inbox.as_deref().map_or(&[], Vec::as_slice)
    }

    /// The same, for a head that is brought into another spelling.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.inbox.as_deref_mut().map_or(&mut [], Vec::as_mut_slice)
    }

    /// Forgets the first `n` bytes of the inbox; an empty buffer goes back to the pool.
    pub fn consume(&mut self, n: usize) {
        let Some(inbox) = self.inbox.as_mut() else { return };
        let left = inbox.len().saturating_sub(n);
        if left == 0 {
            self.inbox = None;
        } else if left <= BUFFER_BYTES && inbox.capacity() > BUFFER_BYTES {
            // A few bytes of the next request must not hold the room of this one's body.
            let mut small = Buffer::take();
            small.extend_from_slice(inbox.get(n..).unwrap_or_default());
            self.inbox = Some(small);
        } else {
            inbox.drain(..n);
        }
    }

    /// Sees to it that [`Client::read_more`] has room: a full inbox grows, if so many bytes are
    /// still missing.
    pub fn make_room(&mut self, missing: usize) -> Result<(), Refusal> {
        let full = self.inbox.as_mut().filter(|inbox| inbox.len() == inbox.capacity());
        match full.is_none_or(|inbox| inbox.double(missing)) {
            true => Ok(()),
            false => Err(no_memory()),
        }
    }

    /// Reads once into the inbox, which must not be full. `Ok(0)`: the client closed. Waits under
    /// the armed deadline.
    pub async fn read_more(&mut self) -> Result<usize, Alarm> {
        loop {
            self.post.within(self.post.socket().readable()).await?.map_err(|_| Alarm::Gone)?;
            self.post.take_turns().await;
            let inbox = self.inbox.get_or_insert_with(Buffer::take);
            match self.post.socket().try_recv(inbox) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok(n) => {
                    self.post.hear();
                    return Ok(n);
                }
                Err(_) => return Err(Alarm::Gone),
            }
        }
    }

    /// Lets others run for so long, in the middle of work on a body; an error when the client left,
    /// or the armed deadline passed.
    pub async fn pause(&self, time: Duration) -> Result<(), Refusal> {
        match self.post.attended(Box::pin(rt::sleep(time))).await {
            Ok(()) => Ok(()),
            Err(Alarm::Gone) => Err(Fault::ClientLeft.refusal()),
            Err(Alarm::Ended | Alarm::CalledOff) => Err(Fault::ShuttingDown.refusal()),
            Err(Alarm::Expired) => Err(NO_TURN.with_retry_after(1)),
        }
    }

    /// Sends all slices, in order.
    pub async fn send(&self, mut slices: &mut [IoSlice<'_>]) -> Result<(), Fault> {
        loop {
            let taken = self.try_send(slices)?;
            IoSlice::advance_slices(&mut slices, taken);
            // Empty slices at the end are no reason to wait.
            if slices.iter().all(|s| s.is_empty()) {
                return Ok(());
            }
            self.room().await?;
        }
    }

    /// Sends what the kernel takes now, which may be nothing.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> Result<usize, Fault> {
        match self.post.socket().try_send(slices) {
            Ok(n) => Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Fault::ClientLeft),
        }
    }

    /// Waits until the client has taken something. Nothing is read from the engine meanwhile:
    /// this wait is the backpressure. Each wait has a deadline of its own, so that a slow client
    /// is served and a stalled one is not.
    pub async fn room(&self) -> Result<(), Fault> {
        self.post.arm(self.write_timeout);
        // Boxed: few streams ever wait for their client, and every stream would carry the wait.
        match Box::pin(self.post.attended(self.post.socket().writable())).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(Alarm::Gone) => Err(Fault::ClientLeft),
            Err(Alarm::Expired) => Err(Fault::ClientWriteTimeout),
            Err(Alarm::Ended) => Err(Fault::ShuttingDown),
            Err(Alarm::CalledOff) => Err(Fault::BackendEjected),
        }
    }

    /// Closes so that the client can read the last answer: a close with unread bytes in the
    /// kernel would be a reset, which destroys what the client has not read yet. Reads and drops
    /// up to 64 KiB for at most a second.
    pub async fn close_gently(&mut self) {
        self.post.socket().shutdown(Shutdown::Write);
        self.post.arm(LINGER_TIME);
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX {
            self.inbox = None;
            match self.read_more().await {
                Ok(0) | Err(_) => return,
                Ok(n) => dropped += n,
            }
        }
    }
}

/// The answer where the buffers of all workers hold as much as they may
/// (`server.max_buffered_bytes`).
pub fn no_memory() -> Refusal {
    const NO_MEMORY: Refusal =
        Refusal::closing(503, "overloaded", "The proxy holds as many bytes as it may.");
    NO_MEMORY.with_retry_after(1)
}
