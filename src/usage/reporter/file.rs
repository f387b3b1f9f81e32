//! Lines of JSON in a file, one write and one sync per batch. Rotated by size and age; a file that
//! somebody else moved away is left alone and a new one begun.
//!
//! What this cannot write is never a record's fault: the disk is full, or somebody took rights
//! away. Whatever came of a half-written batch is cut off again, and if even that fails, the torn
//! line gets its end before the next record.
//!
//! Several processes may write to one file: each has its lock (`flock`) from the look at its end to
//! the sync, so that none writes behind a torn line, cuts off what another has written, or rotates
//! beside another. The kernel frees it when a process dies.

use super::{Reporter, Shape, Tried};
use crate::base::clock::unix_ms;
use crate::base::limits::{
    FILE_BATCH_RECORDS_MAX, FILE_BUFFER_BYTES_KEPT, GATHER_COSTLY, LANE_BYTES_KEPT,
};
use crate::config::plan;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::json::JsonWriter;
use crossbeam_channel::never;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file that another process writes to is looked at again after so long.
const LOCK_LOOK: Duration = Duration::from_millis(2);
/// Only the owner reads what people asked.
const MODE: u32 = 0o600;
/// Of a rotated file: digits stand for digits, sorted as times are.
const TIME_FORM: &str = "0000-00-00T00-00-00.000Z";
/// Rotated files with the same millisecond in their name. Beyond: the file grows on.
const SAME_TIME_MAX: u32 = 1000;

/// A file that is written.
pub struct LinesFile {
    plan: plan::FileReporter,
    open: Option<Open>,
    /// Used again for each batch.
    lines: Vec<u8>,
    /// That it cannot be rotated was told.
    told: bool,
    /// What somebody else does to the path just before it is looked at.
    #[cfg(test)]
    before_look: Option<Box<dyn FnMut() + Send>>,
}

struct Open {
    file: File,
    /// Device and number: another file may come to stand at the path.
    identity: (u64, u64),
    /// How old it was when it was opened, and when that was.
    age: Duration,
    since: Instant,
    /// Where our last line ended: if the file does not end there, somebody else wrote, and may have
    /// been killed in the middle of a line.
    end: Option<u64>,
}

/// How a file wants to be called.
pub fn shape() -> Shape {
    Shape {
        batch: FILE_BATCH_RECORDS_MAX,
        gather: GATHER_COSTLY,
        concurrency: 1,
        retries: 4,
        timeout: Duration::from_secs(10),
    }
}

impl LinesFile {
    /// Opens nothing yet.
    pub fn new(plan: plan::FileReporter) -> Self {
        LinesFile {
            plan,
            open: None,
            lines: Vec::new(),
            told: false,
            #[cfg(test)]
            before_look: None,
        }
    }

    fn write(&mut self, lines: &[u8], until: Instant) -> io::Result<()> {
        let size = match self.ready(lines.len() as u64, until) {
            Ok(size) => size,
            Err(error) => {
                // Its lock goes with it.
                self.open = None;
                return Err(error);
            }
        };
        let Some(open) = &mut self.open else { return Ok(()) };
        let written = open.file.write_all(lines).and_then(|()| open.file.sync_data());
        open.end = written.is_ok().then_some(size + lines.len() as u64);
        if written.is_err() && open.file.set_len(size).is_err() {
            // Opening anew looks for a torn line.
            self.open = None;
            return written;
        }
        unlock(&open.file);
        written
    }

    /// Makes sure that the file at the path is open, ours alone until it is unlocked, without a
    /// torn line, and has room; gives its size.
    fn ready(&mut self, more: u64, until: Instant) -> io::Result<u64> {
        loop {
            self.reopen()?;
            let Some(open) = &mut self.open else { return Err(io::ErrorKind::NotFound.into()) };
            lock(&open.file, until)?;
            #[cfg(test)]
            self.before_look.iter_mut().for_each(|change| change());
            // Another process may have rotated it meanwhile.
            let is_there =
                fs::metadata(&self.plan.path).is_ok_and(|f| identity(&f) == open.identity);
            if !is_there {
                self.open = None;
                if Instant::now() >= until {
                    return Err(io::Error::other("another file stands there at each look"));
                }
                continue;
            }
            let mut size = open.file.metadata()?.len();
            if open.end != Some(size) && is_torn(&mut open.file, size)? {
                open.file.write_all(b"\n")?;
                size += 1;
            }
            if !self.rotates(size, more) {
                return Ok(size);
            }
            self.open = None;
        }
    }

