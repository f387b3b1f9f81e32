//! What the engine received and how it ended: the witness of every end-to-end test.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Mutex;
use std::time::Instant;

use serde_json::json;

use crate::sys::unix_ms;

/// One request in the log. Times are milliseconds.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Number of the request, from 1
    pub id: u64,
    /// Number of the connection, from 1
    pub conn: u64,
    /// The request line and fields as they came
    pub head: String,
    /// Bytes of the body, chunk framing taken off
    pub body_len: usize,
    /// FNV-1a of the body
    pub body_hash: u64,
    /// The body came in chunks
    pub body_chunked: bool,
    /// The first 4 KiB of the body
    pub body_start: String,
    /// Since the engine started
    pub started_ms: f64,
    /// Since the Unix epoch
    pub started_unix_ms: f64,
    /// Events written so far
    pub events_sent: u32,
    /// A byte of a good answer left
    pub served: bool,
    /// open, complete, cancelled, died or stalled
    pub ended: &'static str,
    /// The client's leave was noticed this long after the request was complete
    pub cancelled_after_ms: Option<f64>,
    /// The same moment since the Unix epoch
    pub cancelled_unix_ms: Option<f64>,
    /// The client only shut its sending side and still listened
    pub half_closed: bool,
}

/// Counters since the start or the last reset.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests other than probes and /mock/
    pub requests: AtomicU64,
    /// Health, version and model-list requests
    pub probes: AtomicU64,
    /// Streamed answers begun
    pub streams: AtomicU64,
    /// Requests that the client left
    pub cancelled: AtomicU64,
    /// Of those, by a half-close
    pub half_closed: AtomicU64,
    /// Connections that closed in a request's midst, or that sent what is not HTTP
    pub broken: AtomicU64,
    /// Connections accepted
    pub connections_accepted: AtomicU64,
    /// Connections open now (never reset)
    pub connections_open: AtomicU64,
}

/// The log and the counters of one engine.
pub struct Log {
    keep: usize,
    entries: Mutex<(u64, VecDeque<Entry>)>,
    born: Instant,
    /// See [`Counters`]
    pub counters: Counters,
}

impl Log {
    /// Keeps the last `keep` requests; 0 keeps none and costs nothing.
    pub fn new(keep: usize) -> Self {
        let entries = Mutex::new((0, VecDeque::new()));
        Log { keep, entries, born: Instant::now(), counters: Counters::default() }
    }

    /// Whether requests are kept at all.
    pub fn is_on(&self) -> bool {
        self.keep > 0
    }

    /// Adds a request, fills its id and start time, and gives the id.
    pub fn open(&self, mut entry: Entry) -> u64 {
        entry.started_ms = self.born.elapsed().as_secs_f64() * 1e3;
        entry.started_unix_ms = unix_ms();
        let mut guard = self.lock();
        let (last, entries) = &mut *guard;
        *last += 1;
        entry.id = *last;
        if entries.len() == self.keep {
            entries.pop_front();
        }
        entries.push_back(entry);
        *last
    }

    /// Changes the request with this id, if it is still kept.
    pub fn update(&self, id: u64, change: impl FnOnce(&mut Entry)) {
        let mut guard = self.lock();
        // Ids are consecutive, so the distance to the newest finds the place.
        let from_end = guard.0.checked_sub(id).map(|n| n as usize + 1);
        let at = from_end.and_then(|n| guard.1.len().checked_sub(n));
        if let Some(entry) = at.and_then(|at| guard.1.get_mut(at)) {
            change(entry);
        }
    }

    /// Forgets requests and counters; ids go on counting, so late updates cannot hit strangers.
    pub fn reset(&self) {
        self.lock().1.clear();
        let c = &self.counters;
        for counter in [
            &c.requests,
            &c.probes,
            &c.streams,
            &c.cancelled,
            &c.half_closed,
            &c.broken,
            &c.connections_accepted,
        ] {
            counter.store(0, Relaxed);
        }
    }

    /// One JSON object a line, oldest first.
    pub fn to_json_lines(&self) -> String {
        self.lock().1.iter().map(|entry| entry.to_json() + "\n").collect()
    }

    /// The counters as one JSON object.
    pub fn stats_json(&self) -> String {
        let c = &self.counters;
        json!({
            "requests": c.requests.load(Relaxed),
            "probes": c.probes.load(Relaxed),
            "streams": c.streams.load(Relaxed),
            "cancelled": c.cancelled.load(Relaxed),
            "half_closed": c.half_closed.load(Relaxed),
            "broken": c.broken.load(Relaxed),
            "connections_accepted": c.connections_accepted.load(Relaxed),
            "connections_open": c.connections_open.load(Relaxed),
        })
        .to_string()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, VecDeque<Entry>)> {
        // A panic elsewhere cannot leave the queue half changed, so poison means nothing here.
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Entry {
    fn to_json(&self) -> String {
        let mut words = self.head.split(' ');
        json!({
            "id": self.id,
            "conn": self.conn,
            "x_request_id": self.field("x-request-id"),
            "method": words.next(),
            "path": words.next(),
            "head": self.head,
            "body_len": self.body_len,
            "body_hash": format!("{:016x}", self.body_hash),
            "body_chunked": self.body_chunked,
            "body_start": self.body_start,
            "started_ms": self.started_ms,
            "started_unix_ms": self.started_unix_ms,
            "events_sent": self.events_sent,
            "served": self.served,
            "ended": self.ended,
            "cancelled_after_ms": self.cancelled_after_ms,
            "cancelled_unix_ms": self.cancelled_unix_ms,
            "half_closed": self.half_closed,
        })
        .to_string()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}
