use super::entry::{self, draft, Check, NO_OPEN};
use super::file::{RingFile, OWNER_BYTES};
use super::place;
use super::recover::{self, Found};
use super::spsc::{entry_bytes_max, Consumer, Producer, Room, Taken, Window};
use crate::config::plan::{OnSpoolFailure, Spool};
use crate::usage::spool::segment::Kind;
use crate::usage::spool::tests::fault::skip;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod model;
mod threads;

/// A folder that is removed at the end.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let name = format!("llmproxy-ring-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn both(bytes: u64) -> (Producer<Arc<RingFile>>, Consumer<Arc<RingFile>>) {
    let ring = Arc::new(RingFile::anonymous(bytes).unwrap());
    (Producer::new(ring.clone()), Consumer::new(ring))
}

/// What a consumer takes, as kinds and payloads; and whether some of it was damaged.
fn taken<W: Window>(consumer: &mut Consumer<W>) -> (Vec<(u8, Vec<u8>)>, bool) {
    let (mut all, mut is_damaged, mut lot) = (Vec::new(), false, Taken::default());
    while consumer.take(&mut lot) {
        let mut walk = lot.walk(Check::Each);
        all.extend((&mut walk).map(|entry| (entry.header.kind, entry.payload.to_vec())));
        is_damaged |= walk.is_damaged();
    }
    (all, is_damaged)
}

/// Catches: what is left of more that was taken before, taken once more; room that a burst keeps.
#[test]
fn room_that_was_used_says_only_what_was_taken() {
    let (mut producer, mut consumer) = both(4096);
    let mut push = |byte| producer.push((1, NO_OPEN), (&mut draft(&[byte; 40]), &[]), Room::All);
    let mut lot = Taken::default();
    for (round, count) in [(1, 20), (2, 1), (3, 30), (4, 2)] {
        (0..count).for_each(|_| assert!(push(round).is_some()));
        assert!(consumer.take(&mut lot));
        consumer.release();
        assert_eq!(lot.bytes().len(), count * 64);
        let mut walk = lot.walk(Check::Each);
        assert!(walk.all(|entry| entry.payload == [round; 40]));
        assert!(!walk.is_damaged());
        assert!(!consumer.take(&mut lot) && lot.bytes().is_empty());
        if round == 3 {
            lot.shrink_to(100);
        }
    }
}

/// Catches: an entry that is visible before `release` is lost, or its room used, before that; the
/// spared room given to what is no end; an entry that is too large and fills the ring.
#[test]
fn room_is_used_again_when_it_is_released() {
    let (mut producer, mut consumer) = both(1024);
    let mut push = |room| producer.push((1, NO_OPEN), (&mut draft(&[7; 40]), &[]), room).is_some();
    let spared = Room::Spare(256);
    // Of 64 bytes each: twelve are three quarters.
    for _ in 0..12 {
        assert!(push(spared));
    }
    assert!(!push(spared) && !push(Room::Spare(u64::MAX)));
    for _ in 0..4 {
        assert!(push(Room::All));
    }
    assert!(!push(Room::All), "full");
    let (entries, is_damaged) = taken(&mut consumer);
    assert!(entries.len() == 16 && !is_damaged);
    assert!(!push(Room::All), "taken is not kept");
    assert_eq!(consumer.window().waiting(), 1024);
    consumer.release();
    assert!(push(spared));
    let most = entry_bytes_max(1024) as usize - entry::HEADER_BYTES;
    assert_eq!(producer.push((1, NO_OPEN), (&mut draft(&vec![0; most + 1]), &[]), Room::All), None);
    assert!(producer.push((1, NO_OPEN), (&mut draft(&vec![0; most]), &[]), Room::All).is_some());
}

/// Catches: a ring that fills up while the journal lets time go by, because nobody calls it; a call
/// for each entry.
#[test]
fn each_share_that_is_filled_is_told_once() {
    let (mut producer, mut consumer) = both(4096);
    let mut lot = Taken::default();
    let told = (0..3 * 4096 / 64).filter(|_| {
        let pushed = producer.push((1, NO_OPEN), (&mut draft(&[7; 40]), &[]), Room::All);
        assert!(pushed.is_some() && consumer.take(&mut lot));
        consumer.release();
        producer.has_filled_a_share()
    });
    assert_eq!(told.count(), 3 * 4);
}

