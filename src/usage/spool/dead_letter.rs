//! Records that a receiver will never take, beside the spool: one JSON object a line, for people
//! and for `llmproxy spool replay --dead-letters`.

use super::codec;
use super::disk::{Disk, DiskFile};
use super::scan::read_fully;
use super::state::add;
use super::table::SpoolShared;
use crate::base::clock::unix_ms;
use crate::base::limits::{DEAD_LETTER_BYTES_MAX, RECORD_BODY_BYTES_DEFAULT};
use crate::base::utc::Stamp;
use crate::config::plan::RecordFormat;
use crate::usage::record::{line, UsageRecord};
use memchr::memmem;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::io;
use std::sync::Arc;

/// The file's name begins with the reporter's and ends so.
pub const SUFFIX: &str = ".dead.jsonl";
/// And so does that of a file whose letters were delivered; a later one has a number behind it.
const DONE_SUFFIX: &str = ".dead.jsonl.replayed";

/// One line of the file.
#[derive(Serialize, Deserialize)]
pub struct Letter {
    /// What the receiver said.
    pub reason: String,
    /// When it was given up.
    pub time: Option<String>,
    /// The record as JSON, for people; without its body when that is long.
    pub record: Box<RawValue>,
    /// The record as it lies in the spool, in hexadecimal, for a replay.
    entry: String,
}

/// The dead letters of one reporter.
pub struct DeadLetters {
    shared: Arc<SpoolShared>,
    index: usize,
}

impl DeadLetters {
    pub(super) fn new(shared: Arc<SpoolShared>, index: usize) -> Self {
        DeadLetters { shared, index }
    }

    /// Appends a record, and forces it to the disk.
    ///
    /// # Errors
    /// The file has no room for it, or the disk does not take it; then nothing of it is there.
    pub fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()> {
        let Some(state) = self.shared.state.reporters.get(self.index) else { return Ok(()) };
        append(&*self.shared.disk, &state.name, &line_of(record, reason)?)?;
        add(&state.dead_letters, 1);
        Ok(())
    }
}

/// Appends whole lines to a reporter's file. It is opened each time: `spool replay` may have moved
/// it away.
fn append(disk: &dyn Disk, reporter: &str, lines: &[u8]) -> io::Result<()> {
    let (file, end) = open(disk, reporter)?;
    has_room(reporter, end + lines.len() as u64)?;
    if let Err(error) = file.write_at(lines, end).and_then(|()| file.sync()) {
        // Half a line would spoil the next one.
        let _ = file.truncate(end);
        return Err(error);
    }
    Ok(())
}

fn has_room(reporter: &str, bytes: u64) -> io::Result<()> {
    if bytes <= DEAD_LETTER_BYTES_MAX {
        return Ok(());
    }
    let message = format!("{reporter}{SUFFIX} is full ({DEAD_LETTER_BYTES_MAX} bytes)");
    Err(io::Error::new(io::ErrorKind::StorageFull, message))
}

/// Puts lines that a replay cannot read back among the dead letters, all or none of them. Whoever
/// is not sure that they are there may do it again: a second time changes nothing.
///
/// # Errors
/// It has no room for them, or the disk does not take them; then the file is as it was.
pub(super) fn put_back(disk: &dyn Disk, reporter: &str, lines: &[u8]) -> io::Result<()> {
    let name = format!("{reporter}{SUFFIX}");
    let mut all = read(disk, &name)?.unwrap_or_default();
    let is_line = |at: usize| at == 0 || all.get(at - 1) == Some(&b'\n');
    if memmem::find_iter(&all, lines).any(is_line) {
        return disk.sync_dir();
    }
    if !all.is_empty() && !all.ends_with(b"\n") {
        all.push(b'\n');
    }
    all.extend_from_slice(lines);
    has_room(reporter, all.len() as u64)?;
    write_whole(disk, &name, &all)
}

/// A file with these bytes: after a crash it is as it was before, or complete.
///
/// # Errors
/// The disk does not take it; then the file is as it was.
pub fn write_whole(disk: &dyn Disk, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = format!("{name}.new");
    let file = disk.create(&new)?;
    let written = file.write_at(bytes, 0).and_then(|()| file.sync());
    if let Err(error) = written.and_then(|()| disk.rename(&new, name)) {
        // Under this name it says nothing to anybody; the next one would write over it.
        let _ = disk.remove(&new);
        return Err(error);
    }
    disk.sync_dir()
}

