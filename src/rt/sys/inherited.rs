//! Descriptors that whoever started this process left open for it. Needs `/proc`.

#![allow(unsafe_code, reason = "the one room for it: all that is known of them is their numbers")]

use rustix::io::{fcntl_getfd, fcntl_setfd, FdFlags};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
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
    // Asked by its name, which may be asked for whether or not it is open. A number may not.
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: it is open, as was seen just now, and stays open: this process has opened nothing
    // yet that could be closed. Nobody else in it knows of the descriptor: it was opened before the
    // process began, for whoever calls this, which happens once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    let flags = fcntl_getfd(&descriptor).ok()?;
    fcntl_setfd(&descriptor, flags | FdFlags::CLOEXEC).ok()?;
    Some(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    /// Catches: a number that nobody opened and is taken for a descriptor, one that is open and is
    /// left out, and one that programs which we start inherit.
    #[test]
    fn only_what_is_open_is_taken() {
        let (reader, writer) = std::io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        fcntl_setfd(&writer, FdFlags::empty()).unwrap();
        let taken = take(writer.into_raw_fd()).unwrap();
        assert!(fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
        drop(taken);
        // It was the only one, and is closed: whoever reads finds the end.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
        assert!(take(RawFd::MAX).is_none() && take(-1).is_none());
    }
}
