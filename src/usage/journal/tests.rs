use super::*;
use crate::base::id::RequestId;
use crate::base::limits::SPOOL_STALL_MAX;
use crate::config::plan::{OnSpoolFailure, Spool};
use crate::usage::counters::UsageCounters;
use crate::usage::outbox::{Opening, Outbox};
use crate::usage::record::UsageRecord;
use crate::usage::ring::spsc::Window;
use crate::usage::source::Source;
use crate::usage::spool::cursor::Cursor;
use crate::usage::spool::disk::{Disk, DiskFile};
use crate::usage::spool::memory::MemoryDisk;
use crate::usage::spool::{self, Opened, Options};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

mod kills;
mod steps;

/// A worker's end and a journal that does not run by itself.
struct Stage {
    outbox: Outbox,
    desk: Desk,
    cursor: Cursor,
    counters: Arc<UsageCounters>,
}

impl Stage {
    fn new(opened: Opened, ring: RingFile) -> Stage {
        let Opened { writer, mut cursors, state, doorbell, .. } = opened;
        let (ring, counters) = (Arc::new(ring), Arc::new(UsageCounters::new(&[])));
        let outbox = Outbox::new(ring.clone(), doorbell, counters.clone(), state);
        let desk = Desk::new(vec![ring], writer);
        Stage { outbox, desk, cursor: cursors.remove(0), counters }
    }

    fn in_memory(ring_bytes: u64) -> Stage {
        let opened = opened(Arc::new(MemoryDisk::default()), OnSpoolFailure::Serve);
        Stage::new(opened, RingFile::anonymous(ring_bytes).unwrap())
    }

    fn open(&self, id: &str) -> Option<Opening> {
        self.outbox.open(&named(id).borrowed())
    }

    fn close(&self, id: &str, opening: Option<Opening>) {
        self.outbox.close(&named(id).borrowed(), opening.unwrap_or_default());
    }

    /// What the reporter has not been given so far.
    fn read(&mut self) -> Vec<String> {
        read(&mut self.cursor)
    }

    fn entries(&self) -> u64 {
        self.desk.writer.state().entries.load(Relaxed)
    }
}

fn opened(disk: Arc<dyn Disk>, on_failure: OnSpoolFailure) -> Opened {
    let plan = Spool { on_failure, ..Spool::default() };
    spool::open(disk, Options::of(&plan), &["a".to_owned()]).unwrap()
}

fn named(id: &str) -> UsageRecord {
    let request_id = RequestId::from_client(id.as_bytes()).unwrap();
    UsageRecord { request_id, ..UsageRecord::default() }
}

fn read(cursor: &mut Cursor) -> Vec<String> {
    let read = cursor.read_owned(10_000);
    if let Some(last) = read.last() {
        cursor.done(last.seq);
    }
    read.iter().map(|got| got.record.request_id.as_str().to_owned()).collect()
}

/// Catches: an open that is written though its end says it all, or is not written though its end
/// is still to come; an end that leaves its request in flight; ends out of order.
#[test]
fn an_open_with_its_end_is_one_entry() {
    let mut stage = Stage::in_memory(1 << 20);
    let (x, y) = (stage.open("x"), stage.open("y"));
    stage.close("y", y);
    assert!(stage.desk.round());
    assert_eq!((stage.entries(), stage.read()), (2, vec!["y".to_owned()]));
    assert_eq!(stage.desk.writer.state().opens.load(Relaxed), 1);
    let z = stage.open("z");
    stage.close("x", x);
    stage.close("z", z);
    assert!(stage.desk.round() && !stage.desk.round());
    assert_eq!((stage.entries(), stage.read()), (4, vec!["x".to_owned(), "z".to_owned()]));
    assert_eq!(stage.desk.writer.state().opens.load(Relaxed), 0);
}

/// Catches: an end that names an open of somebody else, by chance or by a foreign hand, and makes
/// the journal forget that one.
#[test]
fn an_end_forgets_no_other_open() {
    let mut stage = Stage::in_memory(1 << 20);
    let x = stage.open("x");
    stage.close("y", x);
    stage.desk.round();
    assert_eq!((stage.entries(), stage.read()), (2, vec!["y".to_owned()]));
    assert_eq!(stage.desk.writer.state().opens.load(Relaxed), 1);
}

