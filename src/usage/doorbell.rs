//! How the journal's thread is called while it sleeps. A worker has to call only when the thread
//! says that it does: one look at a flag for each entry, and a system call for the first entry
//! after a pause.

use std::sync::atomic::{fence, AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::OnceLock;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Calls one thread. A call is kept until that thread waits next, so none is missed.
#[derive(Debug, Default)]
pub struct Doorbell {
    answers: OnceLock<Thread>,
    /// The thread sleeps, or is about to.
    is_asleep: AtomicBool,
}

impl Doorbell {
    /// From now on it is this thread that is called.
    pub fn answer(&self) {
        self.answered_by(&thread::current());
    }

    /// The same, of another thread that answers.
    pub fn answered_by(&self, thread: &Thread) {
        let _ = self.answers.set(thread.clone());
    }

    /// Calls. Who calls first makes what it calls for visible; a call before anybody answers is
    /// none, since a thread that begins looks at everything.
    pub fn ring(&self) {
        if let Some(thread) = self.answers.get() {
            thread.unpark();
        }
    }

    /// The same, where a thread that does not sleep will look by itself.
    pub fn ring_if_asleep(&self) {
        // Either this sees that it sleeps, or it sees what it was called for: see `sleep`.
        fence(SeqCst);
        if self.is_asleep.load(Relaxed) && self.is_asleep.swap(false, Relaxed) {
            self.ring();
        }
    }

    /// Sleeps until somebody calls, or until this time, unless `has_work` says that there is
    /// something already. Only on the thread that answers.
    pub fn sleep(&self, until: Option<Instant>, has_work: impl FnOnce() -> bool) {
        self.is_asleep.store(true, Relaxed);
        fence(SeqCst);
        if !has_work() {
            match until {
                None => thread::park(),
                Some(until) => self.pause(until.saturating_duration_since(Instant::now())),
            }
        }
        self.is_asleep.store(false, Relaxed);
    }

    /// Waits so long, or until [`Doorbell::ring`] is called. Only on the thread that answers.
    pub fn pause(&self, time: Duration) {
        thread::park_timeout(time);
    }
}
