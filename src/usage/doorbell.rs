//! How the journal's thread is called. A blocking receive on a channel would do the same, but it
//! wakes its receiver while it holds a lock that this one needs first: where both share a
//! processor, each call cost two changes of thread more.

use std::sync::OnceLock;
use std::thread::{self, Thread};
use std::time::Instant;

/// Calls one thread. A call is kept until that thread waits next, so none is missed.
#[derive(Debug, Default)]
pub struct Doorbell {
    answers: OnceLock<Thread>,
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

    /// Waits for a call, or for this time; may also end early. Only on the thread that answers.
    pub fn wait(&self, until: Option<Instant>) {
        match until {
            None => thread::park(),
            Some(until) => thread::park_timeout(until.saturating_duration_since(Instant::now())),
        }
    }
}
