//! The thread of one reporter: reads ahead from its source, sends what the window says, and tells
//! the source what is done with. It never looks whether something has happened: it sleeps until a
//! bell, a result, a stop or a time that the window named.

mod straight;

use super::backoff::Waits;
use super::sender::{Ended, Hand, Senders};
use super::window::{BatchOutcome, Given, Window};
use crate::config::plan::{self, KeyForm};
use crate::usage::counters::{count, ReporterCounters, UsageCounters};
use crate::usage::record::UsageRecord;
use crate::usage::reporter::{self, Tried};
use crate::usage::source::Source;
use crossbeam_channel::{at, never, select, Receiver};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use straight::{Road, Rooms};

/// A source that could not be read does not ring when it can be, nor does `spool replay`: it is
/// looked at again so often.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// And a lane that holds records looks at them again so often, whatever it waits for.
const LOOK_SOON: Duration = Duration::from_secs(1);

/// Buried records are told of so often at most.
const BURIALS_TOLD_EVERY: Duration = Duration::from_secs(60);
/// That a lane stands still is told so often.
const STOP_TOLD_EVERY: Duration = Duration::from_secs(60);

/// One reporter's thread.
pub struct Lane {
    source: Box<dyn Source>,
    window: Window,
    senders: Senders,
    road: Road,
    rooms: Rooms,
    /// Records of one batch at most.
    batch: usize,
    timeout: Duration,
    /// To wake this thread and to send a batch costs more than a record does: after a bell it
    /// sleeps for so long through what comes next, and takes it at once.
    gather: Duration,
    /// The form of keys that the reporter gets.
    key_form: KeyForm,
    counters: (Arc<UsageCounters>, usize),
    stop: LaneStop,
    /// The source may have more now.
    more: bool,
    /// The bell is not listened to before.
    quiet_until: Instant,
    /// The bell was thrown away: nothing more will come.
    silent: bool,
    stopping: bool,
    /// What the source was told.
    done: u64,
    /// Records that were given up and that the dead letters do not take: their file is full, or
    /// the disk. Until they do, nothing is sent.
    unburied: VecDeque<(Given, String)>,
    /// The dead letters took one not, and are not asked again before.
    bury_at: Instant,
    log: Log,
}

/// When a stop begins, and until when there is time.
pub struct LaneStop {
    /// Disconnected when it begins.
    pub signal: Receiver<Infallible>,
    /// Set before that.
    pub deadline: Arc<OnceLock<Instant>>,
}

impl LaneStop {
    /// `time`, or what is left of it before the deadline; `None` when that has passed.
    fn within(&self, time: Duration) -> Option<Duration> {
        let Some(deadline) = self.deadline.get() else { return Some(time) };
        let left = deadline.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| time.min(left))
    }
}

impl Lane {
    /// Makes a lane ready, its senders included.
    ///
    /// # Errors
    /// A thread could not be created, or the reporter not be made.
    pub fn new(
        source: Box<dyn Source>,
        plan: &plan::Reporter,
        counters: (Arc<UsageCounters>, usize),
        waits: Waits,
        stop: LaneStop,
    ) -> io::Result<Lane> {
        let shape = reporter::shape(plan);
        let seed = getrandom::u64().unwrap_or_default();
        Ok(Lane {
            source,
            window: Window::new(shape, waits, seed),
            senders: Senders::start(plan, shape.concurrency)?,
            road: Road::of(&shape),
            rooms: Rooms::default(),
            batch: shape.batch.max(1),
            timeout: shape.timeout,
            gather: shape.gather,
            key_form: plan.api_key,
            counters,
            stop,
            more: true,
            quiet_until: Instant::now(),
            silent: false,
            stopping: false,
            done: 0,
            unburied: VecDeque::new(),
            bury_at: Instant::now(),
            log: Log::new(plan.name.clone(), Hand::place(plan)?),
        })
    }

