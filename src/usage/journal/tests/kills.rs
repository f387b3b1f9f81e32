//! A kill at every step of the journal's thread: before, in and behind each of its operations on
//! the disk, with what the rings hold at that moment.

use super::*;
use crate::config::plan::Fsync;
use crate::usage::record::Outcome;
use crate::usage::spool::tests::fault::{FaultDisk, Random, World};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

type Disk = FaultDisk<()>;

/// Removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Small segments, so that they follow each other often.
fn options() -> Options {
    let plan = Options::of(&Spool { fsync: Fsync::Off, ..Spool::default() });
    Options { segment_bytes: 700, ..plan }
}

/// How each request ended, as the next start says, which has this disk and this ring.
fn found(world: World, ring: &[u8], folder: &Folder) -> BTreeMap<String, Outcome> {
    let next = folder.0.join("next");
    fs::create_dir_all(&next).unwrap();
    fs::write(next.join("ring-0"), ring).unwrap();
    let disk = Arc::new(Disk::new(world));
    let names = ["a".to_owned()];
    let mut opened =
        spool::open_beside(disk, options(), &names, std::slice::from_ref(&next)).unwrap();
    assert!(!next.exists(), "what was read is removed");
    let mut all = BTreeMap::new();
    loop {
        let some = opened.cursors[0].read_owned(100);
        if some.is_empty() {
            return all;
        }
        for got in some {
            let id = got.record.request_id.as_str().to_owned();
            assert_eq!(all.insert(id.clone(), got.record.outcome), None, "{id} came twice");
        }
    }
}

/// Catches: a request that has no record after a kill, or two, or `aborted` though its end was put
/// into the ring; at whatever step the kill comes.
#[test]
fn every_request_has_one_record_after_a_kill_at_any_step() {
    let path = std::env::temp_dir().join(format!("llmproxy-kills-{}", std::process::id()));
    let folder = Folder(path);
    let disk = Disk::new(World::default());
    let opened = spool::open(Arc::new(disk.clone()), options(), &["a".to_owned()]).unwrap();
    let mut stage = Stage::new(opened, RingFile::create(&folder.0, 0, 64 * 1024).unwrap());
    let ring = || fs::read(folder.0.join("ring-0")).unwrap();
    let mut random = Random(7);
    // What the next start must find of each.
    let mut wanted = BTreeMap::new();
    let mut flying: Vec<(String, Option<Opening>)> = Vec::new();
    let mut starts = 0;
    let mut kill = |world: World, ring: &[u8], wanted: &BTreeMap<String, Outcome>| {
        assert_eq!(&found(world, ring, &folder), wanted);
        starts += 1;
    };
    for round in 0..60 {
        for n in 0..random.below(4) {
            let id = format!("r{round}-{n}");
            flying.push((id.clone(), stage.open(&id)));
            wanted.insert(id, Outcome::Aborted);
        }
        for _ in 0..random.below(3) {
            if flying.is_empty() {
                continue;
            }
            let (id, opening) = flying.swap_remove(random.below(flying.len()));
            if random.below(3) == 0 {
                stage.outbox.note(&named(&id).borrowed());
            }
            stage.close(&id, opening);
            wanted.insert(id, Outcome::Complete);
        }
        let before = ring();
        disk.record(());
        while stage.desk.rings[0].take(&mut stage.desk.taken) {
            stage.desk.append();
        }
        stage.desk.writer.write();
        for snapshot in disk.snapshots() {
            if let Some(write) = &snapshot.during {
                let cut = random.below(write.2.len() + 1);
                kill(snapshot.world.torn(write, cut), &before, &wanted);
            }
            kill(snapshot.world, &before, &wanted);
        }
        kill(disk.world(), &before, &wanted);
        stage.desk.rings[0].release();
        let after = ring();
        kill(disk.world(), &after, &wanted);
        disk.record(());
        stage.desk.writer.settle();
        for snapshot in disk.snapshots() {
            kill(snapshot.world, &after, &wanted);
        }
        kill(disk.world(), &after, &wanted);
    }
    assert!(starts > 200 && wanted.len() > 50, "{starts} starts, {} requests", wanted.len());
}
