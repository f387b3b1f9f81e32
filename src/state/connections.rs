//! How many clients there are, over all workers, and how many answers are read on though theirs
//! have left. A record that only waits for its packed answer to be unpacked is neither: it holds no
//! connection. The limits are for the process: the kernel does not spread connections evenly.

use crate::base::limits::{CONNECTIONS_OVER_MAX, GUESTS_MAX};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The count and its limit.
#[derive(Debug)]
pub struct Connections {
    now: AtomicUsize,
    max: AtomicUsize,
    /// There is never room for more.
    fit: usize,
    drains: AtomicUsize,
}

/// A quarter as many answers as there may be clients are read on for clients that have left.
const DRAINS_SHARE: usize = 4;

impl Connections {
    /// None yet, of at most `max`.
    pub fn new(max: usize) -> Connections {
        let count = AtomicUsize::new;
        Connections { now: count(0), max: count(max), fit: max, drains: count(0) }
    }

    /// From now on at most as many as asked for, and never more than it was made for. Those that
    /// are there stay. Gives how many that is.
    pub fn limit(&self, asked: Option<usize>) -> usize {
        let max = asked.unwrap_or(self.fit).min(self.fit);
        self.max.store(max, Relaxed);
        max
    }

    fn max(&self) -> usize {
        self.max.load(Relaxed)
    }

    /// True while another one may come. Workers that ask at the same moment may overshoot by one
    /// each; descriptors are reserved for more than that.
    pub fn have_room(&self) -> bool {
        self.now.load(Relaxed) < self.max()
    }

    /// True while one more may come if another one gives way: that one is told to close, and may
    /// still be counted for a moment.
    pub fn have_room_by_turns(&self) -> bool {
        self.now.load(Relaxed) < self.max() + CONNECTIONS_OVER_MAX
    }

    /// True while one more may come, if only to ask how we are.
    pub fn have_room_for_guests(&self) -> bool {
        self.now.load(Relaxed) < self.max() + CONNECTIONS_OVER_MAX + GUESTS_MAX
    }

    /// True while one more may come for that, if another one gives way.
    pub fn have_room_for_guests_by_turns(&self) -> bool {
        self.now.load(Relaxed) < self.max() + 2 * CONNECTIONS_OVER_MAX + GUESTS_MAX
    }

    /// True when all that are here have room: a guest need not be one any more.
    pub fn all_have_room(&self) -> bool {
        self.now.load(Relaxed) <= self.max()
    }

    /// Nine tenths or more are in use: answers close their connections, and who is silent is closed
    /// soon.
    pub fn are_crowded(&self) -> bool {
        self.now.load(Relaxed) * 10 >= self.max() * 9
    }

    /// One came. The guard that calls this calls [`Connections::leave`].
    pub fn enter(&self) {
        self.now.fetch_add(1, Relaxed);
    }

    /// True while one more answer may be read on though its client has left.
    pub fn have_room_for_drain(&self) -> bool {
        self.drains.load(Relaxed) < (self.max() / DRAINS_SHARE).max(1)
    }

    /// One more is.
    pub fn enter_drain(&self) {
        self.drains.fetch_add(1, Relaxed);
    }

    /// One no more.
    pub fn leave_drain(&self) {
        self.drains.fetch_sub(1, Relaxed);
    }

    /// One left.
    pub fn leave(&self) {
        self.now.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_as_many_may_be_read_on() {
        let connections = Connections::new(20);
        (0..4).for_each(|_| connections.enter_drain());
        assert!(connections.have_room_for_drain());
        connections.enter_drain();
        assert!(!connections.have_room_for_drain() && connections.have_room());
        connections.leave_drain();
        assert!(connections.have_room_for_drain() && Connections::new(1).have_room_for_drain());
    }

    #[test]
    fn the_limit_may_change_while_they_are_there() {
        let connections = Connections::new(3);
        (0..2).for_each(|_| connections.enter());
        assert!(connections.limit(Some(1)) == 1 && !connections.all_have_room());
        assert!(connections.limit(Some(9)) == 3 && connections.have_room());
        assert!(connections.limit(Some(2)) == 2 && !connections.have_room());
        assert!(connections.limit(None) == 3 && connections.have_room());
    }

    #[test]
    fn the_steps_are_where_they_are_said_to_be() {
        let connections = Connections::new(20);
        let steps = |n| (0..n).for_each(|_| connections.enter());
        steps(17);
        assert!(!connections.are_crowded());
        steps(1);
        assert!(connections.are_crowded() && connections.have_room());
        steps(2);
        assert!(!connections.have_room() && connections.have_room_by_turns());
        assert!(connections.all_have_room());
        steps(CONNECTIONS_OVER_MAX - 1);
        assert!(connections.have_room_by_turns() && !connections.all_have_room());
        steps(1);
        assert!(!connections.have_room_by_turns());
        connections.leave();
        assert!(connections.have_room_by_turns());
        steps(GUESTS_MAX);
        assert!(connections.have_room_for_guests() && !connections.have_room_by_turns());
        steps(1);
        assert!(!connections.have_room_for_guests());
        steps(CONNECTIONS_OVER_MAX - 1);
        assert!(connections.have_room_for_guests_by_turns());
        steps(1);
        assert!(!connections.have_room_for_guests_by_turns());
    }
}
