//! The disk log of usage records: what is written here survives the end of the process, and is
//! kept until every reporter has it. Format, guarantees and commands: docs/journal.md.
//!
//! *Takes:* what is said of requests: that one begins, goes on, has ended. *Gives:* the ends, in
//! order, to each reporter as often as it takes; after a kill also those that nobody wrote.
//! *Runs on:* the journal's thread ([`writer`]), its keeper's ([`keeper`]), and those of the
//! reporters ([`cursor`]). *May:* block on the disk. *Never:* runs on a worker, panics on what lies
//! in a file, loses a record without counting it.

pub mod codec;
pub mod segment;
pub mod disk;
pub mod memory;
pub mod scan;
pub mod state;
pub mod checkpoint;
pub mod register;
pub mod receipts;
mod absent;
mod table;
mod leftover;
mod recover;
mod batch;
mod flights;
pub mod writer;
mod rescue;
mod rehome;
pub mod keeper;
pub mod cursor;
pub mod dead_letter;
pub mod replay;
pub mod survey;
pub mod folders;

use super::doorbell::Doorbell;
use super::source::Source;
use crate::base::limits::{SPOOL_MEMORY_BYTES_MAX, SPOOL_SEGMENT_BYTES};
use crate::config::plan::{Fsync, OnSpoolFailure, Spool};
use crate::usage::ring::place;
use batch::Batch;
use checkpoint::Checkpoint;
use crossbeam_channel::bounded;
use cursor::Cursor;
use disk::Disk;
use flights::Flights;
use folders::root::RealRoot;
use folders::{open_folders, Folders, OpenedFolders};
use keeper::Keeper;
use leftover::Leftover;
use memory::MemoryDisk;
use receipts::Receipts;
use recover::Found;
use register::Register;
use state::SpoolState;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use table::SpoolShared;
use writer::{Trouble, Writer};

/// How a spool behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// A segment of so many bytes is full.
    pub segment_bytes: u64,
    /// Bytes on the disk at most.
    pub max_bytes: u64,
    /// Bytes in memory at most, while the disk takes nothing.
    pub memory_bytes: u64,
    /// When writes are forced to the disk.
    pub fsync: Fsync,
    /// What becomes of requests while records cannot be kept.
    pub on_failure: OnSpoolFailure,
}

impl Options {
    /// What the plan says.
    pub fn of(plan: &Spool) -> Options {
        let on_disk = Options {
            segment_bytes: SPOOL_SEGMENT_BYTES.min(plan.max_bytes / 4),
            max_bytes: plan.max_bytes,
            memory_bytes: SPOOL_MEMORY_BYTES_MAX,
            fsync: plan.fsync,
            on_failure: plan.on_failure,
        };
        if plan.enabled {
            return on_disk;
        }
        // The disk is memory: there is no second one to fall back on.
        let max_bytes = plan.max_bytes.min(SPOOL_MEMORY_BYTES_MAX);
        let segment_bytes = SPOOL_SEGMENT_BYTES.min(max_bytes / 4);
        Options { segment_bytes, max_bytes, memory_bytes: 0, fsync: Fsync::Off, ..on_disk }
    }
}

/// A spool that was opened: its parts go to their threads.
pub struct Opened {
    /// Of the journal's thread.
    pub writer: Writer,
    /// Of a thread of its own.
    pub keeper: Keeper,
    /// One per reporter, in the order they were named.
    pub cursors: Vec<Cursor>,
    /// For metrics and admission.
    pub state: Arc<SpoolState>,
    /// To be answered by the writer's thread: it has something to do.
    pub doorbell: Arc<Doorbell>,
}

impl Opened {
    /// The folder of the file system that it is; `None`: none.
    pub fn path(&self) -> Option<PathBuf> {
        self.writer.shared.disk.path()
    }

    /// For the end, when its parts are with their threads.
    pub fn unwritten(&self) -> Unwritten {
        Unwritten(Arc::clone(&self.writer.shared))
    }
}

/// What an end of the process loses of a spool whose disk takes nothing.
#[derive(Clone)]
pub struct Unwritten(Arc<SpoolShared>);

impl Unwritten {
    /// Records in memory alone that some reporter has not had; none while the disk works.
    pub fn count(&self) -> u64 {
        if self.0.state.failing.load(Relaxed) {
            return self.0.unwritten();
        }
        0
    }
}

/// A spool at work: what the plan names, with all that is adopted.
pub struct Planned {
    /// The parts of the own folder, or of memory; without cursors.
    pub own: Opened,
    /// What each reporter is given, in the order they were named.
    pub sources: Vec<Box<dyn Source>>,
    /// To be started: the folders of others.
    pub folders: Option<Folders>,
}

/// Opens the spool of a plan.
///
/// # Errors
/// The directory cannot be read or made, or a newer version wrote the own folder. The text is for a
/// person, and names the folder.
pub fn open_planned(plan: &Spool, reporters: &[String]) -> io::Result<Planned> {
    let options = Options::of(plan);
    if !plan.enabled {
        let mut own = open(Arc::new(MemoryDisk::default()), options, reporters)?;
        let cursors = std::mem::take(&mut own.cursors).into_iter();
        let sources = cursors.map(|cursor| Box::new(cursor) as Box<dyn Source>).collect();
        return Ok(Planned { own, sources, folders: None });
    }
    let root = Arc::new(RealRoot::new(&plan.dir));
    let OpenedFolders { own, chains, folders } = open_folders(root, options, reporters)?;
    let sources = chains.into_iter().map(|chain| Box::new(chain) as Box<dyn Source>).collect();
    Ok(Planned { own, sources, folders: Some(folders) })
}