/// A ring's file with some laps behind it and these in it that were not taken; and its bytes.
fn left_behind(folder: &Folder) -> (Vec<(u8, Vec<u8>)>, Vec<u8>) {
    let ring = Arc::new(RingFile::create(folder.path(), 3, 4096).unwrap());
    let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
    let push = |producer: &mut Producer<_>, n: u8| {
        let payload = vec![n; usize::from(n) * 3];
        producer.push((n % 3 + 1, NO_OPEN), (&mut draft(&payload), &[]), Room::All).unwrap();
        (n % 3 + 1, payload)
    };
    for n in 0..130 {
        push(&mut producer, n % 60);
        taken(&mut consumer);
        consumer.release();
    }
    let left = (0..40).map(|n| push(&mut producer, n)).collect();
    let bytes = fs::read(folder.path().join("ring-3")).unwrap();
    (left, bytes)
}

fn read(bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, Found) {
    let mut all = Vec::new();
    let found = recover::entries(bytes, &mut |kind, payload| all.push((kind, payload.to_vec())));
    (all, found.unwrap())
}

/// Catches: a ring that a dead process left and of which something is lost, or read twice, or that
/// is made over by the next process before it was read.
#[test]
fn what_a_process_left_is_found() {
    let folder = Folder::new("left");
    let (left, bytes) = left_behind(&folder);
    let (found, figures) = read(&bytes);
    assert_eq!((found, figures), (left.clone(), Found { entries: 40, damaged: 0 }));
    let next = RingFile::create(folder.path(), 3, 4096).unwrap();
    let mut all = Vec::new();
    let mut into = |kind: Kind, payload: &[u8]| all.push((kind.byte(), payload.to_vec()));
    let drained = recover::drain(folder.path(), &mut into).unwrap();
    let file = folder.path().join("ring-3");
    assert_eq!(drained.files, std::slice::from_ref(&file), "the new one beside it is held");
    assert_eq!((all, drained.damaged), (left, 0));
    next.remove();
    let drained = recover::drain(folder.path(), &mut |_, _| {}).unwrap();
    assert_eq!((drained.files, drained.entries), (vec![file], 40));
    let none = recover::drain(&folder.path().join("none"), &mut |_, _| {}).unwrap();
    assert!(none.files.is_empty());
}

