//! Who gives way when bytes or nearly all connections are taken: clients of whose request nothing,
//! or only a part of the head, has come, after a second; and, when somebody else wants its place,
//! the one of its rank whose next request, or its head, is waited for longest.

use super::line::Line;
use super::{Patrol, State, TICK};
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// While it is crowded, a client has so long for its first byte, and so long for a head.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_TICKS: u32 = (PATIENCE.as_millis() / TICK.as_millis()) as u32;
/// Who came so few ticks ago gives way to nobody who only comes: of many that come at once the
/// first would be closed before anybody read what they sent.
const NEW_TICKS: u32 = 2;

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

/// What a connection is worth when connections are scarce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// It is one beyond the limit.
    Guest,
    /// It has had no request for an engine: it is silent, or asks how we are.
    Stranger,
    /// It has had one.
    Regular,
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
    /// Posts that give way, by their slots, in the order in which they came to it: a line for each
    /// rank.
    waiting: RefCell<[Line; 3]>,
}

impl Crowd {
    /// From now on this post gives way, after all of its rank that do.
    pub(super) fn join(&self, slot: usize, rank: Rank) {
        self.waiting.borrow_mut()[rank as usize].join(slot);
    }

    /// From now on it does not.
    pub(super) fn leave(&self, slot: usize, rank: Rank) {
        self.waiting.borrow_mut()[rank as usize].leave(slot);
    }

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

    /// Ends the connection of this rank whose request, or the rest of its head, is waited for
    /// longest; false when there is none. What comes over it at the same moment is still served.
    pub fn end_longest_waiting(&self, rank: Rank) -> bool {
        self.end_who_waited(rank, 0)
    }

    /// The same for a client that only comes: it ends none that is as new as itself.
    pub fn end_for_newcomer(&self, rank: Rank) -> bool {
        self.end_who_waited(rank, NEW_TICKS)
    }

    fn end_who_waited(&self, rank: Rank, ticks_min: u32) -> bool {
        let first = self.crowd.waiting.borrow()[rank as usize].first();
        let Some(slot) = first else { return false };
        if let Some(Some(post)) = self.posts.borrow().slots.get(slot) {
            if self.now().saturating_sub(post.since.get()) < ticks_min {
                return false;
            }
            match post.stage.get().is_idle() {
                true => post.ended.set(true),
                false => post.expired.set(true),
            }
            self.crowd.count(post.stage.get());
            post.rouse();
        }
        self.crowd.leave(slot, rank);
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

    /// Catches: a client that costs another one of a higher rank its connection; clients that
    /// come at once and end each other before they were heard; one that asks for an engine and ends
    /// a regular client where there is one that has not asked, however new.
    #[test]
    fn each_rank_gives_way_by_itself() {
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().build().unwrap();
        runtime.block_on(async {
            let patrol = Patrol::start().unwrap();
            let watched = |rank: Rank| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let socket = Socket::from_fd(ours.into()).unwrap();
                let post = patrol.watch(socket, Gone::AtFin).unwrap();
                post.set_busy();
                post.set_rank(rank);
                post.set_receiving(Part::Head);
                (post, theirs)
            };
            let posts = [Rank::Regular, Rank::Guest, Rank::Stranger, Rank::Stranger].map(watched);
            let ended = || posts.each_ref().map(|(post, _)| post.state.expired.get());
            for rank in [Rank::Stranger, Rank::Guest] {
                assert!(!patrol.end_for_newcomer(rank), "it has only come");
            }
            assert!(patrol.end_longest_waiting(Rank::Stranger), "it would be a regular else");
            assert_eq!(ended(), [false, false, true, false]);
            patrol.tick.set(NEW_TICKS);
            assert!(patrol.end_for_newcomer(Rank::Stranger));
            assert!(!patrol.end_for_newcomer(Rank::Stranger));
            assert_eq!(ended(), [false, false, true, true]);
            assert!(patrol.end_for_newcomer(Rank::Guest));
            assert_eq!(ended(), [false, true, true, true]);
            assert!(patrol.end_longest_waiting(Rank::Regular));
            assert!(!patrol.end_longest_waiting(Rank::Regular));
        });
    }
}
