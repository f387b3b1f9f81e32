//! A fixed piece of work is cut at every operation on the disk, in every way that a kill and a
//! power cut can cut it, and what the next start finds is compared with what was promised.

use super::super::checkpoint::Checkpoint;
use super::fault::{End, FaultDisk, Operation, Random, Snapshot, World};
use super::rig::*;
use crate::config::plan::Fsync;
use crate::usage::record::Outcome;
use crate::usage::source::Source;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// Of a checkpoint.
const SLOT_BYTES: usize = 24;

/// What was promised until a moment.
#[derive(Clone, Default)]
struct Progress {
    /// Requests whose beginning was given to a commit, which may not have returned.
    known: BTreeSet<u32>,
    /// Requests that a kill must not lose: their commit has returned.
    committed: BTreeSet<u32>,
    /// Of these, those that ended.
    ended: BTreeSet<u32>,
    /// Requests that a power cut must not lose.
    synced: BTreeSet<u32>,
    /// What each reporter got.
    got: [BTreeSet<u32>; 2],
    /// What each reporter was done with: it must not get it again after a kill.
    done: [BTreeSet<u32>; 2],
}

type Disk = FaultDisk<Progress>;

/// Requests begin, go on, end and are delivered; the proxy restarts, once with requests in flight.
fn work(disk: &Disk, fsync: Fsync, rounds: u32) {
    let (mut begun, mut closed) = (0_u32, 0_u32);
    for restart in 0..3 {
        let mut spool = opened(Arc::new(disk.clone()), options(fsync));
        let aborted = begun;
        disk.note(|progress| progress.ended.extend(0..aborted));
        for round in 0..rounds {
            for _ in 0..2 {
                spool.open(begun);
                begun += 1;
            }
            disk.note(|progress| progress.known.extend(0..begun));
            if round % 3 == 1 {
                spool.note(begun - 1, u64::from(round));
            }
            // Every third request never ends.
            while closed + 4 < begun {
                if closed % 3 != 0 && closed >= aborted {
                    spool.close(closed);
                }
                closed += 1;
            }
            spool.writer.commit();
            disk.note(|progress| {
                progress.committed.extend(0..begun);
                let over = |id: &u32| !id.is_multiple_of(3) || *id < aborted;
                progress.ended.extend((0..closed).filter(over));
                if fsync == Fsync::Always {
                    progress.synced.extend(0..begun);
                }
            });
            if round % 4 == 3 {
                spool.keeper.turn();
                if fsync != Fsync::Off {
                    disk.note(|progress| progress.synced = progress.committed.clone());
                }
            }
            for (reporter, cursor) in spool.cursors.iter_mut().enumerate() {
                if round % (2 + reporter as u32 * 5) == 1 && (restart, reporter) != (1, 1) {
                    let records = read_all(cursor);
                    let ids = set(records.iter().map(|(_, record)| id_of(record)));
                    disk.note(|progress| progress.got[reporter].extend(&ids));
                    if let Some((last, _)) = records.last() {
                        cursor.done(*last);
                    }
                    disk.note(|progress| progress.done[reporter].extend(ids));
                }
            }
        }
    }
}

/// Opens what is left, and compares.
fn check(disk: &Disk, end: End, progress: &Progress, what: &str) {
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    let promised = if end == End::Kill { &progress.committed } else { &progress.synced };
    for (reporter, done) in progress.done.iter().enumerate() {
        let records = read_all(&mut spool.cursors[reporter]);
        assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0), "{what}: out of order");
        let found = set(records.iter().map(|(_, record)| id_of(record)));
        assert_eq!(found.len(), records.len(), "{what}: a record stands there twice");
        let got = &progress.got[reporter];
        let lost: Vec<_> =
            promised.iter().filter(|id| !found.contains(id) && !got.contains(id)).collect();
        assert!(lost.is_empty(), "{what}: reporter {reporter} never gets {lost:?}");
        assert!(found.is_subset(&progress.known), "{what}: {found:?} were never begun");
        let backlog = spool.cursors[reporter].backlog();
        assert_eq!(backlog, records.len() as u64, "{what}: backlog");
        if end == End::Kill {
            let again: Vec<_> = found.intersection(done).collect();
            assert!(again.is_empty(), "{what}: reporter {reporter} gets {again:?} again");
            for (_, record) in &records {
                let whole = record.outcome != Outcome::Aborted;
                let was = progress.ended.contains(&id_of(record));
                assert!(whole || !was || record.status_code == 0, "{what}: {record:?}");
            }
        }
    }
    if end == End::Kill {
        assert_eq!(spool.state.damaged_places.load(Relaxed), 0, "{what}: damage after a kill");
    }
}

