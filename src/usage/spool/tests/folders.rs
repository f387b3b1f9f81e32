//! Several processes in one directory, one after the other and side by side, and a spool of the
//! layout before there were folders.

use super::super::disk::RealDisk;
use super::super::folders::root::{RealRoot, Root};
use super::super::folders::{open_folders, Chain, OpenedFolders};
use super::super::survey::survey;
use super::super::{dead_letter, open, Disk, Options};
use super::failing::told;
use super::fault::{skip, End, FaultDisk, Faults, Random, World};
use super::rig::*;
use crate::config::plan::OnSpoolFailure;
use crate::usage::record::Outcome;
use crate::usage::source::Source;
use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A directory on a disk that fails and forgets.
pub struct FaultRoot(pub FaultDisk<Given>);

/// What each reporter was given, and what it was done with.
#[derive(Clone, Default)]
pub struct Given {
    got: [BTreeSet<u32>; 2],
    done: [BTreeSet<u32>; 2],
}

impl Root for FaultRoot {
    fn folders(&self) -> io::Result<Vec<String>> {
        Ok(self.0.world().folders())
    }

    fn folder(&self, name: &str) -> Arc<dyn Disk> {
        Arc::new(self.0.folder(name))
    }

    fn itself(&self) -> Arc<dyn Disk> {
        Arc::new(self.0.clone())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let folder = self.0.folder(name);
        for file in folder.list()? {
            folder.remove(&file)?;
        }
        self.0.remove_folder(name)
    }
}

type Root_ = FaultDisk<Given>;

fn start(disk: &Root_) -> OpenedFolders {
    open_folders(Arc::new(FaultRoot(disk.clone())), options(EVERY), &reporters()).unwrap()
}

fn started_on(world: World) -> (Root_, OpenedFolders) {
    let disk = Root_::new(world);
    let spool = start(&disk);
    (disk, spool)
}

/// What is read of a chain, without being done with it.
fn read(chain: &mut Chain) -> Vec<(u64, u32, Outcome)> {
    let mut all = Vec::new();
    loop {
        let some = chain.read_owned(7);
        if some.is_empty() {
            assert!(all.is_sorted_by(|one: &(u64, _, _), other| one.0 < other.0));
            return all;
        }
        all.extend(some.into_iter().map(|d| (d.seq, id_of(&d.record), d.record.outcome)));
    }
}

pub(super) fn deliver(chain: &mut Chain) -> Vec<u32> {
    let all = read(chain);
    if let Some((last, ..)) = all.last() {
        chain.done(*last);
    }
    all.into_iter().map(|(_, id, _)| id).collect()
}

fn deliver_to_all(spool: &mut OpenedFolders) {
    spool.chains.iter_mut().for_each(|chain| drop(deliver(chain)));
}

pub(super) fn closed(spool: &mut OpenedFolders, ids: std::ops::Range<u32>) {
    for id in ids {
        spool.own.close(id);
        spool.own.writer.commit();
    }
}

/// Two processes that were killed: the first with 0..20 and 20 in flight, the second with 30..40.
fn two_dead() -> World {
    let disk = Root_::new(World::default());
    let (mut first, mut second) = (start(&disk), start(&disk));
    closed(&mut first, 0..20);
    first.own.open(20);
    first.own.writer.commit();
    closed(&mut second, 30..40);
    assert_eq!(disk.world().folders().len(), 2);
    disk.world()
}

