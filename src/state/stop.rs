//! How the process ends: not ready, drain, end. The first signal begins it, a second one ends the
//! process at once. A process in whose place another one serves ends too, and nobody notices.

use super::pulse::Pulse;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the workers should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serve.
    Running,
    /// Serve as before, and say that we are not ready: whoever sends us clients should stop.
    Leaving,
    /// Accept nothing new, which another process does, and serve those who are here: their next
    /// answer is their last one.
    Succeeded,
    /// Accept nothing new, finish what runs, close what idles.
    Draining,
    /// End every connection now and settle it.
    Ending,
}

/// Shared by the thread that hears signals (which advances it) and the workers (which look at each
/// sweep).
#[derive(Default)]
pub struct Stop {
    phase: AtomicU8,
    is_succeeded: AtomicBool,
    /// Who is called when the phase changes: a worker that sleeps does not look.
    called: Mutex<Vec<Arc<Pulse>>>,
}

impl Stop {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Leaving,
            2 => Phase::Succeeded,
            3 => Phase::Draining,
            _ => Phase::Ending,
        }
    }

    /// From now on each change of the phase calls this one.
    pub fn calls(&self, pulse: &Arc<Pulse>) {
        self.pulses().push(Arc::clone(pulse));
    }

    /// Moves on. Phases never go back.
    pub fn advance(&self, to: Phase) {
        self.phase.fetch_max(to as u8, Ordering::AcqRel);
        self.pulses().iter().for_each(|pulse| pulse.call());
    }

    /// Another process serves in our place from now on.
    pub fn succeed(&self) {
        self.is_succeeded.store(true, Ordering::Release);
        self.advance(Phase::Succeeded);
    }

    /// True from then on.
    pub fn is_succeeded(&self) -> bool {
        self.is_succeeded.load(Ordering::Acquire)
    }

    fn pulses(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pulse>>> {
        // A list that is only ever pushed to is never half done.
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