/// Catches: a full ring that is waited for, that loses ends while there are opens to lose, or whose
/// losses are not counted each under its name; a body that costs a record.
#[test]
fn a_full_ring_is_counted_by_name() {
    let mut stage = Stage::in_memory(64 * 1024);
    let mut opens = 0;
    while stage.open("x").is_some() {
        opens += 1;
    }
    assert!(opens > 300);
    stage.outbox.note(&named("x").borrowed());
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
    assert_eq!(count(&stage.counters.notes_dropped), 2);
    stage.close("z", None);
    assert_eq!(count(&stage.counters.records_dropped), 0, "the last quarter is for ends");
    let request_body = Some(vec![b'{'; 1000]);
    stage.outbox.close(&UsageRecord { request_body, ..named("y") }.borrowed(), Opening::default());
    assert_eq!(count(&stage.counters.bodies_dropped), 1);
    while count(&stage.counters.records_dropped) == 0 {
        stage.close("z", None);
    }
    stage.desk.round();
    assert!(stage.read().contains(&"y".to_owned()));
    assert!(stage.open("x").is_some(), "there is room again");
    stage.desk.round();
    for (bytes, is_kept) in [(10_000, true), (20_000, false)] {
        let record = UsageRecord { request_body: Some(vec![b'{'; bytes]), ..named("y") };
        stage.outbox.close(&record.borrowed(), Opening::default());
        stage.desk.round();
        let read = stage.cursor.read_owned(9);
        assert_eq!(read[0].record.request_body.is_some(), is_kept, "{bytes}");
        stage.cursor.done(read[0].seq);
    }
}

/// Catches: under `refuse`, a request that is admitted though the ring will have no room for its
/// end: it is served, and its record dropped; notes that take that room, or room that is not given
/// back.
#[test]
fn who_is_admitted_under_refuse_has_room_for_its_end() {
    let opened = opened(Arc::new(MemoryDisk::default()), OnSpoolFailure::Refuse);
    let mut stage = Stage::new(opened, RingFile::anonymous(64 * 1024).unwrap());
    for _ in 0..3 {
        // The journal stands still.
        let (mut openings, mut n) = (Vec::new(), 0);
        while let Some(opening) = stage.open(&format!("r{n}")) {
            openings.push(opening);
            n += 1;
            assert!(n < 600, "never full");
        }
        assert!(n > 50, "{n}");
        for _ in 0..1000 {
            stage.outbox.note(&named("r1").borrowed());
        }
        for (n, opening) in openings.into_iter().enumerate() {
            let error = Some("e".repeat(400).into());
            let record = UsageRecord { error, ..named(&format!("r{n}")) };
            stage.outbox.close(&record.borrowed(), opening);
        }
        assert_eq!(stage.counters.records_dropped.load(Relaxed), 0);
        stage.desk.round();
        assert_eq!(stage.read().len(), n);
    }
}

/// A disk in memory that does not come back from a write while somebody holds the gate, and panics
/// at one when it is told to.
#[derive(Default)]
pub(crate) struct Odd {
    disk: MemoryDisk,
    shared: Arc<Shared>,
}

#[derive(Default)]
pub(crate) struct Shared {
    gate: Mutex<()>,
    panics: AtomicBool,
}

struct OddFile {
    file: Arc<dyn DiskFile>,
    shared: Arc<Shared>,
}

impl Shared {
    /// As long as this lives, no write comes back.
    pub fn shut(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }
}

impl Odd {
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn odd(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(OddFile { file, shared: Arc::clone(&self.shared) })
    }
}

