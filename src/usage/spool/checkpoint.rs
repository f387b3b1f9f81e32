//! How far one reporter is, in a file of two slots. Behind them stands when the reporter left the
//! configuration, if it did.
//!
//! A killed process repeats nothing, since each step is written at once; a power cut repeats what
//! was delivered since the last sync. The slot that was synced last stays untouched until the
//! other one is: one of the two is whole at any moment.

use super::disk::{Disk, DiskFile};
use super::scan::read_fully;
use std::io;
use std::sync::Arc;

const MAGIC: [u8; 4] = *b"LPC\n";
/// Magic, generation, sequence and their CRC32C.
const SLOT_BYTES: usize = 24;
/// The slots lie in different sectors, so that a disk that writes one leaves the other alone.
const SLOT_PLACES: [u64; 2] = [0, 512];

/// The file's name begins with the reporter's and ends so.
pub const SUFFIX: &str = ".ckpt";

/// How far a reporter is.
pub struct Checkpoint {
    name: String,
    /// `None` while the disk does not take one.
    file: Option<Arc<dyn DiskFile>>,
    /// Grows with each write, so that the newer slot is known.
    generation: u64,
    /// All records up to this sequence are delivered.
    through: u64,
    /// Of these, what a power cut leaves known.
    synced: u64,
    /// The slot that holds `synced`.
    kept: usize,
    /// There is a step since the last sync.
    dirty: bool,
    /// There is one that the file does not have.
    unwritten: bool,
}

/// What the file of a reporter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Grows with each write.
    pub generation: u64,
    /// All records up to this sequence are delivered.
    pub through: u64,
    /// In which of the two it stands.
    pub slot: usize,
}

impl Checkpoint {
    /// One that stands at `through`, whatever its file says; written by [`Checkpoint::keep`].
    pub fn at(reporter: &str, through: u64) -> Checkpoint {
        let name = format!("{reporter}{SUFFIX}");
        let (dirty, unwritten) = (true, true);
        Checkpoint {
            name,
            file: None,
            generation: 0,
            through,
            synced: 0,
            kept: 0,
            dirty,
            unwritten,
        }
    }

    /// The one that lies in this file. A file in which no slot is whole stands at the beginning:
    /// it is better to repeat than to lose.
    ///
    /// # Errors
    /// There is no file, or it cannot be read.
    pub fn open(disk: &dyn Disk, reporter: &str) -> io::Result<Checkpoint> {
        let mut checkpoint = Checkpoint::at(reporter, 0);
        let file = disk.open(&checkpoint.name)?;
        if let Some(stored) = read(file.as_ref())? {
            checkpoint.generation = stored.generation;
            checkpoint.unwritten = false;
            checkpoint.through = stored.through;
            checkpoint.kept = stored.slot;
            // A killed process may have written it a moment ago, and the other slot is to be
            // written next: this one must be safe by then.
            if file.sync().is_ok() {
                checkpoint.synced = stored.through;
                checkpoint.dirty = false;
            }
        }
        checkpoint.file = Some(file);
        Ok(checkpoint)
    }

    /// Makes sure that there is a file, that it says where this stands, and that the disk has it.
    /// The folder is for the caller to sync.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep(&mut self, disk: &dyn Disk) -> io::Result<()> {
        if self.file.is_none() {
            let file = disk.create(&self.name)?;
            // Both slots have their place from the beginning: a full disk must not stop them.
            file.write_at(&[0; SLOT_BYTES], SLOT_PLACES[1])?;
            file.write_at(&self.slot(), SLOT_PLACES[0])?;
            file.sync()?;
            self.file = Some(file);
            self.synced = self.through;
            self.kept = 0;
            (self.dirty, self.unwritten) = (false, false);
            return Ok(());
        }
        self.write()?;
        self.sync()
    }

    /// True when somebody deleted its file.
    pub fn is_gone(&self) -> bool {
        self.file.as_ref().is_some_and(|file| !file.has_name().unwrap_or(true))
    }

    /// The folder may be another now: without a file in it, [`Checkpoint::keep`] makes one.
    pub fn find_again(&mut self, disk: &dyn Disk) {
        let is_here = self.file.as_ref().is_some_and(|file| file.has_name().unwrap_or(false))
            && disk.open(&self.name).is_ok();
        if !is_here {
            self.file = None;
            self.synced = 0;
            (self.dirty, self.unwritten) = (true, true);
        }
    }

    /// All records up to this sequence are delivered.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Up to this sequence a power cut forgets nothing.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Steps on; a step back does nothing.
    ///
    /// # Errors
    /// It is not in the file; a killed process will repeat what it stands for.
    pub fn advance(&mut self, through: u64) -> io::Result<()> {
        if through <= self.through {
            return Ok(());
        }
        self.through = through;
        self.dirty = true;
        self.write()
    }

    /// Steps back, or on, to a place that a person chose, and forces that to the disk.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn set(&mut self, through: u64) -> io::Result<()> {
        (self.through, self.dirty) = (through, true);
        self.write()?;
        self.sync()
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        self.generation += 1;
        self.unwritten = true;
        let place = SLOT_PLACES.get(1 - self.kept).copied().unwrap_or_default();
        file.write_at(&self.slot(), place)?;
        self.unwritten = false;
        Ok(())
    }

    /// Forces the last step to the disk.
    ///
    /// # Errors
    /// The disk may not have it. The next write goes into the same slot, and the next sync tells.
    pub fn sync(&mut self) -> io::Result<()> {
        let Some(file) = self.file.clone().filter(|_| self.dirty) else { return Ok(()) };
        if self.unwritten {
            self.write()?;
        }
        if let Err(error) = file.sync() {
            // The kernel may call clean what never went out: written again, it is dirty again.
            self.write()?;
            return Err(error);
        }
        self.synced = self.through;
        self.kept = 1 - self.kept;
        self.dirty = false;
        Ok(())
    }

    fn slot(&self) -> [u8; SLOT_BYTES] {
        let mut slot = [0; SLOT_BYTES];
        slot[..4].copy_from_slice(&MAGIC);
        slot[4..12].copy_from_slice(&self.generation.to_le_bytes());
        slot[12..20].copy_from_slice(&self.through.to_le_bytes());
        let crc = crc32c::crc32c(&slot[..20]);
        slot[20..].copy_from_slice(&crc.to_le_bytes());
        slot
    }
}

/// The newer of the whole slots; `None` when there is none.
///
/// # Errors
/// The file cannot be read.
pub fn read(file: &dyn DiskFile) -> io::Result<Option<Stored>> {
    let mut newest = None::<Stored>;
    for (slot, place) in SLOT_PLACES.into_iter().enumerate() {
        let mut bytes = [0; SLOT_BYTES];
        if read_fully(file, &mut bytes, place)? < SLOT_BYTES {
            continue;
        }
        let number = |from: usize| {
            let digits = bytes.get(from..).and_then(<[u8]>::first_chunk);
            digits.map_or(0, |digits| u64::from_le_bytes(*digits))
        };
        let crc = crc32c::crc32c(&bytes[..20]).to_le_bytes();
        if bytes[..4] != MAGIC || bytes[20..] != crc {
            continue;
        }
        let stored = Stored { generation: number(4), through: number(12), slot };
        if newest.is_none_or(|newest| newest.generation < stored.generation) {
            newest = Some(stored);
        }
    }
    Ok(newest)
}
