//! A connected stream socket (TCP or Unix) in readiness style.

use super::sys::{descriptor, receive};
use monoio::net::UnixStream;
use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::future::Future;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What came from a peer that was not asked for anything. Only `Nothing` leaves the connection
/// usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleHeard {
    /// It is quiet.
    Nothing,
    /// Bytes.
    Bytes,
    /// It closed, or the connection broke.
    End,
}

/// A connected, non-blocking, close-on-exec socket that is registered with the ring.
pub struct Socket {
    // Only readiness and ownership are used of it, so any stream socket may live in it. monoio's
    // `TcpStream` would do the same with 72 bytes more, for addresses that nobody asks it for.
    inner: UnixStream,
}

impl Socket {
    /// Takes over a descriptor made by us (`NONBLOCK` and `CLOEXEC` set).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Socket> {
        Ok(Socket { inner: UnixStream::from_std(fd.into())? })
    }

    /// Appends what has arrived to `into`, at most its spare capacity. `Ok(0)` is the end of the
    /// stream, `WouldBlock` means that nothing is there. Never waits.
    pub fn try_recv(&self, into: &mut Vec<u8>) -> io::Result<usize> {
        debug_assert!(into.capacity() > into.len(), "a full buffer reads as an end of stream");
        let (_, n) = retry(|| rustix::net::recv(self, spare_capacity(into), RecvFlags::DONTWAIT))?;
        Ok(n)
    }

    /// Like [`Socket::try_recv`], at most `most` bytes (not 0).
    pub fn try_recv_at_most(&self, into: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        debug_assert!(into.capacity() > into.len(), "a full buffer reads as an end of stream");
        retry(|| receive::at_most(self, into, most, RecvFlags::DONTWAIT))
    }

    /// Like [`Socket::try_recv`], into a slice.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let (_, n) = retry(|| rustix::net::recv(self, &mut *into, RecvFlags::DONTWAIT))?;
        Ok(n)
    }

    /// Sends as much of the slices as the kernel takes now. Never waits, never raises SIGPIPE.
    pub fn try_send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let [only] = slices {
            // No vector for the kernel to fetch: some 75 ns less (docs/performance.md).
            return retry(|| rustix::net::send(self, only, flags));
        }
        let mut none = SendAncillaryBuffer::default();
        retry(|| rustix::net::sendmsg(self, slices, &mut none, flags))
    }

    /// Waits until a read would return at once. May be dropped at any time.
    pub fn readable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.inner.readable(false)
    }

    /// Waits until a write would take at least one byte. May be dropped at any time.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.inner.writable(false)
    }

    /// What there is to be read, which stays.
    pub fn heard(&self) -> IdleHeard {
        let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
        match retry(|| rustix::net::recv(self, &mut [0u8; 1][..], flags).map(|(_, n)| n)) {
            Ok(n) if n > 0 => IdleHeard::Bytes,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => IdleHeard::Nothing,
            _ => IdleHeard::End,
        }
    }

    /// Ends both directions now, instead of when the last reference is dropped.
    pub fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // ENOTCONN: the peer was faster. There is nobody to tell.
        let _ = rustix::net::shutdown(self, how);
    }

    /// Makes the close a reset (RST), so that a peer whose body is delimited by the close cannot
    /// take a truncated body for a whole one.
    pub fn reset_on_close(&self) {
        let zero = Some(std::time::Duration::ZERO);
        let _ = socket2::SockRef::from(self).set_linger(zero);
    }

    /// The last error of an asynchronous connect.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        socket2::SockRef::from(self).take_error()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        descriptor::of(&self.inner)
    }
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