/// The first free name for letters that were delivered: those of earlier replays stay.
///
/// # Errors
/// The folder cannot be read.
pub fn free_name(disk: &dyn Disk, reporter: &str) -> io::Result<String> {
    let taken = disk.list()?;
    let first = format!("{reporter}{DONE_SUFFIX}");
    let names = (2..).map(|number: u64| format!("{first}.{number}"));
    let free = std::iter::once(first.clone()).chain(names).find(|name| !taken.contains(name));
    free.ok_or_else(|| io::Error::other("no name is free"))
}

/// True for the name of a file with letters that were delivered.
pub fn is_archive(name: &str) -> bool {
    reporter_of_archive(name).is_some()
}

fn reporter_of_archive(name: &str) -> Option<&str> {
    let (reporter, number) = name.rsplit_once(DONE_SUFFIX)?;
    let digits = number.strip_prefix('.').unwrap_or("0");
    let is_number = number.is_empty() || number.starts_with('.');
    (is_number && digits.bytes().all(|b| b.is_ascii_digit())).then_some(reporter)
}

/// The first free name in a folder for such a file of another folder.
///
/// # Errors
/// The folder cannot be read.
pub fn free_archive(disk: &dyn Disk, archive: &str) -> io::Result<String> {
    free_name(disk, reporter_of_archive(archive).unwrap_or(archive))
}

/// The file, and where to go on in it.
fn open(disk: &dyn Disk, reporter: &str) -> io::Result<(Arc<dyn DiskFile>, u64)> {
    let name = format!("{reporter}{SUFFIX}");
    let file = match disk.open(&name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = disk.create(&name)?;
            disk.sync_dir()?;
            file
        }
        opened => opened?,
    };
    let mut end = file.size()?;
    let mut last = [b'\n'];
    if end > 0 {
        read_fully(&*file, &mut last, end - 1)?;
    }
    if last != [b'\n'] {
        // A process was killed while it wrote: what is torn is a line of its own, which a replay
        // names, and not the beginning of the next one.
        file.write_at(b"\n", end)?;
        end += 1;
    }
    Ok((file, end))
}

/// A record as a line of the file.
///
/// # Errors
/// The record is no JSON, which would be a fault of this program.
pub fn line_of(record: &UsageRecord, reason: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    codec::encode(&record.borrowed(), &mut bytes);
    // With each of its bytes escaped, a long body alone would fill the file.
    let is_long = record.request_body.as_ref().map_or(0, Vec::len) > RECORD_BODY_BYTES_DEFAULT;
    let json = match is_long {
        true => UsageRecord { request_body: None, ..record.clone() }.to_json(RecordFormat::Full),
        false => record.to_json(RecordFormat::Full),
    };
    let letter = Letter {
        reason: reason.to_owned(),
        time: Stamp::of(unix_ms()).map(|stamp| stamp.as_str().to_owned()),
        record: RawValue::from_string(String::from_utf8(json).map_err(io::Error::other)?)?,
        entry: hex(&bytes),
    };
    Ok(line::line_of(&letter))
}

/// The record of a line; `None` when it is none of ours, or cut.
pub fn record_of(line: &[u8]) -> Option<UsageRecord> {
    let letter: Letter = serde_json::from_slice(line).ok()?;
    codec::decode(&unhex(&letter.entry)?).filter(|record| !record.request_id.as_str().is_empty())
}

/// All bytes of a file of letters; `None` when there is none.
///
/// # Errors
/// It cannot be read.
pub fn read(disk: &dyn Disk, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = vec![0; usize::try_from(file.size()?).map_err(io::Error::other)?];
    let read = read_fully(&*file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(Some(bytes))
}

/// The lines of such a file that are not empty, with their numbers, and what stands on each.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8], Option<UsageRecord>)> {
    let numbered = (1..).zip(bytes.split(|byte| *byte == b'\n'));
    let written = numbered.filter(|(_, line)| !line.trim_ascii().is_empty());
    written.map(|(number, line)| (number, line, record_of(line)))
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
