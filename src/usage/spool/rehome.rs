//! When the folder of a spool is deleted, moved or emptied while it is written: writes go on into
//! files that nobody will ever find. So it is looked at with each sync, a new folder is made in its
//! place, and what can still be read of the old one goes there.

use super::disk::DiskFile;
use super::memory::MemoryFile;
use super::scan::read_fully;
use super::segment;
use super::state::add;
use super::table::{SegmentPlace, SpoolShared};
use super::writer::Writer;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// False when what is written to the folder would not be found again: its lock is not where it was
/// made, or the segment that is written has no name any more.
pub(super) fn is_there(shared: &SpoolShared) -> bool {
    let written = match shared.table().segments.back().map(|last| last.place.clone()) {
        Some(SegmentPlace::Disk(Some(file))) => Some(file),
        _ => None,
    };
    // What cannot be told is no reason to make a new one.
    let has_name = written.is_none_or(|file| file.has_name().unwrap_or(true));
    has_name && shared.disk.is_there().unwrap_or(true)
}

impl Writer {
    /// Makes the folder anew if it is gone. What was not synced, and the segment that is written,
    /// are read back from their open files; older segments are read on in a folder that was moved,
    /// and are missing where it was deleted.
    pub(super) fn rehome(&mut self) {
        if is_there(&self.shared) {
            return;
        }
        let place = self.shared.disk.place();
        tracing::error!(
            place,
            "the spool's folder was deleted, moved or emptied: a new one is made"
        );
        add(&self.state().folders_lost, 1);
        let left = self.look_for_segments();
        self.shared.disk.let_go();
        // If it cannot be made now, all goes on in memory until it can.
        let made = self.shared.disk.lock();
        let mut table = self.shared.table();
        let mut in_memory = table.memory_bytes();
        for (first, found) in left {
            let Some(segment) = table.segments.iter_mut().find(|s| s.first == first) else {
                continue;
            };
            let is_unsynced = segment.synced < segment.end || matches!(found, Left::Written(_));
            match found {
                Left::There => {}
                Left::Written(file) | Left::Moved(file) => {
                    let fits = in_memory + segment.end <= self.options.memory_bytes;
                    let bytes = if is_unsynced && fits { read(&*file, segment.end) } else { None };
                    if let Some(bytes) = bytes {
                        in_memory += segment.end;
                        segment.place = SegmentPlace::Memory(Arc::new(MemoryFile::holding(bytes)));
                        segment.synced = 0;
                    } else {
                        // It is read on where it is; a kill loses what was not delivered of it.
                        segment.place = SegmentPlace::Disk(Some(file));
                        segment.synced = segment.end;
                    }
                }
                Left::Gone => segment.synced = segment.end,
            }
        }
        table.stale.clear();
        table.tell(&self.shared.state);
        drop(table);
        self.trouble.cuts.clear();
        for reporter in 0..self.shared.checkpoints.len() {
            if let Some(mut checkpoint) = self.shared.checkpoint(reporter) {
                checkpoint.find_again(&*self.shared.disk);
            }
        }
        self.shared.checkpoints_kept.store(false, Relaxed);
        let gone = io::Error::new(io::ErrorKind::NotFound, "the spool's folder is gone");
        self.fail(&made.err().unwrap_or(gone));
        self.retry();
    }

    /// What is left of each segment on the disk.
    fn look_for_segments(&self) -> Vec<(u64, Left)> {
        let disk = &self.shared.disk;
        let all: Vec<_> = {
            let table = self.shared.table();
            let on_disk = table.segments.iter().filter_map(|segment| match &segment.place {
                SegmentPlace::Disk(file) => Some((segment.first, file.clone())),
                SegmentPlace::Memory(_) => None,
            });
            on_disk.collect()
        };
        let look = |(first, file): (u64, Option<Arc<dyn DiskFile>>)| {
            let name = segment::file_name(first);
            let has_name = file.as_ref().is_none_or(|file| file.has_name().unwrap_or(false));
            let left = match (file, disk.open(&name), disk.open_moved(&name)) {
                (_, Ok(_), _) if has_name => Left::There,
                (Some(file), ..) => Left::Written(file),
                (None, _, Ok(file)) => Left::Moved(file),
                (None, ..) => Left::Gone,
            };
            (first, left)
        };
        all.into_iter().map(look).collect()
    }
}

/// What is left of a segment.
enum Left {
    /// Its file is in the folder.
    There,
    /// It was open: it is being written, or was not synced yet.
    Written(Arc<dyn DiskFile>),
    /// It can be read where the folder was moved to.
    Moved(Arc<dyn DiskFile>),
    Gone,
}

fn read(file: &dyn DiskFile, end: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(end).ok()?];
    let read = read_fully(file, &mut bytes, 0).ok()?;
    (read == bytes.len()).then_some(bytes)
}