    /// Delivers until stopped; gives how many records were read and not delivered.
    pub fn run(mut self) -> u64 {
        loop {
            self.read();
            self.bury();
            self.send();
            if self.is_over() {
                break;
            }
            self.wait();
        }
        self.senders.finish();
        (self.window.unfinished() + self.unburied.len()) as u64
    }

    fn send(&mut self) {
        while self.unburied.is_empty() {
            let Some(limit) = self.stop.within(self.timeout) else { return };
            let Some(batch) = self.window.next(Instant::now()) else { return };
            self.counted(|counters| {
                count(&counters.batches);
                counters.retried.fetch_add(batch.retried, Relaxed);
            });
            if let Some(ended) = self.senders.send(batch, limit) {
                self.settle(ended);
            }
        }
    }

    fn settle(&mut self, Ended { id, tried }: Ended) {
        let (outcome, cause) = match tried {
            Tried::Delivered => (BatchOutcome::Delivered, None),
            Tried::Again(cause) => (BatchOutcome::Again(None), Some(cause)),
            Tried::Later(cause, wait) => (BatchOutcome::Again(Some(wait)), Some(cause)),
            Tried::Failed(cause) => (BatchOutcome::Failed, Some(cause)),
            Tried::Refused(cause) => (BatchOutcome::Refused, Some(cause)),
        };
        let settled = self.window.settle(id, outcome, Instant::now());
        self.note(settled.delivered, cause.as_deref());
        if let Some(given) = settled.buried {
            self.unburied.push_back((given, cause.unwrap_or_default()));
            self.bury();
        }
        self.tell_done();
    }

    /// Counts and tells what came of a batch: so many records were delivered, or why none was.
    fn note(&mut self, delivered: u64, cause: Option<&str>) {
        let is_down = self.window.is_down();
        self.counted(|counters| {
            counters.delivered.fetch_add(delivered, Relaxed);
            counters.failed.fetch_add(u64::from(cause.is_some()), Relaxed);
            counters.down.store(is_down, Relaxed);
        });
        self.log.receiver(is_down, cause.unwrap_or_default(), Instant::now());
    }

    /// Makes dead letters of what was given up, as far as they take it.
    fn bury(&mut self) {
        let now = Instant::now();
        while let Some((given, cause)) = self.unburied.front().filter(|_| now >= self.bury_at) {
            if let Err(error) = self.source.bury(&given.record, cause) {
                self.log.stopped(&error, now);
                self.bury_at = now + LOOK_SOON;
            } else {
                self.log.buried(&given.record, cause, now);
                self.unburied.pop_front();
                self.counted(|counters| count(&counters.buried));
                self.tell_done();
            }
            let waiting = self.unburied.len() as u64;
            self.counted(|counters| counters.unburied.store(waiting, Relaxed));
        }
    }

    /// Tells the source how far all is finished.
    fn tell_done(&mut self) {
        let unburied = self.unburied.iter().map(|(given, _)| given.seq.saturating_sub(1));
        let done = unburied.fold(self.window.finished(), u64::min);
        if done > self.done {
            self.done = done;
            self.source.done(done);
        }
    }

    /// True when a stop has nothing more to wait for.
    fn is_over(&self) -> bool {
        let in_flight = self.window.in_flight() > 0;
        if !self.stopping || in_flight {
            return false;
        }
        if !self.unburied.is_empty() {
            return true;
        }
        let Some(deadline) = self.stop.deadline.get() else { return true };
        let wake = self.window.wake(Instant::now());
        Instant::now() >= *deadline || wake.is_none_or(|wake| wake >= *deadline)
    }

