//! What is done behind the writer's back, so that a batch never waits for it: forcing to the disk
//! what was written, and removing segments that every reporter is done with.

use super::absent::Absent;
use super::rehome;
use super::rescue::keep_checkpoints;
use super::segment;
use super::state::add;
use super::table::{SegmentPlace, SpoolShared};
use super::Options;
use crate::config::plan::Fsync;
use crate::usage::doorbell::Doorbell;
use crate::usage::ring::file::RingFile;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Duration;

/// Checkpoints are synced so often at most.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(100);

/// The keeper of a spool; runs on a thread of its own.
pub struct Keeper {
    pub(super) shared: Arc<SpoolShared>,
    pub(super) options: Options,
    /// Reporters that left, and whose records are kept for a while.
    pub(super) absent: Vec<Absent>,
    /// Rung by the writer and the cursors when there is something to do.
    pub(super) bell: Receiver<()>,
    /// Calls the writer when a sync has failed.
    pub(super) doorbell: Arc<Doorbell>,
    /// Those of this process, to be looked after. None where the folder is another's.
    pub(in crate::usage) rings: Vec<Arc<RingFile>>,
}

impl Keeper {
    /// Does its work, as often as the plan says, until `stop` is disconnected; then once more.
    pub fn run(mut self, stop: &Receiver<Infallible>) {
        let pause = match self.options.fsync {
            Fsync::Every(pause) => pause,
            Fsync::Always | Fsync::Off => CHECKPOINT_PAUSE,
        };
        loop {
            crossbeam_channel::select! {
                recv(self.bell) -> rung => if rung.is_err() { break },
                recv(stop) -> _ => break,
            }
            // What comes within the pause shares one sync.
            if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            let _ = self.bell.try_recv();
            self.turn();
        }
        self.turn();
    }

    /// One turn of its work.
    pub fn turn(&mut self) {
        self.look_at_rings();
        if !rehome::is_there(&self.shared) {
            // What is synced now is not found again: the writer makes it anew first.
            self.shared.table().folder_gone = true;
            return self.doorbell.ring();
        }
        self.look_at_checkpoints();
        if matches!(self.options.fsync, Fsync::Every(_)) {
            self.sync_segments();
        }
        if self.options.fsync != Fsync::Off {
            self.sync_checkpoints(0);
        }
        if let Err(error) = self.remove_delivered() {
            tracing::warn!(%error, "delivered segments of the spool stay for now");
        }
    }

    /// Without the rings, or what leads to them, a kill loses what is in them.
    fn look_at_rings(&self) {
        self.rings.iter().for_each(|ring| ring.look());
        self.shared.note_pointer();
        if self.rings.iter().any(|ring| ring.outlives_us()) {
            // A disk that does not take it is told of elsewhere.
            let _ = self.shared.keep_pointer();
        }
    }

    /// A checkpoint that somebody deletes while it is used would be missing at the next start.
    fn look_at_checkpoints(&self) {
        let mut is_any = false;
        for reporter in 0..self.shared.checkpoints.len() {
            let Some(mut checkpoint) = self.shared.checkpoint(reporter) else { continue };
            if checkpoint.is_gone() {
                checkpoint.find_again(&*self.shared.disk);
                is_any = true;
            }
        }
        if !is_any {
            return;
        }
        tracing::error!("the checkpoint of a reporter was deleted: it is made anew");
        add(&self.shared.state.damaged_places, 1);
        self.shared.checkpoints_kept.store(false, Relaxed);
        if let Err(error) = keep_checkpoints(&self.shared) {
            // It is tried again before a segment goes, and when a disk that fails works again.
            tracing::warn!(%error, "the checkpoints of the reporters cannot be written");
        }
    }

    fn sync_segments(&mut self) {
        let (dir_dirty, dirty) = {
            let mut table = self.shared.table();
            if table.sync_failed {
                // A sync that succeeds now would prove nothing: the writer writes it anew first.
                return;
            }
            let mut dirty = Vec::new();
            for segment in table.segments.iter().filter(|s| s.synced < s.end) {
                if let SegmentPlace::Disk(file) = &segment.place {
                    dirty.push((segment.first, segment.end, file.clone()));
                }
            }
            (std::mem::take(&mut table.dir_dirty), dirty)
        };
        let mut synced = if dir_dirty { self.shared.disk.sync_dir() } else { Ok(()) };
        if synced.is_err() {
            self.shared.table().dir_dirty = true;
        }
        for (first, end, file) in dirty {
            if synced.is_ok() {
                synced = self.sync_segment(first, end, file);
            }
        }
        if let Err(error) = synced {
            tracing::error!(%error, "the spool cannot be forced to the disk");
            add(&self.shared.state.sync_errors, 1);
            self.shared.table().sync_failed = true;
            self.doorbell.ring();
        }
    }

