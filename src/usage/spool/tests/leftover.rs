//! What a killed process left in its rings, when the disk takes nothing at the next start.

use super::super::disk::RealDisk;
use super::super::{codec, open, open_beside, Opened};
use super::failing::told;
use super::fault::{FaultDisk, Faults, World};
use super::rig::*;
use crate::config::plan::Spool;
use crate::usage::journal::Journal;
use crate::usage::ring::entry::{draft, NO_OPEN};
use crate::usage::ring::file::RingFile;
use crate::usage::ring::place;
use crate::usage::ring::spsc::{Producer, Room};
use crate::usage::spool::segment::Kind;
use std::fs;
use std::io::ErrorKind;
use std::slice::from_ref;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

type Disk = FaultDisk<()>;

/// Catches: rings that are removed although what was in them is in memory alone, so that a second
/// kill loses it; rings that stay when the disk works again, and are read twice.
#[test]
fn rings_stay_until_the_disk_has_what_was_in_them() {
    let folder = std::env::temp_dir().join(format!("llmproxy-leftover-{}", std::process::id()));
    let mut ring = Producer::new(RingFile::create(&folder, 0, 64 * 1024).unwrap());
    for (kind, id) in [(Kind::Open, 1), (Kind::Open, 2), (Kind::Close, 1)] {
        let mut payload = Vec::new();
        codec::encode(&named(id).borrowed(), &mut payload);
        ring.push((kind.byte(), NO_OPEN), (&mut draft(&payload), &[]), Room::All).unwrap();
    }
    drop(ring);
    let disk = Disk::new(World::default());
    let start =
        || open_beside(Arc::new(disk.clone()), options(EVERY), &reporters(), from_ref(&folder));
    disk.fail(Some(Faults::of_all(0, usize::MAX, ErrorKind::StorageFull)));
    for _ in 0..2 {
        let mut spool = start().unwrap();
        assert!(spool.state.failing.load(Relaxed));
        assert_eq!(ids(&mut spool.cursors[0]), [1, 2]);
        assert!(folder.join("ring-0").exists(), "a kill now loses what is in memory");
    }
    let mut spool = start().unwrap();
    disk.fail(None);
    spool.retry();
    assert!(!spool.state.failing.load(Relaxed) && !folder.exists());
    drop(spool);
    let mut spool = start().unwrap();
    assert_eq!(ids(&mut spool.cursors[0]), [1, 2]);
    let _ = fs::remove_dir_all(folder);
}

/// Catches: rings that are gone when a start looks for them (a restart of the machine, memory of a
/// container), and nobody who says so; and the same said at each start, or after an end in order.
#[test]
fn rings_that_are_gone_are_told_once() {
    let dir = std::env::temp_dir().join(format!("llmproxy-gone-{}", std::process::id()));
    let (home, rings) = (dir.join("folder-1"), dir.join("rings"));
    let plan = Spool { ring_dir: Some(rings.clone()), ..Spool::default() };
    let start = || open(Arc::new(RealDisk::new(&home)), options(EVERY), &reporters()).unwrap();
    let damaged = |spool: &Opened| spool.state.damaged_places.load(Relaxed);
    assert_eq!(damaged(&start()), 0);
    drop(place::make(&plan, Some(&home), 1).unwrap());
    fs::remove_dir_all(&rings).unwrap();
    let mut spool = None;
    assert!(told(|| spool = Some(start())).contains("are gone"));
    assert_eq!(damaged(&spool.unwrap()), 1);
    assert_eq!(damaged(&start()), 0);
    // An end in order.
    let Opened { writer, keeper, doorbell, .. } = start();
    let journal = place::make(&plan, Some(&home), 1).unwrap();
    Journal::start((journal, doorbell), writer, keeper).unwrap().stop();
    let _ = fs::remove_dir_all(&rings);
    assert_eq!(damaged(&start()), 0);
    fs::remove_dir_all(dir).unwrap();
}

/// Catches: rings, or what leads to them, that go while they are used, and a kill that then loses
/// what is in them though nobody said so.
#[test]
fn rings_that_go_while_they_are_used_are_told() {
    let dir = std::env::temp_dir().join(format!("llmproxy-going-{}", std::process::id()));
    let (home, elsewhere) = (dir.join("folder-1"), dir.join("rings"));
    let plan = Spool { ring_dir: Some(elsewhere.clone()), ..Spool::default() };
    let mut spool = open(Arc::new(RealDisk::new(&home)), options(EVERY), &reporters()).unwrap();
    let rings = place::make(&plan, Some(&home), 2).unwrap();
    spool.keeper.rings.clone_from(&rings);
    assert_eq!(told(|| spool.keeper.turn()), "");
    fs::remove_file(home.join(place::ELSEWHERE)).unwrap();
    spool.keeper.turn();
    assert_eq!(place::folders_of(&home).len(), 2, "it is written again");
    fs::remove_dir_all(&elsewhere).unwrap();
    let said = told(|| (0..3).for_each(|_| spool.keeper.turn()));
    assert_eq!(said.matches("was deleted or moved").count(), 2, "{said}");
    assert!(rings.iter().all(|ring| !ring.outlives_us()));
    fs::remove_dir_all(dir).unwrap();
}

/// Catches: a checkpoint that is deleted while it is used, and missing at the next start, which
/// then delivers all once more.
#[test]
fn a_deleted_checkpoint_is_made_anew_at_once() {
    let disk = Disk::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    (0..3).for_each(|id| spool.close(id));
    spool.writer.commit();
    spool.keeper.turn();
    assert_eq!(deliver_all(&mut spool.cursors[0]), [0, 1, 2]);
    disk.meddle(|world| world.take_away("a.ckpt"));
    assert!(told(|| spool.keeper.turn()).contains("was deleted"));
    assert_eq!(spool.state.damaged_places.load(Relaxed), 1);
    spool.close(3);
    spool.writer.commit();
    let mut spool = opened(Arc::new(Disk::new(disk.world())), options(EVERY));
    assert_eq!(ids(&mut spool.cursors[0]), [3]);
    assert_eq!(spool.state.damaged_places.load(Relaxed), 0);
}

/// Catches: a folder whose name is that of a segment, and that stops a start.
#[test]
fn a_folder_is_no_segment() {
    let folder = std::env::temp_dir().join(format!("llmproxy-no-segment-{}", std::process::id()));
    fs::create_dir_all(folder.join("00000000000000ff.seg")).unwrap();
    let disk = Arc::new(RealDisk::new(&folder));
    let spool = open(disk, options(EVERY), &reporters());
    fs::remove_dir_all(folder).unwrap();
    assert!(!spool.unwrap().state.failing.load(Relaxed));
}