impl Disk for Odd {
    fn lock(&self) -> io::Result<()> {
        self.disk.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.odd(self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.odd(self.disk.open(name)?))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
}

impl DiskFile for OddFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let _open = self.shared.shut();
        assert!(!self.shared.panics.load(Relaxed), "as asked");
        self.file.write_at(bytes, at)
    }
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(into, at)
    }
    fn truncate(&self, len: u64) -> io::Result<()> {
        self.file.truncate(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
}

/// Catches: a panic of the journal's thread that costs what was taken, or after which a ring's room
/// is used again though nothing else has what was in it.
#[test]
fn a_panic_at_a_write_loses_nothing() {
    let disk = Odd::default();
    let shared = Arc::clone(&disk.shared);
    let opened = opened(Arc::new(disk), OnSpoolFailure::Serve);
    let mut stage = Stage::new(opened, RingFile::anonymous(64 * 1024).unwrap());
    let ring = Arc::clone(stage.desk.rings[0].window());
    let x = stage.open("x");
    shared.panics.store(true, Relaxed);
    stage.desk.round();
    stage.close("x", x);
    stage.desk.round();
    assert!(stage.desk.is_behind && ring.waiting() > 0 && stage.read().is_empty());
    shared.panics.store(false, Relaxed);
    shared.gate.clear_poison();
    stage.desk.round();
    assert!(!stage.desk.is_behind && ring.waiting() == 0);
    assert_eq!(stage.read(), ["x"]);
}

/// Catches: a panic while what was taken is told apart, which ends the journal's thread, costs what
/// was found before, or passes without a count.
#[test]
fn a_panic_while_entries_are_told_apart_costs_no_other() {
    let mut stage = Stage::in_memory(1 << 20);
    let x = stage.open("x");
    stage.close("y", None);
    stage.close("x", x);
    stage.close("z", None);
    // After the end of x is found, for which its open need not be written.
    panic_point::arm("sort", 3);
    stage.desk.round();
    assert_eq!(stage.read(), ["y", "x"]);
    assert_eq!(stage.desk.writer.state().damaged_places.load(Relaxed), 1);
    stage.close("z", None);
    stage.desk.round();
    assert_eq!(stage.read(), ["z"]);
}

/// Catches: a thread that is not called, or not for what comes while it falls asleep; what is put
/// in before a stop and not written; a ring's file that stays behind.
#[test]
fn the_thread_takes_all_until_it_is_stopped() {
    let folder = std::env::temp_dir().join(format!("llmproxy-journal-{}", std::process::id()));
    let Opened { writer, keeper, mut cursors, state, doorbell } =
        opened(Arc::new(MemoryDisk::default()), OnSpoolFailure::Serve);
    let rings: Vec<_> = (0..2)
        .map(|worker| Arc::new(RingFile::create(&folder, worker, 64 * 1024).unwrap()))
        .collect();
    let counters = Arc::new(UsageCounters::new(&[]));
    let end = |ring: &Arc<RingFile>| {
        Outbox::new(ring.clone(), doorbell.clone(), counters.clone(), state.clone())
    };
    let ends: Vec<Outbox> = rings.iter().map(end).collect();
    let journal = Journal::start((rings.clone(), doorbell), writer, keeper).unwrap();
    let mut seen = Vec::new();
    for round in 0..40 {
        let id = format!("r{round}");
        let end = &ends[round % 2];
        let opening = end.open(&named(&id).borrowed()).unwrap();
        end.close(&named(&id).borrowed(), opening);
        // Now the thread sleeps, or is about to.
        while seen.len() <= round {
            seen.extend(read(&mut cursors[0]));
            thread::yield_now();
        }
    }
    for round in 0..100 {
        let record = named(&format!("s{round}"));
        ends[round % 2].close(&record.borrowed(), Opening::default());
    }
    journal.stop();
    seen.extend(read(&mut cursors[0]));
    assert_eq!(seen.len(), 140);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(folder).unwrap();
}

/// Catches: a disk that hangs, under `refuse`: requests are served whose records nobody keeps,
/// since no write has failed; and a worker that waits for it.
#[test]
fn a_disk_that_does_not_come_back_is_one_that_fails() {
    let disk = Odd::default();
    let shared = Arc::clone(&disk.shared);
    let Opened { writer, keeper, mut cursors, state, doorbell } =
        opened(Arc::new(disk), OnSpoolFailure::Refuse);
    let ring = Arc::new(RingFile::anonymous(64 * 1024).unwrap());
    let counters = Arc::new(UsageCounters::new(&[]));
    let outbox = Outbox::new(ring.clone(), doorbell.clone(), counters.clone(), state.clone());
    let journal = Journal::start((vec![ring], doorbell), writer, keeper).unwrap();
    let later = || Instant::now() + SPOOL_STALL_MAX + Duration::from_millis(1);
    let shut = shared.shut();
    outbox.close(&named("x").borrowed(), Opening::default());
    while !state.fails(later()) {
        thread::yield_now();
    }
    assert!(!state.fails(Instant::now()) || !state.failing.load(Relaxed), "it has some time");
    while outbox.open(&named("y").borrowed()).is_some() {}
    assert!(outbox.is_strict(), "whose open finds no room is not served");
    drop(shut);
    while read(&mut cursors[0]).is_empty() {
        thread::yield_now();
    }
    journal.stop();
    assert!(!state.fails(later()) && !state.refuses());
}

/// Catches: damage to an open that is not written anyway, and that costs its record; an open left
/// out for the sake of an end that cannot be read; damage that is not counted, or costs what lies
/// before it.
#[test]
fn damage_costs_no_open_whose_end_is_damaged() {
    // What is hit, an open or an end of the request in the middle: whose records are left, the
    // requests that are told to have begun, and the places of damage.
    for (hit, read, flying, damaged) in
        [(1, vec!["x", "y", "z"], 0, 0), (4, vec!["x"], 2, 1), (0, vec!["x", "y", "z"], 0, 0)]
    {
        let mut stage = Stage::in_memory(1 << 20);
        // Longer than the word that is hit, which has nothing of the id.
        let all = ["x", "y", "z"].map(|id| UsageRecord { path: "p".repeat(40), ..named(id) });
        let openings = all.each_ref().map(|record| stage.outbox.open(&record.borrowed()).unwrap());
        for (record, opening) in all.iter().zip(openings) {
            stage.outbox.close(&record.borrowed(), opening);
        }
        let ring = Arc::clone(stage.desk.rings[0].window());
        let mut taken = Taken::default();
        Consumer::new(Arc::clone(&ring)).take(&mut taken);
        let entry = taken.walk(Check::Each).nth(hit).unwrap();
        let at = (entry.at + entry.payload.len() - 1) as u64 & !7;
        ring.store(at, !ring.load(at));
        stage.desk.round();
        assert_eq!(stage.read(), read, "{hit}");
        let state = stage.desk.writer.state();
        assert_eq!(state.damaged_places.load(Relaxed), damaged, "{hit}");
        assert_eq!(state.opens.load(Relaxed), flying, "{hit}");
    }
}
