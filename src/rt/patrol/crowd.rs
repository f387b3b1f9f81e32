//! Who gives way when bytes or nearly all connections are taken: clients of whose request nothing,
//! or only a part of the head, has come, after a second; and, for each new client beyond the limit,
//! the one whose next request, or its head, is waited for longest.

use super::line::Line;
use super::{Patrol, State, TICK};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// While it is crowded, a client has so long for its first byte, and so long for a head.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_TICKS: u32 = (PATIENCE.as_millis() / TICK.as_millis()) as u32;

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not sent a byte yet.
    Silent,
    /// It idles between two requests.
    Idle,
    /// A part of a head has come.
    Head,
    /// A part of a body has come.
    Body,
    /// Its request is being answered.
    Busy,
    /// It gets its last answer, and closes. What it still sends is dropped.
    Last,
}

/// What of a request has begun to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its head.
    Head,
    /// Its body.
    Body,
}

impl Stage {
    /// True when nothing is lost if the connection closes.
    pub(super) fn is_idle(self) -> bool {
        matches!(self, Stage::Silent | Stage::Idle)
    }

    /// True when it may have to make room for a new client.
    pub(super) fn gives_way(self) -> bool {
        matches!(self, Stage::Silent | Stage::Idle | Stage::Head)
    }
}

/// What the patrol knows of a crowd.
#[derive(Default)]
pub(super) struct Crowd {
    is_crowded: Cell<bool>,
    /// Posts that were closed to make room: silent ones, idle ones, those with half a head.
    closed: [Cell<u64>; 3],
    /// Posts that give way, by their slots, in the order in which they came to it.
    pub(super) waiting: RefCell<Line>,
}

impl Crowd {
    fn count(&self, stage: Stage) {
        let kind = match stage {
            Stage::Silent => 0,
            Stage::Idle => 1,
            Stage::Head | Stage::Body | Stage::Busy | Stage::Last => 2,
        };
        self.closed[kind].set(self.closed[kind].get() + 1);
    }
}

impl Patrol {
    /// Says whether bytes or connections are scarce, until it is said anew.
    pub fn set_crowded(&self, is_crowded: bool) {
        self.crowd.is_crowded.set(is_crowded);
    }

    /// What was last said of that.
    pub fn is_crowded(&self) -> bool {
        self.crowd.is_crowded.get()
    }

    /// Posts that were closed to make room: silent ones, idle ones, those with half a head.
    pub fn crowded_closed(&self) -> [u64; 3] {
        self.crowd.closed.each_ref().map(Cell::get)
    }

    /// Ends the connection whose request, or the rest of its head, is waited for longest; false
    /// when there is none. What comes over it at the same moment is still served.
    pub fn end_longest_waiting(&self) -> bool {
        let mut waiting = self.crowd.waiting.borrow_mut();
        let Some(slot) = waiting.first() else { return false };
        waiting.leave(slot);
        if let Some(Some(post)) = self.posts.borrow().slots.get(slot) {
            match post.stage.get().is_idle() {
                true => post.ended.set(true),
                false => post.expired.set(true),
            }
            self.crowd.count(post.stage.get());
            post.rouse();
        }
        true
    }

    /// True, and counted, when a post has been silent, or has had half a head, for too long.
    pub(super) fn is_too_late(&self, post: &State, now: u32) -> bool {
        let stage = post.stage.get();
        let is_too = self.crowd.is_crowded.get()
            && matches!(stage, Stage::Silent | Stage::Head)
            && now.saturating_sub(post.since.get()) > PATIENCE_TICKS;
        if is_too {
            self.crowd.count(stage);
        }
        is_too
    }
}

#[cfg(test)]
mod tests {
    use super::super::Gone;
    use super::*;
    use crate::rt::socket::Socket;
    use std::os::unix::net::UnixStream;

    /// Catches: whoever asks how we are, when all is taken, ended by the next client that comes.
    #[test]
    fn a_guest_gives_way_to_nobody() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        runtime.block_on(async {
            let patrol = Patrol::start().unwrap();
            let watched = || {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let socket = Socket::from_fd(ours.into()).unwrap();
                (patrol.watch(socket, Gone::AtFin).unwrap(), theirs)
            };
            let (guest, client) = (watched(), watched());
            guest.0.set_guest();
            guest.0.set_receiving(Part::Head);
            assert!(patrol.end_longest_waiting(), "the client waits");
            assert!(!patrol.end_longest_waiting(), "the guest does not");
            drop((guest, client));
        });
    }
}
