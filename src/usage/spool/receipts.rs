//! Which requests ended in memory only and were delivered from there, while the disk took nothing
//! new. The disk has their beginning and not their end: after a kill they would be told once more,
//! as aborted and without the tokens that were counted.
//!
//! A full disk still takes what is written over something. So each reporter has a file of a fixed
//! length, made while the disk works, in whose slots the ids are noted: its receipts. Where even
//! that is not taken (a disk that is read-only or broken), nothing can be known after a kill.

use super::codec;
use super::disk::{Disk, DiskFile};
use super::recover::Found;
use super::scan::read_fully;
use super::segment::{self, Kind, Parsed};
use super::writer::Writer;
use crate::base::fnv;
use crate::base::limits::{SPOOL_BATCH_BYTES, SPOOL_RECEIPTS_MAX};
use crate::usage::record::UsageRecord;
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The file's name begins with the reporter's and ends so.
pub const SUFFIX: &str = ".receipts";

/// A name of an id, and its CRC32C. A slot of zeros is free.
const SLOT_BYTES: usize = 16;

/// Stands for the id of a request: what two ids share by chance in a billion years.
pub type Name = [u8; 12];

/// The receipts of all reporters of a folder.
#[derive(Default)]
pub struct Receipts {
    /// Requests that end in memory and began on the disk.
    dangling: Mutex<HashSet<Name>>,
    /// There are some.
    is_any: AtomicBool,
    /// In the order of the reporters.
    files: Vec<Mutex<File>>,
    /// Of each file.
    slots: usize,
}

/// The receipts of one reporter.
#[derive(Default)]
struct File {
    file: Option<Arc<dyn DiskFile>>,
    /// The slot that is written next.
    next: usize,
    /// There is something in it.
    is_used: bool,
}

/// The name of a request's id.
pub fn name_of(id: &str) -> Name {
    let hash = fnv::hash(id.bytes());
    let mut name = [0; 12];
    name[..8].copy_from_slice(&hash.to_le_bytes());
    name[8..].copy_from_slice(&crc32c::crc32c(id.as_bytes()).to_le_bytes());
    name
}

impl Receipts {
    /// For so many reporters. A small spool has small files of receipts.
    pub fn new(reporters: usize, segment_bytes: u64) -> Receipts {
        let fit = usize::try_from(segment_bytes / SLOT_BYTES as u64).unwrap_or(usize::MAX);
        let files = (0..reporters).map(|_| Mutex::default()).collect();
        Receipts { files, slots: fit.clamp(1, SPOOL_RECEIPTS_MAX), ..Receipts::default() }
    }

    /// Makes the file of a reporter, or finds it. Without it the spool works all the same.
    pub fn keep(&self, disk: &dyn Disk, reporter: usize, name: &str) {
        let Some(mut file) = self.file(reporter) else { return };
        let name = format!("{name}{SUFFIX}");
        let opened = match disk.open(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(disk, &name, self.slots * SLOT_BYTES)
            }
            opened => opened,
        };
        match opened {
            Ok(opened) => file.file = Some(opened),
            Err(error) => tracing::warn!(file = name, %error, "what memory delivers is not noted"),
        }
    }

    /// The disk takes nothing from now on: these began there, and end in memory.
    pub fn dangle<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let mut dangling = lock(&self.dangling);
        // More than there are slots for cannot be noted.
        let room = self.slots.saturating_sub(dangling.len());
        dangling.extend(ids.take(room).map(name_of));
        self.is_any.store(!dangling.is_empty(), Relaxed);
    }

    /// The name to be noted of a request whose end is in memory, when it is done with.
    pub fn dangling(&self, id: &str) -> Option<Name> {
        if !self.is_any.load(Relaxed) {
            return None;
        }
        let name = name_of(id);
        lock(&self.dangling).contains(&name).then_some(name)
    }

    /// A reporter has had the end of this request.
    pub fn note(&self, reporter: usize, name: Name) {
        let Some(mut receipts) = self.file(reporter) else { return };
        let Some(file) = receipts.file.clone() else { return };
        let mut slot = [0; SLOT_BYTES];
        slot[..12].copy_from_slice(&name);
        slot[12..].copy_from_slice(&crc32c::crc32c(&name).to_le_bytes());
        // A kill tells it once more if the disk does not take this.
        let _ = file.write_at(&slot, (receipts.next * SLOT_BYTES) as u64);
        receipts.next = (receipts.next + 1) % self.slots;
        receipts.is_used = true;
    }

    /// The disk has all that was in memory: nothing is to be noted any more.
    pub fn clear(&self) {
        lock(&self.dangling).clear();
        self.is_any.store(false, Relaxed);
        for file in &self.files {
            let mut receipts = lock(file);
            let Some(file) = receipts.file.clone().filter(|_| receipts.is_used) else { continue };
            // What stays says nothing of a request to come.
            let _ = file.write_at(&vec![0; self.slots * SLOT_BYTES], 0);
            (receipts.next, receipts.is_used) = (0, false);
        }
    }

    fn file(&self, reporter: usize) -> Option<MutexGuard<'_, File>> {
        self.files.get(reporter).map(lock)
    }
}