/// All ways in which the work can be cut at this moment; gives how many there were.
fn cut(index: usize, snapshot: &Snapshot<Progress>, seeds: u64) -> usize {
    let Snapshot { world, operation, during, progress } = snapshot;
    let mut cuts = 0;
    let mut each = |world: &World, torn: Option<usize>| {
        let what = format!("operation {index} ({operation:?}), written {torn:?}");
        // The kernel takes the few bytes of a checkpoint whole or not at all.
        if torn.is_none() || during.as_ref().is_some_and(|(.., bytes)| bytes.len() != SLOT_BYTES) {
            let disk = Disk::new(world.clone());
            check(&disk, End::Kill, progress, &format!("{what}, kill"));
            cuts += 1;
        }
        // What a power cut leaves of a torn write is mostly what it leaves of a whole one.
        let seeds = if torn.is_some() { 0..seeds.min(1) } else { 0..seeds };
        for seed in seeds {
            let mut random = Random(seed * 7919 + (index + torn.unwrap_or(0)) as u64);
            let left = world.after(End::PowerCut, &mut random);
            let what = format!("{what}, power cut {seed}");
            check(&Disk::new(left), End::PowerCut, progress, &what);
            cuts += 1;
        }
    };
    each(world, None);
    if let Some(during) = during {
        let len = during.2.len();
        for at in [1, 3, 4, 11, 20, 27, 28, 29, len / 2, len.saturating_sub(1), len] {
            if at <= len {
                each(&world.torn(during, at), Some(at));
            }
        }
    }
    cuts
}

fn snapshots(fsync: Fsync, rounds: u32) -> Vec<Snapshot<Progress>> {
    let disk = Disk::new(World::default());
    disk.record(Progress::default());
    work(&disk, fsync, rounds);
    let snapshots = disk.snapshots();
    let all = [
        Operation::Create,
        Operation::Write,
        Operation::Sync,
        Operation::SyncDir,
        Operation::Rename,
        Operation::Remove,
    ];
    for kind in all {
        let some = snapshots.iter().any(|snapshot| snapshot.operation == kind);
        assert!(some || fsync == Fsync::Off, "the work never does {kind:?}");
    }
    snapshots
}

/// Catches: any order of writes, syncs, renames and removals in which a crash loses what was
/// promised, repeats what a reporter was done with, or leaves what cannot be read.
#[test]
fn nothing_promised_is_lost_wherever_it_is_cut() {
    let mut cuts = 0;
    for (fsync, rounds, seeds) in [(EVERY, 16, 4), (Fsync::Always, 12, 2), (Fsync::Off, 6, 0)] {
        for (index, snapshot) in snapshots(fsync, rounds).iter().enumerate() {
            cuts += cut(index, snapshot, seeds);
        }
    }
    assert!(cuts >= 5_500, "only {cuts} crash points");
}

