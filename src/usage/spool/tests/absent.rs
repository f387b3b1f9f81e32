//! A reporter that leaves the configuration, and comes back or does not.

use super::super::absent::{left_ms, note_left};
use super::super::disk::Disk as _;
use super::super::folders::open_folders;
use super::super::{open, Opened, Options};
use super::fault::{FaultDisk, Faults, World};
use super::folders::{closed, deliver, FaultRoot, Given};
use super::rig::*;
use crate::base::clock::unix_ms;
use crate::base::limits::SPOOL_ABSENT_REPORTER_KEPT;
use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

type Disk = FaultDisk<()>;

/// A start with these reporters, after the process before it was killed.
fn start(disk: &Disk, names: &[&str], options: Options) -> (Disk, Opened) {
    let disk = Disk::new(disk.world());
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let spool = open(Arc::new(disk.clone()), options, &names).unwrap();
    (disk, spool)
}

/// Writes these, gives them to the first reporter, and tidies up.
fn work(spool: &mut Opened, requests: std::ops::Range<u32>) {
    for id in requests {
        spool.close(id);
        spool.writer.commit();
        deliver_all(&mut spool.cursors[0]);
        spool.keeper.turn();
    }
}

/// A spool whose reporter `b` was not given 40 records, and then is not configured any more.
fn left(options: Options) -> (Disk, Opened) {
    let (disk, mut spool) = start(&Disk::new(World::default()), &["a", "b"], options);
    work(&mut spool, 0..40);
    start(&disk, &["a"], options)
}

fn has_checkpoint(disk: &Disk, reporter: &str) -> bool {
    disk.world().names().contains(&format!("{reporter}.ckpt"))
}

/// Catches: a backlog that is lost by a start with a reporter switched off; a hole between what
/// was kept and what was written meanwhile; segments that stay once it is back and has them.
#[test]
fn one_that_comes_back_misses_nothing() {
    let (mut disk, mut spool) = left(options(EVERY));
    work(&mut spool, 40..60);
    for _ in 0..2 {
        (disk, spool) = start(&disk, &["a"], options(EVERY));
        assert!(spool.state.segments.load(Relaxed) > 2);
    }
    work(&mut spool, 60..70);
    let since = left_ms(&*disk.open("b.ckpt").unwrap()).unwrap().unwrap();
    assert!(since > 0 && since <= unix_ms());
    let (disk, mut spool) = start(&disk, &["a", "b"], options(EVERY));
    assert_eq!(spool.state.reporters[1].backlog.load(Relaxed), 70);
    assert_eq!(deliver_all(&mut spool.cursors[1]), (0..70).collect::<Vec<_>>());
    spool.keeper.turn();
    assert!(spool.state.segments.load(Relaxed) <= 2);
    // Should it leave again, its time begins anew.
    assert_eq!(left_ms(&*disk.open("b.ckpt").unwrap()).unwrap(), None);
}

/// Catches: disk space that a reporter which left for good holds for ever, or not for its time.
#[test]
fn one_that_stays_away_is_forgotten() {
    let kept_ms = SPOOL_ABSENT_REPORTER_KEPT.as_millis() as u64;
    for (away_ms, is_kept) in [(kept_ms - 60_000, true), (kept_ms, false)] {
        let (disk, _) = left(options(EVERY));
        note_left(&*disk.open("b.ckpt").unwrap(), unix_ms() - away_ms).unwrap();
        let (disk, mut spool) = start(&disk, &["a"], options(EVERY));
        work(&mut spool, 40..41);
        assert_eq!(has_checkpoint(&disk, "b"), is_kept);
        assert_eq!(spool.state.segments.load(Relaxed) > 2, is_kept);
    }
    // A clock that was set back is no reason to forget.
    let (disk, _) = left(options(EVERY));
    note_left(&*disk.open("b.ckpt").unwrap(), unix_ms() + kept_ms).unwrap();
    let (disk, _) = start(&disk, &["a"], options(EVERY));
    assert!(has_checkpoint(&disk, "b"));
}

/// Catches: a spool that stays large for one that had everything.
#[test]
fn one_that_had_everything_is_forgotten_at_once() {
    let (disk, mut spool) = start(&Disk::new(World::default()), &["a", "b"], options(EVERY));
    work(&mut spool, 0..9);
    deliver_all(&mut spool.cursors[1]);
    let (disk, mut spool) = start(&disk, &["a"], options(EVERY));
    assert!(!has_checkpoint(&disk, "b") && has_checkpoint(&disk, "a"));
    work(&mut spool, 9..40);
    assert!(spool.state.segments.load(Relaxed) <= 2);
}

/// Catches: requests refused, or records in memory only, for the sake of one that is gone.
#[test]
fn its_records_go_before_the_spool_is_full() {
    let (disk, mut spool) = left(Options { max_bytes: 8000, ..options(EVERY) });
    assert!(has_checkpoint(&disk, "b"));
    for id in 40..400 {
        work(&mut spool, id..id + 1);
        assert!(!spool.state.failing.load(Relaxed), "{id}");
    }
    assert!(!has_checkpoint(&disk, "b"));
    assert!(spool.state.segments.load(Relaxed) <= 2);
}

/// Catches: records lost for the sake of one that is gone, because the disk is filled by others or
/// broken, and memory with it.
#[test]
fn its_records_go_before_memory_is_full() {
    for error in [ErrorKind::StorageFull, ErrorKind::Other] {
        let (disk, mut spool) = left(Options { memory_bytes: 20_000, ..options(EVERY) });
        disk.fail(Some(Faults { growth_only: true, ..Faults::of_all(0, usize::MAX, error) }));
        for id in 40..400 {
            work(&mut spool, id..id + 1);
        }
        assert_eq!(spool.state.dropped.load(Relaxed), 0, "{error:?}");
    }
}

/// Catches: the record of a request that a kill ended, and new sequences, that one which left
/// just then does not get when it is back.
#[test]
fn one_that_left_in_a_kill_gets_what_the_kill_ended() {
    let (disk, mut spool) = start(&Disk::new(World::default()), &["a", "b"], options(EVERY));
    spool.open(7);
    spool.writer.commit();
    // A power cut took away what it had.
    spool.writer.shared.checkpoint(1).unwrap().advance(1000).unwrap();
    let (disk, _) = start(&disk, &["a"], options(EVERY));
    assert!(has_checkpoint(&disk, "b"));
    let (_, mut spool) = start(&disk, &["a", "b"], options(EVERY));
    assert_eq!(ids(&mut spool.cursors[1]), [7]);
}

/// Catches: a folder of a process with reporters of its own that a neighbour takes while that is
/// away for a moment: nobody would deliver its records, and a day later they were gone.
#[test]
fn a_folder_of_other_reporters_waits_for_its_process() {
    let disk = FaultDisk::<Given>::new(World::default());
    let start = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        open_folders(Arc::new(FaultRoot(disk.clone())), options(EVERY), &names).unwrap()
    };
    let (mut theirs, mut ours) = (start(&["c"]), start(&["a", "b"]));
    closed(&mut theirs, 0..3);
    drop(theirs);
    ours.folders.look();
    assert_eq!(ours.own.state.folders_adopted(), 0);
    // It is back, and finds what is its own.
    let mut theirs = start(&["c"]);
    assert_eq!(deliver(&mut theirs.chains[0]), [0, 1, 2]);
    drop((theirs, ours));
    // The start of a process without it: it is not configured any more.
    let ours = start(&["a", "b"]);
    assert_eq!((ours.chains.len(), ours.own.state.folders_adopted()), (2, 1));
}
