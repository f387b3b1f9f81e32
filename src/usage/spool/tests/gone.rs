//! Sectors, segments and checkpoints that go behind the spool's back, and room that does not come
//! back: all that is still there is delivered, and what is not is counted.

use super::super::register;
use super::super::segment::first_of;
use super::super::survey::survey;
use super::super::{open, Opened, Options};
use super::failing::told;
use super::fault::{FaultDisk, Faults, World};
use super::rig::*;
use crate::config::plan::Fsync;
use crate::usage::record::Outcome;
use std::io::ErrorKind;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

type Disk = FaultDisk<()>;

fn segments(world: &World) -> Vec<String> {
    world.names().into_iter().filter(|name| first_of(name).is_some()).collect()
}

/// A spool with these records in several segments, and the process killed.
fn written(count: u32) -> Disk {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    for id in 0..count {
        spool.close(id);
        spool.writer.commit();
        spool.keeper.turn();
    }
    Disk::new(disk.world())
}

fn damaged(spool: &Opened) -> u64 {
    spool.state.damaged_places.load(Relaxed)
}

/// Catches: a first sector without which none of the entries behind it is found.
#[test]
fn a_zeroed_first_sector_costs_what_was_in_it() {
    let disk = Disk::new(World::default());
    let big = Options { segment_bytes: 1 << 20, ..options(EVERY) };
    let mut spool = opened(Arc::new(disk.clone()), big);
    (0..300).for_each(|id| spool.close(id));
    spool.writer.commit();
    let mut world = disk.world();
    let name = segments(&world)[0].clone();
    let bytes = world.file(&name);
    bytes[..512].fill(0);
    let disk = Disk::new(world);
    let seen = survey(&disk, |_, _, _| Ok(())).unwrap();
    let mut spool = opened(Arc::new(disk.clone()), big);
    let found = ids(&mut spool.cursors[0]);
    assert!(found.len() > 285 && found.ends_with(&[299]), "{} are left", found.len());
    assert_eq!(seen.segments[0].closes, found.len() as u64);
    assert!(damaged(&spool) > 0);
    // Also at the next start, whose own marker is another.
    let mut spool = opened(Arc::new(Disk::new(disk.world())), big);
    assert_eq!(ids(&mut spool.cursors[1]), found);
}

/// Catches: the marker that is known from other segments, not used where the register is gone.
#[test]
fn without_a_register_the_other_segments_tell_the_marker() {
    let mut world = written(60).world();
    world.take_away(register::NAME);
    let name = segments(&world)[1].clone();
    let damaged = 300;
    world.file(&name)[..damaged].fill(0);
    let mut spool = opened(Arc::new(Disk::new(world)), options(EVERY));
    let found = ids(&mut spool.cursors[0]);
    assert!(found.len() >= 60 - damaged / 20, "{} are left", found.len());
}

/// Catches: a lane that stands still before a segment that was deleted, or passes it in silence; a
/// hole that a start does not see.
#[test]
fn a_deleted_segment_is_counted_and_passed_over() {
    for fsync in [EVERY, Fsync::Off] {
        let disk = Disk::new(World::default());
        let mut spool = opened(Arc::new(disk.clone()), options(fsync));
        for id in 0..120 {
            spool.close(id);
            spool.writer.commit();
            spool.keeper.turn();
        }
        let names = segments(&disk.world());
        assert!(names.len() > 5);
        let gone = names[2].clone();
        let killed = Disk::new(disk.world());
        disk.meddle(|world| world.take_away(&gone));
        let mut found = Vec::new();
        let said = told(|| found = ids(&mut spool.cursors[0]));
        assert_eq!(damaged(&spool), 1);
        assert!(said.contains(&gone) && said.contains("is gone"), "{said}");
        assert_eq!((found[0], *found.last().unwrap()), (0, 119));
        let lost = 120 - found.len();
        assert!((1..40).contains(&lost), "{lost} are lost");
        assert_eq!(ids(&mut spool.cursors[1]), found);
        assert_eq!(damaged(&spool), 1, "counted again by the other reporter");
        spool.close(120);
        spool.writer.commit();
        assert_eq!(ids(&mut spool.cursors[0]), [120], "the lane goes on");
        // And the same hole at a start.
        killed.meddle(|world| world.take_away(&gone));
        let mut spool = None;
        let said = told(|| spool = Some(opened(Arc::new(killed.clone()), options(fsync))));
        let mut spool = spool.unwrap();
        assert_eq!((damaged(&spool), ids(&mut spool.cursors[0])), (1, found));
        assert!(said.contains("entries of the spool are missing"), "{said}");
    }
}

/// Catches: the oldest segment, deleted while no process ran, that nobody misses.
#[test]
fn a_hole_at_the_beginning_is_seen() {
    let disk = written(40);
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    for cursor in &mut spool.cursors {
        let read = crate::usage::source::Source::read_owned(cursor, 2);
        crate::usage::source::Source::done(cursor, read[1].seq);
    }
    spool.keeper.turn();
    let mut world = disk.world();
    let oldest = segments(&world)[0].clone();
    world.take_away(&oldest);
    let spool = opened(Arc::new(Disk::new(world)), options(EVERY));
    assert_eq!(damaged(&spool), 1);
}

