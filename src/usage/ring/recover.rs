//! What a process that died left in its rings. Their files are read, not mapped: whatever is in
//! them, and whoever else has them open, they are just bytes.

use super::entry::{Check, Walk, ALIGN};
use super::file::{is_ring, word, MAGIC, OWNER_BYTES, VERSION};
use crate::base::limits::RING_BYTES_MAX;
use crate::usage::spool::segment::Kind;
use rustix::fs::{flock, FlockOperation, OFlags};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What was found in a folder.
#[derive(Debug, Default)]
pub struct Drained {
    /// The rings. They are to be removed once all that was in them is in the journal.
    pub files: Vec<PathBuf>,
    /// Entries that were in them.
    pub entries: u64,
    /// Laps of which not all could be read, and rings that are none.
    pub damaged: u64,
    /// There is no such folder.
    pub is_missing: bool,
}

/// Gives every entry that was put into the rings of a folder and not taken out, in the order of
/// each ring. A ring that a living process holds is passed over: a copy of its folder of the spool
/// leads here, too. So is what is no ring, which must not hold up a start. To be called again for
/// the same files, if what it gave could not be kept, they are left as they are.
///
/// # Errors
/// The folder cannot be read (one that is not there has no rings), or a file in it, or a newer
/// version wrote it.
pub fn drain(folder: &Path, into: &mut impl FnMut(Kind, &[u8])) -> io::Result<Drained> {
    read(folder, false, into)
}

/// Entries in the rings of a folder, also in those that a living process holds.
///
/// # Errors
/// As [`drain`].
pub fn count(folder: &Path) -> io::Result<u64> {
    Ok(read(folder, true, &mut |_, _| {})?.entries)
}

fn read(folder: &Path, also_held: bool, into: &mut impl FnMut(Kind, &[u8])) -> io::Result<Drained> {
    let mut drained = Drained::default();
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Drained { is_missing: true, ..drained });
        }
        listed => listed?,
    };
    let mut paths = Vec::new();
    for file in listed {
        let file = file?;
        if file.file_name().to_str().is_some_and(is_ring) {
            paths.push(file.path());
        }
    }
    paths.sort();
    for path in paths {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let Some(file) = open_regular(&path, RING_FILE_BYTES_MAX).map_err(named)? else {
            tracing::warn!(file = %path.display(), "this is no ring of the journal: it stays");
            continue;
        };
        if !also_held && flock(&file, FlockOperation::NonBlockingLockShared).is_err() {
            tracing::warn!(file = %path.display(), "a living process has this ring: it stays");
            continue;
        }
        let mut bytes = Vec::new();
        file.take(RING_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(named)?;
        if is_half_made(&bytes) {
            // Its process ended while it made it, and nothing was put in.
            drained.files.push(path);
            continue;
        }
        let found = entries(&bytes, &mut |kind, payload| {
            // Kinds of a newer version of the same format are stepped over.
            if let Some(kind) = Kind::of(kind) {
                into(kind, payload);
            }
        });
        let Found { entries, damaged } = found.map_err(named)?;
        if damaged > 0 {
            let file = path.display();
            tracing::error!(%file, entries, damaged, "a ring of the journal is damaged");
        }
        drained.entries += entries;
        drained.damaged += damaged;
        // Of a foreign file nothing can be read, and nothing is removed.
        if entries > 0 || bytes.starts_with(&MAGIC) {
            drained.files.push(path);
        }
    }
    Ok(drained)
}

/// Bytes of a ring's file at most.
const RING_FILE_BYTES_MAX: u64 = RING_BYTES_MAX + OWNER_BYTES as u64;

/// Opens a file to read it. `None`: it is gone, or is no file of so many bytes at most; that is
/// told without waiting for anything, whatever lies there.
pub(super) fn open_regular(path: &Path, bytes_max: u64) -> io::Result<Option<File>> {
    let here = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        here => here?,
    };
    if !here.is_file() {
        return Ok(None);
    }
    // Another thing may lie there by now.
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let found = file.metadata()?;
    Ok((found.is_file() && found.len() <= bytes_max).then_some(file))
}

/// True of a file that has no name yet, which is given to it last, and in which nothing is.
fn is_half_made(bytes: &[u8]) -> bool {
    let before_its_name = [word::OWNER, word::STARTED, word::HEARTBEAT, word::SIZE];
    let mut words = bytes.chunks(8).enumerate();
    words.all(|(at, word)| before_its_name.contains(&at) || word.iter().all(|byte| *byte == 0))
}

/// What was found in a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Entries that can be read.
    pub entries: u64,
    /// Laps of which not all can be, and a ring that is none.
    pub damaged: u64,
}

/// The entries in the bytes of a ring's file that were not taken out: kind and payload.
///
/// # Errors
/// A newer version wrote it.
pub fn entries(bytes: &[u8], into: &mut impl FnMut(u8, &[u8])) -> io::Result<Found> {
    let mut found = Found::default();
    let number = |index: usize| {
        let at = bytes.get(index * 8..)?.first_chunk()?;
        Some(u64::from_le_bytes(*at))
    };
    let is_named = number(word::MAGIC) == Some(u64::from_le_bytes(MAGIC));
    let version = number(word::OWNER).map_or(0, |owner| owner as u32);
    if is_named && version > VERSION {
        let message = format!("a ring of a newer llmproxy (format {version})");
        return Err(io::Error::new(io::ErrorKind::Unsupported, message));
    }
    // The rest of the page says nothing that the file's length and the positions do not.
    found.damaged += u64::from(!is_named);
    let window = bytes.get(OWNER_BYTES..).unwrap_or_default();
    let size = window.len() as u64;
    let (Some(head), Some(tail)) = (number(word::HEAD), number(word::TAIL)) else {
        return Ok(found);
    };
    let is_good = size.is_power_of_two()
        && head.checked_sub(tail).is_some_and(|waiting| waiting <= size)
        && (head | tail).is_multiple_of(ALIGN as u64);
    if !is_good {
        found.damaged += u64::from(is_named);
        return Ok(found);
    }
    let lap_end = tail.saturating_add(size - (tail & (size - 1)));
    for (from, to) in [(tail, head.min(lap_end)), (lap_end, head)] {
        if from >= to {
            continue;
        }
        let at = (from & (size - 1)) as usize;
        // Neither goes beyond its lap, so it lies in one piece.
        let lap = window.get(at..at + (to - from) as usize).unwrap_or_default();
        let mut walk = Walk::new(lap, from, Check::Each);
        for entry in &mut walk {
            found.entries += 1;
            into(entry.header.kind, entry.payload);
        }
        found.damaged += u64::from(walk.is_damaged());
    }
    Ok(found)
}
