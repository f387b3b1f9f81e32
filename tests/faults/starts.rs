//! The proxy is killed while it starts, with what a process before it left, again and again; and
//! beside others that use the same directory, of which some are killed and some drain.
//!
//! `LLMPROXY_STARTS` is how many rounds of each there are (6 unless set); `scripts/faults` sets it.

use crate::harness::process::{program, Process};
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, pause, Engine};
use crate::load::{Answer, Kind, Load, CHAT, STREAM};
use crate::metering::free_address;
use crate::receiver::Receiver;
use crate::reload::Random;
use crate::trace::{may_trace, TRACE};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a start does to files lies within so many changes of them, and mostly in the first few.
const CHANGES: u64 = 60;
/// How long something may take that the machine's other work makes slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything around the proxies.
struct Stage {
    scratch: Scratch,
    engine: Engine,
    receiver: Receiver,
    random: Random,
}

impl Stage {
    fn set() -> Stage {
        let engine = Engine::start(&["--log", "200000", "--threads", "1"]);
        let seed = u64::from(std::process::id()) << 20 | 1;
        println!("seed {seed}");
        let (scratch, receiver, random) = (Scratch::new(), Receiver::start(), Random(seed));
        Stage { scratch, engine, receiver, random }
    }

    /// A proxy that listens at an address of its own, and shares the directory.
    fn config(&self, address: SocketAddr) -> String {
        let yaml = format!(
            "server: {{listen: \"{address}\", workers: 2, cpu_affinity: \"off\"}}\n\
             log: {{level: info, format: json, output: stdout}}\n\
             backends: [{{url: \"{}\"}}]\n\
             usage:\n\
             \x20 spool: {{dir: \"{spool}\"}}\n\
             \x20 reporters:\n\
             \x20   - {{name: hook, type: webhook, webhook: {{url: \"{}\", batch: array, \
             concurrency: 1}}}}\n\
             \x20   - {{name: file, type: file, file: {{path: \"{file}\"}}}}\n",
            self.engine.url(),
            self.receiver.url(),
            spool = self.scratch.file("spool").display(),
            file = self.scratch.file("usage.jsonl").display(),
        );
        let name = format!("{}.yaml", address.port());
        self.scratch.write(&name, yaml).to_string_lossy().into_owned()
    }

    fn time(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_nanos(least * 1_000_000 + self.random.below((most - least) * 1_000_000))
    }

    /// Ids that the engine had, or to which a client had an answer.
    fn seen(&self, answers: &HashMap<String, Answer>) -> HashSet<String> {
        let id = |post: Value| {
            let head = post["head"].as_str().unwrap();
            let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
            id.unwrap_or_else(|| panic!("no id: {head}")).to_owned()
        };
        let seen: HashSet<String> = self.engine.posts().into_iter().map(id).collect();
        assert!(answers.keys().all(|id| seen.contains(id)), "an answer without a request");
        // So many are waited for in each round, before anything is killed.
        assert!(seen.len() as u64 >= 10 * rounds(), "there was hardly a load: {}", seen.len());
        seen
    }

    /// Each request has its record at both reporters, and every time the same one.
    fn check(&self, answers: &HashMap<String, Answer>) {
        let seen = self.seen(answers);
        let mut lost = Vec::new();
        let is_all = |lost: &mut Vec<String>| {
            let (records, lines) = (self.receiver.seen(), self.lines());
            let has = |id: &String| records.contains_key(id) && lines.contains(id);
            *lost = seen.iter().filter(|id| !has(id)).cloned().collect();
            lost.is_empty()
        };
        let begun = Instant::now();
        while !is_all(&mut lost) {
            assert!(begun.elapsed() < PATIENCE, "{} of {} lost: {lost:?}", lost.len(), seen.len());
            pause(Duration::from_millis(100));
        }
        let records = self.receiver.seen();
        let differing: Vec<_> = records.iter().filter(|(_, record)| record.differs).collect();
        assert!(differing.is_empty(), "two contents: {differing:?}");
        for (id, answer) in answers.iter().filter(|(_, answer)| answer.is_whole) {
            let record = &records[id];
            let told = (record.status.as_str(), record.source.as_str(), record.completion);
            assert_eq!(told, ("complete", "engine", answer.completion.or(record.completion)));
        }
        let aborted = records.values().filter(|record| record.status == "aborted").count();
        let again = records.values().filter(|record| record.times > 1).count();
        println!("{} requests, {aborted} aborted, {again} delivered again", seen.len());
    }

    /// Ids in the usage file.
    fn lines(&self) -> HashSet<String> {
        let text = std::fs::read_to_string(self.scratch.file("usage.jsonl")).unwrap_or_default();
        let id = |line: &str| {
            let record: Value = serde_json::from_str(line).ok()?;
            Some(record["request_id"].as_str()?.to_owned())
        };
        text.lines().filter_map(id).collect()
    }
}

fn listens(process: &Process) {
    process.await_line(PATIENCE, |line| line.contains("\"listening\"").then_some(()));
}

fn start(config: &str) -> Process {
    let process = Process::start(&program("llmproxy"), &["--config", config]);
    listens(&process);
    process
}

