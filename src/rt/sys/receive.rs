//! Receiving into a part of a vector's spare capacity, which need not be zeroed before.

#![allow(unsafe_code, reason = "the one room for it: bytes that the kernel wrote are counted in")]

use rustix::io::Errno;
use rustix::net::{recv, RecvFlags};
use std::os::fd::AsFd;

/// Appends what a socket has, at most `most` bytes and at most the vector's spare capacity, which
/// must not be empty. 0 is the end of the stream.
pub(in crate::rt) fn at_most(
    socket: impl AsFd,
    into: &mut Vec<u8>,
    most: usize,
    flags: RecvFlags,
) -> Result<usize, Errno> {
    let spare = into.spare_capacity_mut();
    let most = most.min(spare.len());
    let ((received, _), _) = recv(socket, spare.get_mut(..most).unwrap_or_default(), flags)?;
    let len = received.len();
    // SAFETY: `received` is the beginning of the spare capacity, so it lies within the capacity and
    // right behind what the vector has; the kernel has written all of it.
    unsafe { into.set_len(into.len() + len) };
    Ok(len)
}
