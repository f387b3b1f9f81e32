//! The end of a replay beside a running gateway, cut and failing at each of its operations.

use super::super::dead_letter::line_of;
use super::super::disk::Disk as _;
use super::super::replay::{finish, SUFFIX};
use super::failing::told;
use super::fault::{End, FaultDisk, Faults, Random, World};
use super::rig::named;
use crate::base::limits::DEAD_LETTER_BYTES_MAX;
use std::io::ErrorKind;

type Disk = FaultDisk<()>;

const REPLAY: &str = "b.replay";
const DEAD: &str = "b.dead.jsonl";
const ARCHIVE: &str = "b.dead.jsonl.replayed";
/// What nobody can read, with a line that stands there twice.
const UNREADABLE: &str = "{\n}\n{\n}\nno letter\n";

/// A replay of two letters, with what cannot be read between them.
struct Replay {
    letters: Vec<u8>,
    /// A letter that was buried meanwhile.
    buried: Vec<u8>,
}

impl Replay {
    fn new() -> Replay {
        let letter = |id| line_of(&named(id), "400 no").unwrap();
        let letters = [letter(1), UNREADABLE.as_bytes().to_vec(), letter(2)].concat();
        Replay { letters, buried: letter(3) }
    }

    /// The folder before it ends: the archive of an earlier one is there too.
    fn begun(&self) -> Disk {
        let disk = Disk::new(World::default());
        let files = [(REPLAY, &self.letters[..]), (DEAD, &self.buried), (ARCHIVE, b"earlier")];
        for (name, bytes) in files {
            let file = disk.create(name).unwrap();
            file.write_at(bytes, 0).unwrap();
            file.sync().unwrap();
        }
        disk.sync_dir().unwrap();
        disk
    }

    /// The folder is as it must be when it has ended.
    fn assert_ended(&self, disk: &Disk, what: &str) {
        let mut world = disk.world();
        let names = world.names();
        assert!(!names.iter().any(|name| name == REPLAY), "{what}: {names:?}");
        assert_eq!(world.file(ARCHIVE), b"earlier", "{what}: an earlier archive is gone");
        for name in names.iter().filter(|name| name.starts_with(ARCHIVE) && *name != ARCHIVE) {
            assert!(*world.file(name) == self.letters, "{what}: {name} is not what it was");
        }
        let dead = world.file(DEAD).strip_prefix(&self.buried[..]).map(<[u8]>::to_vec);
        let dead = String::from_utf8(dead.unwrap()).unwrap();
        assert_eq!(dead, UNREADABLE, "{what}: what cannot be read is there once");
    }
}

/// Catches: a line that cannot be read and comes back with each try, a file of dead letters that
/// is half written, an archive that takes the place of an earlier one.
#[test]
fn the_end_of_a_replay_that_fails_is_done_again() {
    assert_eq!(REPLAY, format!("b{SUFFIX}"));
    let replay = Replay::new();
    let mut failed = 0;
    for at in 0.. {
        let disk = replay.begun();
        let from = disk.operations() + at;
        disk.fail(Some(Faults::of_all(from, 1, ErrorKind::PermissionDenied)));
        let ended = (0..3).position(|_| finish(&disk, "b", &replay.letters).is_ok());
        failed += ended.unwrap();
        replay.assert_ended(&disk, &format!("operation {at} failed"));
        assert!(disk.world().names().contains(&format!("{ARCHIVE}.2")));
        if disk.operations() <= from {
            break;
        }
    }
    assert!(failed >= 6, "only {failed} operations failed");
}

/// Catches: a replay that waits for ever for room for what it cannot read, and delivers all of its
/// letters again at each start.
#[test]
fn what_finds_no_room_stays_in_the_archive() {
    let replay = Replay::new();
    for is_disk_full in [false, true] {
        let disk = replay.begun();
        if is_disk_full {
            let full = Faults::of_all(0, usize::MAX, ErrorKind::StorageFull);
            disk.fail(Some(Faults { growth_only: true, ..full }));
        } else {
            disk.open(DEAD).unwrap().write_at(b"\n", DEAD_LETTER_BYTES_MAX - 1).unwrap();
        }
        let before = disk.world().file(DEAD).clone();
        let said = told(|| finish(&disk, "b", &replay.letters).unwrap());
        let mut world = disk.world();
        assert!(*world.file(DEAD) == before, "the dead letters have changed");
        assert!(*world.file(&format!("{ARCHIVE}.2")) == replay.letters);
        assert!(!world.names().contains(&REPLAY.to_owned()));
        let line = said.lines().find(|line| line.contains("no room")).unwrap();
        assert!(line.contains("b.dead.jsonl.replayed.2") && line.contains("\"lines\":5"), "{line}");
    }
}

/// Catches: a process killed, or a power cut, that loses what cannot be read or keeps it twice.
#[test]
fn the_end_of_a_replay_that_is_cut_is_done_again() {
    let replay = Replay::new();
    let disk = replay.begun();
    disk.record(());
    finish(&disk, "b", &replay.letters).unwrap();
    let snapshots = disk.snapshots();
    assert!(snapshots.len() >= 6);
    for (number, snapshot) in snapshots.iter().enumerate() {
        let torn = snapshot.during.as_ref().map(|write| snapshot.world.torn(write, 9));
        for world in [Some(snapshot.world.clone()), torn].into_iter().flatten() {
            for (end, seed) in [(End::Kill, 0), (End::PowerCut, 1), (End::PowerCut, 2)] {
                let disk = Disk::new(world.after(end, &mut Random(seed)));
                if disk.world().names().iter().any(|name| name == REPLAY) {
                    finish(&disk, "b", &replay.letters).unwrap();
                }
                let what = format!("{:?} {number}, {end:?} {seed}", snapshot.operation);
                replay.assert_ended(&disk, &what);
            }
        }
    }
}
