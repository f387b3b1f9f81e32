//! When the disk takes nothing: entries go on into memory, and from there to the disk once it
//! works again. A segment in memory has the very bytes that its file will have, so a cursor that
//! stands in it does not notice the change.

use super::disk::DiskFile;
use super::memory::MemoryFile;
use super::scan::read_fully;
use super::segment::{self, Parsed, HEADER_BYTES};
use super::state::{add, ReporterState};
use super::table::{Segment, SegmentPlace, SpoolShared};
use super::writer::Writer;
use crate::config::plan::Fsync;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A disk that failed is tried again so often.
pub const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A segment, or the end of one, that was never synced.
struct Unsynced {
    first: u64,
    /// Its bytes on the disk are good up to here.
    synced: u64,
    bytes: Vec<u8>,
}

impl Writer {
    /// From now on the disk counts as failing.
    pub(super) fn fail(&mut self, cause: &io::Error) {
        let state = &self.shared.state;
        state.full.store(cause.kind() == io::ErrorKind::StorageFull, Relaxed);
        if cause.kind() != io::ErrorKind::StorageFull {
            add(&state.write_errors, 1);
        }
        self.trouble.retry_at = Some(Instant::now() + RETRY_PAUSE);
        if !state.failing.swap(true, Relaxed) {
            let refuses = state.refuses();
            tracing::error!(%cause, refuses, "the spool takes no records: they wait in memory");
        }
    }

    /// Logs that records were lost, if any were since it was logged last.
    pub(super) fn tell_losses(&mut self, is_over: bool) {
        let dropped = self.state().dropped.load(Relaxed);
        if let Some(lost) = self.trouble.losses.due(dropped, is_over, Instant::now()) {
            let message = "usage records are lost: neither disk nor memory has room";
            tracing::error!(lost, dropped, "{message}");
        }
    }

    /// Tries the disk again: cuts what was half written, then moves what is in memory there,
    /// oldest first.
    pub(super) fn retry(&mut self) {
        if let Err(error) = self.move_to_disk() {
            self.fail(&error);
            self.part_with_delivered();
            // Something may be delivered by now, and make room.
            let _ = self.keeper.try_send(());
            return;
        }
        self.trouble.retry_at = None;
        self.trouble.leftover.remove();
        self.shared.receipts.clear();
        self.tell_losses(true);
        let state = &self.shared.state;
        state.full.store(false, Relaxed);
        if state.failing.swap(false, Relaxed) {
            tracing::info!("the spool takes records again");
        }
        let _ = self.keeper.try_send(());
    }

    /// Begins a new segment in memory when all have had what is in the last one: that goes then,
    /// and the disk needs room for what is undelivered only. Otherwise a disk with less room than
    /// the segment has bytes would count as failing until a restart.
    fn part_with_delivered(&mut self) {
        let is_had = |(index, reporter): (usize, &ReporterState)| {
            let through = self.shared.checkpoint(index).map_or(0, |c| c.through());
            reporter.backlog.load(Relaxed) == 0 && through > self.trouble.parted_at
        };
        let is_memory = self.shared.table().segments.back().is_some_and(Segment::in_memory);
        if !is_memory || !self.state().reporters.iter().enumerate().all(is_had) {
            return;
        }
        self.begin_in_memory(self.batch.first);
        if self.batch.bytes.is_empty() {
            self.repeat_opens_if_due();
        }
        self.trouble.parted_at = self.batch.next_sequence - 1;
        // Whoever has read all of the old one steps into the new one, and lets the old one go.
        self.shared.ring();
    }

    fn move_to_disk(&mut self) -> io::Result<()> {
        // A folder that could not be made until now.
        self.shared.disk.lock()?;
        while let Some((_, file, end)) = self.trouble.cuts.last() {
            file.truncate(*end)?;
            self.trouble.cuts.pop();
        }
        while let Some(first) = self.stale() {
            match self.shared.disk.remove(&segment::file_name(first)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.shared.table().stale.retain(|other| *other != first),
            }
        }
        keep_checkpoints(&self.shared)?;
        let always = self.options.fsync == Fsync::Always;
        loop {
            let next = {
                let table = self.shared.table();
                table.segments.iter().find_map(|segment| match &segment.place {
                    SegmentPlace::Memory(file) => {
                        Some((segment.first, segment.end, Arc::clone(file)))
                    }
                    SegmentPlace::Disk(_) => None,
                })
            };
            let Some((first, end, memory)) = next else { return Ok(()) };
            let file = memory.with(|bytes| self.create(first, bytes))?;
            let mut table = self.shared.table();
            let is_last = table.segments.back().is_some_and(|last| last.first == first);
            let held = is_last || matches!(self.options.fsync, Fsync::Every(_));
            match table.segments.iter_mut().find(|s| s.first == first && s.in_memory()) {
                Some(segment) => {
                    segment.synced = if always { end } else { 0 };
                    segment.place = SegmentPlace::Disk(held.then_some(file));
                    table.dir_dirty = true;
                    table.tell(&self.shared.state);
                }
                // All have read it by now, and it is gone.
                None => {
                    drop(table);
                    self.shared.disk.remove(&segment::file_name(first))?;
                }
            }
        }
    }

