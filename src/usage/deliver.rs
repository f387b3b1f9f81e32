//! From the outbox to every reporter, on threads that may block.
//!
//! One thread takes records out of the outbox and shares each among the reporters; one thread per
//! reporter delivers them in order. So a reporter that is slow or dead holds up its own queue and
//! nothing else, and when that is full it loses records alone, counted.

use super::counters::{count, ReporterCounters, UsageCounters};
use super::outbox::{Inbox, Kind, Queued, Spare};
use super::reporter::{self, Reporter, Shape, Tried};
use crate::base::limits::{REPORTER_RECORDS_MAX, REPORTER_WAIT_MS_MAX, REPORTER_WAIT_MS_MIN};
use crate::config::plan;
use crossbeam_channel::{Receiver, Sender};
use std::convert::Infallible;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The running threads.
pub struct Delivery {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    deadline: Arc<OnceLock<Instant>>,
    sharing: JoinHandle<()>,
    reporting: Vec<JoinHandle<u64>>,
}

impl Delivery {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread could not be created.
    pub fn start(inbox: Inbox, reporters: &[plan::Reporter]) -> io::Result<Self> {
        Self::start_with(inbox, reporters, REPORTER_RECORDS_MAX)
    }

    fn start_with(inbox: Inbox, plan: &[plan::Reporter], capacity: usize) -> io::Result<Self> {
        let (running, signal) = crossbeam_channel::bounded(0);
        let deadline = Arc::new(OnceLock::new());
        let mut queues = Vec::with_capacity(plan.len());
        let mut reporting = Vec::with_capacity(plan.len());
        for (index, reporter) in plan.iter().enumerate() {
            let (queue, records) = crossbeam_channel::bounded(capacity);
            queues.push(queue);
            let stop = Stop { signal: signal.clone(), deadline: deadline.clone() };
            let (shape, reporter) = (reporter::shape(reporter), reporter::open(reporter)?);
            let counters = inbox.counters.clone();
            let spare = inbox.spare.clone();
            let lane = Lane { index, shape, reporter, counters, stop, spare, failing: 0 };
            let run = move || lane.run(&records);
            reporting.push(thread::Builder::new().name(format!("usage-{index}")).spawn(run)?);
        }
        let share = move || share(&inbox, &queues, &signal);
        let sharing = thread::Builder::new().name("usage".to_owned()).spawn(share)?;
        Ok(Delivery { running, deadline, sharing, reporting })
    }

    /// Delivers what was offered until now, for at most `grace` (and the end of a try under way).
    /// Gives the number of deliveries that were left undone.
    pub fn stop(self, grace: Duration) -> u64 {
        let _ = self.deadline.set(Instant::now() + grace);
        drop(self.running);
        // A thread that panicked has nothing more to say; its records are in no counter.
        let _ = self.sharing.join();
        self.reporting.into_iter().map(|thread| thread.join().unwrap_or(0)).sum()
    }
}

/// A record that several reporters have. The last one that is done with it makes it a spare one.
struct Shared(Box<Queued>);

impl Shared {
    fn let_go(self: Arc<Self>, spare: &Spare) {
        if let Some(Shared(queued)) = Arc::into_inner(self) {
            queued.spare(spare);
        }
    }
}

/// Gives a record to every reporter that has room for it.
fn hand_out(queued: Box<Queued>, inbox: &Inbox, queues: &[Sender<Arc<Shared>>]) {
    let lanes = || queues.iter().zip(&inbox.counters.reporters);
    // A receiver that has been slow for long should cost no more than this look.
    if queues.iter().all(Sender::is_full) {
        lanes().for_each(|(_, counters)| count(&counters.dropped));
        return queued.spare(&inbox.spare);
    }
    let shared = Arc::new(Shared(queued));
    for (queue, counters) in lanes() {
        // Counted before it can be taken out, so that the figure never falls below zero.
        counters.queued.fetch_add(1, Relaxed);
        if queue.try_send(shared.clone()).is_err() {
            counters.queued.fetch_sub(1, Relaxed);
            count(&counters.dropped);
        }
    }
    shared.let_go(&inbox.spare);
}