/// Catches: records of a process that is gone that nobody delivers, out of order, or twice; a
/// folder that stays; a restart that does not go on where it was.
#[test]
fn folders_of_the_dead_are_adopted_in_their_order() {
    let (disk, mut spool) = started_on(two_dead());
    let older: Vec<u32> = (0..21).collect();
    for chain in &mut spool.chains {
        let all = read(chain);
        let ids: Vec<u32> = all.iter().map(|(_, id, _)| *id).collect();
        assert_eq!(ids, [older.clone(), (30..40).collect()].concat(), "the older folder first");
        assert_eq!(all[20].2, Outcome::Aborted);
    }
    assert_eq!((spool.own.state.backlog(0), spool.own.state.folders_adopted()), (31, 1));
    assert_eq!(spool.own.state.oldest_ms(0), 1000);
    assert_eq!(spool.own.state.total(|s| &s.aborted), 1);
    // A part is done with; then it is killed.
    spool.chains[0].done(5);
    spool.chains[1].done(25);
    spool.folders.work();
    let (disk, mut spool) = started_on(disk.world());
    assert_eq!(
        deliver(&mut spool.chains[0]),
        [(5..21).collect::<Vec<_>>(), (30..40).collect()].concat()
    );
    spool.folders.work();
    assert_eq!(disk.world().folders().len(), 2, "one reporter has not had all");
    assert_eq!(deliver(&mut spool.chains[1]), (34..40).collect::<Vec<_>>());
    spool.folders.work();
    assert_eq!(disk.world().folders().len(), 1);
    let state = &spool.own.state;
    assert_eq!((state.backlog(0), state.folders_adopted(), state.oldest_ms(1)), (0, 0, 0));
    closed(&mut spool, 40..42);
    assert_eq!(deliver(&mut spool.chains[0]), [40, 41]);
    // A restart with one folder goes on in it.
    let (disk, mut spool) = started_on(disk.world());
    assert_eq!(disk.world().folders().len(), 1);
    assert_eq!(deliver(&mut spool.chains[0]), Vec::<u32>::new());
    assert_eq!(deliver(&mut spool.chains[1]), [40, 41]);
}

/// Catches: a second process that is refused, or that takes what a living one has; a predecessor
/// whose last records nobody delivers.
#[test]
fn a_living_process_is_left_alone_until_it_ends() {
    let disk = Root_::new(World::default());
    let mut old = start(&disk);
    closed(&mut old, 0..5);
    let mut new = start(&disk);
    closed(&mut new, 10..12);
    assert_eq!(deliver(&mut new.chains[0]), [10, 11]);
    new.folders.look();
    new.folders.work();
    assert_eq!((new.own.state.folders_adopted(), disk.world().folders().len()), (0, 2));
    // It drains: delivers a part, writes on, and ends.
    let some = old.chains[0].read_owned(2);
    old.chains[0].done(some[1].seq);
    closed(&mut old, 5..7);
    drop(old);
    closed(&mut new, 12..14);
    new.folders.look();
    assert_eq!(new.own.state.folders_adopted(), 1);
    assert_eq!(deliver(&mut new.chains[0]), [2, 3, 4, 5, 6, 12, 13]);
    assert_eq!(deliver(&mut new.chains[1]), [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13]);
    new.folders.look();
    new.folders.work();
    assert_eq!(disk.world().folders().len(), 1);
}

/// Catches: dead letters, replays and archives that go with a folder, or take the place of others.
#[test]
fn what_people_may_want_is_taken_over() {
    let disk = Root_::new(World::default());
    let (mut first, mut second) = (start(&disk), start(&disk));
    closed(&mut first, 0..2);
    first.chains[0].bury(&named(100), "no").unwrap();
    second.chains[0].bury(&named(200), "no").unwrap();
    let mut folders = disk.world().folders();
    folders.sort();
    let letter = |id| dead_letter::line_of(&named(id), "no").unwrap();
    let letters = |bytes: &[u8]| -> Vec<u32> {
        dead_letter::lines(bytes).map(|(.., record)| id_of(&record.unwrap())).collect()
    };
    for (folder, file, bytes) in [
        (0, "gone.dead.jsonl", letter(300)),
        (0, "a.dead.jsonl.replayed", b"older".to_vec()),
        (1, "a.dead.jsonl.replayed", b"newer".to_vec()),
        (0, "b.replay", letter(400)),
    ] {
        dead_letter::write_whole(&disk.folder(&folders[folder]), file, &bytes).unwrap();
    }
    let (disk, mut spool) = started_on(disk.world());
    let told = |spool: &mut OpenedFolders| {
        deliver_to_all(spool);
        spool.folders.work();
    };
    told(&mut spool);
    told(&mut spool);
    let mut world = disk.world();
    assert_eq!(world.folders(), [folders[1].clone()]);
    let mut file = |name: &str| world.file(&format!("{}/{name}", folders[1])).clone();
    assert_eq!(letters(&file("a.dead.jsonl")), [200, 100]);
    assert_eq!(letters(&file("gone.dead.jsonl")), [300]);
    assert_eq!(file("a.dead.jsonl.replayed"), b"newer");
    assert_eq!(file("a.dead.jsonl.replayed.2"), b"older");
    // The replay goes on at home.
    let begun = Instant::now();
    let mut again = Vec::new();
    while again.is_empty() && begun.elapsed() < Duration::from_secs(60) {
        spool.own.writer.commit();
        again = deliver(&mut spool.chains[1]);
        std::thread::yield_now();
    }
    assert_eq!(again, [400]);
}

