use super::*;
use crate::base::id::RequestId;
use crate::usage::ring::entry::{draft, NO_OPEN};
use crate::usage::ring::file::RingFile;
use crate::usage::ring::spsc::{Producer, Room};
use crate::usage::source::Source;
use crate::usage::spool::segment::Kind;
use crate::usage::spool::tests::fault::{End, FaultDisk, Faults, Random, World};
use crate::usage::spool::Opened;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A folder that goes with the guard.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("llmproxy-spool-{}-{name}", std::process::id());
        Folder(std::env::temp_dir().join(name))
    }

    fn open(&self) -> Opened {
        let plan = Spool { dir: self.0.clone(), ..Spool::default() };
        let disk = Arc::new(RealDisk::new(&self.0));
        open(disk, Options::of(&plan), &["a".to_owned(), "b".to_owned()]).unwrap()
    }

    fn run(&self, task: SpoolTask) -> Result<String, String> {
        let mut out = Vec::new();
        run(&self.0, &task, &mut out).map_err(|e| e.to_string())?;
        Ok(String::from_utf8(out).unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn record(id: &str, timestamp_ms: u64) -> UsageRecord {
    let request_id = RequestId::from_client(id.as_bytes()).unwrap();
    UsageRecord { request_id, timestamp_ms, ..UsageRecord::default() }
}

fn names(spool: &mut Opened, reporter: usize) -> Vec<String> {
    let read = spool.cursors[reporter].read_owned(100);
    read.iter().map(|d| d.record.request_id.as_str().to_owned()).collect()
}

/// Catches: figures that are wrong, an export that leaves out or adds, files that others can read,
/// and a second process that writes.
#[test]
fn a_running_spool_is_looked_at_and_left_alone() {
    let folder = Folder::new("look");
    let mut spool = folder.open();
    spool.writer.append(Kind::Open, &record("x", 5));
    for (id, ms) in [("one", 10), ("two", 20), ("three", 30)] {
        spool.writer.append(Kind::Close, &record(id, ms));
    }
    spool.writer.commit();
    let read = spool.cursors[0].read_owned(2);
    spool.cursors[0].done(read[1].seq);
    let json = folder.run(SpoolTask::Inspect { json: true }).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let folder_of_it = &json["folders"][0];
    assert_eq!((&json["open"], &folder_of_it["segments"][0]["closes"]), (&1.into(), &3.into()));
    assert_eq!((&folder_of_it["folder"], &folder_of_it["in_use"]), (&".".into(), &true.into()));
    assert_eq!(
        (&json["reporters"][0]["backlog"], &json["reporters"][1]["backlog"]),
        (&1.into(), &3.into())
    );
    assert_eq!(json["reporters"][1]["oldest_ms"], 10);
    let table = folder.run(SpoolTask::Inspect { json: false }).unwrap();
    assert!(table.contains("1 requests without an end") && !table.contains("in rings"), "{table}");
    let ring = RingFile::create(&folder.0, 0, 64 * 1024).unwrap();
    Producer::new(ring)
        .push((Kind::Close.byte(), NO_OPEN), (&mut draft(b"any"), &[]), Room::All)
        .unwrap();
    let table = folder.run(SpoolTask::Inspect { json: false }).unwrap();
    assert!(table.contains("1 entries in rings are not in a segment yet"), "{table}");
    let from = Some(Start::Since(20));
    let lines = folder.run(SpoolTask::Export(SpoolSpan { from, to: None })).unwrap();
    let ids: Vec<&str> = lines.lines().filter_map(|line| line.get(15..18)).collect();
    assert_eq!(ids, ["two", "thr"], "{lines}");
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(&folder.0).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(std::fs::metadata(&folder.0).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Catches: a replay that reaches the wrong reporter, or the wrong records.
#[test]
fn records_are_delivered_again_to_one_reporter() {
    let folder = Folder::new("replay");
    {
        let mut spool = folder.open();
        for (id, ms) in [("one", 10), ("two", 20), ("three", 30)] {
            spool.writer.append(Kind::Close, &record(id, ms));
        }
        spool.writer.commit();
        for cursor in &mut spool.cursors {
            let last = cursor.read_owned(9).last().unwrap().seq;
            cursor.done(last);
        }
        spool.cursors[1].bury(&record("dead", 40), "400 no").unwrap();
        assert_eq!(spool.state.reporters[1].dead_letters.load(Relaxed), 1);
    }
    let reporter = || "b".to_owned();
    folder.run(SpoolTask::Replay { reporter: reporter(), from: Some(Start::Since(20)) }).unwrap();
    folder.run(SpoolTask::Replay { reporter: reporter(), from: None }).unwrap();
    let again = folder.run(SpoolTask::Replay { reporter: reporter(), from: None }).unwrap();
    assert!(again.contains(" 0 dead letters"), "{again}");
    let wrong = SpoolTask::Replay { reporter: "c".to_owned(), from: None };
    assert!(folder.run(wrong).unwrap_err().contains("there are: a, b"));
    let mut spool = folder.open();
    assert_eq!(names(&mut spool, 0), Vec::<String>::new());
    assert_eq!(names(&mut spool, 1), ["two", "three", "dead"]);
    assert_eq!(spool.cursors[1].backlog(), 3);
}

/// A letter, and what a kill, an editor and a stranger leave between letters.
fn torn_letters() -> (Vec<u8>, Vec<String>) {
    let letter = |id| dead_letter::line_of(&record(id, 40), "400 no").unwrap();
    let torn = letter("torn");
    let pretty: serde_json::Value = serde_json::from_slice(&letter("pretty")).unwrap();
    let pretty = serde_json::to_string_pretty(&pretty).unwrap() + "\n";
    let cut = String::from_utf8(torn[..torn.len() / 2].to_vec()).unwrap() + "\n";
    let odd = "{\"reason\":\"x\",\"time\":null,\"record\":{},\"entry\":\"0\"}\n".to_owned();
    let none = "{\"reason\":\"x\",\"time\":null,\"record\":{},\"entry\":\"\"}\n".to_owned();
    let (one, two) = (letter("one"), letter("two"));
    let bad = [&cut, &pretty, &odd, &none].map(String::as_bytes).concat();
    let all = [&one, &b"\n"[..], &bad, &two].concat();
    let bad = String::from_utf8(bad).unwrap().lines().map(str::to_owned).collect();
    (all, bad)
}

/// Catches: a replay that throws away what it cannot read, or says nothing of it.
#[test]
fn what_a_replay_cannot_read_stays_and_is_named() {
    let folder = Folder::new("torn");
    drop(folder.open());
    let (all, bad) = torn_letters();
    let file = folder.0.join("b.dead.jsonl");
    std::fs::write(&file, &all).unwrap();
    let task = || SpoolTask::Replay { reporter: "b".to_owned(), from: None };
    let error = folder.run(task()).unwrap_err();
    let first_lines = "lines cannot be read and stay there: line 3, 4, 5";
    assert!(error.contains("b.dead.jsonl: ") && error.contains(first_lines), "{error}");
    let left = || std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        left().lines().map(str::trim).collect::<Vec<_>>(),
        bad.iter().map(|l| l.trim()).collect::<Vec<_>>()
    );
    assert_eq!(std::fs::read(folder.0.join("b.dead.jsonl.replayed")).unwrap(), all);
    let before = left();
    assert!(folder.run(task()).is_err());
    assert_eq!(left(), before, "a second time changes nothing");
    let mut spool = folder.open();
    assert_eq!(names(&mut spool, 1), ["one", "two"]);
    assert_eq!(names(&mut spool, 0), Vec::<String>::new());
}

/// Catches: a second replay whose archive takes the place of the first one's.
#[test]
fn archives_of_earlier_replays_stay() {
    let folder = Folder::new("archives");
    drop(folder.open());
    let task = || SpoolTask::Replay { reporter: "b".to_owned(), from: None };
    for id in ["one", "two", "three"] {
        let letter = dead_letter::line_of(&record(id, 40), "400 no").unwrap();
        std::fs::write(folder.0.join("b.dead.jsonl"), letter).unwrap();
        folder.run(task()).unwrap();
    }
    for (id, number) in [("one", ""), ("two", ".2"), ("three", ".3")] {
        let archive = folder.0.join(format!("b.dead.jsonl.replayed{number}"));
        let letter = dead_letter::record_of(&std::fs::read(archive).unwrap()).unwrap();
        assert_eq!(letter.request_id.as_str(), id);
    }
    assert!(!folder.0.join("b.dead.jsonl").exists());
    assert_eq!(names(&mut folder.open(), 1), ["one", "two", "three"]);
}

const DEAD: &str = "b.dead.jsonl";

/// A disk with a spool and a file of dead letters.
fn disk_with(letters: &[u8]) -> FaultDisk<()> {
    let disk = FaultDisk::new(World::default());
    drop(opened(&disk));
    dead_letter::write_whole(&disk, DEAD, letters).unwrap();
    disk
}

fn opened(disk: &FaultDisk<()>) -> Opened {
    let names = ["a".to_owned(), "b".to_owned()];
    open(Arc::new(disk.clone()), Options::of(&Spool::default()), &names).unwrap()
}

fn replay_on(disk: &FaultDisk<()>) -> io::Result<()> {
    let names = ["a".to_owned(), "b".to_owned()];
    replay_dead_letters(Arc::new(disk.clone()), "b", &names, &mut Vec::new())
}

/// Catches: letters that are queued before it is known that there is room for all that follows, so
/// that each try which fails delivers them once more.
#[test]
fn a_replay_without_room_queues_nothing() {
    let letters = ["one", "two"].map(|id| dead_letter::line_of(&record(id, 40), "no").unwrap());
    let (letters, bad) = (letters.concat(), b"no letter\n".to_vec());
    let mut failed = 0;
    for (bad, at) in [Vec::new(), bad].iter().flat_map(|bad| (0..40).map(move |at| (bad, at))) {
        let all = [&bad[..], &letters].concat();
        let disk = disk_with(&all);
        let is_done = || {
            let mut world = disk.world();
            !world.names().contains(&DEAD.to_owned()) || world.file(DEAD) == bad
        };
        for _ in 0..3 {
            let full = Faults::of_all(disk.operations() + at, 1, io::ErrorKind::StorageFull);
            disk.fail(Some(Faults { growth_only: true, ..full }));
            let _ = replay_on(&disk);
            if is_done() {
                break;
            }
            failed += 1;
            let files = disk.world().names();
            assert!(!files.iter().any(|name| name.contains("replayed")), "{at}: {files:?}");
        }
        disk.fail(None);
        if !is_done() {
            let _ = replay_on(&disk);
        }
        let queued = names(&mut opened(&disk), 1);
        assert!(queued.contains(&"one".to_owned()));
        let last = queued.iter().filter(|id| *id == "two").count();
        assert_eq!(last, 1, "operation {at} failed: {queued:?}");
        assert!(*disk.world().file("b.dead.jsonl.replayed") == all);
    }
    assert!(failed >= 6, "only {failed} tries failed");
}

/// Catches: a process killed, or a power cut, in the middle of a replay that loses a letter.
#[test]
fn a_replay_that_is_cut_loses_nothing() {
    let letters = ["one", "two"].map(|id| dead_letter::line_of(&record(id, 40), "no").unwrap());
    let disk = disk_with(&[&letters[0][..], b"no letter\n", &letters[1]].concat());
    disk.record(());
    assert!(replay_on(&disk).is_err(), "one line cannot be read");
    let snapshots = disk.snapshots();
    assert!(snapshots.len() >= 8);
    for (number, snapshot) in snapshots.iter().enumerate() {
        for (end, seed) in [(End::Kill, 0), (End::PowerCut, 1), (End::PowerCut, 2)] {
            let disk = FaultDisk::new(snapshot.world.after(end, &mut Random(seed)));
            let left = String::from_utf8(disk.world().file(DEAD).clone()).unwrap();
            let mut there = names(&mut opened(&disk), 1);
            let records = dead_letter::lines(left.as_bytes()).filter_map(|(.., record)| record);
            there.extend(records.map(|record| record.request_id.as_str().to_owned()));
            let what = format!("{:?} {number}, {end:?} {seed}: {there:?}", snapshot.operation);
            for id in ["one", "two"] {
                assert!(there.contains(&id.to_owned()), "{what}");
            }
            assert!(left.contains("no letter\n"), "{what}");
        }
    }
}

/// Catches: a replay that wants the gateway to stop, one that loses what it cannot read or what is
/// buried meanwhile, a second one that takes the place of the first.
#[test]
fn a_running_spool_delivers_dead_letters_again() {
    let folder = Folder::new("live");
    let mut spool = folder.open();
    let (all, bad) = torn_letters();
    let (file, request) = (folder.0.join("b.dead.jsonl"), folder.0.join("b.replay"));
    std::fs::write(&file, &all).unwrap();
    let task = || SpoolTask::Replay { reporter: "b".to_owned(), from: None };
    let error = folder.run(task()).unwrap_err();
    assert!(error.contains("line 3, 4, 5"), "{error}");
    assert!(request.exists() && !file.exists());
    assert!(folder.run(task()).unwrap_err().contains("under way"));
    spool.cursors[1].bury(&record("meanwhile", 50), "400 no").unwrap();
    assert_eq!(names(&mut spool, 1), Vec::<String>::new());
    spool.writer.commit();
    assert_eq!(names(&mut spool, 1), ["one", "two"]);
    assert_eq!(names(&mut spool, 1), Vec::<String>::new());
    assert!(request.exists(), "they are not delivered yet");
    spool.cursors[1].done(100);
    assert_eq!(names(&mut spool, 1), Vec::<String>::new());
    assert!(!request.exists());
    let left = std::fs::read_to_string(&file).unwrap();
    let mut left: Vec<&str> = left.lines().map(str::trim).collect();
    assert!(dead_letter::record_of(left.remove(0).as_bytes()).is_some(), "buried meanwhile");
    assert_eq!(left, bad.iter().map(|line| line.trim()).collect::<Vec<_>>());
    assert_eq!(names(&mut spool, 0), Vec::<String>::new());
}

/// Catches: a replay of records beside a running gateway that reaches the wrong ones, or moves the
/// reporter's place.
#[test]
fn a_running_spool_delivers_records_again() {
    let folder = Folder::new("live-from");
    let mut spool = folder.open();
    for (id, ms) in [("one", 10), ("two", 20), ("three", 30)] {
        spool.writer.append(Kind::Close, &record(id, ms));
    }
    spool.writer.commit();
    let read = spool.cursors[1].read_owned(9);
    let replay = |ms| {
        let from = Some(Start::Since(ms));
        folder.run(SpoolTask::Replay { reporter: "b".to_owned(), from })
    };
    assert!(replay(20).unwrap_err().contains("will get them"));
    spool.cursors[1].done(read[1].seq);
    let said = replay(20).unwrap();
    assert!(said.contains("1 records again"), "two was delivered, three will be: {said}");
    // The reporter looked for a request with its first read, and does again within a second.
    let start = Instant::now();
    let again = loop {
        let again = names(&mut spool, 1);
        if !again.is_empty() {
            break again;
        }
        assert!(start.elapsed() < PATIENCE);
        spool.writer.commit();
        thread::yield_now();
    };
    assert_eq!(again, ["two"]);
}

/// Catches: a folder that is made by looking at it.
#[test]
fn what_is_not_there_is_not_made() {
    let folder = Folder::new("none");
    assert!(folder.run(SpoolTask::Inspect { json: false }).is_err());
    assert!(!folder.0.exists());
}
