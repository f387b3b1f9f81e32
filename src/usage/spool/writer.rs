//! Entries become bytes in a segment: gathered in a batch, handed to the kernel in one write, and
//! only then shown to the cursors. What to do when the disk takes nothing is in `rescue`.

use super::batch::Batch;
use super::codec;
use super::disk::DiskFile;
use super::flights::Flights;
use super::leftover::Leftover;
use super::memory::MemoryFile;
use super::replay::Again;
use super::segment::{self, Kind, ENTRY_BYTES, HEADER_BYTES};
use super::state::{add, SpoolState};
use super::table::{Segment, SegmentPlace, SpoolShared};
use super::Options;
use crate::base::limits::SPOOL_BATCH_BYTES;
use crate::config::plan::Fsync;
use crate::usage::record::UsageRecord;
use crate::usage::ring::place;
use crossbeam_channel::Sender;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Losses are logged so often at most.
const LOSS_PAUSE: Duration = Duration::from_secs(10);

/// The one writer of a spool.
pub struct Writer {
    pub(super) shared: Arc<SpoolShared>,
    pub(super) options: Options,
    pub(super) batch: Batch,
    pub(super) flights: Flights,
    /// Wakes the keeper.
    pub(super) keeper: Sender<()>,
    pub(super) trouble: Trouble,
}

/// What the disk owes.
#[derive(Default)]
pub(super) struct Trouble {
    /// When the disk is tried again; `None` = it works.
    pub retry_at: Option<Instant>,
    /// Segments that have to be cut back to their last whole entry: first sequence and length.
    pub cuts: Vec<(u64, Arc<dyn DiskFile>, u64)>,
    /// A segment has begun that does not repeat the requests in flight yet.
    pub opens_due: bool,
    /// Sequence before which all was delivered when a segment in memory was begun for that.
    pub parted_at: u64,
    /// Rings of which all is in memory, and not on the disk yet.
    pub leftover: Leftover,
    pub losses: Losses,
}

/// What the log was told of records that are lost.
#[derive(Default)]
pub(super) struct Losses {
    told_at: Option<Instant>,
    /// What the counter said then.
    told: u64,
}

impl Losses {
    /// How many were lost since they were last told of, if that is to be told now: at a bounded
    /// pace while it goes on, and in any case when it is over.
    pub fn due(&mut self, dropped: u64, is_over: bool, now: Instant) -> Option<u64> {
        let lost = dropped.saturating_sub(self.told);
        let is_early = self.told_at.is_some_and(|at| now < at + LOSS_PAUSE);
        if lost == 0 || (is_early && !is_over) {
            return None;
        }
        (self.told_at, self.told) = (Some(now), dropped);
        Some(lost)
    }
}

impl Writer {
    /// Adds what is known of a request to the batch. A request body goes with its end only.
    pub fn append(&mut self, kind: Kind, record: &UsageRecord) {
        let start = self.batch.bytes.len();
        let record = record.borrowed();
        let whole = kind == Kind::Close
            && record.request_body.is_some()
            && self.batch.push(kind, |into| codec::encode(&record, into));
        if !whole && !self.batch.push(kind, |into| codec::encode_bare(&record, into)) {
            return self.lose(kind);
        }
        self.follow(kind, start);
    }

    /// The same of a record that was encoded before.
    pub fn append_bytes(&mut self, kind: Kind, payload: &[u8]) {
        let start = self.batch.bytes.len();
        if !self.batch.push(kind, |into| into.extend_from_slice(payload)) {
            return self.lose(kind);
        }
        self.follow(kind, start);
    }

    /// The same of a request that is over, and of which the writer was told nothing before.
    pub fn append_whole(&mut self, payload: &[u8]) {
        match self.batch.push(Kind::Close, |into| into.extend_from_slice(payload)) {
            true => self.batch.closes += 1,
            false => self.lose(Kind::Close),
        }
    }

    /// Writes what a start found: records that ended, as bytes, and those that a kill ended.
    pub(super) fn append_recovered(&mut self, ended: &[Box<[u8]>], aborted: &[UsageRecord]) {
        for payload in ended {
            self.append_bytes(Kind::Close, payload);
            if self.pending() > SPOOL_BATCH_BYTES {
                self.commit();
            }
        }
        for record in aborted {
            self.append(Kind::Close, record);
            if self.pending() > SPOOL_BATCH_BYTES {
                self.commit();
            }
        }
        self.commit();
    }

