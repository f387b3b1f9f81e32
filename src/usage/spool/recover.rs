//! What a start finds: segments are read from the oldest on, a torn end is cut, and what was begun
//! and never ended becomes a record of an aborted request.

use super::absent::{self, Absent};
use super::checkpoint::{self, Checkpoint};
use super::codec;
use super::cursor::split_again;
use super::disk::{Disk, DiskFile};
use super::leftover::Leftover;
use super::receipts::{self, Told};
use super::register::{self, known_markers, Register};
use super::scan::{marker_of, Scan, Step};
use super::segment::{self, Entry, Kind, Marker, HEADER_BYTES};
use super::state::{add, SpoolState};
use super::table::{Segment, SegmentPlace};
use crate::config::plan::Fsync;
use crate::usage::record::{Outcome, UsageRecord};
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// The code in records of requests whose gateway ended before they did.
const KILLED: &str = "gateway_killed";

/// What was found.
pub(super) struct Found {
    pub segments: VecDeque<Segment>,
    /// Higher than any sequence that was ever used.
    pub next_sequence: u64,
    /// Requests without an end, in the order in which they began: what was last said of them.
    pub aborted: Vec<UsageRecord>,
    /// Records of requests that ended, which only a ring has.
    pub ended: Vec<Box<[u8]>>,
    /// The rings that were read.
    pub leftover: Leftover,
    /// Those of them whose end some reporter had from memory.
    pub told: Vec<Told>,
    /// Segments that could not be cut back to their last whole entry.
    pub cuts: Vec<(u64, Arc<dyn DiskFile>, u64)>,
    /// How far each reporter is; `None` for a new one.
    pub checkpoints: Vec<Option<Checkpoint>>,
    /// Reporters that left, and whose records are kept.
    pub absent: Vec<Absent>,
}

impl Found {
    /// In a folder that is not there.
    pub fn nothing(reporters: &[String]) -> Found {
        Found {
            segments: VecDeque::new(),
            next_sequence: 1,
            aborted: Vec::new(),
            ended: Vec::new(),
            leftover: Leftover::default(),
            told: Vec::new(),
            cuts: Vec::new(),
            checkpoints: reporters.iter().map(|_| None).collect(),
            absent: Vec::new(),
        }
    }
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    state: &'a SpoolState,
    fsync: Fsync,
    /// Those that entries here may begin with.
    markers: Vec<Marker>,
    /// How far each reporter is, or the end of all for one that is new.
    through: Vec<u64>,
    /// The highest sequence that was read.
    last: u64,
    /// The sequence with which the next segment begins unless one is missing; `None` where that
    /// cannot be told.
    expected: Option<u64>,
    opens: Opens,
    leftover: Leftover,
    found: Found,
}

/// Payloads of requests without an end yet.
#[derive(Default)]
pub(super) struct Opens {
    by_id: BTreeMap<Box<str>, (u64, Box<[u8]>)>,
}

impl Opens {
    /// Takes in an entry.
    pub fn take(&mut self, entry: &Entry<'_>) {
        let payload = match Kind::of(entry.kind) {
            Some(Kind::Again) => split_again(entry.payload).map_or(&[][..], |(_, record)| record),
            _ => entry.payload,
        };
        let (Some(kind), Some(id)) = (Kind::of(entry.kind), codec::request_id_of(payload)) else {
            return;
        };
        match kind {
            // What one reporter gets once more is over, too.
            Kind::Close | Kind::Again => drop(self.by_id.remove(id)),
            Kind::Open | Kind::Note => match self.by_id.get_mut(id) {
                // It keeps its place in the order.
                Some((_, payload)) => *payload = entry.payload.into(),
                None => {
                    self.by_id.insert(id.into(), (entry.sequence, entry.payload.into()));
                }
            },
        }
    }

    /// What was last said of each, in order.
    pub fn into_records(self) -> Vec<UsageRecord> {
        let mut all: Vec<_> = self.by_id.into_values().collect();
        all.sort_by_key(|(sequence, _)| *sequence);
        all.iter().filter_map(|(_, payload)| codec::decode(payload)).collect()
    }
}

