//! How the process ends: drain on the first signal, at once on the second.

use std::sync::atomic::{AtomicU8, Ordering};

/// The heartbeat of a worker that has ended: it stands still for good.
pub const HEARTBEAT_DONE: u64 = u64::MAX;

/// What the workers should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serve.
    Running,
    /// Accept nothing new, finish what runs, close what idles.
    Draining,
    /// End every connection now and settle it.
    Ending,
}

/// Shared by the main thread (which advances it) and the workers (which look at each sweep).
#[derive(Default)]
pub struct Stop {
    phase: AtomicU8,
}

impl Stop {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Ending,
        }
    }

    /// Moves on. Phases never go back.
    pub fn advance(&self, to: Phase) {
        self.phase.fetch_max(to as u8, Ordering::AcqRel);
    }
}
