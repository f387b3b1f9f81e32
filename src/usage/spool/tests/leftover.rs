//! What a killed process left in its rings, when the disk takes nothing at the next start.

use super::super::disk::RealDisk;
use super::super::{codec, open, open_beside};
use super::fault::{FaultDisk, Faults, World};
use super::rig::*;
use crate::usage::ring::entry::NO_OPEN;
use crate::usage::ring::file::RingFile;
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
        ring.push((kind.byte(), NO_OPEN), &[&payload], Room::All).unwrap();
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