/// Reads all that is there.
///
/// # Errors
/// The folder or a file in it cannot be read, or a newer version wrote it.
pub(super) fn recover(
    disk: &dyn Disk,
    state: &SpoolState,
    reporters: &[String],
    (fsync, leftover): (Fsync, Leftover),
) -> io::Result<Found> {
    let names = disk.list()?;
    let mut firsts: Vec<u64> = names.iter().filter_map(|name| segment::first_of(name)).collect();
    firsts.sort_unstable();
    let checkpoints = checkpoints(disk, reporters, (&names, firsts.first().copied()), state)?;
    let through = |c: &Option<Checkpoint>| c.as_ref().map_or(u64::MAX, Checkpoint::through);
    let through: Vec<u64> = checkpoints.iter().map(through).collect();
    // A reporter may have had what a power cut then took away.
    let known = through.iter().copied().filter(|t| *t != u64::MAX).max().unwrap_or(0);
    let found = Found { next_sequence: known + 1, checkpoints, ..Found::nothing(&[]) };
    // Segments go when all have had them: what lies behind that must be there.
    let had = through.iter().copied().min().filter(|least| (1..u64::MAX).contains(least));
    let mut recovery = Recovery {
        disk,
        state,
        fsync,
        markers: known_markers(disk, &firsts)?,
        through,
        last: 0,
        expected: had.map(|had| had + 1),
        opens: Opens::default(),
        leftover,
        found,
    };
    for (index, first) in firsts.iter().enumerate() {
        recovery.segment(*first, index + 1 == firsts.len())?;
    }
    let Recovery { mut opens, mut found, mut leftover, .. } = recovery;
    add(&state.damaged_places, leftover.damaged);
    for (kind, payload) in leftover.take() {
        // Behind all that the spool has.
        let (sequence, kind_byte) = (u64::MAX, kind.byte());
        opens.take(&Entry { sequence, kind: kind_byte, payload: &payload });
        if kind == Kind::Close {
            found.ended.push(payload);
        }
    }
    found.leftover = leftover;
    found.aborted = opens.into_records();
    for record in &mut found.aborted {
        record.outcome = Outcome::Aborted;
        record.error = Some(Cow::Borrowed(KILLED));
    }
    for name in names.iter().filter(|name| segment::is_new(name)) {
        // Never finished; what should have gone there lies in another one, or was never promised.
        let _ = disk.remove(name);
    }
    let recovered = (found.ended.len(), found.aborted.len());
    found.absent = absent::find(disk, reporters, recovered)?;
    receipts::sort_out(disk, reporters, &mut found)?;
    add(&state.aborted, found.aborted.len() as u64);
    Ok(found)
}

/// Opens the checkpoints of these reporters, of which a new one has none. One that had a checkpoint
/// before and has it no more begins with the oldest segment: it is better to repeat than to lose.
fn checkpoints(
    disk: &dyn Disk,
    reporters: &[String],
    (names, oldest): (&[String], Option<u64>),
    state: &SpoolState,
) -> io::Result<Vec<Option<Checkpoint>>> {
    let register = Register::read(disk)?;
    let is_any = names.iter().any(|name| name.ends_with(checkpoint::SUFFIX));
    let was_here = |reporter: &String| match &register {
        register::Found::Whole(register) => register.reporters.contains(reporter),
        register::Found::Damaged => true,
        // Written by a version without registers: that all are new is not to be believed.
        register::Found::Absent => !is_any,
    };
    let open = |reporter: &String| match Checkpoint::open(disk, reporter) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let oldest = oldest.filter(|_| was_here(reporter));
            Ok(oldest.map(|oldest| {
                add(&state.damaged_places, 1);
                let message = "the checkpoint of a reporter is gone: it gets all that is there";
                tracing::error!(reporter, oldest, "{message}");
                Checkpoint::at(reporter, oldest.saturating_sub(1))
            }))
        }
        Err(error) => Err(error),
    };
    reporters.iter().map(open).collect()
}

