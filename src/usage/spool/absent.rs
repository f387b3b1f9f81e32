//! Reporters that have a checkpoint and are not in the configuration any more: renamed, switched
//! off, or left out by mistake. What they were not given is kept for a while, so that one that
//! comes back misses nothing, and nothing is let go without a word.

use super::checkpoint;
use super::disk::{Disk, DiskFile};
use super::scan::read_fully;
use super::survey::{survey, ReporterSurvey};
use crate::base::clock::unix_ms;
use crate::base::limits::SPOOL_ABSENT_REPORTER_KEPT;
use std::io;
use std::time::{Duration, Instant};

const MAGIC: [u8; 4] = *b"LPL\n";
/// Magic, milliseconds since 1970 and their CRC32C.
const MARK_BYTES: usize = 16;
/// Where that stands in a checkpoint's file, behind its slots.
const MARK_PLACE: u64 = 1024;

/// One of them, whose records are kept.
#[derive(Debug)]
pub(super) struct Absent {
    pub name: String,
    /// It has all records up to this sequence.
    pub through: u64,
    /// Until when the others are kept.
    until: Instant,
    /// So many there were at the start.
    undelivered: u64,
}

/// Finds those whose records are to be kept, and forgets the others. So many records, of requests
/// that ended and of those that a kill ended, are not in any segment yet. Reads all segments when
/// there are any.
///
/// # Errors
/// The disk cannot be read. One that cannot be written is no error: the next start tries again.
pub(super) fn find(
    disk: &dyn Disk,
    reporters: &[String],
    (ended, aborted): (usize, usize),
) -> io::Result<Vec<Absent>> {
    let is_known = |name: &str| reporters.iter().any(|reporter| reporter == name);
    let names = disk.list()?;
    let stored = || names.iter().filter_map(|name| name.strip_suffix(checkpoint::SUFFIX));
    for reporter in stored().filter(|name| is_known(name)) {
        if let Err(error) = is_back(disk, reporter) {
            tracing::warn!(reporter, %error, "if it leaves again, its time does not begin anew");
        }
    }
    if stored().all(is_known) {
        return Ok(Vec::new());
    }
    let found = match survey(disk, |_, _, _| Ok(())) {
        Ok(found) => found,
        Err(error) => {
            // No reason not to serve those that are configured.
            tracing::warn!(%error, "reporters that are not configured any more cannot be looked at");
            return Ok(Vec::new());
        }
    };
    let now = unix_ms();
    let mut kept = Vec::new();
    for reporter in found.reporters.iter().filter(|reporter| !is_known(&reporter.name)) {
        let ReporterSurvey { name, through, backlog, left_ms, .. } = reporter;
        let left = left_ms.unwrap_or(now);
        let age = Duration::from_millis(now.saturating_sub(left));
        let time = SPOOL_ABSENT_REPORTER_KEPT.saturating_sub(age);
        if *backlog == 0 && ended + aborted == 0 {
            tracing::info!(reporter = name, "is not configured any more; it had all its records");
            forget(disk, name);
            continue;
        }
        let absent = Absent {
            name: name.clone(),
            through: *through,
            until: Instant::now() + time,
            undelivered: *backlog + ended as u64,
        };
        if time.is_zero() {
            absent.let_go(disk, "it has been away for so long");
            continue;
        }
        if left_ms.is_none() {
            // If it is not taken, the time runs from the next start on.
            let _ = disk.open(&file_name(name)).and_then(|file| note_left(&*file, now));
        }
        absent.tell(time, &disk.place());
        kept.push(absent);
    }
    Ok(kept)
}

/// A reporter with a checkpoint in this folder that is none of these and was never missed: its
/// process may be another one, with another configuration, that comes back for it.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn of_others(disk: &dyn Disk, reporters: &[String]) -> io::Result<Option<String>> {
    for file in disk.list()? {
        let Some(name) = file.strip_suffix(checkpoint::SUFFIX) else { continue };
        let is_known = reporters.iter().any(|reporter| reporter == name);
        if !is_known && left_ms(&*disk.open(&file)?)?.is_none() {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

impl Absent {
    fn tell(&self, left: Duration, place: &str) {
        tracing::warn!(
            reporter = self.name,
            undelivered = self.undelivered,
            kept_for_s = left.as_secs(),
            "is not configured any more and was not given these records: they are kept for it in \
             case it comes back; `llmproxy spool export --dir {place} --from {}` prints them",
            self.through.saturating_add(1)
        );
    }

    /// True when its records are not kept any more: its time is over, or their room is wanted.
    pub fn is_over(&self, room_is_wanted: bool) -> bool {
        room_is_wanted || Instant::now() >= self.until
    }

    /// Forgets it, and says what that costs.
    pub fn let_go(&self, disk: &dyn Disk, why: &str) {
        tracing::warn!(
            reporter = self.name,
            undelivered_at_start = self.undelivered,
            behind = self.through,
            why,
            "is not configured any more: the records that it was not given are let go"
        );
        forget(disk, &self.name);
    }
}

fn file_name(reporter: &str) -> String {
    format!("{reporter}{}", checkpoint::SUFFIX)
}

fn forget(disk: &dyn Disk, reporter: &str) {
    if let Err(error) = disk.remove(&file_name(reporter)) {
        tracing::warn!(reporter, %error, "its checkpoint stays, and is met again at the next start");
    }
}

/// It is configured: if it goes again, its time begins anew.
fn is_back(disk: &dyn Disk, reporter: &str) -> io::Result<()> {
    let file = disk.open(&file_name(reporter))?;
    if left_ms(&*file)?.is_some() {
        tracing::info!(reporter, "is configured again and goes on where it was");
        file.write_at(&[0; MARK_BYTES], MARK_PLACE)?;
    }
    Ok(())
}

/// Notes in a checkpoint's file when its reporter was first missed.
pub(super) fn note_left(file: &dyn DiskFile, now_ms: u64) -> io::Result<()> {
    let mut mark = [0; MARK_BYTES];
    mark[..4].copy_from_slice(&MAGIC);
    mark[4..12].copy_from_slice(&now_ms.to_le_bytes());
    let crc = crc32c::crc32c(&mark[..12]);
    mark[12..].copy_from_slice(&crc.to_le_bytes());
    file.write_at(&mark, MARK_PLACE)
}

/// When the reporter of a checkpoint was first missed, milliseconds since 1970; `None` while it is
/// configured.
///
/// # Errors
/// The file cannot be read.
pub(super) fn left_ms(file: &dyn DiskFile) -> io::Result<Option<u64>> {
    let mut mark = [0; MARK_BYTES];
    let read = read_fully(file, &mut mark, MARK_PLACE)?;
    let crc = crc32c::crc32c(&mark[..12]).to_le_bytes();
    if read < MARK_BYTES || mark[..4] != MAGIC || mark[12..] != crc {
        return Ok(None);
    }
    let digits = mark[4..12].first_chunk().copied();
    Ok(digits.map(u64::from_le_bytes))
}