/// What an earlier process noted of a reporter.
///
/// # Errors
/// The file cannot be read.
pub fn read(disk: &dyn Disk, reporter: &str) -> io::Result<HashSet<Name>> {
    let file = match disk.open(&format!("{reporter}{SUFFIX}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        file => file?,
    };
    let mut bytes = vec![0; SPOOL_RECEIPTS_MAX * SLOT_BYTES];
    let read = read_fully(&*file, &mut bytes, 0)?;
    let slots = bytes.get(..read).unwrap_or_default().chunks_exact(SLOT_BYTES);
    let name = |slot: &[u8]| {
        let (name, crc) = slot.split_first_chunk::<12>()?;
        (*crc == crc32c::crc32c(name).to_le_bytes()).then_some(*name)
    };
    Ok(slots.filter_map(name).collect())
}

/// A request that was in flight when its process was killed, as far as the disk knows, and whose
/// end some reporter had from memory.
pub struct Told {
    record: UsageRecord,
    /// Those that did not have it.
    lacking: Vec<String>,
}

/// Takes those out of the aborted requests whose end some reporter had.
///
/// # Errors
/// The receipts cannot be read.
pub(super) fn sort_out(disk: &dyn Disk, reporters: &[String], found: &mut Found) -> io::Result<()> {
    if found.aborted.is_empty() {
        return Ok(());
    }
    let absent = found.absent.iter().map(|absent| &absent.name);
    let names: Vec<&String> = reporters.iter().chain(absent).collect();
    let receipts: Vec<_> = names.iter().map(|name| read(disk, name)).collect::<io::Result<_>>()?;
    if receipts.iter().all(HashSet::is_empty) {
        return Ok(());
    }
    for record in std::mem::take(&mut found.aborted) {
        let name = name_of(record.request_id.as_str());
        let had = receipts.iter().map(|noted| noted.contains(&name));
        let lacking = names.iter().zip(had).filter(|(_, had)| !had);
        let lacking: Vec<String> = lacking.map(|(name, _)| (*name).clone()).collect();
        if lacking.len() == names.len() {
            found.aborted.push(record);
        } else {
            found.told.push(Told { record, lacking });
        }
    }
    Ok(())
}

impl Writer {
    /// Writes that these requests are over, for those that do not know.
    pub(super) fn append_told(&mut self, told: &[Told]) {
        for Told { record, lacking } in told {
            for name in lacking {
                // One that left may come back.
                if !self.append_again(name, record) {
                    self.append_for(name, record);
                }
            }
            if lacking.is_empty() {
                self.append_for("", record);
            }
            if self.pending() > SPOOL_BATCH_BYTES {
                self.commit();
            }
        }
        if !told.is_empty() {
            let message =
                "ended before the gateway was killed, as it was noted: not told as aborted";
            tracing::info!(requests = told.len(), "{message}");
        }
    }

    /// Adds a record for a reporter that is not configured, or for nobody.
    fn append_for(&mut self, name: &str, record: &UsageRecord) {
        self.batch.push(Kind::Again, |into| {
            codec::write_number(into, name.len() as u64);
            into.extend_from_slice(name.as_bytes());
            codec::encode_bare(&record.borrowed(), into);
        });
    }

    /// The disk takes nothing from now on: requests in flight began there and end in memory; so do
    /// those whose end is in these bytes, or in the batch.
    pub(super) fn dangle(&self, bytes: &[u8]) {
        let receipts = &self.shared.receipts;
        receipts.dangle(self.flights.in_order().filter_map(|(_, said)| codec::request_id_of(said)));
        for mut rest in [bytes, &self.batch.bytes] {
            while let Parsed::Entry(entry) = segment::parse(rest, self.batch.marker) {
                if Kind::of(entry.kind) == Some(Kind::Close) {
                    receipts.dangle(codec::request_id_of(entry.payload).into_iter());
                }
                rest = rest.get(entry.size()..).unwrap_or_default();
            }
        }
    }
}

fn make(disk: &dyn Disk, name: &str, bytes: usize) -> io::Result<Arc<dyn DiskFile>> {
    let file = disk.create(name)?;
    file.write_at(&vec![0; bytes], 0)?;
    file.sync()?;
    Ok(file)
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
