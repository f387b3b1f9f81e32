//! Descriptors that whoever started this process left open for it.

#![allow(unsafe_code, reason = "the one room for it: all that is known of them is their numbers")]

use rustix::io::{fcntl_getfd, fcntl_setfd, FdFlags};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first number behind the standard streams, from which on service managers put them.
const FIRST: RawFd = 3;

static ARE_TAKEN: AtomicBool = AtomicBool::new(false);

/// The open ones of so many from number 3 on. From now on a program that we start does not have
/// them. To be called before this process opens anything, and only where its environment says that
/// they are meant for it. A second call gives none.
pub fn from_third_on(count: usize) -> Vec<OwnedFd> {
    if ARE_TAKEN.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let last = FIRST.saturating_add(RawFd::try_from(count).unwrap_or(0));
    (FIRST..last).filter_map(take).collect()
}

fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the borrow ends with this call, which is told when the number means nothing.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).ok()?;
    // SAFETY: it is open, and nobody else in this process knows of it: it was opened before the
    // process began, for whoever calls this, which happens once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, flags | FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}
