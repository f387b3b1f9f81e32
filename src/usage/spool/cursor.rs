//! One reporter's way through the spool: reads ends of requests in order, and remembers how far it
//! is.

use super::codec;
use super::dead_letter::DeadLetters;
use super::disk::DiskFile;
use super::receipts::Name;
use super::replay::Replay;
use super::scan::{ReadWindow, Scan, Step};
use super::segment::{self, Entry, Kind, Marker, HEADER_BYTES};
use super::state::{add, sub, ReporterState};
use super::table::{Segment, SegmentPlace, SpoolShared, Table};
use crate::base::limits::{LANE_RECORDS_MIN, SPOOL_READ_BYTES_MAX};
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::UsageRecord;
use crate::usage::source::{Parcel, Read, Source};
use crossbeam_channel::{Receiver, Sender};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// The place of one reporter.
pub struct Cursor {
    shared: Arc<SpoolShared>,
    /// Which reporter, in the order of the configuration.
    index: usize,
    bell: Receiver<()>,
    keeper: Sender<()>,
    /// The lowest sequence that was not looked at yet.
    next: u64,
    /// Where it is expected: first sequence of the segment, and place in it.
    at: (u64, u64),
    /// The segment that was read last, if it is an old one.
    open: Option<(u64, Arc<dyn DiskFile>)>,
    /// What was read and is not done: sequence, when the request arrived, and what is to be noted
    /// when it is done.
    outstanding: VecDeque<(u64, u64, Option<Name>)>,
    /// Of what was found last, in the same order as its bytes.
    found: Vec<Found>,
    window: ReadWindow,
    dead: DeadLetters,
    /// `None` in a folder into which nothing is written any more.
    replay: Option<Replay>,
}

/// A segment, or what is left of it to read.
struct View {
    first: u64,
    marker: Marker,
    from: u64,
    end: u64,
    file: Arc<dyn DiskFile>,
    in_memory: bool,
}

/// An entry that was found to be for this reporter.
struct Found {
    /// Its segment, its place in it and its length there.
    first: u64,
    place: u64,
    len: u64,
    in_memory: bool,
    /// It must be a record: an end of a request, and not one that somebody asked for again.
    is_end: bool,
}

impl Cursor {
    pub(super) fn new(
        shared: Arc<SpoolShared>,
        index: usize,
        bell: Receiver<()>,
        keeper: Sender<()>,
    ) -> Self {
        let through = shared.checkpoint(index).map_or(0, |checkpoint| checkpoint.through());
        let dead = DeadLetters::new(Arc::clone(&shared), index);
        let replay = Some(Replay::new(Arc::clone(&shared), index));
        let (outstanding, found, window) = (VecDeque::new(), Vec::new(), ReadWindow::default());
        let (next, at) = (through + 1, (0, 0));
        Cursor {
            shared,
            index,
            bell,
            keeper,
            next,
            at,
            open: None,
            outstanding,
            found,
            window,
            dead,
            replay,
        }
    }

    /// Nothing will be written into the folder: what somebody wants to have again is taken over
    /// elsewhere.
    pub(super) fn takes_no_replays(&mut self) {
        self.replay = None;
    }

    /// True when all that is there was read.
    pub(super) fn is_at_the_end(&self) -> bool {
        let table = self.shared.table();
        let is_last = |last: &Segment| self.at.0 == last.first && self.at.1 >= last.end;
        table.segments.back().is_none_or(is_last)
    }

    /// True when all that is there was read and is done with; then the checkpoint says so.
    pub(super) fn finish(&self) -> bool {
        let is_finished = self.outstanding.is_empty() && self.is_at_the_end();
        if is_finished {
            self.advance(self.next.saturating_sub(1));
        }
        is_finished
    }

    /// Records that were not delivered yet.
    pub fn backlog(&self) -> u64 {
        self.state().map_or(0, |state| state.backlog.load(Relaxed))
    }

    /// When the request of the oldest of them arrived, milliseconds since 1970; `None` when there
    /// is none.
    pub fn oldest(&self) -> Option<u64> {
        let oldest = self.state()?.oldest_ms.load(Relaxed);
        (oldest > 0).then_some(oldest)
    }

    /// Puts a record aside that the receiver will never take: into the reporter's file of dead
    /// letters. It is for the caller to call [`Source::done`].
    ///
    /// # Errors
    /// The file is full, or the disk does not take it.
    pub fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()> {
        self.dead.bury(record, reason)
    }

    fn state(&self) -> Option<&ReporterState> {
        self.shared.state.reporters.get(self.index)
    }