    /// Takes note of what was added to the batch from `start` on.
    fn follow(&mut self, kind: Kind, start: usize) {
        self.batch.closes += u64::from(kind == Kind::Close);
        let payload = self.batch.bytes.get(start + ENTRY_BYTES..).unwrap_or_default();
        let begun = self.batch.next_sequence;
        if !self.flights.follow(kind, (begun, payload)) {
            add(&self.state().dropped_opens, 1);
        }
    }

    /// Counts an entry that cannot be written.
    pub fn lose(&self, kind: Kind) {
        let state = self.state();
        add(if kind == Kind::Close { &state.dropped } else { &state.dropped_opens }, 1);
    }

    /// Counts bytes that should have become entries, and are none.
    pub fn note_damage(&self, bytes: usize) {
        add(&self.state().damaged_places, 1);
        add(&self.state().damaged_bytes, bytes as u64);
        tracing::error!(bytes, "a ring of the journal is damaged: some of its entries are lost");
    }

    /// Removes what leads to rings elsewhere, of which nothing is left.
    pub fn part_with_rings(&self) {
        if let Some(home) = self.shared.disk.path() {
            place::part_with(&home);
        }
    }

    /// Adds a record that one reporter alone gets once more; without its request body if it were
    /// too long. False when there is no such reporter, or it is too long all the same.
    pub fn append_again(&mut self, reporter: &str, record: &UsageRecord) -> bool {
        let position = self.state().reporters.iter().position(|r| r.name == reporter);
        let Some(position) = position else { return false };
        let mut added = false;
        for encode in [codec::encode, codec::encode_bare] {
            added = added
                || self.batch.push(Kind::Again, |into| {
                    codec::write_number(into, reporter.len() as u64);
                    into.extend_from_slice(reporter.as_bytes());
                    encode(&record.borrowed(), into);
                });
        }
        if added {
            self.batch.again.push(position);
        }
        added
    }

    /// Adds records that a running reporter is to have once more; gives whom to tell the sequence
    /// of the last when they are written.
    fn take_again(&mut self) -> Option<(Sender<u64>, u64)> {
        // While the disk fails they can wait where they are.
        if self.state().failing.load(Relaxed) {
            return None;
        }
        let Again { reporter, records, written } = self.shared.again.1.try_recv().ok()?;
        let name = self.state().reporters.get(reporter)?.name.clone();
        for record in &records {
            if !self.append_again(&name, record) {
                self.lose(Kind::Close);
            }
        }
        Some((written, self.batch.next_sequence.saturating_sub(1)))
    }

    /// Bytes that wait for [`Writer::commit`].
    pub fn pending(&self) -> usize {
        self.batch.bytes.len()
    }

    /// Writes the batch, and does what follows from that.
    pub fn commit(&mut self) {
        if self.write() {
            self.settle();
        }
    }

    /// Hands the batch to the kernel (and to the disk, where each batch is synced). When this
    /// returns, an end of the process loses none of it, as long as [`SpoolState::failing`] is off.
    /// False: there was nothing in it. [`Writer::settle`] follows otherwise.
    pub fn write(&mut self) -> bool {
        self.state().begin_write();
        self.tick();
        let again = self.take_again();
        if self.batch.bytes.is_empty() {
            self.state().end_write();
            return false;
        }
        add(&self.state().commits, 1);
        self.place_batch();
        if let Some((written, last)) = again.filter(|_| !self.state().failing.load(Relaxed)) {
            // Whoever asked may be gone.
            let _ = written.send(last);
        }
        true
    }

    /// Begins a new segment, if it is time for one, and wakes the keeper.
    pub fn settle(&mut self) {
        self.repeat_opens_if_due();
        self.roll();
        self.state().end_write();
        let _ = self.keeper.try_send(());
        self.state().opens.store(self.flights.len() as u64, Relaxed);
    }

