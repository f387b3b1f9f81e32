//! A disk that is full, broken or read-only for a while, from each of its operations on.

use super::super::memory::MemoryDisk;
use super::super::{Opened, Options};
use super::fault::{End, FaultDisk, Faults, Random, World};
use super::rig::*;
use crate::config::plan::{Fsync, OnSpoolFailure, Spool};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

type Disk = FaultDisk<()>;

/// What the reporters had.
#[derive(Default)]
struct Had([Vec<u32>; 2]);

impl Had {
    fn deliver(&mut self, spool: &mut Opened) {
        for (had, cursor) in self.0.iter_mut().zip(&mut spool.cursors) {
            had.extend(deliver_all(cursor));
        }
    }
}

fn failing(spool: &Opened) -> bool {
    spool.state.failing.load(Relaxed)
}

/// Work during which the disk fails; gives whether it was noticed.
fn work(fsync: Fsync, on_failure: OnSpoolFailure, faults: Faults) -> bool {
    let what = format!("{fsync:?}, {on_failure:?}, {} from {}", faults.count, faults.from);
    let disk = Disk::new(World::default());
    let options = Options { on_failure, ..options(fsync) };
    let mut spool = opened(Arc::new(disk.clone()), options);
    let from = disk.operations() + faults.from;
    disk.fail(Some(Faults { from, ..faults }));
    let mut had = Had::default();
    let mut noticed = false;
    let mut begun = 0;
    for round in 0..24 {
        for id in begun..begun + 3 {
            spool.open(id);
        }
        for id in begun.saturating_sub(2)..begun + 1 {
            spool.close(id);
        }
        begun += 3;
        spool.writer.commit();
        noticed |= failing(&spool);
        assert_eq!(
            spool.state.refuses(),
            failing(&spool) && on_failure == OnSpoolFailure::Refuse,
            "{what}"
        );
        if round % 3 == 2 {
            spool.keeper.turn();
        }
        if round % 5 == 4 {
            had.deliver(&mut spool);
        }
        if round % 4 == 3 {
            spool.retry();
        }
    }
    disk.fail(None);
    // The first may only notice that a sync had failed.
    (0..2).for_each(|_| spool.retry());
    assert!(!failing(&spool) && !spool.state.refuses(), "{what}: it does not recover");
    had.deliver(&mut spool);
    for id in begun..begun + 5 {
        spool.open(id);
        spool.close(id);
    }
    spool.writer.commit();
    spool.keeper.turn();
    assert!(!failing(&spool), "{what}: fails again");
    let state = &spool.state;
    assert_eq!(state.memory_bytes.load(Relaxed), 0, "{what}: something stays in memory");
    assert_eq!(state.dropped.load(Relaxed) + state.dropped_opens.load(Relaxed), 0, "{what}");
    let closed: Vec<u32> = (0..begun - 2).collect();
    assert_eq!(had.0, [closed.clone(), closed], "{what}");
    // Closed and not delivered; and those in flight.
    let last: BTreeSet<u32> = (begun - 2..begun + 5).collect();
    let mut ends = vec![(disk.world(), "kill".to_owned())];
    for seed in 0..3 {
        let left = disk.world().after(End::PowerCut, &mut Random(seed));
        if fsync != Fsync::Off {
            ends.push((left, format!("power cut {seed}")));
        }
    }
    for (world, end) in ends {
        let mut spool = opened(Arc::new(Disk::new(world)), options);
        for cursor in &mut spool.cursors {
            let found = set(read_all(cursor).iter().map(|(_, record)| id_of(record)));
            assert!(found.is_superset(&last), "{what}, {end}: lost of {last:?}, has {found:?}");
            assert!(end != "kill" || found == last, "{what}: {found:?} again");
        }
    }
    noticed
}

