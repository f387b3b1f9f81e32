//! From the sources of records to the reporters, on threads that may block: a lane each.
//!
//! *Takes:* a [`Source`](super::source::Source) per reporter. *Gives:* each record to its reporter
//! at least once, or to the dead letters; counters of what became of them. *Runs on:* threads of
//! its own, one per lane and one per further connection. *May:* block. *Never:* lets one reporter
//! hold up another, or one record all.
//!
//! [`window`] decides what is sent next and is pure; [`lane`] is the thread around it.

pub mod backoff;
pub mod window;
pub mod lane;
pub mod sender;
mod first_look;

use super::counters::UsageCounters;
use super::source::Source;
use crate::base::limits::{REPORTER_WAIT_MS_MAX, REPORTER_WAIT_MS_MIN};
use crate::config::plan::Reporter;
use backoff::Waits;
use crossbeam_channel::{Receiver, Sender};
use lane::{Lane, LaneStop};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const WAITS: Waits = Waits {
    least: Duration::from_millis(REPORTER_WAIT_MS_MIN),
    most: Duration::from_millis(REPORTER_WAIT_MS_MAX),
};

/// The running lanes.
pub struct Lanes {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    /// Disconnected then.
    stopped: Receiver<Infallible>,
    deadline: Arc<OnceLock<Instant>>,
    lanes: Vec<JoinHandle<u64>>,
}

impl Lanes {
    /// Starts a lane for each reporter, with the source of the same place.
    ///
    /// # Errors
    /// A thread could not be created, or a reporter not be made.
    pub fn start(
        sources: Vec<Box<dyn Source>>,
        reporters: &[Reporter],
        counters: &Arc<UsageCounters>,
    ) -> io::Result<Self> {
        let lanes = Self::start_with(sources, reporters, counters, WAITS)?;
        for (index, reporter) in reporters.iter().enumerate() {
            first_look::start(reporter, (counters.clone(), index), lanes.stopped.clone())?;
        }
        Ok(lanes)
    }

    fn start_with(
        sources: Vec<Box<dyn Source>>,
        reporters: &[Reporter],
        counters: &Arc<UsageCounters>,
        waits: Waits,
    ) -> io::Result<Self> {
        let (running, signal) = crossbeam_channel::bounded(0);
        let deadline = Arc::new(OnceLock::new());
        let mut lanes = Vec::with_capacity(reporters.len());
        for (index, (source, reporter)) in sources.into_iter().zip(reporters).enumerate() {
            let stop = LaneStop { signal: signal.clone(), deadline: deadline.clone() };
            let counters = (counters.clone(), index);
            let lane = Lane::new(source, reporter, counters, waits, stop)?;
            let name = format!("usage-{index}");
            lanes.push(thread::Builder::new().name(name).spawn(move || lane.run())?);
        }
        Ok(Lanes { running, stopped: signal, deadline, lanes })
    }

    /// Delivers what the sources have now, for at most `grace` (and the end of a try under way).
    /// Gives the number of records that were read and not delivered; their sources still have them.
    pub fn stop(self, grace: Duration) -> u64 {
        let _ = self.deadline.set(Instant::now() + grace);
        drop(self.running);
        // A thread that panicked has nothing more to say.
        self.lanes.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    }
}

#[cfg(test)]
mod tests;