/// Adopts, delivers a part at a time, and removes; what was given is noted.
fn adopt(disk: &Root_) {
    let Ok(mut spool) =
        open_folders(Arc::new(FaultRoot(disk.clone())), options(EVERY), &reporters())
    else {
        return;
    };
    for _ in 0..6 {
        for (reporter, chain) in spool.chains.iter_mut().enumerate() {
            let some = chain.read_owned(9);
            let ids: Vec<u32> = some.iter().map(|delivery| id_of(&delivery.record)).collect();
            disk.note(|given| given.got[reporter].extend(&ids));
            if let Some(last) = some.last() {
                chain.done(last.seq);
            }
            disk.note(|given| given.done[reporter].extend(&ids));
        }
        spool.folders.look();
        spool.own.keeper.turn();
        spool.folders.work();
    }
}

/// What is left is given to all; together with what they had it is all there ever was.
fn assert_whole(world: World, end: End, given: &Given, what: &str) {
    let all: BTreeSet<u32> = (0..21).chain(30..40).collect();
    let (disk, mut spool) = started_on(world);
    for (reporter, chain) in spool.chains.iter_mut().enumerate() {
        let found = deliver(chain);
        let unique = set(found.iter().copied());
        assert_eq!(unique.len(), found.len(), "{what}: twice in {found:?}");
        let lost: Vec<_> = all
            .iter()
            .filter(|id| !unique.contains(id) && !given.got[reporter].contains(id))
            .collect();
        assert!(lost.is_empty(), "{what}: reporter {reporter} never gets {lost:?}");
        if end == End::Kill {
            let again: Vec<_> = unique.intersection(&given.done[reporter]).collect();
            assert!(again.is_empty(), "{what}: reporter {reporter} gets {again:?} again");
        }
        let letters = disk.world().folders().iter().any(|folder| {
            let left = dead_letter::read(&disk.folder(folder), "a.dead.jsonl").unwrap();
            left.is_some_and(|left| String::from_utf8_lossy(&left).contains("r100"))
        });
        assert!(letters, "{what}: a dead letter is gone");
    }
    for _ in 0..2 {
        spool.folders.look();
        spool.folders.work();
        spool.chains.iter_mut().for_each(|chain| drop(deliver(chain)));
    }
    assert_eq!(disk.world().folders().len(), 1, "{what}: a folder stays");
}

/// Two dead processes, one of them with a dead letter, all of it on the disk.
fn two_dead_synced() -> World {
    let disk = Root_::new(two_dead());
    {
        let root = FaultRoot(disk.clone());
        let mut names = root.folders().unwrap();
        names.sort();
        for name in &names {
            let folder = root.folder(name);
            for file in folder.list().unwrap() {
                folder.open(&file).unwrap().sync().unwrap();
            }
            folder.sync_dir().unwrap();
        }
        let letter = dead_letter::line_of(&named(100), "no").unwrap();
        dead_letter::write_whole(&*root.folder(&names[0]), "a.dead.jsonl", &letter).unwrap();
        disk.sync_dir().unwrap();
    }
    disk.world()
}

