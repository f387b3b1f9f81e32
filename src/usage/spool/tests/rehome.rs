//! A folder that goes while it is written.

use super::super::disk::{Disk, RealDisk};
use super::super::segment::first_of;
use super::super::{open, Opened, Options};
use super::failing::told;
use super::fault::{FaultDisk, World};
use super::rig::*;
use crate::config::plan::Fsync;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

/// A folder of the file system that goes with the guard.
struct SegmentPlace(PathBuf);

impl SegmentPlace {
    fn new(name: &str) -> SegmentPlace {
        let name = format!("llmproxy-rehome-{}-{name}", std::process::id());
        let place = SegmentPlace(std::env::temp_dir().join(name));
        let _ = fs::remove_dir_all(&place.0);
        place
    }

    fn folder(&self) -> PathBuf {
        self.0.join("folder")
    }

    fn open(&self, fsync: Fsync) -> Opened {
        open(Arc::new(RealDisk::new(&self.folder())), options(fsync), &reporters()).unwrap()
    }
}

impl Drop for SegmentPlace {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn close(spool: &mut Opened, ids: std::ops::Range<u32>) {
    for id in ids {
        spool.close(id);
        spool.writer.commit();
        spool.keeper.turn();
    }
}

type Mishap = (&'static str, fn(&SegmentPlace));

const MISHAPS: [Mishap; 4] = [
    ("moved", |place| fs::rename(place.folder(), place.0.join("elsewhere")).unwrap()),
    ("deleted", |place| fs::remove_dir_all(place.folder()).unwrap()),
    ("emptied", |place| {
        for entry in fs::read_dir(place.folder()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }),
    ("without its lock", |place| fs::remove_file(place.folder().join("lock")).unwrap()),
];

/// Catches: records that go on into files without a name; an alarm that is not given; a new folder
/// that is not made, or lacks what was not delivered; a request in flight that is forgotten.
#[test]
fn a_folder_that_goes_is_made_anew() {
    for ((what, mishap), fsync) in
        MISHAPS.into_iter().flat_map(|one| [EVERY, Fsync::Always, Fsync::Off].map(|f| (one, f)))
    {
        let place = SegmentPlace::new("goes");
        let what = format!("{what}, {fsync:?}");
        let mut spool = place.open(fsync);
        spool.open(99);
        close(&mut spool, 0..60);
        assert!(spool.state.segments.load(Relaxed) > 3);
        deliver_all(&mut spool.cursors[0]);
        mishap(&place);
        spool.close(60);
        spool.writer.commit();
        let said = told(|| {
            spool.keeper.turn();
            spool.writer.tick();
        });
        assert!(said.contains("was deleted, moved or emptied"), "{what}: {said}");
        assert_eq!(spool.state.folders_lost.load(Relaxed), 1, "{what}");
        assert!(!spool.state.failing.load(Relaxed), "{what}");
        close(&mut spool, 61..64);
        assert_eq!(deliver_all(&mut spool.cursors[0]), [60, 61, 62, 63], "{what}");
        let found = ids(&mut spool.cursors[1]);
        assert!(found.ends_with(&[60, 61, 62, 63]), "{what}: {found:?}");
        let is_all = found.len() == 64;
        // A segment that is closed has no open file: with its name its bytes are gone.
        let is_lost = what.starts_with("deleted") || what.starts_with("emptied");
        assert_eq!(is_all, !is_lost, "{what}: {} are left", found.len());
        assert_eq!(spool.state.damaged_places.load(Relaxed) > 0, is_lost, "{what}");
        spool.keeper.turn();
        assert_eq!(spool.state.folders_lost.load(Relaxed), 1, "{what}: again");
        drop(spool);
        let mut spool = place.open(fsync);
        assert_eq!(ids(&mut spool.cursors[0]), [99], "{what}: what was in flight");
        let found = ids(&mut spool.cursors[1]);
        assert!(found.ends_with(&[60, 61, 62, 63, 99]), "{what}: {found:?}");
    }
}

/// Catches: the same while the folder cannot be made: records that are lost, and a state that is
/// not told; a spool that does not come back.
#[test]
fn until_the_folder_can_be_made_memory_stands_in() {
    let place = SegmentPlace::new("blocked");
    let mut spool = place.open(EVERY);
    close(&mut spool, 0..5);
    fs::remove_dir_all(&place.0).unwrap();
    // In the place of the directory there is a file now.
    fs::write(&place.0, "").unwrap();
    spool.keeper.turn();
    spool.close(5);
    spool.writer.commit();
    assert!(spool.state.failing.load(Relaxed));
    assert_eq!(deliver_all(&mut spool.cursors[0]), [0, 1, 2, 3, 4, 5]);
    fs::remove_file(&place.0).unwrap();
    spool.retry();
    assert!(!spool.state.failing.load(Relaxed));
    drop(spool);
    let mut spool = place.open(EVERY);
    assert_eq!(ids(&mut spool.cursors[0]), Vec::<u32>::new());
    assert_eq!(ids(&mut spool.cursors[1]), [0, 1, 2, 3, 4, 5]);
}

/// Catches: a single file that is deleted, and its segment written on for nobody.
#[test]
fn a_deleted_file_that_is_written_is_noticed() {
    let disk = FaultDisk::<()>::new(World::default());
    let folder = Arc::new(disk.folder("folder-1"));
    folder.lock().unwrap();
    let big = Options { segment_bytes: 1 << 20, ..options(EVERY) };
    let mut spool = open(folder, big, &reporters()).unwrap();
    close(&mut spool, 0..5);
    disk.meddle(|world| {
        let names = world.names_in("folder-1");
        let segment = names.into_iter().find(|name| first_of(name).is_some()).unwrap();
        world.take_away(&format!("folder-1/{segment}"));
    });
    close(&mut spool, 5..7);
    spool.writer.tick();
    assert_eq!(spool.state.folders_lost.load(Relaxed), 1);
    // And then all of it.
    disk.meddle(|world| world.take_folder_away("folder-1"));
    close(&mut spool, 7..9);
    spool.writer.tick();
    assert_eq!(spool.state.folders_lost.load(Relaxed), 2);
    let left = FaultDisk::<()>::new(disk.world());
    let mut spool = open(Arc::new(left.folder("folder-1")), big, &reporters()).unwrap();
    assert_eq!(ids(&mut spool.cursors[0]), (0..9).collect::<Vec<_>>());
}