    fn wait(&mut self) {
        // What was sent has made room for what is known to be there: nothing would ring for that.
        if self.more && self.window.room() > 0 {
            return;
        }
        let now = Instant::now();
        let wants_bell = !self.more && !self.silent;
        let quiet = wants_bell && now < self.quiet_until;
        let bell = if wants_bell && !quiet { self.source.bell().clone() } else { never() };
        let stop = if self.stopping { never() } else { self.stop.signal.clone() };
        let ended = self.senders.ended();
        // Also while it holds records: a time to send that has just passed would ring for nobody.
        let is_idle = self.window.unfinished() == 0 && self.unburied.is_empty();
        let look = Some(now + if is_idle { LOOK_AGAIN } else { LOOK_SOON });
        let wake = if self.unburied.is_empty() { self.window.wake(now) } else { None };
        let times = [wake, quiet.then_some(self.quiet_until), look];
        let time = times.into_iter().flatten().min().map_or_else(never, at);
        select! {
            recv(ended) -> ended => {
                if let Ok(ended) = ended {
                    self.settle(ended);
                }
            }
            recv(bell) -> rung => {
                self.more = true;
                self.silent = rung.is_err();
                self.quiet_until = Instant::now() + self.gather;
            }
            recv(stop) -> _ => {
                self.stopping = true;
                self.more = true;
                self.window.hurry(Instant::now());
            }
            recv(time) -> _ => {
                self.more |= !quiet;
                if is_idle && !quiet {
                    self.rest();
                }
            }
        }
    }

    /// Nothing came for a while: what a burst took is given back.
    fn rest(&mut self) {
        self.rooms.rest();
        self.window.rest();
        self.source.rest();
        self.senders.own().rest();
    }

    fn counted(&self, change: impl FnOnce(&ReporterCounters)) {
        if let Some(counters) = self.counters.0.reporters.get(self.counters.1) {
            change(counters);
        }
    }
}

/// What the log hears: a receiver that went and that came back, and now and then of burials. A line
/// per record would bury the log as well.
struct Log {
    name: String,
    place: String,
    down: Option<(Instant, u64)>,
    told: Option<Instant>,
    untold: u64,
    /// That nothing is sent since a dead letter cannot be written was told.
    stopped: Option<Instant>,
}

impl Log {
    fn new(name: String, place: String) -> Log {
        Log { name, place, down: None, told: None, untold: 0, stopped: None }
    }

    fn receiver(&mut self, is_down: bool, cause: &str, now: Instant) {
        let (reporter, place) = (&self.name, &self.place);
        match (&mut self.down, is_down) {
            (None, true) => {
                tracing::warn!(reporter, place, cause, "usage reports cannot be delivered");
                self.down = Some((now, 1));
            }
            (Some((_, tries)), true) => *tries += u64::from(!cause.is_empty()),
            (Some((since, tries)), false) => {
                let (seconds, tries) = (now.duration_since(*since).as_secs(), *tries);
                let message = "usage reports are delivered again";
                tracing::info!(reporter, place, seconds, tries, "{message}");
                self.down = None;
            }
            (None, false) => {}
        }
    }

    /// A dead letter cannot be written: told again now and then, since nobody else will.
    fn stopped(&mut self, error: &io::Error, now: Instant) {
        if self.stopped.is_some_and(|told| now.duration_since(told) < STOP_TOLD_EVERY) {
            return;
        }
        self.stopped = Some(now);
        let (reporter, place) = (&self.name, &self.place);
        let message = "a refused usage record cannot be kept as a dead letter: nothing more is \
                       sent to this reporter until it can (`llmproxy spool replay \
                       --dead-letters` makes room)";
        tracing::error!(reporter, place, %error, "{message}");
    }

    fn buried(&mut self, record: &UsageRecord, cause: &str, now: Instant) {
        if self.stopped.take().is_some() {
            let reporter = &self.name;
            tracing::info!(reporter, "dead letters are kept again: usage reports go on");
        }
        self.untold += 1;
        if self.told.is_some_and(|told| now.duration_since(told) < BURIALS_TOLD_EVERY) {
            return;
        }
        let (reporter, place, records) = (&self.name, &self.place, self.untold);
        let request_id = record.request_id.as_str();
        let message = "usage reports were refused for good";
        tracing::warn!(reporter, place, cause, request_id, records, "{message}");
        (self.told, self.untold) = (Some(now), 0);
    }
}
