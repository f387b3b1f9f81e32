//! What became of usage records: written by the `usage` room, read by the metrics.

use crate::config::plan::Reporter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Counters of the whole room.
#[derive(Debug)]
pub struct UsageCounters {
    /// Records of requests that are over, lost because their worker's ring was full.
    pub records_dropped: AtomicU64,
    /// Opens and notes lost so.
    pub notes_dropped: AtomicU64,
    /// Records that went without their request body because the ring had no room for it.
    pub bodies_dropped: AtomicU64,
    /// One entry per reporter, in the order of the configuration.
    pub reporters: Vec<ReporterCounters>,
}

/// Counters of one reporter.
#[derive(Debug)]
pub struct ReporterCounters {
    /// Its label.
    pub name: String,
    /// Records that it accepted.
    pub delivered: AtomicU64,
    /// Tries that failed, whatever became of their records.
    pub failed: AtomicU64,
    /// Records given up: refused for good, or at fault again and again. They are dead letters.
    pub buried: AtomicU64,
    /// Records given up that cannot become dead letters now; while there are any, nothing is sent.
    pub unburied: AtomicU64,
    /// The receiver is held to be away, or was not reached at the start.
    pub down: AtomicBool,
    /// Tries, of a record or of a batch.
    pub batches: AtomicU64,
    /// Records that went again, in tries after their first.
    pub retried: AtomicU64,
}

impl UsageCounters {
    /// All at zero.
    pub fn new(reporters: &[Reporter]) -> Self {
        let reporter = |reporter: &Reporter| ReporterCounters {
            name: reporter.name.clone(),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            buried: AtomicU64::new(0),
            unburied: AtomicU64::new(0),
            down: AtomicBool::new(false),
            batches: AtomicU64::new(0),
            retried: AtomicU64::new(0),
        };
        UsageCounters {
            records_dropped: AtomicU64::new(0),
            notes_dropped: AtomicU64::new(0),
            bodies_dropped: AtomicU64::new(0),
            reporters: reporters.iter().map(reporter).collect(),
        }
    }
}

/// Adds one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