/// What the log was told meanwhile, as text.
pub fn told(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, || {
        // Other tests run at the same time: what they passed while nobody listened may be taken for
        // something that nobody ever wants to hear.
        tracing::callsite::rebuild_interest_cache();
        work();
    });
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// Catches: an alarm for records that are not lost, and losses that are not told of at the end.
#[test]
fn losses_are_told_of_when_there_are_any() {
    for rounds in [3, 200] {
        let mut dropped = 0;
        let text = told(|| {
            let disk = Disk::new(World::default());
            let options = Options { memory_bytes: 2000, ..options(EVERY) };
            let mut spool = opened(Arc::new(disk.clone()), options);
            disk.fail(Some(Faults::of_all(0, usize::MAX, ErrorKind::StorageFull)));
            for id in 0..rounds {
                spool.close(id);
                spool.writer.commit();
            }
            disk.fail(None);
            spool.retry();
            assert!(!failing(&spool));
            dropped = spool.state.dropped.load(Relaxed);
        });
        assert_eq!(dropped > 0, rounds > 100);
        assert!(text.contains("the spool takes no records"), "{text}");
        let lines = text.lines().filter(|line| line.contains("usage records are lost"));
        let lost = lines.map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["fields"]["lost"].as_u64().filter(|lost| *lost > 0).unwrap()
        });
        assert_eq!(lost.sum::<u64>(), dropped, "{text}");
    }
}

/// Catches: a failure of the disk, at any operation, that loses or repeats a record, ends in a
/// state that a restart is needed for, or does not follow the policy.
#[test]
fn a_disk_that_fails_for_a_while_loses_nothing() {
    for (fsync, error) in [
        (EVERY, ErrorKind::StorageFull),
        (EVERY, ErrorKind::Other),
        (Fsync::Always, ErrorKind::Other),
        (Fsync::Off, ErrorKind::StorageFull),
    ] {
        let mut noticed = 0;
        for from in 0..70 {
            let policies = [OnSpoolFailure::Serve, OnSpoolFailure::Refuse];
            for count in [1, 2, 7, usize::MAX] {
                let policy = policies[(from + count % 2) % 2];
                noticed += usize::from(work(fsync, policy, Faults::of_all(from, count, error)));
            }
        }
        assert!(noticed > 100, "{fsync:?}: only {noticed} failures were noticed");
    }
}

/// Catches: a limit that is not kept, or that ends delivery; and room that is not used again.
#[test]
fn max_bytes_is_kept_and_what_is_delivered_makes_room() {
    for on_failure in [OnSpoolFailure::Serve, OnSpoolFailure::Refuse] {
        let disk = Disk::new(World::default());
        let options = Options { max_bytes: 4000, on_failure, ..options(EVERY) };
        let mut spool = opened(Arc::new(disk.clone()), options);
        let mut id = 0;
        while !failing(&spool) {
            spool.close(id);
            spool.writer.commit();
            id += 1;
            assert!(id < 1000, "never full");
        }
        for id in id..id + 20 {
            spool.close(id);
            spool.writer.commit();
        }
        spool.retry();
        assert!(failing(&spool), "nothing was delivered");
        assert_eq!(spool.state.refuses(), on_failure == OnSpoolFailure::Refuse);
        let state = Arc::clone(&spool.state);
        assert!(state.disk_bytes.load(Relaxed) <= 4000 && state.memory_bytes.load(Relaxed) > 0);
        let all: Vec<u32> = (0..id + 20).collect();
        for cursor in &mut spool.cursors {
            assert_eq!(deliver_all(cursor), all, "what is in memory is delivered too");
        }
        spool.keeper.turn();
        spool.retry();
        assert!(!failing(&spool), "there is room again");
        assert_eq!((state.memory_bytes.load(Relaxed), state.dropped.load(Relaxed)), (0, 0));
    }
}

/// Catches: a disk as small as one segment that stays full after all was delivered.
#[test]
fn a_disk_full_with_one_segment_becomes_free() {
    let disk = Disk::new(World::default());
    let options = Options { segment_bytes: 1 << 20, ..options(EVERY) };
    let mut spool = opened(Arc::new(disk.clone()), options);
    spool.open(0);
    (1..30).for_each(|id| spool.close(id));
    spool.writer.commit();
    spool.keeper.turn();
    let error = ErrorKind::StorageFull;
    disk.fail(Some(Faults::of_all(disk.operations(), 1, error)));
    spool.close(30);
    spool.writer.commit();
    assert!(failing(&spool));
    for cursor in &mut spool.cursors {
        assert_eq!(deliver_all(cursor), (1..31).collect::<Vec<_>>());
    }
    spool.keeper.turn();
    assert_eq!(spool.state.segments.load(Relaxed), 0, "the full one is gone");
    spool.retry();
    assert!(!failing(&spool));
    let mut spool = opened(Arc::new(Disk::new(disk.world())), options);
    assert_eq!(ids(&mut spool.cursors[0]), [0], "the request in flight is not forgotten");
}