impl Recovery<'_> {
    fn segment(&mut self, first: u64, is_last: bool) -> io::Result<()> {
        let name = segment::file_name(first);
        let named = |e: io::Error| io::Error::new(e.kind(), format!("spool file {name}: {e}"));
        let file = self.disk.open(&name).map_err(named)?;
        let size = file.size().map_err(named)?;
        let mut damage = Vec::new();
        let mut good = HEADER_BYTES as u64;
        let marker = marker_of(&*file, size, &self.markers).map_err(named)?;
        self.look_for_gap(first);
        let before = self.last;
        if let Some((marker, header_is_whole)) = marker {
            if !header_is_whole {
                damage.push((0, HEADER_BYTES as u64));
            }
            let mut scan = Scan::new(&*file, marker, (HEADER_BYTES as u64, size));
            loop {
                let at = scan.at();
                match scan.step().map_err(named)? {
                    Some(Step::Entry(entry)) => {
                        good = at + entry.size() as u64;
                        self.entry(&entry);
                    }
                    Some(Step::Damage(len)) => damage.push((at, len)),
                    None => break,
                }
            }
        } else {
            damage.push((0, size));
        }
        if is_last && size > good && marker.is_some() {
            // The last write before the end was not finished.
            damage.retain(|(at, _)| *at < good);
            add(&self.state.torn_tails, 1);
            if file.truncate(good).and_then(|()| self.sync(&*file)).is_err() {
                self.found.cuts.push((first, Arc::clone(&file), good));
            }
        }
        if self.last == before && is_last && size <= HEADER_BYTES as u64 {
            // Nothing was ever written into it, and the next segment will have its name.
            self.found.next_sequence = self.found.next_sequence.max(first);
            let _ = self.disk.remove(&name);
            return Ok(());
        }
        self.found.next_sequence = self.found.next_sequence.max(self.last + 1).max(first + 1);
        // Damage at the end may have been entries. A start steps over one sequence behind a segment
        // without any.
        let next = if self.last > before { self.last + 1 } else { self.last.max(first) + 1 };
        self.expected = (size <= good).then_some(next);
        for (at, len) in &damage {
            add(&self.state.damaged_places, 1);
            add(&self.state.damaged_bytes, *len);
            tracing::error!(file = name, at, len, "a segment of the spool is damaged");
        }
        self.found.segments.push_back(Segment {
            first,
            marker: marker.map_or([0; 4], |(marker, _)| marker),
            end: if is_last { good } else { size.max(good) },
            // A killed process may have written it a moment ago.
            synced: 0,
            place: SegmentPlace::Disk(None),
            ours: false,
            damage: damage.into_iter().map(|(at, _)| at).collect(),
            missing: false,
        });
        Ok(())
    }

    /// Sequences that no segment has were lost with one, or in a power cut.
    fn look_for_gap(&self, first: u64) {
        let missing = first.saturating_sub(self.expected.unwrap_or(first));
        if missing > 0 {
            add(&self.state.damaged_places, 1);
            tracing::error!(first, missing, "entries of the spool are missing before this one");
        }
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        if self.fsync == Fsync::Off {
            return Ok(());
        }
        file.sync()
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        if entry.sequence <= self.last {
            // Written twice: a failing disk had it after all.
            return;
        }
        self.last = entry.sequence;
        self.opens.take(entry);
        if Kind::of(entry.kind) == Some(Kind::Close) {
            self.leftover.has_end(entry.payload);
        }
        let one = match Kind::of(entry.kind) {
            Some(Kind::Close) => None,
            Some(Kind::Again) => split_again(entry.payload).map(|(name, _)| name),
            _ => return,
        };
        for (reporter, through) in self.state.reporters.iter().zip(&self.through) {
            let for_it = one.is_none_or(|name| name == reporter.name.as_bytes());
            if !for_it || entry.sequence <= *through {
                continue;
            }
            add(&reporter.backlog, 1);
            if reporter.oldest_ms.load(Relaxed) == 0 {
                let record = one.map_or(Some(entry.payload), |_| {
                    split_again(entry.payload).map(|(_, record)| record)
                });
                let arrived = record.and_then(codec::decode).map_or(0, |r| r.timestamp_ms);
                reporter.oldest_ms.store(arrived, Relaxed);
            }
        }
    }
}