/// Catches: a recovery that a second crash turns into a loss, or into a record more.
#[test]
fn a_recovery_may_be_cut_too() {
    let mut cuts = 0;
    for (index, snapshot) in snapshots(EVERY, 8).iter().enumerate() {
        let what = format!("operation {index}");
        let mut ends = vec![(snapshot.world.clone(), End::Kill)];
        if let Some(during) = snapshot.during.as_ref().filter(|d| d.2.len() != SLOT_BYTES) {
            ends.push((snapshot.world.torn(during, during.2.len() / 2), End::Kill));
        }
        let left = snapshot.world.after(End::PowerCut, &mut Random(index as u64));
        ends.push((left, End::PowerCut));
        for (world, end) in ends {
            let disk = Disk::new(world);
            // What the recovery does, to be cut in turn.
            disk.record(Progress::default());
            check(&disk, end, &snapshot.progress, &what);
            for (inner, second) in disk.snapshots().iter().enumerate() {
                let what = format!("{what}, then {inner} ({:?})", second.operation);
                let mut worlds = vec![second.world.clone()];
                if let Some(during) = second.during.as_ref().filter(|d| d.2.len() != SLOT_BYTES) {
                    worlds.push(second.world.torn(during, during.2.len() / 2));
                }
                for world in worlds {
                    check(&Disk::new(world), end, &snapshot.progress, &what);
                    cuts += 1;
                }
                let world = second.world.after(End::PowerCut, &mut Random(inner as u64));
                check(&Disk::new(world), End::PowerCut, &snapshot.progress, &what);
                cuts += 1;
            }
        }
    }
    assert!(cuts >= 2_000, "only {cuts} crash points");
}

/// Catches: requests in flight that are forgotten when the segment they began in is removed.
#[test]
fn a_request_of_hours_outlives_its_segment() {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    spool.open(0);
    spool.note(0, 17);
    for id in 1..200 {
        spool.open(id);
        spool.close(id);
        spool.writer.commit();
        spool.cursors.iter_mut().for_each(|cursor| drop(deliver_all(cursor)));
        spool.keeper.turn();
    }
    let segments = spool.state.segments.load(Relaxed);
    assert!(segments <= 2, "{segments} segments are kept");
    assert_eq!(spool.writer.flights.len(), 1);
    let killed = disk.world();
    let mut spool = opened(Arc::new(Disk::new(killed)), options(EVERY));
    let records = read_all(&mut spool.cursors[0]);
    let [(_, record)] = records.as_slice() else { panic!("{} records", records.len()) };
    assert_eq!((id_of(record), record.outcome, record.events), (0, Outcome::Aborted, 17));
    assert_eq!(record.error.as_deref(), Some("gateway_killed"));
    assert_eq!(spool.state.aborted.load(Relaxed), 1);
}

/// Catches: sequences that begin again behind what reporters have seen, so that new records count
/// as delivered.
#[test]
fn sequences_go_on_behind_what_a_power_cut_took_away() {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    spool.keeper.turn();
    for id in 0..5 {
        spool.open(id);
        spool.close(id);
    }
    spool.writer.commit();
    let delivered = deliver_all(&mut spool.cursors[0]);
    assert_eq!(delivered.len(), 5);
    // The checkpoint reaches the disk, the records do not.
    spool.writer.shared.checkpoint(0).unwrap().sync().unwrap();
    for seed in 0..20 {
        let world = disk.world().after(End::PowerCut, &mut Random(seed));
        let mut spool = opened(Arc::new(Disk::new(world)), options(EVERY));
        deliver_all(&mut spool.cursors[0]);
        spool.open(100);
        spool.close(100);
        spool.writer.commit();
        assert_eq!(ids(&mut spool.cursors[0]), [100]);
    }
}

/// Catches: a step of a checkpoint that is written over the last one that was synced.
#[test]
fn a_power_cut_never_takes_a_synced_checkpoint_away() {
    let disk = Disk::new(World::default());
    let mut checkpoint = Checkpoint::at("a", 5);
    checkpoint.keep(&disk).unwrap();
    super::super::disk::Disk::sync_dir(&disk).unwrap();
    for step in 1..9 {
        let synced = checkpoint.synced();
        for through in [step * 100, step * 100 + 1] {
            checkpoint.advance(through).unwrap();
            for seed in 0..40 {
                let left = Disk::new(disk.world().after(End::PowerCut, &mut Random(seed)));
                let found = Checkpoint::open(&left, "a").unwrap().through();
                assert!((synced..=through).contains(&found), "{found}, not {synced}..={through}");
            }
        }
        checkpoint.sync().unwrap();
    }
}
