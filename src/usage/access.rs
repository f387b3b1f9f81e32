//! The hand-over of access log lines from the workers to their writer: bounded, never waiting.
//! A line is the same record that reporters get, with the client's address.

use super::counters::count;
use super::record::UsageRecord;
use crate::base::limits::ACCESS_LINES_MAX;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// One request for the access log.
#[derive(Debug)]
pub struct AccessLine {
    /// What happened.
    pub record: UsageRecord,
    /// Where the client connected from.
    pub client: Box<str>,
}

/// A worker's end. Cloned for each worker.
#[derive(Debug, Clone)]
pub struct AccessQueue {
    sender: Sender<AccessLine>,
    dropped: Arc<AtomicU64>,
}

/// Makes both ends.
pub fn open() -> (AccessQueue, Receiver<AccessLine>) {
    let (sender, lines) = bounded(ACCESS_LINES_MAX);
    (AccessQueue { sender, dropped: Arc::default() }, lines)
}

impl AccessQueue {
    /// Hands a line over. When the writer cannot keep up, it is dropped and counted.
    pub fn offer(&self, line: AccessLine) {
        if self.sender.try_send(line).is_err() {
            count(&self.dropped);
        }
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}
