//! What a process that died left in its rings. Their files are read, not mapped: whatever is in
//! them, and whoever else has them open, they are just bytes.

use super::entry::{Walk, ALIGN};
use super::file::{is_ring, word, MAGIC, OWNER_BYTES, VERSION};
use crate::usage::spool::segment::Kind;
use std::fs;
use std::io;
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
}

/// Gives every entry that was put into the rings of a folder and not taken out, in the order of
/// each ring. Only for a folder whose owner is dead: its lock was had. To be called again for the
/// same files, if what it gave could not be kept, they are left as they are.
///
/// # Errors
/// The folder cannot be read (one that is not there has no rings), or a file in it, or a newer
/// version wrote it.
pub fn drain(folder: &Path, into: &mut impl FnMut(Kind, &[u8])) -> io::Result<Drained> {
    let mut drained = Drained::default();
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(drained),
        listed => listed?,
    };
    for file in listed {
        let file = file?;
        if file.file_name().to_str().is_some_and(is_ring) {
            drained.files.push(file.path());
        }
    }
    drained.files.sort();
    for path in &drained.files {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let bytes = fs::read(path).map_err(named)?;
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
    }
    Ok(drained)
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
        let mut walk = Walk::new(lap, from);
        for entry in &mut walk {
            found.entries += 1;
            into(entry.header.kind, entry.payload);
        }
        found.damaged += u64::from(walk.is_damaged());
    }
    Ok(found)
}