/// Catches: what lies there under a ring's name, or nearly, and holds up a start, fills memory,
/// stops the start, or is removed though it is none of ours.
#[test]
fn what_is_no_ring_is_passed_over() {
    use rustix::fs::{mknodat, FileType, Mode, CWD};
    let folder = Folder::new("foreign");
    let (left, bytes) = left_behind(&folder);
    let at = |name: &str| folder.path().join(name);
    for name in ["ring-9", place::ELSEWHERE] {
        mknodat(CWD, at(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    fs::File::create(at("ring-7")).unwrap().set_len(3 << 30).unwrap();
    fs::create_dir(at("ring-8")).unwrap();
    std::os::unix::fs::symlink(at("ring-3"), at("ring-6")).unwrap();
    fs::write(at("ring-5"), "a list of rings").unwrap();
    for name in ["ring-3x", "ring-3.bak", "ring-3.", "ring-.3"] {
        fs::write(at(name), &bytes).unwrap();
    }
    assert_eq!(place::folders_of(folder.path()), [folder.path()]);
    let mut all = Vec::new();
    let mut into = |kind: Kind, payload: &[u8]| all.push((kind.byte(), payload.to_vec()));
    let drained = recover::drain(folder.path(), &mut into).unwrap();
    assert_eq!((drained.files, all), (vec![at("ring-3")], left));
}

/// Catches: an entry that shows before its head was moved: nobody was promised anything by then.
#[test]
fn a_kill_between_bytes_and_head_leaves_nothing() {
    let folder = Folder::new("between");
    let ring = Arc::new(RingFile::create(folder.path(), 0, 4096).unwrap());
    let mut producer = Producer::new(ring.clone());
    let mut left = Vec::new();
    for n in 1..=9_u8 {
        let before = ring.head();
        producer.push((n, NO_OPEN), (&mut draft(&[n; 20]), &[]), Room::All).unwrap();
        let after = ring.head();
        ring.set_head(before);
        let killed = fs::read(folder.path().join("ring-0")).unwrap();
        assert_eq!(read(&killed), (left.clone(), Found { entries: u64::from(n) - 1, damaged: 0 }));
        ring.set_head(after);
        left.push((n, vec![n; 20]));
    }
}

/// Catches: rings that lie in the spool because `ring_dir` names its folder, under that name or
/// another one, and are read twice after a kill.
#[test]
fn rings_beside_the_spool_are_found_once() {
    let base = Folder::new("same");
    let own = base.path().join("folder-1");
    fs::create_dir(&own).unwrap();
    let link = base.path().join("link");
    std::os::unix::fs::symlink(base.path(), &link).unwrap();
    for dir in [base.path().to_owned(), link] {
        let plan = Spool { ring_dir: Some(dir.clone()), ..Spool::default() };
        let rings = place::make(&plan, Some(&own), 1).unwrap();
        assert!(own.join("ring-0").exists() && rings[0].outlives_us());
        assert_eq!(place::folders_of(&own), std::slice::from_ref(&own));
        // What an earlier version left there.
        fs::write(own.join(place::ELSEWHERE), dir.join("folder-1").to_str().unwrap()).unwrap();
        assert_eq!(place::folders_of(&own), std::slice::from_ref(&own));
        rings.iter().for_each(|ring| ring.remove());
    }
}

/// Catches: a ring in another folder that the next process, with another configuration, does not
/// find; rings of a living process that another one takes; rings that cannot be made and stop a
/// start.
#[test]
fn rings_are_found_wherever_they_were() {
    let (home, away) = (Folder::new("home"), Folder::new("away"));
    let own = home.path().join("folder-1");
    fs::create_dir(&own).unwrap();
    let plan = Spool { ring_dir: Some(away.path().to_owned()), ..Spool::default() };
    let rings = place::make(&plan, Some(&own), 2).unwrap();
    assert!(rings.iter().all(|ring| ring.outlives_us()));
    Producer::new(rings[1].clone())
        .push((3, NO_OPEN), (&mut draft(b"left"), &[]), Room::All)
        .unwrap();
    let folders = place::folders_of(&own);
    let mut none = |_: Kind, _: &[u8]| unreachable!("it is read while its process lives");
    for folder in &folders {
        // As a process does that was given a copy of the spool's folder.
        assert!(recover::drain(folder, &mut none).unwrap().files.is_empty());
    }
    assert_eq!(recover::count(&folders[1]).unwrap(), 1);
    drop(rings);
    assert_eq!(folders, [own.clone(), away.path().join("folder-1")]);
    let mut all = Vec::new();
    for folder in &folders {
        recover::drain(folder, &mut |_, payload| all.push(payload.to_vec())).unwrap();
    }
    assert_eq!(all, [b"left"]);
    fs::remove_file(away.path().join("folder-1/ring-1")).unwrap();
    let nowhere = Spool { ring_dir: Some("/proc/none".into()), ..Spool::default() };
    fs::remove_file(away.path().join("folder-1/ring-0")).unwrap();
    let rings = place::make(&nowhere, Some(&own), 2).unwrap();
    assert!(rings.len() == 2 && !rings[0].outlives_us());
    let strict = Spool { on_failure: OnSpoolFailure::Refuse, ..nowhere };
    let error = place::make(&strict, Some(&own), 2).unwrap_err().to_string();
    assert!(error.contains("on_spool_failure: refuse"), "{error}");
    assert!(place::make(&plan, None, 1).unwrap().iter().all(|ring| !ring.outlives_us()));
}

/// Catches: rings that wait for the disk in a folder to which nothing leads any more, because the
/// next start has another folder in its configuration.
#[test]
fn rings_that_wait_are_not_forgotten_for_another_folder() {
    let (home, first, second) = (Folder::new("home2"), Folder::new("first"), Folder::new("second"));
    let own = home.path().join("folder-1");
    fs::create_dir(&own).unwrap();
    let plan_of = |dir: &Folder| Spool { ring_dir: Some(dir.path().into()), ..Spool::default() };
    drop(place::make(&plan_of(&first), Some(&own), 1).unwrap());
    let old = first.path().join("folder-1");
    for plan in [plan_of(&second), Spool { ring_dir: None, ..Spool::default() }] {
        let rings = place::make(&plan, Some(&own), 1).unwrap();
        assert_eq!(place::folders_of(&own), [own.clone(), old.clone()]);
        assert!(old.join("ring-0.1").exists(), "the new one is beside it");
        rings[0].remove();
        place::part_with(&own);
        assert!(old.join("ring-0").exists() && own.join(place::ELSEWHERE).exists());
    }
    fs::remove_file(old.join("ring-0")).unwrap();
    let rings = place::make(&plan_of(&second), Some(&own), 1).unwrap();
    let new = second.path().join("folder-1");
    assert_eq!(place::folders_of(&own), [own.clone(), new.clone()]);
    // Nothing is left in order, and what led there would be taken for rings that are gone.
    rings[0].remove();
    place::part_with(&own);
    assert!(!new.exists() && !own.join(place::ELSEWHERE).exists());
}

/// Catches: rings that are deleted or moved while they are used, and count as safe.
#[test]
fn a_ring_without_its_file_is_volatile() {
    let folder = Folder::new("unseen");
    let ring = RingFile::create(folder.path(), 0, 4096).unwrap();
    let (here, there) = (folder.path().join("ring-0"), folder.path().join("moved"));
    let look = || {
        ring.look();
        ring.outlives_us()
    };
    assert!(look());
    fs::rename(&here, &there).unwrap();
    assert!(!look(), "no start finds it there");
    fs::write(&here, "another").unwrap();
    assert!(!look());
    fs::rename(&there, &here).unwrap();
    assert!(look());
    fs::remove_file(here).unwrap();
    assert!(!look() && !look());
}

/// Catches: a folder of another user in which he may do what he likes, and that is used for rings.
#[test]
fn a_folder_of_another_user_is_none_of_ours() {
    use std::os::unix::fs::{chown, PermissionsExt};
    let (home, away) = (Folder::new("home3"), Folder::new("theirs"));
    let own = home.path().join("folder-1");
    fs::create_dir(&own).unwrap();
    let mode = |mode| fs::set_permissions(away.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o755);
    assert!(place::is_for_us_alone(away.path()));
    for open in [0o777, 0o775, 0o757, 0o1777] {
        mode(open);
        assert!(!place::is_for_us_alone(away.path()), "{open:o}");
    }
    mode(0o755);
    let link = home.path().join("link");
    std::os::unix::fs::symlink(away.path(), &link).unwrap();
    assert!(!place::is_for_us_alone(&link));
    if !rustix::process::getuid().is_root() {
        return skip("may not give a folder to somebody else");
    }
    let part = away.path().join("folder-1");
    fs::create_dir(&part).unwrap();
    chown(&part, Some(65_534), None).unwrap();
    let plan = Spool { ring_dir: Some(away.path().into()), ..Spool::default() };
    assert!(!place::make(&plan, Some(&own), 1).unwrap()[0].outlives_us());
    assert!(!own.join(place::ELSEWHERE).exists() && fs::read_dir(part).unwrap().next().is_none());
    chown(away.path(), Some(65_534), None).unwrap();
    assert!(!place::is_for_us_alone(away.path()), "also for root");
}

/// Catches: a ring whose process ended before it was one, and that is damage at each start.
#[test]
fn a_ring_of_zeros_goes_without_a_word() {
    let folder = Folder::new("zeros");
    fs::write(folder.path().join("ring-0"), vec![0; OWNER_BYTES + 4096]).unwrap();
    fs::write(folder.path().join("ring-1"), "").unwrap();
    // Killed before it had its name, which is written last.
    drop(RingFile::create(folder.path(), 2, 4096).unwrap());
    let path = folder.path().join("ring-2");
    let mut half_made = fs::read(&path).unwrap();
    assert!(half_made[..8].iter().all(|byte| *byte != 0));
    half_made[..8].fill(0);
    fs::write(&path, &half_made).unwrap();
    half_made[OWNER_BYTES + 100] = 1;
    fs::write(folder.path().join("ring-3"), &half_made).unwrap();
    let drained = recover::drain(folder.path(), &mut |_, _| {}).unwrap();
    assert_eq!((drained.files.len(), drained.damaged, drained.entries), (3, 1, 0));
}

/// Catches: a newer format that is read as if it were ours; a first sector of zeros that costs what
/// is whole.
#[test]
fn the_first_sector_is_not_needed() {
    let folder = Folder::new("sector");
    let (left, mut bytes) = left_behind(&folder);
    bytes[8] = 2;
    assert!(recover::entries(&bytes, &mut |_, _| {}).is_err());
    bytes[..512].fill(0);
    assert_eq!(read(&bytes), (left, Found { entries: 40, damaged: 1 }));
}

/// Catches: damage of any kind that panics, never ends, or shows what nobody put in; damage that
/// costs more than the rest of its lap, and is not counted. 10⁵ cuts, flips and forged numbers.
#[test]
fn damage_shows_nothing_that_was_not_put_in() {
    let folder = Folder::new("damage");
    let (left, bytes) = left_behind(&folder);
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..100_000 {
        let mut bad = bytes.clone();
        let is_cut = next() % 5 == 0;
        match next() % 4 {
            _ if is_cut => bad.truncate(next() as usize % bad.len()),
            0 => bad[1024..1032].copy_from_slice(&next().to_le_bytes()),
            1 => bad[2048..2056].copy_from_slice(&(next() % 16_384).to_le_bytes()),
            _ => {
                let at = OWNER_BYTES + next() as usize % 4096;
                bad[at] ^= 1 << (next() % 8);
            }
        }
        let mut seen = 0;
        let found = recover::entries(&bad, &mut |kind, payload| {
            // A forged tail may show what was taken before, which is whole all the same.
            let is_old = payload.iter().all(|b| usize::from(*b) * 3 == payload.len());
            assert!(left.iter().any(|(k, p)| *k == kind && p == payload) || is_old);
            seen += 1;
        });
        let Found { entries, damaged } = found.unwrap();
        assert_eq!(entries, seen);
        assert!(seen >= 40 || damaged > 0 || is_forged(&bad, &bytes));
    }
}

/// True when the positions are others, or cut off.
fn is_forged(bad: &[u8], good: &[u8]) -> bool {
    [1024..1032, 2048..2056].into_iter().any(|place| bad.get(place.clone()) != good.get(place))
}

/// Catches: a live ring whose positions in the file a foreign hand moved, and that for this loses
/// an entry, refuses one, or never finds back: it has its own.
#[test]
fn forged_positions_change_nothing() {
    use std::os::unix::fs::FileExt;
    let folder = Folder::new("forged");
    let ring = Arc::new(RingFile::create(folder.path(), 0, 4096).unwrap());
    let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
    let file = fs::File::options().write(true).open(folder.path().join("ring-0")).unwrap();
    for forged in [0_u64, 1, 8, 1024, 4096, 5000, u64::MAX, 1 << 40, 1 << 63] {
        for place in [1024, 2048] {
            for _ in 0..300 {
                assert!(producer
                    .push((3, NO_OPEN), (&mut draft(b"said"), &[]), Room::All)
                    .is_some());
                file.write_all_at(&forged.to_le_bytes(), place).unwrap();
                assert_eq!(taken(&mut consumer), (vec![(3, b"said".to_vec())], false));
                assert!(!consumer.has_more());
                consumer.release();
            }
        }
    }
}
