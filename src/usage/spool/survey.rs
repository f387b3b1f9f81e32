//! Looking at a spool from outside, also while somebody writes it: what is there, and its records.

use super::absent;
use super::checkpoint;
use super::codec;
use super::cursor::split_again;
use super::dead_letter;
use super::disk::Disk;
use super::recover::Opens;
use super::register::known_markers;
use super::scan::{marker_of, Scan, Step};
use super::segment::{self, Entry, Kind, HEADER_BYTES};
use crate::usage::record::UsageRecord;
use serde::Serialize;
use std::io;

/// All that is there.
#[derive(Debug, Default, Serialize)]
pub struct Survey {
    /// Oldest first.
    pub segments: Vec<SegmentSurvey>,
    /// Those that have a checkpoint.
    pub reporters: Vec<ReporterSurvey>,
    /// Requests that began and have no end: in flight, or of a process that was killed.
    pub open: usize,
}

/// One segment.
#[derive(Debug, Default, Serialize)]
pub struct SegmentSurvey {
    /// Its file.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Sequence of the first entry; 0 = there is none.
    pub first: u64,
    /// Sequence of the last entry.
    pub last: u64,
    /// Beginnings of requests.
    pub opens: u64,
    /// Snapshots of running ones.
    pub notes: u64,
    /// Records.
    pub closes: u64,
    /// Records for one reporter, once more.
    pub again: u64,
    /// Entries of a newer version.
    pub unknown: u64,
    /// Bytes that are no entry; at the end of the last segment they may be one that is written.
    pub damaged_bytes: u64,
    /// Places where they are.
    pub damaged_places: u64,
}

/// One reporter.
#[derive(Debug, Default, Serialize)]
pub struct ReporterSurvey {
    /// Its name.
    pub name: String,
    /// It has all records up to this sequence.
    pub through: u64,
    /// Records that it has not had.
    pub backlog: u64,
    /// When the request of the oldest of them arrived, milliseconds since 1970.
    pub oldest_ms: Option<u64>,
    /// Records that its receiver refused.
    pub dead_letters: u64,
    /// Lines among them that cannot be read.
    pub dead_letters_unreadable: u64,
    /// When a start first found that it is not configured any more, milliseconds since 1970; its
    /// records are kept for a while from then on.
    pub left_ms: Option<u64>,
}

/// Looks at all of it. `each` gets every record with its sequence, and the reporter for whom it is
/// when it is for one alone.
///
/// # Errors
/// Something cannot be read, or `each` failed. What is removed meanwhile is left out.
pub fn survey(
    disk: &dyn Disk,
    mut each: impl FnMut(u64, Option<&str>, &UsageRecord) -> io::Result<()>,
) -> io::Result<Survey> {
    let names = disk.list()?;
    let mut survey = Survey { reporters: reporters(disk, &names)?, ..Survey::default() };
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| segment::first_of(name)).collect();
    firsts.sort_unstable();
    let markers = known_markers(disk, &firsts)?;
    let mut opens = Opens::default();
    let mut last = 0;
    for first in firsts {
        let mut found = SegmentSurvey { file: segment::file_name(first), ..Default::default() };
        let file = match disk.open(&found.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        found.bytes = file.size()?;
        let Some((marker, _)) = marker_of(&*file, found.bytes, &markers)? else {
            (found.damaged_bytes, found.damaged_places) = (found.bytes, 1);
            survey.segments.push(found);
            continue;
        };
        let mut scan = Scan::new(&*file, marker, (HEADER_BYTES as u64, found.bytes));
        while let Some(step) = scan.step()? {
            match step {
                Step::Damage(len) => {
                    found.damaged_bytes += len;
                    found.damaged_places += 1;
                }
                Step::Entry(entry) if entry.sequence <= last => {}
                Step::Entry(entry) => {
                    last = entry.sequence;
                    opens.take(&entry);
                    found.count(&entry);
                    if let Some((reporter, record)) = record_of(&entry) {
                        survey
                            .reporters
                            .iter_mut()
                            .for_each(|r| r.count(&entry, reporter, &record));
                        each(entry.sequence, reporter, &record)?;
                    }
                }
            }
        }
        survey.segments.push(found);
    }
    survey.open = opens.into_records().len();
    Ok(survey)
}

/// The record of an entry, and for whom it is.
fn record_of<'a>(entry: &Entry<'a>) -> Option<(Option<&'a str>, UsageRecord)> {
    match Kind::of(entry.kind)? {
        Kind::Close => Some((None, codec::decode(entry.payload)?)),
        Kind::Again => {
            // One for nobody only says that a request is over.
            let (name, record) = split_again(entry.payload).filter(|(name, _)| !name.is_empty())?;
            Some((Some(std::str::from_utf8(name).ok()?), codec::decode(record)?))
        }
        Kind::Open | Kind::Note => None,
    }
}

impl SegmentSurvey {
    fn count(&mut self, entry: &Entry<'_>) {
        if self.first == 0 {
            self.first = entry.sequence;
        }
        self.last = entry.sequence;
        *match Kind::of(entry.kind) {
            Some(Kind::Open) => &mut self.opens,
            Some(Kind::Note) => &mut self.notes,
            Some(Kind::Close) => &mut self.closes,
            Some(Kind::Again) => &mut self.again,
            None => &mut self.unknown,
        } += 1;
    }
}

impl ReporterSurvey {
    fn count(&mut self, entry: &Entry<'_>, reporter: Option<&str>, record: &UsageRecord) {
        if entry.sequence > self.through && reporter.is_none_or(|name| name == self.name) {
            self.backlog += 1;
            self.oldest_ms.get_or_insert(record.timestamp_ms);
        }
    }
}

fn reporters(disk: &dyn Disk, names: &[String]) -> io::Result<Vec<ReporterSurvey>> {
    let mut reporters = Vec::new();
    for name in names {
        let Some(reporter) = name.strip_suffix(checkpoint::SUFFIX) else { continue };
        let file = match disk.open(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let stored = checkpoint::read(&*file)?;
        let letters = dead_letter::read(disk, &format!("{reporter}{}", dead_letter::SUFFIX))?;
        let letters = letters.unwrap_or_default();
        let count = |is_whole: bool| {
            let lines = dead_letter::lines(&letters);
            lines.filter(|(.., record)| record.is_some() == is_whole).count() as u64
        };
        reporters.push(ReporterSurvey {
            name: reporter.to_owned(),
            through: stored.map_or(0, |stored| stored.through),
            dead_letters: count(true),
            dead_letters_unreadable: count(false),
            left_ms: absent::left_ms(&*file)?,
            ..ReporterSurvey::default()
        });
    }
    reporters.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(reporters)
}