    /// Rotates the file, of this size, if it is time for that; true when it did.
    fn rotates(&mut self, size: u64, more: u64) -> bool {
        let aged = |open: &Open| {
            let age = open.age + open.since.elapsed();
            self.plan.max_age.is_some_and(|most| age >= most)
        };
        let full = size.saturating_add(more) > self.plan.max_size;
        if size > 0 && (full || self.open.as_ref().is_some_and(aged)) {
            match rotate(&self.plan.path, self.plan.max_files) {
                Ok(()) => {
                    self.told = false;
                    return true;
                }
                Err(error) if !self.told => {
                    // It is better that it grows than that records wait.
                    let path = self.plan.path.display();
                    tracing::warn!(%path, %error, "the usage file cannot be rotated");
                    self.told = true;
                }
                Err(_) => {}
            }
        }
        false
    }

    /// Opens what stands at the path, unless it is open.
    fn reopen(&mut self) -> io::Result<()> {
        let there = match fs::metadata(&self.plan.path) {
            Ok(there) => Some(there),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let (Some(there), Some(open)) = (&there, &self.open) {
            if identity(there) == open.identity {
                return Ok(());
            }
        }
        self.open = None;
        if let Some(folder) = self.plan.path.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(MODE);
        let file = options.open(&self.plan.path)?;
        let found = file.metadata()?;
        let began = found.created().or_else(|_| found.modified())?;
        let age = began.elapsed().unwrap_or_default();
        let (identity, since) = (identity(&found), Instant::now());
        self.open = Some(Open { file, identity, age, since, end: None });
        Ok(())
    }
}

impl Reporter for LinesFile {
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let until = Instant::now() + limit;
        let mut lines = std::mem::take(&mut self.lines);
        let mut writer = JsonWriter::new(&mut lines, self.plan.format);
        records.iter().for_each(|record| writer.line(record));
        let written = self.write(&lines, until);
        lines.clear();
        lines.shrink_to(FILE_BUFFER_BYTES_KEPT);
        self.lines = lines;
        match written {
            Ok(()) => Tried::Delivered,
            Err(error) => Tried::Again(error.to_string()),
        }
    }

    fn rest(&mut self) {
        self.lines.shrink_to(LANE_BYTES_KEPT);
    }

    fn place(&self) -> String {
        self.plan.path.display().to_string()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Waits until no other process has the file. A file system without locks has none of them, either.
fn lock(file: &File, until: Instant) -> io::Result<()> {
    while let Err(Errno::WOULDBLOCK) = flock(file, FlockOperation::NonBlockingLockExclusive) {
        if Instant::now() >= until {
            return Err(io::Error::other("another process does not let go of it"));
        }
        // The kernel tells nobody when a lock is free, short of a wait for it that has no end.
        let _ = never::<()>().recv_timeout(LOCK_LOOK);
    }
    Ok(())
}

/// It is also free when the file is closed.
fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
}

/// The last line has no end: the process was killed while it wrote.
fn is_torn(file: &mut File, size: u64) -> io::Result<bool> {
    if size == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::Start(size - 1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Moves the file away under the time of its end, and removes the oldest that are too many.
fn rotate(path: &Path, max_files: u32) -> io::Result<()> {
    let time =
        i64::try_from(unix_ms()).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.ok_or_else(|| io::Error::other("the clock shows no time"))?;
    let time = time.strftime("%Y-%m-%dT%H-%M-%S%.3fZ").to_string();
    let free = (0..SAME_TIME_MAX).map(|n| beside(path, &time, n)).find(|to| !to.exists());
    fs::rename(path, free.ok_or(io::ErrorKind::AlreadyExists)?)?;
    if max_files > 0 {
        let mut old = rotated(path)?;
        old.sort();
        let surplus = old.len().saturating_sub(max_files as usize);
        old.iter().take(surplus).try_for_each(fs::remove_file)?;
    }
    Ok(())
}

fn beside(path: &Path, time: &str, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{time}"));
    if number > 0 {
        name.push(format!("-{number:03}"));
    }
    name.into()
}

/// The rotated files of a path, and no other that happens to begin like it.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let other = entry.file_name().to_string_lossy().into_owned();
        if other.strip_prefix(&name).and_then(|rest| rest.strip_prefix('.')).is_some_and(is_time) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_time(text: &str) -> bool {
    let (time, number) = text.split_at_checked(TIME_FORM.len()).unwrap_or_default();
    let alike = |(have, want): (u8, u8)| match want {
        b'0' => have.is_ascii_digit(),
        _ => have == want,
    };
    let number = number.strip_prefix('-').unwrap_or(number);
    time.len() == TIME_FORM.len()
        && time.bytes().zip(TIME_FORM.bytes()).all(alike)
        && number.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests;