    /// Finds where the next entries are. `None` when all was read.
    fn view(&mut self) -> io::Result<Option<View>> {
        let shared = Arc::clone(&self.shared);
        let (first, marker, end, place) = {
            let table = shared.table();
            loop {
                let (first, from) = self.at;
                let Some(segment) = table.starting(first).filter(|s| from <= s.end) else {
                    // It is gone, or was cut at a failed sync: what follows is elsewhere now.
                    let Some(segment) = table.holding(self.next) else { return Ok(None) };
                    self.at = (segment.first, HEADER_BYTES as u64);
                    continue;
                };
                if from < segment.end {
                    let Segment { first, marker, end, ref place, .. } = *segment;
                    break (first, marker, end, place.clone());
                }
                match table.behind(first) {
                    Some(next) => self.at = (next.first, HEADER_BYTES as u64),
                    None => {
                        self.at_the_end(&table);
                        return Ok(None);
                    }
                }
            }
        };
        // What is still written may become another file when the disk fails; a closed one has the
        // same bytes for ever.
        let held = self.open.take().filter(|(held, _)| *held == first);
        let file = match (&place, held) {
            (SegmentPlace::Disk(None), Some((_, file))) => file,
            _ => place.file(first, &*shared.disk)?,
        };
        if matches!(place, SegmentPlace::Disk(None)) {
            self.open = Some((first, Arc::clone(&file)));
        }
        let in_memory = matches!(place, SegmentPlace::Memory(_));
        Ok(Some(View { first, marker, from: self.at.1, end, file, in_memory }))
    }

    /// The file of the segment at hand is gone: what lay in it is lost, and counted once; what lies
    /// behind it is not. False when nothing lies behind it yet.
    fn pass_over(&mut self) -> bool {
        let first = self.at.0;
        let shared = Arc::clone(&self.shared);
        let mut table = shared.table();
        let behind = table.behind(first).map(|segment| segment.first);
        let segment = table.segments.iter_mut().find(|segment| segment.first == first);
        let (Some(behind), Some(segment)) = (behind, segment) else { return behind.is_some() };
        // One that all have read goes before the table knows.
        if self.next < behind && !segment.missing {
            segment.missing = true;
            add(&shared.state.damaged_places, 1);
            add(&shared.state.damaged_bytes, segment.end);
            let (file, bytes) = (segment::file_name(first), segment.end);
            tracing::error!(file, bytes, "a segment of the spool is gone, and its records with it");
        }
        self.next = self.next.max(behind);
        self.at = (behind, HEADER_BYTES as u64);
        true
    }

    /// With all read, the backlog is known exactly; the table in hand keeps the writer from adding.
    fn at_the_end(&self, _: &Table) {
        if let Some(state) = self.state() {
            let read = self.outstanding.len() + self.found.len();
            state.backlog.store(read as u64, Relaxed);
        }
    }