    fn stale(&self) -> Option<u64> {
        self.shared.table().stale.last().copied()
    }

    /// After a failed sync the disk may never have what was written since the last good one, even
    /// if a later sync succeeds; but the kernel still shows it. So it is read back into memory, and
    /// written anew when the disk works.
    pub(super) fn rescue_unsynced(&mut self, cause: &io::Error) {
        let rescued = self.read_unsynced();
        self.fail(cause);
        let Some(rescued) = rescued else { return };
        rescued.iter().for_each(|unsynced| self.dangle(&unsynced.bytes));
        let mut cut = None;
        {
            let mut table = self.shared.table();
            for Unsynced { first, synced, bytes } in rescued {
                let index = table.segments.partition_point(|s| s.first < first);
                let Some(segment) = table.segments.get_mut(index) else { continue };
                if synced <= HEADER_BYTES as u64 {
                    segment.place = SegmentPlace::Memory(Arc::new(MemoryFile::holding(bytes)));
                    segment.synced = 0;
                    continue;
                }
                let marker = segment.marker;
                let first_behind = first_sequence(&bytes, marker).unwrap_or(segment.first + 1);
                segment.end = synced;
                if let SegmentPlace::Disk(Some(file)) = &mut segment.place {
                    cut = Some((segment.first, Arc::clone(file), synced));
                }
                let mut behind = self.batch.header(first_behind);
                behind.extend_from_slice(&bytes);
                let end = behind.len() as u64;
                let place = SegmentPlace::Memory(Arc::new(MemoryFile::holding(behind)));
                let tail = Segment::ours((first_behind, marker), (end, 0), place);
                table.segments.insert(index + 1, tail);
            }
            table.tell(&self.shared.state);
        }
        if let Some((first, file, end)) = cut {
            self.cut(first, file, end);
        }
        self.trouble.opens_due = true;
        if self.batch.bytes.is_empty() {
            self.repeat_opens_if_due();
        }
    }

    /// What was never synced: the end of one segment, and all of those behind it. `None` when it
    /// cannot be read, or memory has no room for it: then it stays where it is.
    fn read_unsynced(&mut self) -> Option<Vec<Unsynced>> {
        let mut found = Vec::new();
        let mut total = 0;
        {
            let table = self.shared.table();
            for segment in table.segments.iter().filter(|s| s.ours) {
                let SegmentPlace::Disk(file) = &segment.place else { continue };
                let synced = if found.is_empty() { segment.synced } else { 0 };
                if synced < segment.end {
                    let synced = if synced <= HEADER_BYTES as u64 { 0 } else { synced };
                    total += segment.end - synced;
                    found.push((segment.first, synced, segment.end, file.clone()));
                }
            }
            total += table.memory_bytes();
        }
        let fits = total <= self.options.memory_bytes;
        let disk = &self.shared.disk;
        let read = |(first, synced, end, file): (u64, u64, u64, Option<Arc<dyn DiskFile>>)| {
            let open = || disk.open(&segment::file_name(first));
            let file = file.map_or_else(open, Ok).ok()?;
            let mut bytes = vec![0; usize::try_from(end - synced).ok()?];
            let read = read_fully(&*file, &mut bytes, synced).ok()?;
            (read == bytes.len()).then_some(Unsynced { first, synced, bytes })
        };
        let unsynced = if fits { found.into_iter().map(read).collect() } else { None };
        if unsynced.is_none() {
            tracing::error!("records that were not synced stay so: a power cut may lose them");
            let mut table = self.shared.table();
            let on_disk = table.segments.iter_mut().filter(|segment| !segment.in_memory());
            on_disk.for_each(|segment| segment.synced = segment.end);
        }
        unsynced
    }
}

/// Makes sure that each reporter's checkpoint, and then the register, is on the disk before a
/// record is: a reporter without one would be taken for a new one, which gets nothing old.
pub(super) fn keep_checkpoints(shared: &SpoolShared) -> io::Result<()> {
    if shared.checkpoints_kept.load(Relaxed) {
        return Ok(());
    }
    for reporter in 0..shared.checkpoints.len() {
        if let Some(mut checkpoint) = shared.checkpoint(reporter) {
            checkpoint.keep(&*shared.disk)?;
        }
        if let Some(state) = shared.state.reporters.get(reporter) {
            shared.receipts.keep(&*shared.disk, reporter, &state.name);
        }
    }
    shared.keep_pointer()?;
    shared.disk.sync_dir()?;
    // Behind them: a reporter that it names had a checkpoint.
    shared.keep_register(&[])?;
    shared.checkpoints_kept.store(true, Relaxed);
    Ok(())
}

fn first_sequence(bytes: &[u8], marker: segment::Marker) -> Option<u64> {
    match segment::parse(bytes, marker) {
        Parsed::Entry(entry) => Some(entry.sequence),
        _ => None,
    }
}
