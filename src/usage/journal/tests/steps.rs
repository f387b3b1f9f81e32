//! Kills between two instructions. A process of its own does on one thread what a worker, the
//! journal and a reporter do, and is killed after so many system calls and so many instructions:
//! while it puts entries into its ring, writes them, forces them to the disk, hands them out, or
//! takes over what the process before it left, which was killed so, too.
//!
//! `LLMPROXY_STEPS` is the number of kills (12 unless set); `scripts/faults` sets it.

use super::*;
use crate::usage::record::Outcome;
use crate::usage::spool::disk::RealDisk;
use crate::usage::spool::tests::fault::{skip, Random};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the process that is killed finds its folder. Without it the test is the one that kills.
const FOLDER: &str = "LLMPROXY_STEPS_FOLDER";
/// System calls before the instructions are counted, each counted twice. A start that finds
/// something makes a third of them.
const CALLS_MAX: usize = 900;
/// More than an entry takes.
const INSTRUCTIONS_MAX: usize = 20_000;
/// A child that goes on for longer is not killed any more.
const LIMIT: &str = "120";

/// Small segments, so that they follow each other often.
fn opened_at(folder: &Path) -> (Opened, PathBuf) {
    let home = folder.join("home");
    let options = Options { segment_bytes: 2000, ..Options::of(&Spool::default()) };
    let disk = Arc::new(RealDisk::new(&home));
    let opened = spool::open(disk, options, &["a".to_owned()]).unwrap();
    assert_eq!(opened.state.damaged_places.load(Relaxed), 0, "a kill is no damage");
    (opened, home)
}

/// What a process told before it was killed: a line each, and who of them each request is about.
struct Told(File);

impl Told {
    fn at(folder: &Path) -> Told {
        Told(File::options().create(true).append(true).open(folder.join("told")).unwrap())
    }

    fn tell(&mut self, line: &str) {
        self.0.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// The process that is killed. It never ends by itself.
fn work(folder: &Path) {
    let mut told = Told::at(folder);
    let thread = fs::read_link("/proc/thread-self").unwrap();
    println!("\nready {}", thread.file_name().unwrap().to_str().unwrap());
    if io::stdin().read(&mut [0]).unwrap() == 0 {
        return;
    }
    let (opened, home) = opened_at(folder);
    let Opened { writer, mut keeper, mut cursors, state, doorbell } = opened;
    let ring = Arc::new(RingFile::create(&home, 0, 16 * 1024).unwrap());
    let counters = Arc::new(UsageCounters::new(&[]));
    let outbox = Outbox::new(ring.clone(), doorbell, counters, state);
    let mut desk = Desk::new(vec![ring], writer);
    let mut flying = Vec::new();
    for n in 0.. {
        let id = format!("p{}-{n}", std::process::id());
        told.tell(&format!("opens {id}"));
        if let Some(opening) = outbox.open(&named(&id).borrowed()) {
            told.tell(&format!("opened {id}"));
            flying.push((id, opening));
        }
        while flying.len() > 3 {
            let (id, opening) = flying.remove(n % 4);
            told.tell(&format!("closes {id}"));
            outbox.close(&named(&id).borrowed(), opening);
            told.tell(&format!("closed {id}"));
        }
        match n % 7 {
            1 | 4 => {
                desk.round();
            }
            5 => keeper.turn(),
            6 => hand_out(&mut cursors[0], |id, outcome| told.tell(&format!("had {id} {outcome}"))),
            _ => {}
        }
    }
}

/// Gives what a reporter is given, before it says that it is done with it.
fn hand_out(cursor: &mut Cursor, mut give: impl FnMut(&str, &str)) {
    let read = cursor.read_owned(10_000);
    for got in &read {
        give(got.record.request_id.as_str(), got.record.outcome.as_str());
    }
    if let Some(last) = read.last() {
        cursor.done(last.seq);
    }
}

/// What must have come of the requests that were told of, and what has.
fn check(folder: &Path) -> usize {
    let (mut opened, _) = opened_at(folder);
    let told = fs::read_to_string(folder.join("told")).unwrap();
    let mut words: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    let mut had: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in told.lines() {
        let (word, of) = line.split_once(' ').unwrap();
        match of.split_once(' ') {
            None => words.entry(word).or_default().insert(of),
            Some((id, outcome)) => had.entry(id.to_owned()).or_default().insert(outcome.to_owned()),
        };
    }
    let mut left = BTreeSet::new();
    hand_out(&mut opened.cursors[0], |id, outcome| {
        assert!(left.insert(id.to_owned()), "{id} comes twice from one spool");
        had.entry(id.to_owned()).or_default().insert(outcome.to_owned());
    });
    let is_told = |word: &str, id: &str| words.get(word).is_some_and(|ids| ids.contains(id));
    for id in words.get("opened").into_iter().flatten() {
        assert!(had.contains_key(*id), "{id} is lost");
    }
    let (complete, aborted) = (Outcome::Complete.as_str(), Outcome::Aborted.as_str());
    for (id, outcomes) in &had {
        assert!(is_told("opens", id), "{id} was never begun");
        let is = |outcome: &str| outcomes.len() == 1 && outcomes.contains(outcome);
        let is_fine = match (is_told("closes", id), is_told("closed", id)) {
            (_, true) => is(complete),
            (true, false) => is(complete) || is(aborted),
            (false, false) => is(aborted),
        };
        assert!(is_fine, "{id}: {outcomes:?}");
    }
    fs::remove_file(folder.join("told")).unwrap();
    had.len()
}

/// Removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn python(args: &[&str]) -> Command {
    let mut command = Command::new("timeout");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/trace.py");
    command.args(["-s", "KILL", LIMIT, "python3", script]).args(args);
    command
}

/// Catches: two stores of which the second is there without the first, a position that is told
/// before what it stands for, a recovery that a kill in its middle makes forget or repeat: whatever
/// leaves a request without its record, with two, or with another end than it had, when the process
/// is killed between two instructions.
#[test]
fn a_kill_between_two_instructions_loses_nothing() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return work(Path::new(&folder));
    }
    if !python(&["may"]).output().unwrap().status.success() {
        return skip("processes may not be traced here, or there is no python3");
    }
    let kills = std::env::var("LLMPROXY_STEPS").map_or(12, |kills| kills.parse().unwrap());
    let name = format!("llmproxy-steps-{}", std::process::id());
    let folder = Folder(std::env::temp_dir().join(name));
    fs::create_dir_all(&folder.0).unwrap();
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    println!("seed {}", random.0);
    let (mut seen, exe) = (0, std::env::current_exe().unwrap());
    let (_, module) = module_path!().split_once("::").unwrap();
    let own = format!("{module}::a_kill_between_two_instructions_loses_nothing");
    for kill in 0..kills {
        let calls = random.below(CALLS_MAX).to_string();
        let instructions = random.below(INSTRUCTIONS_MAX).to_string();
        let mut killed = python(&["step", &calls, &instructions, &exe.to_string_lossy()]);
        let killed = killed.args([&own, "--exact", "--nocapture"]).env(FOLDER, &folder.0);
        let ran = killed.output().unwrap();
        assert!(ran.status.success(), "{calls} {instructions}: {ran:?}");
        // Up to three in a row, so that what one left is found by one that is killed as well.
        if random.below(3) == 0 || kill + 1 == kills {
            seen += check(&folder.0);
        }
    }
    println!("{kills} kills, {seen} records");
    assert!(seen > kills, "hardly anything happened: {seen} records");
}