/// Catches: any moment of an adoption, of a hand-over of letters or of a removal at which a kill or
/// a power cut loses a record, or lets a kill repeat what a reporter was done with.
#[test]
fn an_adoption_may_be_cut_anywhere() {
    let disk = Root_::new(two_dead_synced());
    disk.record(Given::default());
    adopt(&disk);
    let snapshots = disk.snapshots();
    assert_eq!(disk.world().folders().len(), 1);
    assert!(snapshots.len() > 60, "{}", snapshots.len());
    for (index, snapshot) in snapshots.iter().enumerate() {
        let what = format!("operation {index} ({:?})", snapshot.operation);
        let given = &snapshot.progress;
        assert_whole(snapshot.world.clone(), End::Kill, given, &format!("{what}, kill"));
        if let Some(during) = snapshot.during.as_ref().filter(|during| during.2.len() != 24) {
            let torn = snapshot.world.torn(during, during.2.len() / 2);
            assert_whole(torn, End::Kill, given, &format!("{what}, torn"));
        }
        for seed in 0..2 {
            let left = snapshot.world.after(End::PowerCut, &mut Random(seed + index as u64 * 31));
            assert_whole(left, End::PowerCut, given, &format!("{what}, power cut {seed}"));
        }
    }
}

/// Catches: an adoption that a failing disk turns into a loss, or that never ends once it works.
#[test]
fn an_adoption_may_fail_anywhere() {
    let mut failed = 0;
    for at in 0..120 {
        for count in [1, 3, usize::MAX] {
            let disk = Root_::new(two_dead_synced());
            disk.record(Given::default());
            let faults = Faults::of_all(disk.operations() + at, count, io::ErrorKind::Other);
            disk.fail(Some(faults));
            adopt(&disk);
            failed += usize::from(disk.world().folders().len() > 1);
            disk.fail(None);
            let mut given = Given::default();
            disk.note(|told| given = told.clone());
            let what = format!("{count} operations failed from {at} on");
            // What a failing disk did not take of checkpoints is repeated.
            assert_whole(disk.world(), End::PowerCut, &given, &what);
        }
    }
    assert!(failed > 40, "only {failed} adoptions failed");
}

/// A directory as the version before wrote it, by the same code: its files lie in it directly.
fn of_the_old_layout() -> World {
    let disk = Root_::new(World::default());
    let mut spool = opened(Arc::new(disk.clone()), options(EVERY));
    for id in 0..20 {
        spool.close(id);
        spool.writer.commit();
    }
    spool.open(20);
    (30..40).for_each(|id| spool.close(id));
    spool.writer.commit();
    let first = spool.cursors[0].read_owned(5);
    spool.cursors[0].done(first[4].seq);
    spool.cursors[0].bury(&named(100), "no").unwrap();
    spool.keeper.turn();
    disk.take_register();
    let files =
        [("a.dead.jsonl.replayed", "older"), ("gone.ckpt", ""), ("notes.txt", "of a person")];
    for (name, text) in files {
        dead_letter::write_whole(&disk, name, text.as_bytes()).unwrap();
    }
    disk.world()
}

impl Root_ {
    /// There were no registers.
    fn take_register(&self) {
        self.meddle(|world| world.take_away(super::super::register::NAME));
    }
}

/// Catches: an old spool that is not found, loses its place, its letters or what was in flight, or
/// is half moved after a kill.
#[test]
fn a_spool_of_the_old_layout_becomes_a_folder() {
    let check = |world: World, what: &str| {
        let (disk, mut spool) = started_on(world);
        let all: Vec<u32> = (0..20).chain(30..40).chain([20]).collect();
        assert_eq!(deliver(&mut spool.chains[0]), all[5..], "{what}");
        assert_eq!(deliver(&mut spool.chains[1]), all, "{what}");
        let mut world = disk.world();
        let [folder] = world.folders().try_into().unwrap();
        assert_eq!(world.names(), ["notes.txt"], "{what}: what is not ours stays");
        let names = world.names_in(&folder);
        for kept in ["a.dead.jsonl", "a.dead.jsonl.replayed"] {
            assert!(names.iter().any(|name| name == kept), "{what}: {names:?}");
        }
        assert!(!names.iter().any(|name| name == "notes.txt"));
        assert_eq!(world.file(&format!("{folder}/a.dead.jsonl.replayed")), b"older");
        assert_eq!(spool.own.state.total(|s| &s.damaged_places), 0, "{what}");
        assert_eq!(spool.own.state.total(|s| &s.aborted), 1, "{what}");
    };
    let old = of_the_old_layout();
    check(old.clone(), "whole");
    let disk = Root_::new(old);
    disk.record(Given::default());
    drop(start(&disk));
    let snapshots = disk.snapshots();
    for (index, snapshot) in snapshots.iter().enumerate() {
        // Behind the conversion the rest is an ordinary start, which other tests cut.
        if snapshot.world.folders().iter().any(|name| !name.ends_with(".moving")) {
            assert!(index > 8, "only {index} operations");
            return;
        }
        let what = format!("operation {index} ({:?})", snapshot.operation);
        check(snapshot.world.clone(), &format!("{what}, kill"));
    }
    panic!("it was never converted");
}

