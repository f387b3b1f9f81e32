//! How the process ends: not ready, drain, end. The first signal begins it, a second one ends the
//! process at once.

use super::pulse::Pulse;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What the workers should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Serve.
    Running,
    /// Serve as before, and say that we are not ready: whoever sends us clients should stop.
    Leaving,
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
    /// Who is called when the phase changes: a worker that sleeps does not look.
    called: Mutex<Vec<Arc<Pulse>>>,
}

impl Stop {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Leaving,
            2 => Phase::Draining,
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

    fn pulses(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Pulse>>> {
        // A list that is only ever pushed to is never half done.
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
