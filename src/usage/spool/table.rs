//! The segments, as the writer, the keeper and all cursors see them.

use super::checkpoint::Checkpoint;
use super::dead_letter;
use super::disk::{Disk, DiskFile};
use super::memory::MemoryFile;
use super::receipts::Receipts;
use super::register::Register;
use super::replay::Again;
use super::scan::{Scan, Step};
use super::segment::{self, Kind, Marker, HEADER_BYTES};
use super::state::SpoolState;
use crate::usage::doorbell::Doorbell;
use crate::usage::ring::place::ELSEWHERE;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What the threads of the spool share. None of them is a worker's.
pub struct SpoolShared {
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// The figures.
    pub state: Arc<SpoolState>,
    /// Ring when a reporter has more to read, in the order of the reporters.
    pub bells: Vec<Sender<()>>,
    /// How far each reporter is, in the same order.
    pub checkpoints: Vec<Mutex<Checkpoint>>,
    /// The disk has a file of each of these, and the register.
    pub checkpoints_kept: AtomicBool,
    /// What reporters had from memory.
    pub receipts: Receipts,
    /// What the file says that leads to the rings, if they lie elsewhere.
    pub pointer: OnceLock<Vec<u8>>,
    /// What the folder knows of itself.
    pub register: Mutex<Register>,
    /// Records that reporters are to have once more, on their way to the writer.
    pub again: (Sender<Again>, Receiver<Again>),
    /// Calls the writer.
    pub doorbell: Arc<Doorbell>,
    table: Mutex<Table>,
}

/// All segments that are kept, oldest first. Those on disk come before those in memory; the last
/// one is written.
#[derive(Default)]
pub struct Table {
    pub segments: VecDeque<Segment>,
    /// A file was made that the folder on the disk may not know.
    pub dir_dirty: bool,
    /// Files of segments that went into memory and were delivered from there, and that a failing
    /// disk would not remove: a start would read them, and miss the ends of what began in them.
    pub stale: Vec<u64>,
    /// The folder is gone, and the writer does not know yet.
    pub folder_gone: bool,
    /// A sync has failed, and the writer does not know yet.
    pub sync_failed: bool,
}

/// One segment.
pub struct Segment {
    /// The lowest sequence that may be in it.
    pub first: u64,
    pub marker: Marker,
    /// Where its last whole entry ends: nobody reads on.
    pub end: u64,
    /// So much of it was forced to the disk.
    pub synced: u64,
    pub place: SegmentPlace,
    /// Written since this start: its entries lie without a gap.
    pub ours: bool,
    /// Where it is known to be damaged.
    pub damage: Vec<u64>,
    /// Its file is gone.
    pub missing: bool,
}

/// Where a segment is.
#[derive(Clone)]
pub enum SegmentPlace {
    /// A file; held open while it is written, and until it is synced.
    Disk(Option<Arc<dyn DiskFile>>),
    Memory(Arc<MemoryFile>),
}

impl Segment {
    /// One that this start wrote: its first sequence and marker, its end and how much is synced.
    pub fn ours(
        (first, marker): (u64, Marker),
        (end, synced): (u64, u64),
        place: SegmentPlace,
    ) -> Self {
        let (damage, missing) = (Vec::new(), false);
        Segment { first, marker, end, synced, place, ours: true, damage, missing }
    }

    /// True when an end of the process loses it.
    pub fn in_memory(&self) -> bool {
        matches!(self.place, SegmentPlace::Memory(_))
    }
}

impl SegmentPlace {
    /// The file of the segment that begins with `first`, opened when it is not.
    pub fn file(&self, first: u64, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        match self {
            SegmentPlace::Disk(Some(file)) => Ok(Arc::clone(file)),
            SegmentPlace::Disk(None) => disk.open(&segment::file_name(first)),
            SegmentPlace::Memory(file) => Ok(Arc::clone(file) as Arc<dyn DiskFile>),
        }
    }
}