    fn sync_segment(
        &self,
        first: u64,
        end: u64,
        file: Option<Arc<dyn super::disk::DiskFile>>,
    ) -> io::Result<()> {
        let open = || self.shared.disk.open(&segment::file_name(first));
        file.map_or_else(open, Ok)?.sync()?;
        add(&self.shared.state.syncs, 1);
        let mut table = self.shared.table();
        let last = table.segments.back().map(|segment| segment.first);
        if let Some(segment) = table.segments.iter_mut().find(|s| s.first == first) {
            if let SegmentPlace::Disk(file) = &mut segment.place {
                segment.synced = segment.synced.max(end.min(segment.end));
                if segment.synced == segment.end && last != Some(first) {
                    *file = None;
                }
            }
        }
        Ok(())
    }

    /// Gives how far all reporters are, whatever a power cut does, or less than `wanted` when the
    /// disk does not take it.
    fn sync_checkpoints(&self, wanted: u64) -> u64 {
        let mut least = u64::MAX;
        for reporter in 0..self.shared.checkpoints.len() {
            let Some(mut checkpoint) = self.shared.checkpoint(reporter) else { continue };
            if checkpoint.through() >= wanted {
                if let Err(error) = checkpoint.sync() {
                    tracing::warn!(%error, "a reporter's checkpoint cannot be forced to the disk");
                }
            }
            least = least.min(checkpoint.synced());
        }
        least
    }

    fn remove_delivered(&mut self) -> io::Result<()> {
        let mut removed = false;
        while let Some((first, in_memory, through)) = self.removable() {
            if !in_memory {
                keep_checkpoints(&self.shared)?;
                if self.sync_checkpoints(through) < through {
                    break;
                }
            }
            match self.shared.disk.remove(&segment::file_name(first)) {
                Ok(()) => removed = true,
                // Of a segment in memory there is a file only when its sync failed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) if in_memory => self.shared.table().stale.push(first),
                Err(error) => return Err(error),
            }
            let mut table = self.shared.table();
            if table.segments.front().is_some_and(|segment| segment.first == first) {
                table.segments.pop_front();
            }
            table.tell(&self.shared.state);
        }
        if removed && self.options.fsync != Fsync::Off {
            self.shared.disk.sync_dir()?;
        }
        Ok(())
    }

    /// The oldest segment, if all reporters are behind it and the next one makes up for it: its
    /// first sequence, whether it is in memory, and where all reporters must be.
    fn removable(&mut self) -> Option<(u64, bool, u64)> {
        let (oldest, next) = {
            let table = self.shared.table();
            let oldest = table.segments.front().map(|s| (s.first, s.in_memory()))?;
            let next = table.segments.get(1)?;
            (oldest, (next.first, next.in_memory(), next.synced > 0))
        };
        let (first, in_memory) = oldest;
        let (next_first, next_in_memory, next_synced) = next;
        let through = next_first.checked_sub(1)?;
        let done =
            |reporter| self.shared.checkpoint(reporter).is_none_or(|c| c.through() >= through);
        if !(0..self.shared.checkpoints.len()).all(done) || self.is_kept(through, in_memory) {
            return None;
        }
        // The next one repeats the requests in flight. Where that is not on the disk yet, a kill
        // would forget them. Only to end a want of room the last one goes all the same: on a disk
        // that was full the next one finds its place within a second.
        let made_up = match (in_memory, next_in_memory) {
            (true, _) => true,
            (false, true) => self.wants_room(),
            (false, false) => next_synced || self.options.fsync == Fsync::Off,
        };
        made_up.then_some((first, in_memory, through))
    }

    /// True when a reporter that left has not had all up to here. Memory holds nothing for it, and
    /// before the disk, or the memory that stands in for it, has no room left it is forgotten.
    fn is_kept(&mut self, through: u64, in_memory: bool) -> bool {
        if self.absent.is_empty() {
            return false;
        }
        let room = self.options.segment_bytes.saturating_mul(2);
        let used = self.shared.table().disk_bytes().saturating_add(room);
        let wanted = in_memory || self.wants_room() || used > self.options.max_bytes;
        let why = if wanted { "their room is wanted" } else { "it has been away for so long" };
        let over = |absent: &mut Absent| absent.through < through && absent.is_over(wanted);
        let over: Vec<Absent> = self.absent.extract_if(.., over).collect();
        if !over.is_empty() {
            let names: Vec<String> = over.iter().map(|absent| absent.name.clone()).collect();
            // Before its checkpoint goes: with the one and without the other it would get all.
            if let Err(error) = self.shared.keep_register(&names) {
                tracing::warn!(%error, "the register of the spool cannot be written");
            }
            over.iter().for_each(|absent| absent.let_go(&*self.shared.disk, why));
        }
        self.absent.iter().any(|absent| absent.through < through)
    }

    /// True when nothing is kept for a reporter that left. To be asked when those that are
    /// configured have had all.
    pub(super) fn waits_for_nobody(&mut self) -> bool {
        let through = |reporter| self.shared.checkpoint(reporter).map(|c| c.through());
        let last = (0..self.shared.checkpoints.len()).filter_map(through).max();
        !self.is_kept(last.unwrap_or(0), false)
    }

    /// True when the disk is full, or fails for so long that memory, which stands in for it, will
    /// be: what waits there cannot go before what stands before it on the disk.
    fn wants_room(&self) -> bool {
        let held = self.shared.table().memory_bytes();
        self.shared.state.full.load(Relaxed) || held > self.options.memory_bytes / 2
    }
}