/// Catches: a backlog that is skipped because a checkpoint was deleted, and one that a reporter
/// gets although it is new.
#[test]
fn a_deleted_checkpoint_is_told_from_a_new_reporter() {
    let start = |world: &World, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let disk = Disk::new(world.clone());
        let spool = open(Arc::new(disk.clone()), options(EVERY), &names).unwrap();
        (disk, spool)
    };
    let all: Vec<u32> = (0..30).collect();
    let mut world = written(30).world();
    let (_, mut spool) = start(&world, &["a", "b", "new"]);
    assert_eq!((ids(&mut spool.cursors[2]), damaged(&spool)), (Vec::new(), 0));
    // It is new at its first start only.
    let (disk, _) = start(&world, &["a", "b", "new"]);
    let mut later = disk.world();
    later.take_away("new.ckpt");
    let (_, mut spool) = start(&later, &["a", "b", "new"]);
    assert_eq!(ids(&mut spool.cursors[2]), all);
    world.take_away("b.ckpt");
    let mut spool = None;
    let said = told(|| spool = Some(start(&world, &["a", "b"]).1));
    let mut spool = spool.unwrap();
    assert_eq!((ids(&mut spool.cursors[1]), spool.cursors[1].backlog()), (all.clone(), 30));
    assert_eq!(damaged(&spool), 1);
    assert!(said.contains("the checkpoint of a reporter is gone"), "{said}");
    // All of them, and the register too.
    for name in ["a.ckpt", register::NAME] {
        world.take_away(name);
    }
    let (_, mut spool) = start(&world, &["a", "b"]);
    assert_eq!(ids(&mut spool.cursors[0]), all);
    // A register that cannot be read.
    let mut world = written(30).world();
    world.file(register::NAME).fill(0);
    world.take_away("b.ckpt");
    let (_, mut spool) = start(&world, &["a", "b"]);
    assert_eq!(ids(&mut spool.cursors[1]), all);
}

/// Catches: a spool that counts as failing until a restart, because a segment in memory that all
/// have had is larger than the room on the disk.
#[test]
fn what_is_delivered_needs_no_room() {
    for is_disk_empty in [true, false] {
        let disk = Disk::new(World::default());
        let big = Options { segment_bytes: 1 << 20, ..options(EVERY) };
        let mut spool = opened(Arc::new(disk.clone()), big);
        if !is_disk_empty {
            (900..920).for_each(|id| spool.close(id));
            spool.writer.commit();
            spool.keeper.turn();
        }
        spool.open(999);
        spool.writer.commit();
        disk.give_room(Some(disk.world().used()));
        for id in 0..200 {
            spool.close(id);
            spool.writer.commit();
        }
        assert!(spool.state.failing.load(Relaxed));
        let held = spool.state.memory_bytes.load(Relaxed) as usize;
        spool.cursors.iter_mut().for_each(|cursor| drop(deliver_all(cursor)));
        // Room for the register and for some records, but not for all that was delivered.
        disk.give_room(Some(disk.world().used() + held / 2));
        for _ in 0..4 {
            spool.retry();
            spool.cursors.iter_mut().for_each(|cursor| drop(deliver_all(cursor)));
            spool.keeper.turn();
        }
        assert!(!spool.state.failing.load(Relaxed), "it does not recover");
        spool.close(200);
        spool.writer.commit();
        let mut spool = opened(Arc::new(Disk::new(disk.world())), big);
        assert_eq!(ids(&mut spool.cursors[0]), [200, 999], "the one in flight is not forgotten");
        assert_eq!(damaged(&spool), 0);
    }
}

/// Catches: a request whose end a reporter had from memory, told once more after a kill: as
/// aborted, without its tokens. One that did not have it is told.
#[test]
fn what_was_had_from_memory_is_not_told_as_aborted() {
    for error in [ErrorKind::StorageFull, ErrorKind::Other] {
        let disk = Disk::new(World::default());
        let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
        (0..4).for_each(|id| spool.open(id));
        spool.writer.commit();
        spool.keeper.turn();
        let is_full = error == ErrorKind::StorageFull;
        let full = Faults { growth_only: true, ..Faults::of_all(0, usize::MAX, error) };
        // A sync that fails takes its bytes back into memory; then what is written over is taken.
        disk.fail(Some(if is_full {
            full
        } else {
            Faults::of_all(disk.operations() + 1, 1, error)
        }));
        (0..3).for_each(|id| spool.close(id));
        spool.writer.commit();
        spool.keeper.turn();
        disk.fail(Some(full));
        spool.writer.tick();
        assert!(spool.state.failing.load(Relaxed));
        assert_eq!(deliver_all(&mut spool.cursors[0]), [0, 1, 2]);
        let some = crate::usage::source::Source::read_owned(&mut spool.cursors[1], 2);
        crate::usage::source::Source::done(&mut spool.cursors[1], some[0].seq);
        let expected = [vec![3], vec![1, 2, 3]];
        let killed = Disk::new(disk.world());
        let mut spool = opened(Arc::new(killed.clone()), options(EVERY));
        for (cursor, expected) in spool.cursors.iter_mut().zip(&expected) {
            let found = read_all(cursor);
            let ids: Vec<u32> = found.iter().map(|(_, record)| id_of(record)).collect();
            assert_eq!(set(ids), set(expected.iter().copied()), "{error:?}");
            assert!(found.iter().all(|(_, record)| record.outcome == Outcome::Aborted));
            assert_eq!(cursor.backlog(), expected.len() as u64);
        }
        // It stays so, and a third start makes nothing more of it.
        let again = Disk::new(killed.world());
        let mut spool = opened(Arc::new(again), options(EVERY));
        for (cursor, expected) in spool.cursors.iter_mut().zip(&expected) {
            assert_eq!(set(ids(cursor)), set(expected.iter().copied()), "{error:?}");
        }
        assert_eq!(spool.state.aborted.load(Relaxed), 0);
        let seen = survey(&killed, |_, only, _| {
            assert_ne!(only, Some(""));
            Ok(())
        });
        assert_eq!(seen.unwrap().open, 0);
    }
}
