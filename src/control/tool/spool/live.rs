//! A replay beside a running gateway: its letters are put where the reporter's thread finds them
//! (`usage::spool::replay`). Nothing else of the spool is touched.

use super::Kept;
use crate::base::limits::DEAD_LETTER_BYTES_MAX;
use crate::usage::spool::dead_letter::{self, line_of};
use crate::usage::spool::disk::{Disk, RealDisk};
use crate::usage::spool::replay::SUFFIX;
use crate::usage::spool::survey::survey;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held while one of us puts a file there: two would put theirs in the place of each other's.
const LOCK: &str = "replay.lock";

/// Hands over the file of dead letters.
pub fn replay_dead_letters(dir: &Path, reporter: &str, out: &mut dyn Write) -> io::Result<()> {
    let _alone = begin(dir, reporter)?;
    let name = format!("{reporter}{}", dead_letter::SUFFIX);
    let disk = RealDisk::reader(dir);
    let Some(letters) = dead_letter::read(&disk, &name)? else {
        return writeln!(out, "{reporter}: 0 dead letters are delivered again");
    };
    let (mut taken, mut kept) = (0, Kept::default());
    for (number, line, record) in dead_letter::lines(&letters) {
        match record {
            Some(_) => taken += 1,
            None => kept.add(number, line),
        }
    }
    if taken > 0 {
        // What is added until it is taken up goes along. What cannot be read comes back.
        disk.rename(&name, &format!("{reporter}{SUFFIX}"))?;
        disk.sync_dir()?;
    }
    writeln!(out, "{reporter}: the running gateway delivers {taken} dead letters again")?;
    kept.tell(&name)
}

/// Hands over records of the spool that the reporter has had: from the first sequence to the last.
pub fn replay_records(
    dir: &Path,
    reporter: &str,
    (first, last): (u64, u64),
    out: &mut dyn Write,
) -> io::Result<()> {
    let _alone = begin(dir, reporter)?;
    if first > last {
        let message = format!(
            "{reporter} has not had these records yet and will get them; to leave some out, stop \
             the gateway first"
        );
        return Err(io::Error::other(message));
    }
    let disk = RealDisk::reader(dir);
    let (name, new) = (format!("{reporter}{SUFFIX}"), format!("{reporter}{SUFFIX}.new"));
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = io::BufWriter::new(options.open(dir.join(&new))?);
    let (mut records, mut bytes) = (0, 0);
    let written = survey(&disk, |sequence, only, record| {
        if !(first..=last).contains(&sequence) || only.is_some_and(|only| only != reporter) {
            return Ok(());
        }
        let line = line_of(record, "asked for by spool replay")?;
        (records, bytes) = (records + 1, bytes + line.len() as u64);
        if bytes > DEAD_LETTER_BYTES_MAX {
            let message = format!(
                "these are more than {DEAD_LETTER_BYTES_MAX} bytes: too many for a running \
                 gateway; stop it first, or begin later"
            );
            return Err(io::Error::other(message));
        }
        file.write_all(&line)
    });
    let file = written.and_then(|_| file.into_inner().map_err(|error| error.into_error()));
    if let Err(error) = file.and_then(|file| file.sync_all()) {
        // It says nothing to anybody under this name.
        let _ = disk.remove(&new);
        return Err(error);
    }
    disk.rename(&new, &name)?;
    disk.sync_dir()?;
    writeln!(out, "{reporter}: the running gateway delivers {records} records again")
}

/// The lock, if no replay of this reporter is under way.
fn begin(dir: &Path, reporter: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(dir.join(LOCK))?;
    lock.lock()?;
    if dir.join(format!("{reporter}{SUFFIX}")).exists() {
        let message = format!("{reporter}: a replay is under way; try again when it has ended");
        return Err(io::Error::other(message));
    }
    Ok(lock)
}