/// Catches: an end whose log does not say how many records are lost with it, or says that what was
/// delivered is, or what is on the disk.
#[test]
fn an_end_knows_what_is_in_memory_alone() {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    let unwritten = spool.unwritten();
    let close = |spool: &mut Opened, ids: std::ops::Range<u32>| {
        ids.for_each(|id| spool.close(id));
        spool.writer.commit();
    };
    close(&mut spool, 0..5);
    assert_eq!(unwritten.count(), 0);
    disk.fail(Some(Faults::of_all(disk.operations(), usize::MAX, ErrorKind::Other)));
    close(&mut spool, 5..12);
    spool.open(50);
    close(&mut spool, 12..15);
    assert_eq!(unwritten.count(), 10);
    deliver_all(&mut spool.cursors[0]);
    assert_eq!(unwritten.count(), 10, "one reporter lacks them");
    deliver_all(&mut spool.cursors[1]);
    assert_eq!(unwritten.count(), 0);
    close(&mut spool, 15..17);
    assert_eq!(unwritten.count(), 2);
    disk.fail(None);
    spool.retry();
    assert_eq!(unwritten.count(), 0);
}

/// Catches: memory that grows without a bound, or a loss that no counter shows.
#[test]
fn beyond_memory_records_are_dropped_and_counted() {
    let disk = Disk::new(World::default());
    let options = Options { memory_bytes: 2000, ..options(EVERY) };
    let mut spool = opened(Arc::new(disk.clone()), options);
    let error = ErrorKind::Other;
    disk.fail(Some(Faults::of_all(disk.operations(), usize::MAX, error)));
    for id in 0..200 {
        spool.close(id);
        spool.writer.commit();
        assert!(spool.state.memory_bytes.load(Relaxed) <= 2000 + 200);
    }
    let dropped = spool.state.dropped.load(Relaxed) as u32;
    assert!(dropped > 100, "{dropped}");
    disk.fail(None);
    spool.retry();
    for cursor in &mut spool.cursors {
        assert_eq!(deliver_all(cursor), (0..200 - dropped).collect::<Vec<_>>());
    }
}

/// Catches: a start that a full or read-only disk prevents.
#[test]
fn a_disk_that_fails_at_the_start_is_served_from_memory() {
    let error = ErrorKind::ReadOnlyFilesystem;
    let disk = Disk::new(World::default());
    {
        let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
        spool.open(0);
        spool.close(1);
        spool.writer.commit();
    }
    disk.fail(Some(Faults::of_all(disk.operations(), usize::MAX, error)));
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    assert!(failing(&spool));
    spool.close(2);
    spool.writer.commit();
    let expected = vec![1, 0, 2];
    assert_eq!(ids(&mut spool.cursors[0]), expected);
    disk.fail(None);
    spool.retry();
    assert!(!failing(&spool));
    drop(spool);
    let mut spool = opened(Arc::new(Disk::new(disk.world())), options(EVERY));
    assert_eq!(ids(&mut spool.cursors[1]), expected, "and it is on the disk now");
}

/// Catches: a spool that is off and keeps records for ever, or loses them without counting.
#[test]
fn without_a_disk_records_wait_in_bounded_memory() {
    let plan = Spool { enabled: false, max_bytes: 4000, ..Spool::default() };
    let mut spool = opened(Arc::new(MemoryDisk::default()), Options::of(&plan));
    let mut had = Had::default();
    for id in 0..300 {
        spool.close(id);
        spool.writer.commit();
        if id % 10 == 9 {
            had.deliver(&mut spool);
            spool.keeper.turn();
            spool.retry();
        }
    }
    assert_eq!(had.0[0], (0..300).collect::<Vec<_>>());
    assert!(spool.state.disk_bytes.load(Relaxed) <= 4000);
    (300..600).for_each(|id| {
        spool.close(id);
        spool.writer.commit();
    });
    let dropped = u64::from(spool.state.dropped.load(Relaxed) > 100);
    assert_eq!(dropped, 1, "nobody takes them, and memory is bounded");
    assert_eq!(spool.state.memory_bytes.load(Relaxed) / 100, 0);
}
