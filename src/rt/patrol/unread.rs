//! A client that sends much behind its request, and leaves, is not heard: what is not read fills
//! the kernel's buffer, and the FIN waits behind it at the client. So one that has sent so much
//! while its request is answered counts as gone. Nobody pipelines as much in earnest.
//!
//! With TLS a client may also say that it is gone, and leave its connection open; that is read in
//! the same round.

use super::crowd::Stage;
use super::{Gone, Patrol};
use crate::base::limits::PIPELINED_UNREAD_BYTES_MAX;
use std::cell::Cell;

/// Connections that one sweep looks at: each is a system call. Of ten thousand, each is looked at
/// every 16 seconds.
const LOOKS_PER_SWEEP: usize = 64;

/// Where the round stands.
#[derive(Default)]
pub(super) struct Round {
    next: Cell<usize>,
    found: Cell<u64>,
}

impl Patrol {
    /// Clients that counted as gone for what they sent behind their requests.
    pub fn pipelined_too_much(&self) -> u64 {
        self.unread.found.get()
    }

    /// Looks at a few of those whose requests are being answered.
    pub(super) fn look_for_unread(&self) {
        let posts = self.posts.borrow();
        for _ in 0..posts.slots.len().min(LOOKS_PER_SWEEP) {
            let at = self.unread.next.get() % posts.slots.len();
            self.unread.next.set(at + 1);
            let Some(Some(post)) = posts.slots.get(at) else { continue };
            if post.stage.get() != Stage::Busy || post.gone.get() {
                continue;
            }
            // Bytes that came and were not read yet.
            let unread = rustix::io::ioctl_fionread(&post.socket).unwrap_or_default();
            if unread > PIPELINED_UNREAD_BYTES_MAX {
                self.unread.found.set(self.unread.found.get() + 1);
                post.gone.set(true);
                post.rouse();
                continue;
            }
            // Of who shuts its side and may still read it is no sign.
            let seal = post.seal.get().filter(|_| unread > 0 && post.gone_at == Gone::AtFin);
            if seal.is_some_and(|seal| seal.has_left(&post.socket)) {
                post.gone.set(true);
                post.rouse();
            }
        }
    }
}