/// Catches: a directory of files, a power cut in the middle of whose conversion leaves less.
#[test]
fn a_conversion_loses_nothing_in_a_power_cut() {
    let disk = Root_::new(of_the_old_layout());
    for file in disk.list().unwrap() {
        disk.open(&file).unwrap().sync().unwrap();
    }
    disk.sync_dir().unwrap();
    disk.record(Given::default());
    drop(start(&disk));
    let mut cuts = 0;
    for (index, snapshot) in disk.snapshots().iter().enumerate() {
        for seed in 0..6 {
            let left = snapshot.world.after(End::PowerCut, &mut Random(seed * 977 + index as u64));
            let (_, mut spool) = started_on(left);
            let found = set(deliver(&mut spool.chains[1]));
            let all = set((0..21).chain(30..40));
            assert_eq!(found, all, "operation {index} ({:?}) {seed}", snapshot.operation);
            cuts += 1;
        }
    }
    assert!(cuts > 100, "only {cuts}");
}

/// Catches: a conversion that is gone on with after an older version ran in between, and that
/// writes what was moved over with files of the same name.
#[test]
fn a_conversion_writes_nothing_over() {
    let disk = Root_::new(of_the_old_layout());
    disk.record(Given::default());
    drop(start(&disk));
    let mut tries = 0;
    for snapshot in disk.snapshots() {
        let folders = snapshot.world.folders();
        let Some(moving) = folders.first() else { continue };
        if !moving.ends_with(".moving") {
            break;
        }
        let half = Root_::new(snapshot.world);
        let moved = half.folder(moving).list().unwrap();
        // The older version goes on with what it finds, and begins anew what it misses.
        let mut old = open(Arc::new(half.clone()), options(EVERY), &reporters()).unwrap();
        let names = half.world().names();
        let twice = names.iter().filter(|name| moved.contains(name)).count();
        (70..75).for_each(|id| old.close(id));
        old.writer.commit();
        old.keeper.turn();
        drop(old);
        let (disk, mut spool) = started_on(half.world());
        let found = set(deliver(&mut spool.chains[1]));
        let all = set((0..21).chain(30..40).chain(70..75));
        assert!(found.is_superset(&all), "{twice} of {moved:?}: {found:?}");
        assert!(disk.world().names().iter().all(|name| !name.ends_with(".ckpt")));
        tries += usize::from(twice > 0);
    }
    assert!(tries > 3, "only {tries} with a name that was there twice");
}

