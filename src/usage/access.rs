//! The hand-over of access log lines from the workers to their writer: bounded, never waiting.
//! A line is the same record that reporters get, with the client's address.

use super::counters::count;
use super::record::UsageRecord;
use crate::base::limits::ACCESS_LINES_MAX;
use crate::config::plan::LogFormat;
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
    /// Its trace, if it is traced.
    pub trace_id: Option<[u8; 16]>,
    /// Version and cipher of TLS, where the client spoke that.
    pub tls: Option<&'static str>,
    /// What the combined format wants beside.
    pub said: Option<Box<Said>>,
}

/// What a client says of itself. Bytes of its own choice: not even text.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// Version of its request: `HTTP/1.1`.
    pub version: &'static str,
    /// Its `Referer`.
    pub referer: Option<Box<[u8]>>,
    /// Its `User-Agent`.
    pub user_agent: Option<Box<[u8]>>,
}

/// A worker's end. Cloned for each worker.
#[derive(Debug, Clone)]
pub struct AccessQueue {
    sender: Sender<AccessLine>,
    wants_said: bool,
    dropped: Arc<AtomicU64>,
}

/// Makes both ends. Lines have what the client says of itself if the format wants it.
pub fn open(format: LogFormat) -> (AccessQueue, Receiver<AccessLine>) {
    let (sender, lines) = bounded(ACCESS_LINES_MAX);
    (AccessQueue { sender, wants_said: format == LogFormat::Text, dropped: Arc::default() }, lines)
}

impl AccessQueue {
    /// Hands a line over. When the writer cannot keep up, it is dropped and counted.
    pub fn offer(&self, line: AccessLine) {
        if self.sender.try_send(line).is_err() {
            count(&self.dropped);
        }
    }

    /// True when lines are to have what the client says of itself.
    pub fn wants_said(&self) -> bool {
        self.wants_said
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}