    /// Finds up to `max` entries for this reporter behind those found before, and takes their bytes
    /// into the room, which is emptied first. True when there may be more. They are read with
    /// [`Cursor::records`], which is to be called before this is again.
    pub(super) fn find(&mut self, max: usize, room: &mut Parcel) -> bool {
        room.clear();
        let begun_in = self.at.0;
        let mut is_more = true;
        while is_more && room.len() < max && room.bytes() < SPOOL_READ_BYTES_MAX {
            let walked = match self.view() {
                Ok(Some(view)) => self.walk(&view, max, room),
                Ok(None) => {
                    is_more = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && self.pass_over() => {
                    continue;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = walked {
                self.read_failed(&error);
                is_more = false;
            }
        }
        if self.at.0 != begun_in && self.outstanding.is_empty() && self.found.is_empty() {
            // What lies behind is not for reporters: it must not hold the segment back.
            self.advance(self.next.saturating_sub(1));
        }
        is_more
    }

    /// The records of what was found last.
    pub(super) fn records<'p>(&mut self, room: &'p Parcel, into: &mut Read<'p>) {
        let mut all = std::mem::take(&mut self.found);
        let none = RecordRef::default();
        for ((seq, bytes), found) in room.iter().zip(&all) {
            let before = into.records.last().unwrap_or(&none);
            if let Some(record) = codec::decode_after(bytes, before) {
                self.remember(seq, &record, found.in_memory);
                into.push(seq, record);
                continue;
            }
            if let Some(state) = self.state() {
                sub(&state.backlog, 1);
            }
            if found.is_end {
                // Its bytes are as they were written, and yet no record: not in silence.
                self.tell_damage(found.first, &[(found.place, found.len)]);
            }
        }
        all.clear();
        self.found = all;
    }

    /// Reads on in one segment until there is enough.
    fn walk(&mut self, view: &View, max: usize, room: &mut Parcel) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let name = shared.state.reporters.get(self.index).map_or("", |r| r.name.as_str());
        let window = std::mem::take(&mut self.window);
        let range = (view.from, view.end);
        let mut scan = Scan::with(view.file.as_ref(), view.marker, range, window);
        let (mut damage, mut walked) = (Vec::new(), Ok(()));
        while room.len() < max && room.bytes() < SPOOL_READ_BYTES_MAX {
            let place = scan.at();
            match scan.step() {
                Ok(Some(Step::Entry(entry))) => {
                    if entry.sequence < self.next {
                        continue;
                    }
                    self.next = entry.sequence + 1;
                    let Some(record) = record_for(name, &entry) else { continue };
                    room.push(entry.sequence, record);
                    self.found.push(Found {
                        first: view.first,
                        place,
                        len: entry.size() as u64,
                        in_memory: view.in_memory,
                        is_end: Kind::of(entry.kind) == Some(Kind::Close),
                    });
                }
                Ok(Some(Step::Damage(len))) => damage.push((place, len)),
                Ok(None) => break,
                Err(error) => {
                    walked = Err(error);
                    break;
                }
            }
        }
        self.at = (view.first, scan.at());
        self.window = scan.into_window();
        self.tell_damage(view.first, &damage);
        walked
    }

    /// Counts damage that nobody has seen before.
    fn tell_damage(&self, first: u64, damage: &[(u64, u64)]) {
        for (place, len) in damage {
            let mut table = self.shared.table();
            let segment = table.segments.iter_mut().find(|segment| segment.first == first);
            let Some(segment) = segment.filter(|s| !s.damage.contains(place)) else { continue };
            segment.damage.push(*place);
            add(&self.shared.state.damaged_places, 1);
            add(&self.shared.state.damaged_bytes, *len);
            tracing::error!(first, place, len, "a segment of the spool is damaged");
        }
    }

    /// A record is read and not done.
    fn remember(&mut self, seq: u64, record: &RecordRef<'_>, in_memory: bool) {
        if let Some(state) = self.state().filter(|_| self.outstanding.is_empty()) {
            state.oldest_ms.store(record.timestamp_ms, Relaxed);
        }
        let receipts = &self.shared.receipts;
        let name = in_memory.then(|| receipts.dangling(record.request_id)).flatten();
        self.outstanding.push_back((seq, record.timestamp_ms, name));
    }

    fn advance(&self, through: u64) {
        let Some(mut checkpoint) = self.shared.checkpoint(self.index) else { return };
        if let Err(error) = checkpoint.advance(through) {
            tracing::warn!(%error, "a reporter's checkpoint cannot be written");
        }
        let _ = self.keeper.try_send(());
    }
}

impl Source for Cursor {
    fn read<'p>(&mut self, max: usize, room: &'p mut Parcel, into: &mut Read<'p>) -> bool {
        let is_more = self.find(max, room);
        self.records(room, into);
        let through = self.through();
        if let Some(replay) = self.replay.as_mut().filter(|_| !is_more) {
            replay.step(through);
        }
        is_more
    }

    fn done(&mut self, through: u64) {
        let mut count = 0;
        while self.outstanding.front().is_some_and(|(seq, ..)| *seq <= through) {
            if let Some((.., Some(name))) = self.outstanding.pop_front() {
                self.shared.receipts.note(self.index, name);
            }
            count += 1;
        }
        let front = self.outstanding.front().copied();
        if let Some(state) = self.state() {
            sub(&state.backlog, count);
            state.oldest_ms.store(front.map_or(0, |(_, arrived, _)| arrived), Relaxed);
        }
        self.advance(self.through());
    }

    fn bell(&self) -> &Receiver<()> {
        &self.bell
    }

    fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()> {
        Cursor::bury(self, record, reason)
    }

    fn rest(&mut self) {
        self.outstanding.shrink_to(LANE_RECORDS_MIN);
        self.found.shrink_to(LANE_RECORDS_MIN);
    }
}

impl Cursor {
    /// What lies before the next record that is not done is done, or not for reporters.
    fn through(&self) -> u64 {
        self.outstanding.front().map_or(self.next, |(seq, ..)| *seq).saturating_sub(1)
    }

    /// It is read again with the next bell: to skip what may come back would lose it.
    fn read_failed(&mut self, error: &io::Error) {
        self.open = None;
        add(&self.shared.state.read_errors, 1);
        tracing::warn!(%error, "the spool cannot be read");
    }
}

/// The bytes of the record in an entry, if it is for this reporter.
fn record_for<'a>(reporter: &str, entry: &Entry<'a>) -> Option<&'a [u8]> {
    match Kind::of(entry.kind)? {
        Kind::Close => Some(entry.payload),
        Kind::Again => {
            let (name, record) = split_again(entry.payload)?;
            (name == reporter.as_bytes()).then_some(record)
        }
        Kind::Open | Kind::Note => None,
    }
}

/// The reporter's name and the record of an entry for one reporter.
pub(super) fn split_again(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = payload;
    let len = codec::read_number(&mut rest)?;
    rest.split_at_checked(usize::try_from(len).ok()?)
}
