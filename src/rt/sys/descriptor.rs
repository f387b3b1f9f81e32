//! The descriptors of monoio's sockets, whose types predate `AsFd`.

#![allow(unsafe_code, reason = "the one room for it: monoio gives a bare number")]

use monoio::net::{TcpListener, UnixStream};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A socket of monoio's, which owns its descriptor and closes it when it is dropped. Not for any
/// `AsRawFd`: a number is one too, and owns nothing.
pub(in crate::rt) trait Owner: AsRawFd {}

impl Owner for UnixStream {}
impl Owner for TcpListener {}

/// The descriptor of a socket, for as long as that is borrowed.
pub(in crate::rt) fn of(owner: &impl Owner) -> BorrowedFd<'_> {
    // SAFETY: an owner keeps its descriptor open until it is dropped, and the result cannot outlive
    // the borrow of it.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}
