use super::*;
use crate::base::id::RequestId;
use crate::base::limits::SPOOL_STALL_MAX;
use crate::config::plan::{OnSpoolFailure, Spool};
use crate::usage::source::Source;
use crate::usage::spool::disk::{Disk, DiskFile};
use crate::usage::spool::memory::MemoryDisk;
use crate::usage::spool::{self, Opened};
use crossbeam_channel::unbounded;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A piece of a worker.
struct Said(Kind, UsageRecord, usize, u64);

impl Piece for Said {
    fn kind(&self) -> Kind {
        self.0
    }
    fn record(&self) -> &UsageRecord {
        assert_ne!(self.1.request_id.as_str(), "panic", "as asked");
        &self.1
    }
    fn ticket(&self) -> (usize, u64) {
        (self.2, self.3)
    }
}

struct Told {
    tickets: Sender<(usize, u64)>,
    spares: Sender<Vec<Said>>,
}

impl Ends<Said> for Told {
    fn acknowledge(&mut self, worker: usize, ticket: u64) {
        self.tickets.send((worker, ticket)).unwrap();
    }
    fn spare(&mut self, pieces: Vec<Said>) {
        self.spares.send(pieces).unwrap();
    }
}

fn said(kind: Kind, id: &str, worker: usize, ticket: u64) -> Said {
    let request_id = RequestId::from_client(id.as_bytes()).unwrap();
    Said(kind, UsageRecord { request_id, ..UsageRecord::default() }, worker, ticket)
}

/// A turn of one piece.
fn turn(kind: Kind, id: &str, worker: usize, ticket: u64) -> Vec<Said> {
    vec![said(kind, id, worker, ticket)]
}

/// Catches: a ticket that is told before its record can be read, a worker that is never told, a
/// box that does not come back, and a panic that ends the thread.
#[test]
fn what_is_acknowledged_can_be_read() {
    let plan = Spool { enabled: false, ..Spool::default() };
    let names = ["a".to_owned()];
    let Opened { writer, keeper, mut cursors, state, doorbell } =
        spool::open(Arc::new(MemoryDisk::default()), spool::Options::of(&plan), &names).unwrap();
    let cursor = &mut cursors[0];
    let (inbox, pieces) = unbounded();
    let ((tickets, told), (spares, spared)) = (unbounded(), unbounded());
    let journal =
        Journal::start((pieces, Arc::clone(&doorbell)), writer, keeper, Told { tickets, spares })
            .unwrap();
    inbox.send(turn(Kind::Open, "x", 3, 1)).unwrap();
    doorbell.ring();
    assert_eq!(told.recv().unwrap(), (3, 1));
    assert!(cursor.read(9).is_empty(), "it has no end yet");
    inbox.send(turn(Kind::Close, "x", 3, 2)).unwrap();
    doorbell.ring();
    assert_eq!(told.recv().unwrap(), (3, 2));
    let read = cursor.read(9);
    assert_eq!(read.len(), 1);
    cursor.done(read[0].seq);
    inbox.send(turn(Kind::Close, "panic", 4, 1)).unwrap();
    doorbell.ring();
    assert_eq!(told.recv().unwrap(), (4, 1), "nobody waits for it in vain");
    let middle = [("a", 2), ("panic", 3), ("b", 4)];
    inbox.send(middle.map(|(id, ticket)| said(Kind::Close, id, 4, ticket)).into()).unwrap();
    doorbell.ring();
    assert_eq!(told.recv().unwrap(), (4, 4));
    let read = cursor.read(9);
    let ids: Vec<_> = read.iter().map(|got| got.record.request_id.as_str()).collect();
    assert_eq!(ids, ["a", "b"], "its neighbours are kept");
    cursor.done(read[1].seq);
    for ticket in 3..503 {
        inbox.send(turn(Kind::Close, "y", (ticket % 2) as usize, ticket)).unwrap();
        doorbell.ring();
    }
    journal.stop();
    let last = |worker| told.try_iter().filter(|(w, _)| *w == worker).map(|(_, t)| t).last();
    assert_eq!(last(0), Some(502), "all that was handed over before the stop");
    assert_eq!(cursor.read(1000).len(), 500);
    assert_eq!(spared.iter().flatten().count(), 506);
    let dropped = state.dropped.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(dropped, 2, "those that panicked are counted");
}

/// A disk in memory that does not come back from a write while somebody holds the gate.
struct Slow {
    disk: MemoryDisk,
    gate: Arc<Mutex<()>>,
}

struct SlowFile {
    file: Arc<dyn DiskFile>,
    gate: Arc<Mutex<()>>,
}

impl Slow {
    fn slow(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(SlowFile { file, gate: Arc::clone(&self.gate) })
    }
}

impl Disk for Slow {
    fn lock(&self) -> io::Result<()> {
        self.disk.lock()
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.slow(self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.slow(self.disk.open(name)?))
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

impl DiskFile for SlowFile {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let _open = self.gate.lock().unwrap();
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

/// Catches: a disk that hangs, under `refuse`: requests are served whose records nobody keeps,
/// since no write has failed.
#[test]
fn a_disk_that_does_not_come_back_is_one_that_fails() {
    let gate = Arc::new(Mutex::new(()));
    let disk = Slow { disk: MemoryDisk::default(), gate: Arc::clone(&gate) };
    let plan = Spool { on_failure: OnSpoolFailure::Refuse, ..Spool::default() };
    let opened = spool::open(Arc::new(disk), spool::Options::of(&plan), &["a".to_owned()]).unwrap();
    let (state, doorbell) = (opened.state, opened.doorbell);
    let (inbox, pieces) = unbounded();
    let ((tickets, told), (spares, _spared)) = (unbounded(), unbounded());
    let ends = Told { tickets, spares };
    let journal =
        Journal::start((pieces, Arc::clone(&doorbell)), opened.writer, opened.keeper, ends)
            .unwrap();
    let later = || Instant::now() + SPOOL_STALL_MAX + Duration::from_millis(1);
    inbox.send(turn(Kind::Open, "x", 0, 1)).unwrap();
    doorbell.ring();
    told.recv().unwrap();
    assert!(!state.fails(later()), "nothing is being written");
    let shut = gate.lock().unwrap();
    inbox.send(turn(Kind::Close, "x", 0, 2)).unwrap();
    doorbell.ring();
    while !state.fails(later()) {
        thread::yield_now();
    }
    assert!(!state.fails(Instant::now()), "it has some time");
    assert!(told.try_recv().is_err());
    drop(shut);
    assert_eq!(told.recv().unwrap(), (0, 2));
    assert!(!state.fails(later()) && !state.refuses());
    journal.stop();
}
