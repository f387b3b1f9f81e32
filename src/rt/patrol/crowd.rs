//! Who gives way when nearly all connections are taken: those that have sent nothing yet, after a
//! second; and, for each new client beyond the limit, the one that idles longest between requests.

use super::line::Line;
use super::{Patrol, State, TICK};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// A client that has not sent a byte is closed after so long while connections are scarce.
const SILENCE_MAX: Duration = Duration::from_secs(1);
const SILENCE_TICKS: u32 = (SILENCE_MAX.as_millis() / TICK.as_millis()) as u32;

/// What the patrol knows of a crowd.
#[derive(Default)]
pub(super) struct Crowd {
    is_crowded: Cell<bool>,
    silent_closed: Cell<u64>,
    /// Posts that idle between two requests, by their slots.
    pub(super) idle: RefCell<Line>,
}

impl Patrol {
    /// Says whether connections are scarce, until it is said anew.
    pub fn set_crowded(&self, is_crowded: bool) {
        self.crowd.is_crowded.set(is_crowded);
    }

    /// Posts that were closed for their silence while connections were scarce.
    pub fn silent_closed(&self) -> u64 {
        self.crowd.silent_closed.get()
    }

    /// Ends the connection that has idled longest between two requests; false when none does. If a
    /// request comes over it at the same moment, that is still served.
    pub fn end_longest_idle(&self) -> bool {
        let mut idle = self.crowd.idle.borrow_mut();
        let Some(slot) = idle.first() else { return false };
        idle.leave(slot);
        if let Some(Some(post)) = self.posts.borrow().slots.get(slot) {
            post.ended.set(true);
            post.rouse();
        }
        true
    }

    /// True, and counted, when a post has been silent for too long.
    pub(super) fn is_too_silent(&self, post: &State, now: u32) -> bool {
        let is_too = self.crowd.is_crowded.get()
            && post.silent.get()
            && now.saturating_sub(post.since) > SILENCE_TICKS;
        self.crowd.silent_closed.set(self.crowd.silent_closed.get() + u64::from(is_too));
        is_too
    }
}
