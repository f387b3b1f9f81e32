//! Records that a receiver will never take, beside the spool: one JSON object a line, for people
//! and for `llmproxy spool replay --dead-letters`.

use super::codec;
use super::disk::{Disk, DiskFile};
use super::state::add;
use super::table::Shared;
use crate::base::clock::unix_ms;
use crate::base::limits::DEAD_LETTER_BYTES_MAX;
use crate::config::plan::RecordFormat;
use crate::usage::record::{line, rfc3339, UsageRecord};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io;
use std::sync::Arc;

/// The file's name begins with the reporter's and ends so.
pub const SUFFIX: &str = ".dead.jsonl";

/// One line of the file.
#[derive(Serialize, Deserialize)]
pub struct Letter {
    /// What the receiver said.
    pub reason: String,
    /// When it was given up.
    pub time: Option<String>,
    /// The record as JSON, for people.
    pub record: Box<RawValue>,
    /// The record as it lies in the spool, in hexadecimal, for a replay.
    entry: String,
}

/// The dead letters of one reporter.
pub struct DeadLetters {
    shared: Arc<Shared>,
    index: usize,
    file: Option<(Arc<dyn DiskFile>, u64)>,
}

impl DeadLetters {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        DeadLetters { shared, index, file: None }
    }

    /// Appends a record. Beyond the limit, or when the disk fails, it is lost, and counted.
    pub fn bury(&mut self, record: &UsageRecord, reason: &str) {
        let shared = Arc::clone(&self.shared);
        let Some(state) = shared.state.reporters.get(self.index) else { return };
        match self.append(&state.name, record, reason) {
            Ok(()) => add(&state.dead_letters, 1),
            Err(error) => {
                self.file = None;
                add(&state.dead_letters_dropped, 1);
                let (reporter, id) = (&state.name, record.request_id.as_str());
                tracing::error!(reporter, id, %error, "a refused usage record is lost");
            }
        }
    }

    fn append(&mut self, name: &str, record: &UsageRecord, reason: &str) -> io::Result<()> {
        let line = line_of(record, reason)?;
        let (file, end) = match self.file.take() {
            Some(open) => open,
            None => open(&*self.shared.disk, name)?,
        };
        if end + line.len() as u64 > DEAD_LETTER_BYTES_MAX {
            self.file = Some((file, end));
            return Err(io::Error::new(io::ErrorKind::StorageFull, "its file is full"));
        }
        if let Err(error) = file.write_at(&line, end).and_then(|()| file.sync()) {
            // Half a line would spoil the next one.
            let _ = file.truncate(end);
            return Err(error);
        }
        self.file = Some((file, end + line.len() as u64));
        Ok(())
    }
}

/// The file, and where to go on in it.
fn open(disk: &dyn Disk, name: &str) -> io::Result<(Arc<dyn DiskFile>, u64)> {
    let name = format!("{name}{SUFFIX}");
    let file = match disk.open(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = disk.create(&name)?;
            disk.sync_dir()?;
            file
        }
        opened => opened?,
    };
    let end = file.size()?;
    Ok((file, end))
}

fn line_of(record: &UsageRecord, reason: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode(record, &mut bytes);
    let json = String::from_utf8(record.to_json(RecordFormat::Full)).map_err(io::Error::other)?;
    let letter = Letter {
        reason: reason.to_owned(),
        time: rfc3339(unix_ms()),
        record: RawValue::from_string(json)?,
        entry: hex(&bytes),
    };
    Ok(line::line_of(&letter))
}

/// The record of a line; `None` when it is none of ours, or cut.
pub fn record_of(line: &[u8]) -> Option<UsageRecord> {
    let letter: Letter = serde_json::from_slice(line).ok()?;
    codec::decode(&unhex(&letter.entry)?)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('0');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: &u8| char::from(*b).to_digit(16).map(|n| n as u8);
    let pair = |pair: &[u8]| match pair {
        [high, low] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    };
    text.as_bytes().chunks(2).map(pair).collect()
}
