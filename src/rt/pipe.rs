//! Bytes from one socket to another without a copy (splice(2)): the kernel hands the pages on.
//!
//! The ring's own splice runs in a kernel thread and costs more than copying; this one is made in
//! place and never waits, because both sockets and the pipe are non-blocking.

use super::socket::{retry, Socket};
use crate::base::limits::{PIPES_MAX, PIPE_BYTES};
use rustix::pipe::{fcntl_setpipe_size, pipe_with, splice, PipeFlags, SpliceFlags};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;

/// Pipes that a worker keeps. More than one is in use only while clients are slow.
const PIPES_IDLE_MAX: usize = 1;

thread_local! {
    static IDLE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static ON_LOAN: Cell<usize> = const { Cell::new(0) };
    static DENIED: Cell<u64> = const { Cell::new(0) };
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe on loan; goes back when it is dropped empty. With bytes in it, it is closed: they are
/// nobody else's.
pub struct Pipe {
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// A pipe, filled from `socket` with at most `most` bytes of what has arrived. `None` when
    /// there is nothing, or no pipe to be had: then they can still be read, and a socket that
    /// failed or ended will say so.
    pub fn fill(socket: &Socket, most: usize) -> Option<Pipe> {
        let Some(ends) = Ends::take() else {
            DENIED.set(DENIED.get() + 1);
            return None;
        };
        ON_LOAN.set(ON_LOAN.get() + 1);
        let mut pipe = Pipe { ends: Some(ends), held: 0 };
        let write = &pipe.ends.as_ref()?.write;
        pipe.held = retry(|| splice(socket, None, write, None, most, FLAGS)).unwrap_or(0);
        (pipe.held > 0).then_some(pipe)
    }

    /// Times that there was no pipe to be had, on this thread.
    pub fn denied() -> u64 {
        DENIED.get()
    }

    /// Bytes that are in it.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Gives `socket` what it takes now. `WouldBlock`: nothing. (splice(2) has no flag against
    /// SIGPIPE: that Rust's start-up ignores the signal is what makes a reset an error here.)
    pub fn empty(&mut self, socket: &Socket) -> io::Result<()> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let taken = retry(|| splice(&ends.read, None, socket, None, self.held, FLAGS))?;
        if taken == 0 {
            // Unheard of, and not to be turned into a loop without a wait.
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held = self.held.saturating_sub(taken);
        Ok(())
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Ends {
    /// An idle pipe or a new one; `None` when enough are on loan, or descriptors have run out.
    fn take() -> Option<Ends> {
        if ON_LOAN.get() == PIPES_MAX {
            return None;
        }
        IDLE.with_borrow_mut(Vec::pop).or_else(|| Ends::new().ok())
    }

    fn new() -> io::Result<Ends> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused when the user has many pipes: a small one serves.
        let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
        Ok(Ends { read, write })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        ON_LOAN.set(ON_LOAN.get().saturating_sub(1));
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else { return };
        IDLE.with_borrow_mut(|idle| {
            if idle.len() < PIPES_IDLE_MAX {
                idle.push(ends);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::ring::Ring;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// Runs on a ring: a socket of ours and its other end.
    fn with_pair(test: impl FnOnce(Socket, UnixStream)) {
        Ring::build().unwrap().block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            test(Socket::from_fd(ours.into()).unwrap(), theirs);
        });
    }

    fn idle() -> usize {
        IDLE.with_borrow(Vec::len)
    }

    #[test]
    fn bytes_pass_in_order_and_the_pipe_comes_back() {
        with_pair(|socket, mut peer| {
            assert!(Pipe::fill(&socket, 10).is_none(), "nothing is there");
            assert_eq!((idle(), ON_LOAN.get()), (1, 0));
            peer.write_all(b"0123456789abc").unwrap();
            let mut pipe = Pipe::fill(&socket, 10).unwrap();
            assert_eq!((pipe.held(), ON_LOAN.get()), (10, 1));
            pipe.empty(&socket).unwrap();
            assert_eq!(pipe.held(), 0);
            drop(pipe);
            assert_eq!((idle(), ON_LOAN.get()), (1, 0));
            let mut got = [0; 20];
            assert_eq!(peer.read(&mut got).unwrap(), 10);
            assert_eq!(&got[..10], b"0123456789");
            // What was beyond is still to be read.
            let mut rest = Vec::with_capacity(20);
            socket.try_recv(&mut rest).unwrap();
            assert_eq!(rest, b"abc");
        });
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_never_lent_again() {
        with_pair(|socket, mut peer| {
            peer.write_all(b"of one client").unwrap();
            drop(Pipe::fill(&socket, 100).unwrap());
            assert_eq!((idle(), ON_LOAN.get()), (0, 0));
            peer.write_all(b"of another").unwrap();
            let mut pipe = Pipe::fill(&socket, 100).unwrap();
            pipe.empty(&socket).unwrap();
            let mut got = [0; 100];
            let n = peer.read(&mut got).unwrap();
            assert_eq!(&got[..n], b"of another");
        });
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        with_pair(|socket, mut peer| {
            peer.write_all(b"too late").unwrap();
            let mut pipe = Pipe::fill(&socket, 100).unwrap();
            drop(peer);
            assert_eq!(pipe.empty(&socket).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn pipes_are_few() {
        with_pair(|socket, mut peer| {
            let one = || {
                (&peer).write_all(b"x").unwrap();
                Pipe::fill(&socket, 1)
            };
            let held: Vec<_> = (0..PIPES_MAX).map(|_| one().unwrap()).collect();
            assert!(one().is_none());
            assert_eq!(Pipe::denied(), 1);
            drop(held);
            assert!(Pipe::fill(&socket, 1).is_some());
            assert_eq!(ON_LOAN.get(), 0);
            // An end is for a read to find.
            peer.flush().unwrap();
            drop(peer);
            assert!(Pipe::fill(&socket, 1).is_none());
        });
    }
}
