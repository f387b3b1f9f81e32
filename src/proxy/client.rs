//! The client's side of one connection: its socket on the patrol's round, the bytes that were read
//! and not yet used, and the one way to write to it.

use crate::base::fault::Fault;
use crate::base::limits::BUFFER_BYTES;
use crate::base::refusal::Refusal;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::{Alarm, Post};
use std::future::Future;
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
    /// the armed deadline. `missing`: so many bytes of the request are known to be still to come.
    ///
    /// What a client pipelines behind a request is moved to the front each time that one of its
    /// requests is done. So no more than a small buffer of it is ever taken in: the inbox may be
    /// large when it held a body, and the work would grow with the square of what is in it.
    pub async fn read_more(&mut self, missing: u32) -> Result<usize, Alarm> {
        loop {
            match self.post.may_hold() {
                false => {
                    let there = self.post.within(self.post.socket().readable()).await?;
                    there.map_err(|_| Alarm::Gone)?;
                }
                true => self.post.skip_wait(),
            }
            self.post.take_turns().await;
            let inbox = self.inbox.get_or_insert_with(Buffer::take);
            let most = (missing as usize).saturating_add(BUFFER_BYTES);
            match self.post.try_recv_at_most(inbox, most) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    // Who waits holds no empty buffer. One with bytes keeps its room: it may have
                    // grown for those that are to come.
                    if self.bytes().is_empty() {
                        self.inbox = None;
                    }
                }
                Ok(n) => {
                    self.post.hear();
                    return Ok(n);
                }
                Err(_) => return Err(Alarm::Gone),
            }
        }
    }

    /// Lets others run in the middle of work on a body. Errors as in [`Client::wait_for`].
    pub async fn pause(&self) -> Result<(), Refusal> {
        self.wait_for(self.post.next_turn()).await
    }

    /// Waits for what work on a body needs; an error when the client left, or the armed deadline
    /// passed.
    pub async fn wait_for<F: Future>(&self, needed: F) -> Result<F::Output, Refusal> {
        match self.post.attended(Box::pin(needed)).await {
            Ok(output) => Ok(output),
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
            if slices.iter().all(|s| s.is_empty()) && self.is_out()? {
                return Ok(());
            }
            self.room().await?;
        }
    }

    /// Takes what there is room for now, which may be nothing.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> Result<usize, Fault> {
        match self.post.try_send(slices) {
            Ok(n) => Ok(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(_) => Err(Fault::ClientLeft),
        }
    }

    /// True when the kernel has all that was taken. With TLS, some of it may wait for room.
    pub fn is_out(&self) -> Result<bool, Fault> {
        self.post.flush().map_err(|_| Fault::ClientLeft)
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
        self.post.set_last();
        self.post.arm(LINGER_TIME);
        self.post.say_goodbye();
        while let Ok(false) = self.is_out() {
            // Boxed: there nearly always is room for it.
            let room = Box::pin(self.post.within(self.post.socket().writable()));
            if !matches!(room.await, Ok(Ok(()))) {
                return;
            }
        }
        self.post.socket().shutdown(Shutdown::Write);
        let mut dropped = 0;
        while dropped < LINGER_BYTES_MAX {
            self.inbox = None;
            match self.drop_some().await {
                0 => return,
                n => dropped += n,
            }
        }
    }

    /// Reads what the client still sends, as it comes from the socket, and drops it. 0: it has sent
    /// all, or sends nothing in time.
    async fn drop_some(&self) -> usize {
        loop {
            match self.post.within(self.post.socket().readable()).await {
                Ok(Ok(())) => self.post.take_turns().await,
                _ => return 0,
            }
            match self.post.socket().try_recv_at_most(&mut Buffer::take(), BUFFER_BYTES) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                got => return got.unwrap_or(0),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::PIPELINED_UNREAD_BYTES_MAX;
    use crate::rt::patrol::{Gone, Patrol};
    use crate::rt::ring::Ring;
    use crate::rt::socket::Socket;
    use std::future::poll_fn;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;
    use std::task::Poll;

    /// A client, and what its peer writes to it.
    fn client() -> (Client, Rc<Patrol>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let patrol = Patrol::start().unwrap();
        let post = patrol.watch(Socket::from_fd(ours.into()).unwrap(), Gone::AtFin).unwrap();
        post.arm(Duration::from_secs(600));
        let write_timeout = Duration::from_secs(600);
        (Client { post, write_timeout, inbox: None }, patrol, theirs)
    }

    /// Catches: the rest of a body that was refused, taken for requests that were pipelined behind
    /// it, and counted as too many.
    #[test]
    fn what_comes_behind_a_last_answer_is_no_train() {
        let counts = [false, true].map(|is_last| {
            Ring::build().unwrap().block_on(async {
                let (mut client, patrol, mut peer) = client();
                client.post.set_busy();
                peer.write_all(&vec![b'b'; 2 * PIPELINED_UNREAD_BYTES_MAX as usize]).unwrap();
                let mut closing = Box::pin(client.close_gently());
                if is_last {
                    // It has begun to read what comes, and waits for its turn while a sweep looks.
                    let looked = poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx))).await;
                    assert!(looked.is_pending());
                }
                patrol.next_sweep(false, std::future::pending()).await;
                patrol.pipelined_too_much()
            })
        });
        assert_eq!(counts, [1, 0], "busy, and with its last answer");
    }

    /// Catches: requests behind a large body that all land in its buffer, so that each of them
    /// moves all that follow it.
    #[test]
    fn requests_behind_a_large_body_move_little() {
        const BODY: usize = 300 * 1024;
        const REQUEST: usize = 64;
        const REQUESTS: usize = 16 * 1024;
        let mut idle = Buffer::take();
        assert!(idle.append(&vec![0; 1024 * 1024], usize::MAX), "a large one, which the body gets");
        drop(idle);
        let (moved, most) = Ring::build().unwrap().block_on(async {
            let (mut client, _patrol, mut peer) = client();
            let sent = std::thread::spawn(move || {
                peer.write_all(&vec![b'b'; BODY + REQUEST * REQUESTS]).unwrap();
                peer
            });
            while client.bytes().len() < BODY {
                let missing = BODY - client.bytes().len();
                client.make_room(missing).unwrap();
                client.read_more(missing as u32).await.unwrap();
            }
            assert!(client.inbox.as_ref().unwrap().capacity() > 2 * BODY);
            client.consume(BODY);
            // Each `consume` moves what is left.
            let (mut moved, mut most) = (client.bytes().len(), client.bytes().len());
            for _ in 0..REQUESTS {
                while client.bytes().len() < REQUEST {
                    client.make_room(REQUEST).unwrap();
                    client.read_more(0).await.unwrap();
                }
                client.consume(REQUEST);
                moved += client.bytes().len();
                most = most.max(client.bytes().len());
            }
            assert!(client.inbox.is_none(), "all of it was there");
            drop(sent.join().unwrap());
            (moved, most)
        });
        assert!(most <= BUFFER_BYTES, "{most} bytes were taken in behind a request");
        assert!(moved <= REQUESTS * BUFFER_BYTES, "{moved} bytes were moved");
    }
}
