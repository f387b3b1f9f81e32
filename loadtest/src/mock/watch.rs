//! Noticing at once that a client left, while waiting or writing.
//!
//! One readiness wait stays armed for the whole answer, so a stream pays for it once and not per
//! event. What arrives early (a pipelined request) is kept for later.

use std::future::{poll_fn, Future};
use std::io;
use std::pin::{pin, Pin};
use std::task::{ready, Context, Poll};
use std::time::{Duration, Instant};

use crate::net::Socket;

/// How a client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It sent FIN: closed, or half-closed
    Fin,
    /// It sent RST, or a write failed
    Reset,
}

/// Early bytes beyond this are left in the kernel, and the watch ends.
const EARLY_BYTES_MAX: usize = 1 << 20;

type Wait<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// Watches one client during one answer.
pub struct Watch<'a> {
    socket: &'a Socket,
    wait: Option<Wait<'a>>,
    /// Bytes that came before the answer was complete
    pub early: Vec<u8>,
}

impl<'a> Watch<'a> {
    /// A watch that is not armed yet: an answer that never waits never pays for it.
    pub fn new(socket: &'a Socket) -> Self {
        Watch { socket, wait: None, early: Vec::new() }
    }

    /// Waits until `when`, or until the client leaves. A time that has come already is no wait.
    pub async fn until(&mut self, when: Instant) -> Result<(), Left> {
        if Instant::now() >= when {
            return Ok(());
        }
        let mut timer = pin!(monoio::time::sleep_until(when.into()));
        poll_fn(|cx| {
            if let Poll::Ready(left) = self.poll_left(cx) {
                return Poll::Ready(Err(left));
            }
            timer.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Waits until the client leaves.
    pub async fn left(&mut self) -> Left {
        poll_fn(|cx| self.poll_left(cx)).await
    }

    /// Writes all of `bytes`, unless the client leaves first.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Left> {
        while !bytes.is_empty() {
            match self.socket.try_write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(_) => return Err(Left::Reset),
            }
        }
        Ok(())
    }

    async fn writable(&mut self) -> Result<(), Left> {
        let socket = self.socket;
        let mut room = pin!(socket.writable());
        poll_fn(|cx| {
            if let Poll::Ready(left) = self.poll_left(cx) {
                return Poll::Ready(Err(left));
            }
            room.as_mut().poll(cx).map(|r| r.map_err(|_| Left::Reset))
        })
        .await
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Left> {
        while self.early.len() < EARLY_BYTES_MAX {
            let socket = self.socket;
            let wait = self.wait.get_or_insert_with(|| Box::pin(socket.readable()));
            if ready!(wait.as_mut().poll(cx)).is_err() {
                return Poll::Ready(Left::Reset);
            }
            self.wait = None;
            let mut bytes = [0; 4096];
            match self.socket.try_read(&mut bytes) {
                Ok(0) => return Poll::Ready(Left::Fin),
                Ok(n) => self.early.extend_from_slice(bytes.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Left::Reset),
            }
        }
        Poll::Pending
    }

    /// Whether a client that sent FIN still listens. Only a write can tell: a closed peer
    /// answers it with RST. `harmless` must mean nothing where it lands in the answer.
    pub async fn is_listening(&mut self, harmless: &[u8]) -> bool {
        if self.socket.try_write(harmless).is_err() {
            return false;
        }
        for _ in 0..10 {
            monoio::time::sleep(Duration::from_millis(2)).await;
            // Reads go on giving 0 after a FIN; only the held error tells of the reset.
            if self.socket.take_error().is_some() {
                return false;
            }
        }
        true
    }
}