/// Catches: a folder of another user in a directory that all may write to, taken over; its owner
/// can have us write over anything, and reads what we write there.
#[test]
fn a_folder_of_another_user_is_left_alone() {
    if !rustix::process::getuid().is_root() {
        return skip("may not give a folder to somebody else");
    }
    let dir = std::env::temp_dir().join(format!("llmproxy-others-{}", std::process::id()));
    let open_here = || open_folders(Arc::new(RealRoot::new(&dir)), options(EVERY), &reporters());
    drop([open_here().unwrap(), open_here().unwrap()]);
    let theirs = RealRoot::new(&dir).folders().unwrap();
    let give = |name| std::os::unix::fs::chown(dir.join(name), Some(65_534), None).unwrap();
    theirs.iter().for_each(give);
    let mut one = open_here().unwrap();
    let said = told(|| (0..3).for_each(|_| one.folders.look()));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(theirs.iter().all(|name| said.contains(name) && !RealDisk::is_held(&dir.join(name))));
    assert_eq!(RealRoot::new(&dir).folders().unwrap().len(), 3);
    assert_eq!(one.own.state.folders_adopted(), 0);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Catches: a start that a read-only disk prevents although memory was promised; what was on the
/// disk forgotten when it works again; service where the policy says none.
#[test]
fn a_read_only_disk_is_no_reason_not_to_start() {
    for on_failure in [OnSpoolFailure::Serve, OnSpoolFailure::Refuse] {
        for world in [World::default(), two_dead_synced()] {
            let was_there = !world.folders().is_empty();
            let disk = Root_::new(world);
            let kind = io::ErrorKind::ReadOnlyFilesystem;
            disk.fail(Some(Faults::of_all(0, usize::MAX, kind)));
            let options = Options { on_failure, ..options(EVERY) };
            let root = Arc::new(FaultRoot(disk.clone()));
            let mut spool = open_folders(root, options, &reporters()).unwrap();
            assert!(spool.own.state.failing.load(Relaxed));
            assert_eq!(spool.own.state.refuses(), on_failure == OnSpoolFailure::Refuse);
            closed(&mut spool, 50..53);
            let old: Vec<u32> = if was_there { (0..21).chain(30..40).collect() } else { vec![] };
            let found = deliver(&mut spool.chains[0]);
            assert!(found.ends_with(&[50, 51, 52]), "{found:?}");
            disk.fail(None);
            spool.own.retry();
            assert!(!spool.own.state.failing.load(Relaxed));
            spool.folders.look();
            closed(&mut spool, 53..54);
            let mut all = found;
            all.extend(deliver(&mut spool.chains[0]));
            assert_eq!(set(all.iter().copied()), set(old.iter().copied().chain(50..54)));
            let (_, mut spool) = started_on(disk.world());
            let kept = set(deliver(&mut spool.chains[1]));
            assert_eq!(kept, set(old.into_iter().chain(50..54)), "it is on the disk now");
        }
    }
}

/// Catches: the same on a real file system: modes, locks of the kernel, names, an old version that
/// still runs.
#[test]
fn real_folders_are_private_and_locked() {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("llmproxy-folders-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let open_here = || open_folders(Arc::new(RealRoot::new(&dir)), options(EVERY), &reporters());
    let running_old = {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(&dir));
        let mut spool = open(Arc::clone(&disk), options(EVERY), &reporters()).unwrap();
        spool.close(1);
        spool.writer.commit();
        disk
    };
    let mut one = open_here().unwrap();
    assert!(dir.join("a.ckpt").exists(), "an older version has it still");
    drop(running_old);
    let mut two = open_here().unwrap();
    assert!(!dir.join("a.ckpt").exists());
    let folders = RealRoot::new(&dir).folders().unwrap();
    assert_eq!(folders.len(), 2);
    for folder in &folders {
        let place = dir.join(folder);
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place), 0o700);
        assert!(RealDisk::is_held(&place));
        for entry in std::fs::read_dir(place).unwrap() {
            assert_eq!(mode(&entry.unwrap().path()), 0o600);
        }
    }
    closed(&mut one, 2..3);
    assert_eq!(deliver(&mut one.chains[0]), [2]);
    assert_eq!(deliver(&mut two.chains[0]), [1]);
    deliver_to_all(&mut two);
    drop(two);
    one.folders.look();
    deliver_to_all(&mut one);
    one.folders.work();
    assert_eq!(RealRoot::new(&dir).folders().unwrap().len(), 1);
    let left = &RealRoot::new(&dir).folders().unwrap()[0];
    let seen = survey(&RealDisk::reader(&dir.join(left)), |_, _, _| Ok(())).unwrap();
    assert_eq!(seen.reporters[0].backlog, 0);
    drop(one);
    assert!(!RealDisk::is_held(&dir.join(left)));
    std::fs::remove_dir_all(&dir).unwrap();
}
