//! How many clients there are, over all workers. The limit is one for the process: the kernel does
//! not spread connections evenly.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The count and its limit.
#[derive(Debug)]
pub struct Connections {
    now: AtomicUsize,
    max: usize,
}

impl Connections {
    /// None yet, of at most `max`.
    pub fn new(max: usize) -> Connections {
        Connections { now: AtomicUsize::new(0), max }
    }

    /// True while another one may come. Workers that ask at the same moment may overshoot by one
    /// each; descriptors are reserved for more than that.
    pub fn have_room(&self) -> bool {
        self.now.load(Relaxed) < self.max
    }

    /// More than nine tenths are in use: answers close their connections.
    pub fn are_crowded(&self) -> bool {
        self.now.load(Relaxed) * 10 > self.max * 9
    }

    /// One came. The guard that calls this calls [`Connections::leave`].
    pub fn enter(&self) {
        self.now.fetch_add(1, Relaxed);
    }

    /// One left.
    pub fn leave(&self) {
        self.now.fetch_sub(1, Relaxed);
    }
}
