//! A connection to an engine, plain or TLS, with one face. rustls is driven directly: a wrapper
//! with its own pair of 16 KB buffers would cost four times the memory per idle connection.

use super::socket::{IdleHeard, Socket};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use std::future::{poll_fn, Future};
use std::io::{self, IoSlice, Read, Write};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

/// Whose turn it is while a request is being sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendOrListen {
    /// There is room for more of the request.
    Send,
    /// The peer answers, or closed, before it has all of the request.
    Listen,
}

/// A connection to an engine.
pub struct Link {
    socket: Socket,
    tls: Option<Box<Tls>>,
}

struct Tls {
    session: ClientConnection,
    /// Decrypted bytes may be waiting in the session: do not wait for the socket.
    maybe_buffered: bool,
}

impl Link {
    /// Over a bare socket.
    pub fn plain(socket: Socket) -> Link {
        Link { socket, tls: None }
    }

    /// The socket, when there is no TLS: its bytes are what the engine said, and a read takes all
    /// that the kernel has. (With TLS one takes a record.)
    pub fn bare(&self) -> Option<&Socket> {
        match self.tls {
            None => Some(&self.socket),
            Some(_) => None,
        }
    }

    /// Does the TLS handshake. The caller bounds the time.
    pub async fn handshake(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Link> {
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut link = Link { socket, tls: Some(Box::new(Tls { session, maybe_buffered: false })) };
        loop {
            link.flush().await?;
            let Some(tls) = link.tls.as_mut() else { return Ok(link) };
            if !tls.session.is_handshaking() {
                return Ok(link);
            }
            match tls.fill(&link.socket) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => link.socket.readable().await?,
                Err(e) => return Err(e),
            }
        }
    }

    /// Appends what has arrived, at most the spare capacity of `into`. `Ok(0)` is a clean end of
    /// the stream, `WouldBlock` means that nothing is there.
    pub fn try_recv(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        match self.tls.as_mut() {
            None => self.socket.try_recv(into),
            Some(tls) => tls.try_recv(&self.socket, into),
        }
    }

    /// Takes as much of the slices as fits now. With TLS the bytes may still wait for
    /// [`Link::flush`].
    pub fn try_send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls.as_mut() {
            None => self.socket.try_send(slices),
            Some(tls) => tls.try_send(&self.socket, slices),
        }
    }

    /// Sends what the session still holds.
    pub async fn flush(&mut self) -> io::Result<()> {
        let Some(tls) = self.tls.as_mut() else { return Ok(()) };
        while tls.session.wants_write() {
            match tls.session.write_tls(&mut Wire(&self.socket)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Waits until [`Link::try_recv`] may give something. It may still say `WouldBlock`.
    pub async fn readable(&self) -> io::Result<()> {
        if self.tls.as_ref().is_some_and(|tls| tls.maybe_buffered) {
            return Ok(());
        }
        self.socket.readable().await
    }

    /// Waits until [`Link::try_send`] may take something.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.socket.writable()
    }

    /// Waits until more can be sent, or, on a bare socket, until the peer has something to say
    /// first. (What TLS says first may be its own business.)
    pub async fn writable_or_spoken(&self) -> io::Result<SendOrListen> {
        if self.tls.is_some() {
            return self.socket.writable().await.map(|()| SendOrListen::Send);
        }
        let (mut heard, mut room) = (pin!(self.socket.readable()), pin!(self.socket.writable()));
        poll_fn(|cx| match heard.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(done.map(|()| SendOrListen::Listen)),
            Poll::Pending => room.as_mut().poll(cx).map_ok(|()| SendOrListen::Send),
        })
        .await
    }

    /// What came on an idle connection, which nobody asked for: to the socket, or, decrypted, to
    /// the session. With TLS, bytes of the socket may be its own business (a farewell, say), and
    /// count as an end.
    pub fn heard(&mut self) -> IdleHeard {
        let Some(tls) = self.tls.as_mut() else { return self.socket.heard() };
        match tls.session.reader().into_first_chunk() {
            Ok(bytes) if !bytes.is_empty() => IdleHeard::Bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.socket.heard() {
                IdleHeard::Nothing => IdleHeard::Nothing,
                _ => IdleHeard::End,
            },
            _ => IdleHeard::End,
        }
    }
}

impl Tls {
    fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        let n = self.session.read_tls(&mut Wire(socket))?;
        self.session.process_new_packets().map_err(io::Error::other)?;
        Ok(n)
    }

    fn try_recv(&mut self, socket: &Socket, into: &mut Vec<u8>) -> io::Result<usize> {
        let (len, capacity) = (into.len(), into.capacity());
        into.resize(capacity, 0);
        let spare = into.get_mut(len..).unwrap_or_default();
        let got = loop {
            match self.session.reader().read(spare) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => break other,
            }
            match self.fill(socket) {
                Ok(_) => {}
                Err(e) => break Err(e),
            }
        };
        self.maybe_buffered = got.is_ok();
        into.truncate(len + got.as_ref().copied().unwrap_or(0));
        got
    }

    fn try_send(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let taken = self.session.writer().write_vectored(slices)?;
        while self.session.wants_write() {
            match self.session.write_tls(&mut Wire(socket)) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && taken > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(taken)
    }
}

/// The socket as rustls wants it.
pub(super) struct Wire<'a>(pub(super) &'a Socket);

impl Read for Wire<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_send(&[IoSlice::new(bytes)])
    }
    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_send(slices)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
