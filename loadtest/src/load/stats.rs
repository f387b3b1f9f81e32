//! Counts and histograms of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};

/// Longest time that a histogram tells apart, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// What one thread, or the whole run, has seen.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Answers complete, as promised and with a good status
    pub ok: u64,
    /// Answers that were left on purpose
    pub aborted: u64,
    /// Exchanges that were under way when the run ended
    pub unfinished: u64,
    /// Exchanges that failed, by kind
    pub errors: BTreeMap<String, u64>,
    /// Events of streams
    pub events: u64,
    /// Body bytes received
    pub bytes: u64,
    /// Connections made
    pub connects: u64,
    /// Kept connections that turned out closed when they were used again
    pub stale: u64,
    /// Most connections open at once
    pub open_max: u64,
    /// From the intended start to the first body byte, in microseconds
    pub ttft_us: Histogram<u64>,
    /// Between reads that brought events, in microseconds
    pub gap_us: Histogram<u64>,
    /// From the intended start to the end, in microseconds
    pub total_us: Histogram<u64>,
}

/// Adds a time to a histogram.
pub fn record(into: &mut Histogram<u64>, time: Duration) {
    into.saturating_record((time.as_nanos() as u64).div_ceil(1000).max(1));
}

impl Stats {
    /// All zero.
    ///
    /// # Errors
    /// When the histogram's bounds are refused, which constants cannot be.
    pub fn new() -> Result<Self, CreationError> {
        // Three digits: a hundredth of a millisecond is told apart up to ten milliseconds.
        let histogram = || Histogram::new_with_bounds(1, LONGEST_US, 3);
        Ok(Stats {
            ok: 0,
            aborted: 0,
            unfinished: 0,
            errors: BTreeMap::new(),
            events: 0,
            bytes: 0,
            connects: 0,
            stale: 0,
            open_max: 0,
            ttft_us: histogram()?,
            gap_us: histogram()?,
            total_us: histogram()?,
        })
    }

    /// Forgets what the warm-up brought, but for errors: none may hide there.
    pub fn reset_but_errors(&mut self) {
        for histogram in [&mut self.ttft_us, &mut self.gap_us, &mut self.total_us] {
            histogram.reset();
        }
        (self.ok, self.aborted, self.unfinished, self.events, self.bytes) = (0, 0, 0, 0, 0);
        (self.connects, self.stale) = (0, 0);
    }

    /// Counts a failed exchange.
    pub fn fail(&mut self, kind: &str) {
        match self.errors.get_mut(kind) {
            Some(count) => *count += 1,
            None => {
                self.errors.insert(kind.to_string(), 1);
            }
        }
    }

    /// Failed exchanges of all kinds.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds another thread's results.
    pub fn add(&mut self, other: &Stats) {
        self.ok += other.ok;
        self.aborted += other.aborted;
        self.unfinished += other.unfinished;
        self.events += other.events;
        self.bytes += other.bytes;
        self.connects += other.connects;
        self.stale += other.stale;
        self.open_max += other.open_max;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        // Equal bounds: adding cannot fail.
        let _ = self.ttft_us.add(&other.ttft_us);
        let _ = self.gap_us.add(&other.gap_us);
        let _ = self.total_us.add(&other.total_us);
    }
}