/// Waits to the nanosecond, so that what follows falls between any two instructions.
fn spin(time: Duration) {
    let begun = Instant::now();
    pause(time.saturating_sub(Duration::from_millis(2)));
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn rounds() -> u64 {
    std::env::var("LLMPROXY_STARTS").map_or(6, |rounds| rounds.parse().unwrap())
}

/// Starts a proxy that does not live to serve: it is killed after so long, or before it changes a
/// file for the so many-th time. False: it was faster, and is killed when it listens.
fn start_in_vain(config: &str, after: Result<Duration, u64>) -> bool {
    let (llmproxy, args) = (program("llmproxy"), ["--config", config]);
    let process = match after {
        Ok(time) => {
            let process = Process::start(&llmproxy, &args);
            spin(time);
            process.kill();
            process
        }
        Err(changes) => {
            let way = ["python3", TRACE, "cut", &changes.to_string()];
            let process = Process::start_through(&way, &llmproxy, &args);
            await_until("it is killed, or listens", PATIENCE, || {
                let is_there = process.stdout.text().contains("\"listening\"");
                if is_there {
                    // The one that traces it kills it, and ends when it is gone.
                    process.signal(Signal::TERM);
                }
                is_there || process.try_status().is_some()
            });
            process
        }
    };
    process.wait(PATIENCE);
    !process.stdout.text().contains("\"listening\"")
}

/// 20 streams at a time and 50 requests a second.
const KINDS: [Kind; 2] = [
    Kind {
        count: 20,
        body: STREAM,
        fields: "x-mock-tokens: 20\r\nx-mock-gap-ms: 20\r\n",
        period: Duration::from_millis(400),
    },
    Kind {
        count: 5,
        body: CHAT,
        fields: "x-mock-tokens: 5\r\n",
        period: Duration::from_millis(100),
    },
];

/// Catches: a start that takes over what a killed process left, is killed at that itself, and
/// leaves less, or something else, than it found: at any moment of it, and before each of the
/// changes that it makes to a file.
#[test]
fn kills_into_starts_lose_nothing() {
    let may_trace = may_trace();
    let mut stage = Stage::set();
    let address = free_address();
    let config = stage.config(address);
    let begun = Instant::now();
    let mut proxy = start(&config);
    let start_ms = begun.elapsed().as_millis() as u64 + 10;
    let load = Load::start(address, &KINDS);
    let (mut kills, mut early) = (0, 0);
    for round in 0..rounds() {
        stage.receiver.set_down(round % 2 == 0);
        load.await_answers(10);
        spin(stage.time((20, 500)));
        proxy.kill();
        proxy.wait(PATIENCE);
        for n in 0..1 + stage.random.below(4) {
            let after = match may_trace && (round + n) % 2 == 0 {
                // The others may be faster than what is to kill them.
                _ if kills == 0 => Ok(Duration::ZERO),
                true => Err(1 + stage.random.below(CHANGES)),
                false => Ok(stage.time((0, start_ms))),
            };
            early += u64::from(start_in_vain(&config, after));
            kills += 1;
        }
        proxy = start(&config);
    }
    stage.receiver.set_down(false);
    let answers = load.stop();
    println!("{kills} starts killed, {early} of them before they served");
    assert!(early > 0, "no start was killed");
    stage.check(&answers);
    proxy.signal(Signal::TERM);
    assert!(proxy.wait(PATIENCE).success(), "{}", proxy.stdout.text());
}

/// Folders of processes in the directory.
fn folders(spool: &Path) -> usize {
    let entries = std::fs::read_dir(spool).unwrap().flatten();
    entries.filter(|entry| entry.path().is_dir()).count()
}

/// Catches: what one of several processes on one directory leaves, killed or drained or killed
/// while it drains, that nobody takes over, or two do, or that is taken while its owner lives.
#[test]
fn processes_on_one_directory_come_and_go() {
    let mut stage = Stage::set();
    let addresses = [(); 3].map(|()| free_address());
    let configs = addresses.map(|address| stage.config(address));
    let loads = addresses.map(|address| Load::start(address, &KINDS));
    let mut proxies = [Some(start(&configs[0])), Some(start(&configs[1])), None];
    for round in 0..2 * rounds() {
        stage.receiver.set_down(round % 3 == 0);
        let running = loads.iter().zip(&proxies).filter(|(_, proxy)| proxy.is_some());
        running.for_each(|(load, _)| load.await_answers(5));
        spin(stage.time((20, 500)));
        let goes = (0..3).filter(|n| proxies[*n].is_some()).nth(stage.random.below(2) as usize);
        let (goes, comes) = (goes.unwrap(), proxies.iter().position(Option::is_none).unwrap());
        let leaving = proxies[goes].take().unwrap();
        let is_drained = stage.random.below(3) > 0;
        leaving.signal(if is_drained { Signal::TERM } else { Signal::KILL });
        // Its successor starts while it still drains, and may find its folder free at any moment.
        proxies[comes] = Some(start(&configs[comes]));
        if is_drained && stage.random.below(2) == 0 {
            spin(stage.time((0, 300)));
            leaving.kill();
        }
        leaving.wait(PATIENCE);
    }
    stage.receiver.set_down(false);
    let answers = loads.into_iter().flat_map(Load::stop).collect();
    stage.check(&answers);
    let spool = stage.scratch.file("spool");
    await_until("what others left is gone", PATIENCE, || folders(&spool) == 2);
    for proxy in proxies.into_iter().flatten() {
        proxy.signal(Signal::TERM);
        assert!(proxy.wait(PATIENCE).success(), "{}", proxy.stdout.text());
    }
}
