//! A spool in a test: requests with short names, and what became of them.

use super::super::cursor::Cursor;
use super::super::disk::Disk;
use super::super::segment::Kind;
use super::super::{open, Opened, Options};
use crate::base::id::RequestId;
use crate::config::plan::{Fsync, OnSpoolFailure};
use crate::usage::record::UsageRecord;
use crate::usage::source::Source;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub const EVERY: Fsync = Fsync::Every(Duration::from_millis(100));

/// Small, so that everything happens often.
pub fn options(fsync: Fsync) -> Options {
    Options {
        segment_bytes: 700,
        max_bytes: 1 << 20,
        memory_bytes: 1 << 20,
        fsync,
        on_failure: OnSpoolFailure::Serve,
    }
}

pub fn reporters() -> Vec<String> {
    vec!["a".to_owned(), "b".to_owned()]
}

pub fn named(id: u32) -> UsageRecord {
    UsageRecord {
        request_id: RequestId::from_client(format!("r{id}").as_bytes()).unwrap(),
        timestamp_ms: 1000 + u64::from(id),
        model: Some("m".repeat(id as usize % 40)),
        ..UsageRecord::default()
    }
}

pub fn id_of(record: &UsageRecord) -> u32 {
    record.request_id.as_str().trim_start_matches('r').parse().unwrap()
}

/// Opens a spool that must open.
pub fn opened(disk: Arc<dyn Disk>, options: Options) -> Opened {
    open(disk, options, &reporters()).unwrap()
}

/// Reads all that is there, without being done with it.
pub fn read_all(cursor: &mut Cursor) -> Vec<(u64, UsageRecord)> {
    let mut all = Vec::new();
    loop {
        let some = cursor.read_owned(7);
        if some.is_empty() {
            return all;
        }
        all.extend(some.into_iter().map(|delivery| (delivery.seq, delivery.record)));
    }
}

/// The same as names, asserting their order.
pub fn ids(cursor: &mut Cursor) -> Vec<u32> {
    let all = read_all(cursor);
    assert!(all.windows(2).all(|pair| pair[0].0 < pair[1].0), "out of order");
    all.iter().map(|(_, record)| id_of(record)).collect()
}

/// Reads all and is done with it.
pub fn deliver_all(cursor: &mut Cursor) -> Vec<u32> {
    let all = read_all(cursor);
    if let Some((last, _)) = all.last() {
        cursor.done(*last);
    }
    all.iter().map(|(_, record)| id_of(record)).collect()
}

impl Opened {
    /// A request begins.
    pub fn open(&mut self, id: u32) {
        self.writer.append(Kind::Open, &named(id));
    }

    /// It goes on.
    pub fn note(&mut self, id: u32, events: u64) {
        self.writer.append(Kind::Note, &UsageRecord { events, ..named(id) });
    }

    /// It has ended.
    pub fn close(&mut self, id: u32) {
        self.writer.append(Kind::Close, &UsageRecord { status_code: 200, ..named(id) });
    }

    /// The disk is tried again now.
    pub fn retry(&mut self) {
        if self.writer.trouble.retry_at.is_some() {
            self.writer.trouble.retry_at = Some(Instant::now());
        }
        self.writer.tick();
    }
}

pub fn set(ids: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    ids.into_iter().collect()
}