/// Opens a folder for these reporters: reads what is there, and writes an end for each request that
/// has none. Reading takes about a second per gigabyte that was not delivered.
///
/// # Errors
/// Another process uses the folder, it cannot be read, or a newer version wrote it. A disk that
/// cannot be written is no error: the spool begins in memory, and tries again.
pub fn open(disk: Arc<dyn Disk>, options: Options, reporters: &[String]) -> io::Result<Opened> {
    let rings = disk.path().map_or_else(Vec::new, |home| place::folders_of(&home));
    open_beside(disk, options, reporters, &rings)
}

/// The same, with what is in the rings of these folders, which belong to it. Afterwards there are
/// none in them any more, unless the disk takes nothing: then they wait until it does.
///
/// # Errors
/// As [`open`]; or the rings cannot be read, or a newer version wrote them.
pub fn open_beside(
    disk: Arc<dyn Disk>,
    options: Options,
    reporters: &[String],
    rings: &[PathBuf],
) -> io::Result<Opened> {
    disk.lock()?;
    let state = Arc::new(SpoolState::new(options.on_failure, reporters));
    let leftover = Leftover::read(rings)?;
    let found = recover::recover(&*disk, &state, reporters, (options.fsync, leftover))?;
    open_found(disk, options, (reporters, state), found, Ok(()))
}

/// Opens a new folder that cannot be made for now: all goes into memory until the disk works.
///
/// # Errors
/// The system has no randomness.
pub fn open_in_memory(
    disk: Arc<dyn Disk>,
    options: Options,
    reporters: &[String],
    cause: &io::Error,
) -> io::Result<Opened> {
    let state = Arc::new(SpoolState::new(options.on_failure, reporters));
    open_found(disk, options, (reporters, state), Found::nothing(reporters), Err(cause))
}

fn open_found(
    disk: Arc<dyn Disk>,
    options: Options,
    (reporters, state): (&[String], Arc<SpoolState>),
    found: Found,
    standing: Result<(), &io::Error>,
) -> io::Result<Opened> {
    let Found {
        segments,
        next_sequence,
        aborted,
        told,
        ended,
        leftover,
        cuts,
        checkpoints,
        absent,
    } = found;
    // One of them may have had what a power cut then took away, too.
    let beyond = absent.iter().map(|absent| absent.through.saturating_add(1));
    let next_sequence = beyond.fold(next_sequence, u64::max);
    let from_now_on = |(checkpoint, name): (Option<Checkpoint>, &String)| {
        let new = || Checkpoint::at(name, next_sequence.saturating_sub(1));
        Mutex::new(checkpoint.unwrap_or_else(new))
    };
    let checkpoints = checkpoints.into_iter().zip(reporters).map(from_now_on).collect();
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|e| io::Error::other(format!("no randomness: {e}")))?;
    let mut register = Register::default();
    let markers = segments.iter().map(|segment| segment.marker).filter(|marker| *marker != [0; 4]);
    markers.chain([random]).for_each(|marker| register.add_marker(marker));
    register.reporters = reporters.to_vec();
    register.reporters.extend(absent.iter().map(|absent| absent.name.clone()));
    let (bells, rings): (Vec<_>, Vec<_>) = reporters.iter().map(|_| bounded(1)).unzip();
    let doorbell = Arc::<Doorbell>::default();
    let both = (Arc::clone(&state), Arc::clone(&doorbell));
    let receipts = Receipts::new(reporters.len(), options.segment_bytes);
    let kept = (checkpoints, register, receipts);
    let shared = Arc::new(SpoolShared::new(Arc::clone(&disk), both, bells, kept));
    {
        let mut table = shared.table();
        table.segments = segments;
        table.tell(&state);
    }
    let (keeper, bell) = bounded(1);
    let batch = Batch::new(random, next_sequence);
    let trouble = Trouble { cuts, ..Trouble::default() };
    let flights = Flights::default();
    let cursor = |(index, ring)| Cursor::new(Arc::clone(&shared), index, ring, keeper.clone());
    let cursors = rings.into_iter().enumerate().map(cursor).collect();
    let keeper_of_it = Keeper {
        shared: Arc::clone(&shared),
        options,
        absent,
        bell,
        doorbell: doorbell.clone(),
        rings: Vec::new(),
    };
    let mut writer = Writer { shared, options, batch, flights, keeper, trouble };
    // Checkpoints before records, and records only into a segment that this process began.
    match standing {
        Ok(()) => match rescue::keep_checkpoints(&writer.shared) {
            Ok(()) => writer.begin(next_sequence),
            Err(error) => writer.begin_without_disk(&error, next_sequence),
        },
        Err(error) => writer.begin_without_disk(error, next_sequence),
    }
    writer.append_told(&told);
    writer.append_recovered(&ended, &aborted);
    writer.trouble.leftover = leftover;
    if !state.failing.load(Relaxed) {
        writer.trouble.leftover.remove();
    }
    if !aborted.is_empty() {
        tracing::warn!(requests = aborted.len(), "were in flight when the gateway was killed");
    }
    writer.shared.ring();
    state.opens.store(0, Relaxed);
    Ok(Opened { writer, keeper: keeper_of_it, cursors, state, doorbell })
}

#[cfg(test)]
pub(crate) mod tests;