impl SpoolShared {
    pub fn new(
        disk: Arc<dyn Disk>,
        (state, doorbell): (Arc<SpoolState>, Arc<Doorbell>),
        bells: Vec<Sender<()>>,
        (checkpoints, register, receipts): (Vec<Mutex<Checkpoint>>, Register, Receipts),
    ) -> Self {
        let (checkpoints_kept, table) = (AtomicBool::default(), Mutex::default());
        let again = bounded(checkpoints.len().max(1));
        let (register, pointer) = (Mutex::new(register), OnceLock::new());
        SpoolShared {
            disk,
            state,
            bells,
            checkpoints,
            checkpoints_kept,
            register,
            pointer,
            receipts,
            again,
            doorbell,
            table,
        }
    }

    /// The segments, for a moment: nobody waits for a disk with this in hand.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn through(&self, reporter: usize) -> u64 {
        self.checkpoint(reporter).map_or(0, |checkpoint| checkpoint.through())
    }

    /// Records in memory alone that some reporter has not had: an end of the process loses them.
    pub fn unwritten(&self) -> u64 {
        let through = (0..self.checkpoints.len()).map(|reporter| self.through(reporter)).min();
        let is_due = |step: &Step<'_>| match step {
            Step::Entry(entry) => {
                let kind = Kind::of(entry.kind);
                matches!(kind, Some(Kind::Close | Kind::Again)) && Some(entry.sequence) > through
            }
            Step::Damage(_) => false,
        };
        let mut count = 0;
        for segment in &self.table().segments {
            let SegmentPlace::Memory(file) = &segment.place else { continue };
            let mut scan = Scan::new(&**file, segment.marker, (HEADER_BYTES as u64, segment.end));
            while let Ok(Some(step)) = scan.step() {
                count += u64::from(is_due(&step));
            }
        }
        count
    }

    /// How far a reporter is.
    pub fn checkpoint(&self, reporter: usize) -> Option<MutexGuard<'_, Checkpoint>> {
        let checkpoint = self.checkpoints.get(reporter)?;
        Some(checkpoint.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers where the rings lie. To be called once they are made.
    pub fn note_pointer(&self) {
        let read = || dead_letter::read(&*self.disk, ELSEWHERE).ok().flatten().unwrap_or_default();
        self.pointer.get_or_init(read);
    }

    /// A folder that is made anew leads to the rings, too.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep_pointer(&self) -> io::Result<()> {
        match self.pointer.get().filter(|pointer| !pointer.is_empty()) {
            Some(pointer) if self.disk.open(ELSEWHERE).is_err() => {
                dead_letter::write_whole(&*self.disk, ELSEWHERE, pointer)
            }
            _ => Ok(()),
        }
    }

    /// Writes the register, without the reporters that are `forgotten`.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn keep_register(&self, forgotten: &[String]) -> io::Result<()> {
        let mut register = self.register.lock().unwrap_or_else(PoisonError::into_inner);
        register.reporters.retain(|reporter| !forgotten.contains(reporter));
        register.write(&*self.disk)
    }

    /// Tells every reporter that there may be more to read.
    pub fn ring(&self) {
        for bell in &self.bells {
            // It rings already, or its reporter is gone.
            let _ = bell.try_send(());
        }
    }
}

impl Table {
    /// The segment that would hold this sequence.
    pub fn holding(&self, sequence: u64) -> Option<&Segment> {
        let behind = self.segments.partition_point(|segment| segment.first <= sequence);
        self.segments.get(behind.saturating_sub(1))
    }

    /// The segment that begins with this sequence.
    pub fn starting(&self, first: u64) -> Option<&Segment> {
        self.holding(first).filter(|segment| segment.first == first)
    }

    /// The segment behind the one that begins with this sequence.
    pub fn behind(&self, first: u64) -> Option<&Segment> {
        self.segments.get(self.segments.partition_point(|segment| segment.first <= first))
    }

    /// Bytes of segments on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().filter(|s| !s.in_memory()).map(|s| s.end).sum()
    }

    /// Bytes of segments in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.segments.iter().filter(|s| s.in_memory()).map(|s| s.end).sum()
    }

    /// Brings the figures up to date.
    pub fn tell(&self, state: &SpoolState) {
        state.disk_bytes.store(self.disk_bytes(), Relaxed);
        state.memory_bytes.store(self.memory_bytes(), Relaxed);
        let on_disk = self.segments.iter().filter(|s| !s.in_memory()).count();
        state.segments.store(on_disk as u64, Relaxed);
    }
}