/// Hands out records until stopped and the outbox is empty.
fn share(inbox: &Inbox, queues: &[Sender<Arc<Shared>>], stop: &Receiver<Infallible>) {
    let share = |queued: Box<Queued>| {
        if let Some(desk) = inbox.desks.get(queued.worker as usize) {
            desk.advance(queued.ticket);
        }
        match queued.kind {
            Kind::Close => hand_out(queued, inbox, queues),
            Kind::Open | Kind::Note => queued.spare(&inbox.spare),
        }
    };
    loop {
        crossbeam_channel::select! {
            recv(inbox.records) -> queued => match queued {
                Ok(queued) => share(queued),
                Err(_) => return,
            },
            recv(stop) -> _ => break,
        }
        inbox.records.try_iter().for_each(share);
    }
    inbox.records.try_iter().for_each(share);
}

/// One reporter's thread.
struct Lane {
    index: usize,
    shape: Shape,
    reporter: Box<dyn Reporter>,
    counters: Arc<UsageCounters>,
    stop: Stop,
    spare: Spare,
    /// Records given up since the last success: a dead receiver is logged twice, not per record.
    failing: u64,
}

impl Lane {
    /// Delivers in order until the queue has ended; gives how many records were left.
    fn run(mut self, records: &Receiver<Arc<Shared>>) -> u64 {
        let mut left = 0;
        let counters = self.counters.clone();
        let Some(counters) = counters.reporters.get(self.index) else { return 0 };
        for shared in records {
            // A panic costs the record that it came with, not all that follow.
            let tried = catch_unwind(AssertUnwindSafe(|| self.deliver(&shared.0, counters)));
            match tried.unwrap_or_else(|_| Some(Tried::Refused("the reporter panicked".into()))) {
                Some(Tried::Delivered) => self.delivered(counters),
                Some(Tried::Again(cause) | Tried::Failed(cause) | Tried::Refused(cause)) => {
                    self.failed(counters, &cause)
                }
                None => left += 1,
            }
            counters.queued.fetch_sub(1, Relaxed);
            shared.let_go(&self.spare);
        }
        left
    }

    /// Tries until it is delivered, refused or out of tries; `None` when time ran out first.
    fn deliver(&mut self, queued: &Queued, counters: &ReporterCounters) -> Option<Tried> {
        let Shape { retries, timeout, .. } = self.shape;
        let mut tries = 0;
        loop {
            let timeout = self.stop.within(timeout)?;
            let tried = self.reporter.send(&[&queued.record], timeout);
            if tries == retries || !matches!(tried, Tried::Again(_)) {
                return Some(tried);
            }
            self.stop.sleep(wait(tries));
            tries += 1;
            count(&counters.retried);
        }
    }

    fn delivered(&mut self, counters: &ReporterCounters) {
        count(&counters.delivered);
        if self.failing > 0 {
            let lost = self.failing;
            tracing::info!(reporter = counters.name, lost, "usage reports are delivered again");
            self.failing = 0;
        }
    }

    fn failed(&mut self, counters: &ReporterCounters, cause: &str) {
        count(&counters.failed);
        if self.failing == 0 {
            let (reporter, place) = (&counters.name, self.reporter.place());
            tracing::warn!(reporter, place, cause, "a usage report could not be delivered");
        }
        self.failing += 1;
    }
}

/// The wait after so many repeated tries: doubling, and anywhere between half and all of it, so
/// that many proxies do not hit a receiver that comes back at the same instant.
fn wait(tries: u32) -> Duration {
    let doubled = REPORTER_WAIT_MS_MIN.saturating_mul(1 << tries.min(16));
    let most = doubled.min(REPORTER_WAIT_MS_MAX);
    let random = u64::from(getrandom::u32().unwrap_or(u32::MAX));
    Duration::from_millis(most / 2 + (most / 2 * random) / u64::from(u32::MAX))
}

/// Whether, and until when, there is time.
struct Stop {
    /// Disconnected when the stop begins.
    signal: Receiver<Infallible>,
    /// Set before that.
    deadline: Arc<OnceLock<Instant>>,
}

impl Stop {
    /// `time`, or what is left of it before the deadline; `None` when that has passed.
    fn within(&self, time: Duration) -> Option<Duration> {
        let Some(deadline) = self.deadline.get() else { return Some(time) };
        let left = deadline.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| time.min(left))
    }

    /// Sleeps; the beginning of a stop wakes it, and the deadline bounds it.
    #[allow(
        clippy::disallowed_methods,
        reason = "the signal has come: only time is left to wait for"
    )]
    fn sleep(&self, time: Duration) {
        match self.deadline.get() {
            None => {
                let _ = self.signal.recv_timeout(time);
            }
            Some(_) => thread::sleep(self.within(time).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests;
