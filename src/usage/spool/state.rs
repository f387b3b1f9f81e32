//! How the spool is: written by its threads, read by metrics and by admission.

use crate::base::limits::SPOOL_STALL_MAX;
use crate::config::plan::OnSpoolFailure;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Figures of the spool. Those that only grow are counters; the others say how it is now.
#[derive(Debug)]
pub struct SpoolState {
    policy: OnSpoolFailure,
    /// What the next is counted from.
    began: Instant,
    /// When the write began that the disk has not taken yet, in milliseconds; 0 = there is none.
    writing_since: AtomicU64,
    /// The disk takes nothing, or the spool is full: records go into memory.
    pub failing: AtomicBool,
    /// It fails for want of room: on the disk, or under `max_bytes`.
    pub full: AtomicBool,
    /// Bytes of segments on the disk.
    pub disk_bytes: AtomicU64,
    /// Segments on the disk.
    pub segments: AtomicU64,
    /// Bytes that are in memory only.
    pub memory_bytes: AtomicU64,
    /// Requests in flight, as the journal knows them.
    pub opens: AtomicU64,
    /// Entries written, of all kinds.
    pub entries: AtomicU64,
    /// Batches written.
    pub commits: AtomicU64,
    /// Successful syncs of segments.
    pub syncs: AtomicU64,
    /// Failed syncs of segments.
    pub sync_errors: AtomicU64,
    /// Failed writes of segments.
    pub write_errors: AtomicU64,
    /// Records of requests that are over, lost because memory was full too, or too long.
    pub dropped: AtomicU64,
    /// Beginnings and notes lost so, or because too many requests were in flight.
    pub dropped_opens: AtomicU64,
    /// Reads of segments that failed; they are tried again.
    pub read_errors: AtomicU64,
    /// Bytes of segments that could not be read.
    pub damaged_bytes: AtomicU64,
    /// Places where they were.
    pub damaged_places: AtomicU64,
    /// Ends of segments that were cut at a start because a write had not been finished.
    pub torn_tails: AtomicU64,
    /// Requests that a killed process had left without an end.
    pub aborted: AtomicU64,
    /// Times that the folder was deleted, moved or emptied while it was written.
    pub folders_lost: AtomicU64,
    /// One entry per reporter, in the order of the configuration.
    pub reporters: Vec<ReporterState>,
    /// Of the folders of other processes that this one delivers, with the same reporters.
    adopted: Mutex<Vec<Arc<SpoolState>>>,
}

/// Figures of one reporter.
#[derive(Debug)]
pub struct ReporterState {
    /// Its name.
    pub name: String,
    /// Records that it has not had.
    pub backlog: AtomicU64,
    /// When the request of the oldest of them arrived, milliseconds since 1970; 0 = there is none.
    pub oldest_ms: AtomicU64,
    /// Records in its file of dead letters, written since the start.
    pub dead_letters: AtomicU64,
}

impl SpoolState {
    /// All at zero.
    pub fn new(policy: OnSpoolFailure, reporters: &[String]) -> Self {
        let zero = AtomicU64::default;
        let reporter = |name: &String| ReporterState {
            name: name.clone(),
            backlog: zero(),
            oldest_ms: zero(),
            dead_letters: zero(),
        };
        SpoolState {
            policy,
            began: Instant::now(),
            writing_since: zero(),
            failing: AtomicBool::default(),
            full: AtomicBool::default(),
            disk_bytes: zero(),
            segments: zero(),
            memory_bytes: zero(),
            opens: zero(),
            entries: zero(),
            commits: zero(),
            syncs: zero(),
            sync_errors: zero(),
            write_errors: zero(),
            dropped: zero(),
            dropped_opens: zero(),
            read_errors: zero(),
            damaged_bytes: zero(),
            damaged_places: zero(),
            torn_tails: zero(),
            aborted: zero(),
            folders_lost: zero(),
            reporters: reporters.iter().map(reporter).collect(),
            adopted: Mutex::default(),
        }
    }

    /// The states of adopted folders.
    pub(super) fn adopted(&self) -> MutexGuard<'_, Vec<Arc<SpoolState>>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A figure of the own folder and all adopted ones together.
    pub fn total(&self, pick: impl Fn(&SpoolState) -> &AtomicU64) -> u64 {
        let adopted: u64 = self.adopted().iter().map(|state| pick(state).load(Relaxed)).sum();
        pick(self).load(Relaxed) + adopted
    }

    /// How many folders of others this process delivers.
    pub fn folders_adopted(&self) -> u64 {
        self.adopted().len() as u64
    }

    /// Records that a reporter has not had, in all folders.
    pub fn backlog(&self, reporter: usize) -> u64 {
        let of = |state: &SpoolState| {
            state.reporters.get(reporter).map_or(0, |reporter| reporter.backlog.load(Relaxed))
        };
        of(self) + self.adopted().iter().map(|state| of(state)).sum::<u64>()
    }

    /// When the request of the oldest of them arrived, milliseconds since 1970; 0 = there is none.
    pub fn oldest_ms(&self, reporter: usize) -> u64 {
        let of = |state: &SpoolState| {
            let oldest = state.reporters.get(reporter)?.oldest_ms.load(Relaxed);
            (oldest > 0).then_some(oldest)
        };
        let adopted = self.adopted().iter().filter_map(|state| of(state)).min();
        of(self).into_iter().chain(adopted).min().unwrap_or(0)
    }

    /// Takes over what a folder has counted that goes: a counter never falls.
    pub(super) fn absorb(&self, gone: &SpoolState) {
        let counters: [fn(&SpoolState) -> &AtomicU64; 13] = [
            |s| &s.entries,
            |s| &s.commits,
            |s| &s.syncs,
            |s| &s.sync_errors,
            |s| &s.write_errors,
            |s| &s.dropped,
            |s| &s.dropped_opens,
            |s| &s.read_errors,
            |s| &s.damaged_bytes,
            |s| &s.damaged_places,
            |s| &s.torn_tails,
            |s| &s.aborted,
            |s| &s.folders_lost,
        ];
        for pick in counters {
            add(pick(self), pick(gone).load(Relaxed));
        }
    }

    /// True when nobody is to be served whose record cannot be kept.
    pub fn is_strict(&self) -> bool {
        self.policy == OnSpoolFailure::Refuse
    }

    /// True when new requests must be answered 503: records cannot be kept, and the plan says that
    /// then nobody is served.
    pub fn refuses(&self) -> bool {
        self.is_strict() && self.fails(Instant::now())
    }

    /// True while the disk takes no records (those that wait are in memory), or has said nothing
    /// for longer than [`SPOOL_STALL_MAX`] (they wait in the workers' rings).
    pub fn fails(&self, now: Instant) -> bool {
        if self.failing.load(Relaxed) {
            return true;
        }
        let since = self.writing_since.load(Relaxed);
        since > 0 && now > self.began + Duration::from_millis(since) + SPOOL_STALL_MAX
    }

    /// A write begins.
    pub(in crate::usage) fn begin_write(&self) {
        let since = self.began.elapsed().as_millis() as u64;
        self.writing_since.store(since.max(1), Relaxed);
    }

    /// It has come back, well or not.
    pub(in crate::usage) fn end_write(&self) {
        self.writing_since.store(0, Relaxed);
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

/// Takes from a figure; it never falls below zero.
pub(super) fn sub(figure: &AtomicU64, count: u64) {
    let less = |value: u64| Some(value.saturating_sub(count));
    let _ = figure.fetch_update(Relaxed, Relaxed, less);
}
