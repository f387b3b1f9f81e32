//! What a folder knows of itself: the markers of its segments, so that their entries are found
//! when a segment's own header is damaged, and the reporters that ever had a checkpoint here, so
//! that a checkpoint which was deleted is told from a reporter that is new.

use super::dead_letter::write_whole;
use super::disk::Disk;
use super::scan::{header_of, read_fully};
use super::segment::{self, Marker};
use crate::base::limits::{SPOOL_MARKERS_MAX, SPOOL_REGISTER_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::io;

/// Its file.
pub const NAME: &str = "register";

const MAGIC: [u8; 4] = *b"LPR\n";
/// Magic, length and CRC32C of what follows.
const HEAD_BYTES: usize = 12;
/// The file holds two copies, each at a multiple of this: damage to one sector leaves one whole.
const PLACE_BYTES: usize = 4096;

/// What the file says.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Markers of the segments that were there when it was written, newest first.
    pub markers: Vec<Marker>,
    /// Reporters with a checkpoint.
    pub reporters: Vec<String>,
}

/// What was found in its place.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole one.
    Whole(Register),
    /// None: the folder is new, or was written before there were registers.
    Absent,
    /// Something that cannot be read.
    Damaged,
}

impl Register {
    /// Reads that of a folder.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read(disk: &dyn Disk) -> io::Result<Found> {
        let file = match disk.open(NAME) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
            file => file?,
        };
        let size = file.size()?.min(SPOOL_REGISTER_BYTES_MAX as u64) as usize;
        let mut bytes = vec![0; size];
        let read = read_fully(&*file, &mut bytes, 0)?;
        bytes.truncate(read);
        let copies = (0..bytes.len()).step_by(PLACE_BYTES);
        let whole = copies.filter_map(|at| bytes.get(at..)).find_map(Register::from_bytes);
        Ok(whole.map_or(Found::Damaged, Found::Whole))
    }

    /// Writes it in place of the one that is there, and forces it to the disk.
    ///
    /// # Errors
    /// The disk does not take it; then the other one is as it was.
    pub fn write(&self, disk: &dyn Disk) -> io::Result<()> {
        let body = serde_json::to_vec(self)?;
        let mut copy = MAGIC.to_vec();
        copy.extend_from_slice(&(body.len() as u32).to_le_bytes());
        copy.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        copy.extend_from_slice(&body);
        let mut bytes = copy.clone();
        bytes.resize(copy.len().next_multiple_of(PLACE_BYTES), 0);
        bytes.extend_from_slice(&copy);
        write_whole(disk, NAME, &bytes)
    }

    /// Adds a marker, newest first; those beyond the limit are forgotten.
    pub fn add_marker(&mut self, marker: Marker) {
        if !self.markers.contains(&marker) {
            self.markers.insert(0, marker);
            self.markers.truncate(SPOOL_MARKERS_MAX);
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Register> {
        let head = bytes.get(..HEAD_BYTES)?;
        let number = |at: usize| {
            let digits = head.get(at..).and_then(<[u8]>::first_chunk).copied();
            digits.map(u32::from_le_bytes)
        };
        let body = bytes.get(HEAD_BYTES..)?.get(..number(4)? as usize)?;
        if head[..4] != MAGIC || number(8)? != crc32c::crc32c(body) {
            return None;
        }
        serde_json::from_slice(body).ok()
    }
}

/// The markers that entries in a folder may begin with: those of the register, and those in the
/// headers that are whole.
///
/// # Errors
/// The disk cannot be read, or a newer version wrote it.
pub fn known_markers(disk: &dyn Disk, firsts: &[u64]) -> io::Result<Vec<Marker>> {
    let mut register = match Register::read(disk)? {
        Found::Whole(register) => register,
        Found::Absent | Found::Damaged => Register::default(),
    };
    for first in firsts {
        let name = segment::file_name(*first);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("spool file {name}: {e}"));
        let file = match disk.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.map_err(named)?,
        };
        if let Some(header) = header_of(&*file).map_err(named)? {
            register.add_marker(header.marker);
        }
    }
    Ok(register.markers)
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryDisk;
    use super::*;

    /// Catches: one damaged sector that takes the register with it, and damage that is read as one.
    #[test]
    fn one_sector_may_be_damaged() {
        let disk = MemoryDisk::default();
        assert_eq!(Register::read(&disk).unwrap(), Found::Absent);
        let mut register = Register { reporters: vec!["a".repeat(3000); 3], ..Default::default() };
        (0..200_u8).for_each(|n| register.add_marker([n; 4]));
        assert_eq!(register.markers.len(), SPOOL_MARKERS_MAX);
        assert_eq!(register.markers[0], [199; 4]);
        register.write(&disk).unwrap();
        let file = disk.open(NAME).unwrap();
        let size = file.size().unwrap();
        for sector in 0..size.div_ceil(512) {
            let mut kept = [0; 512];
            let len = read_fully(&*file, &mut kept, sector * 512).unwrap();
            file.write_at(&vec![0; len], sector * 512).unwrap();
            assert_eq!(Register::read(&disk).unwrap(), Found::Whole(register.clone()));
            file.write_at(&kept[..len], sector * 512).unwrap();
        }
        file.write_at(&vec![0; size as usize], 0).unwrap();
        assert_eq!(Register::read(&disk).unwrap(), Found::Damaged);
    }
}