    /// What has to be done now and then, also when there is nothing to commit: tries a failing disk
    /// again when it is time.
    pub fn tick(&mut self) {
        let folder_gone = std::mem::take(&mut self.shared.table().folder_gone);
        if folder_gone {
            self.rehome();
        }
        let sync_failed = std::mem::take(&mut self.shared.table().sync_failed);
        if sync_failed {
            self.rescue_unsynced(&io::Error::other("it could not sync"));
        }
        if self.trouble.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry();
        }
    }

    /// True when each write is synced.
    pub fn syncs_each(&self) -> bool {
        self.options.fsync == Fsync::Always
    }

    /// When [`Writer::tick`] will have something to do, if there is such a time.
    pub fn due(&self) -> Option<Instant> {
        self.trouble.retry_at
    }

    /// The figures of the spool.
    pub fn state(&self) -> &SpoolState {
        &self.shared.state
    }

    /// Puts the batch where entries go now.
    fn place_batch(&mut self) {
        let open = {
            let table = self.shared.table();
            match table.segments.back() {
                Some(Segment { place: SegmentPlace::Disk(Some(file)), end, first, .. }) => {
                    Some((Arc::clone(file), *end, *first, table.disk_bytes()))
                }
                _ => None,
            }
        };
        let Some((file, end, first, disk_bytes)) = open else { return self.place_in_memory() };
        let len = self.batch.bytes.len() as u64;
        if disk_bytes + len > self.options.max_bytes {
            self.fail(&full());
            return self.place_in_memory();
        }
        if let Err(error) = file.write_at(&self.batch.bytes, end) {
            self.cut(first, file, end);
            self.fail(&error);
            return self.place_in_memory();
        }
        let synced = match self.options.fsync {
            Fsync::Always => file.sync(),
            _ => Ok(()),
        };
        if synced.is_ok() && self.options.fsync == Fsync::Always {
            add(&self.state().syncs, 1);
            self.publish(len, Some(end + len));
        } else {
            self.publish(len, None);
        }
        if let Err(error) = synced {
            add(&self.state().sync_errors, 1);
            self.rescue_unsynced(&error);
        }
    }

    /// Shows what was written to the cursors, and begins a new batch.
    pub(super) fn publish(&mut self, len: u64, synced: Option<u64>) {
        let batch = &self.batch;
        let state = &self.shared.state;
        let mut table = self.shared.table();
        if let Some(segment) = table.segments.back_mut() {
            segment.end += len;
            segment.synced = synced.unwrap_or(segment.synced);
        }
        // While the table is held: a cursor that stands at its end sets the figure anew.
        for (index, reporter) in state.reporters.iter().enumerate() {
            let again = batch.again.iter().filter(|for_one| **for_one == index).count();
            add(&reporter.backlog, batch.closes + again as u64);
        }
        table.tell(state);
        drop(table);
        add(&state.entries, batch.entries);
        if batch.closes > 0 || !batch.again.is_empty() {
            self.shared.ring();
        }
        self.batch.clear();
    }

    /// Begins a new segment when the last one is full. It repeats the requests in flight, so that
    /// the old one can go before they end.
    fn roll(&mut self) {
        let last = {
            let table = self.shared.table();
            table.segments.back().map(|segment| (segment.end, segment.in_memory()))
        };
        let Some((end, in_memory)) = last else { return };
        if end < self.options.segment_bytes {
            return;
        }
        let first = self.batch.next_sequence;
        if in_memory {
            self.begin_in_memory(first);
            self.repeat_opens_if_due();
        } else {
            self.begin(first);
        }
        // Who has read all of the old one steps into the new one, and lets the old one go.
        self.shared.ring();
    }

    /// Begins a segment on the disk, or in memory if it fails; the batch is empty.
    pub(super) fn begin(&mut self, first: u64) {
        self.gather_opens();
        let mut bytes = self.batch.header(first);
        bytes.extend_from_slice(&self.batch.bytes);
        match self.create(first, &bytes) {
            Ok(file) => {
                let synced =
                    if self.options.fsync == Fsync::Always { bytes.len() as u64 } else { 0 };
                add(&self.state().entries, self.batch.entries);
                self.push(first, bytes.len() as u64, synced, SegmentPlace::Disk(Some(file)));
                self.batch.clear();
            }
            Err(error) => {
                self.fail(&error);
                // Nobody has seen these sequences: none is to be missed later.
                self.batch.next_sequence = first;
                self.batch.clear();
                self.begin_in_memory(first);
                self.repeat_opens_if_due();
            }
        }
    }

    /// Begins a spool whose disk takes nothing.
    pub(super) fn begin_without_disk(&mut self, cause: &io::Error, first: u64) {
        self.fail(cause);
        self.begin_in_memory(first);
    }

    /// Makes a segment's file with this in it.
    pub(super) fn create(&self, first: u64, bytes: &[u8]) -> io::Result<Arc<dyn DiskFile>> {
        let disk = &self.shared.disk;
        if self.shared.table().disk_bytes() + bytes.len() as u64 > self.options.max_bytes {
            return Err(full());
        }
        // Under another name at first: what a failed sync left behind may have this one, and is
        // all that a start would find until the new one is whole.
        let (name, new) = (segment::file_name(first), segment::new_file_name(first));
        let file = disk.create(&new)?;
        let write = || {
            file.write_at(bytes, 0)?;
            if self.options.fsync == Fsync::Always {
                file.sync()?;
                disk.rename(&new, &name)?;
                return disk.sync_dir();
            }
            disk.rename(&new, &name)
        };
        if let Err(error) = write() {
            // If it cannot be removed, it is written over by the next try.
            let _ = disk.remove(&new);
            return Err(error);
        }
        Ok(file)
    }

    /// A new segment becomes the last.
    pub(super) fn push(&mut self, first: u64, end: u64, synced: u64, place: SegmentPlace) {
        let keep_open = self.options.fsync != Fsync::Off;
        let mut table = self.shared.table();
        // One into which nothing was written has the same name: it makes room.
        if table.segments.back().is_some_and(|last| last.first == first) {
            table.segments.pop_back();
        }
        if let Some(Segment { place: SegmentPlace::Disk(file), synced, end, .. }) =
            table.segments.back_mut()
        {
            // The keeper needs it until all of it is synced.
            if !keep_open || synced == end {
                *file = None;
            }
        }
        table.dir_dirty |= matches!(place, SegmentPlace::Disk(_));
        table.segments.push_back(Segment::ours((first, self.batch.marker), (end, synced), place));
        table.tell(&self.shared.state);
    }

    /// Begins a segment in memory, with its header only.
    pub(super) fn begin_in_memory(&mut self, first: u64) {
        if self.shared.table().segments.back().is_some_and(|last| !last.in_memory()) {
            self.dangle(&[]);
        }
        let file = MemoryFile::holding(self.batch.header(first));
        self.push(first, HEADER_BYTES as u64, 0, SegmentPlace::Memory(Arc::new(file)));
        self.trouble.opens_due = true;
    }

    /// Puts the batch into memory; drops it when there is no room.
    pub(super) fn place_in_memory(&mut self) {
        let found = {
            let table = self.shared.table();
            let memory_bytes = table.memory_bytes();
            match table.segments.back() {
                Some(Segment { place: SegmentPlace::Memory(file), end, .. }) => {
                    Some((Arc::clone(file), *end, memory_bytes))
                }
                _ => None,
            }
        };
        let Some((file, end, memory_bytes)) = found else {
            self.begin_in_memory(self.batch.first);
            return self.place_in_memory();
        };
        let len = self.batch.bytes.len() as u64;
        if memory_bytes + len > self.options.memory_bytes {
            return self.lose_batch();
        }
        // It cannot fail: it is memory.
        let _ = file.write_at(&self.batch.bytes, end);
        self.publish(len, None);
    }

    fn lose_batch(&mut self) {
        let records = self.batch.closes + self.batch.again.len() as u64;
        add(&self.state().dropped, records);
        add(&self.state().dropped_opens, self.batch.entries - records);
        self.batch.clear();
        self.tell_losses(false);
    }

    /// Writes the requests in flight into a segment that began without them.
    pub(super) fn repeat_opens_if_due(&mut self) {
        if !std::mem::take(&mut self.trouble.opens_due) {
            return;
        }
        self.gather_opens();
        if !self.batch.bytes.is_empty() {
            self.place_in_memory();
        }
    }

    /// Fills the batch, which is empty, with the requests in flight.
    fn gather_opens(&mut self) {
        debug_assert!(self.batch.bytes.is_empty(), "the batch is placed before");
        for (kind, payload) in self.flights.in_order() {
            self.batch.push(kind, |into| into.extend_from_slice(payload));
        }
    }

    /// Remembers that a segment has bytes behind its last whole entry, and cuts them if it can.
    pub(super) fn cut(&mut self, first: u64, file: Arc<dyn DiskFile>, end: u64) {
        self.trouble.cuts.retain(|(other, ..)| *other != first);
        if file.truncate(end).is_err() {
            self.trouble.cuts.push((first, file, end));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commit();
        self.state().opens.store(0, Relaxed);
    }
}

/// The spool has all the bytes that the plan gives it.
fn full() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "usage.spool.max_bytes is reached")
}
