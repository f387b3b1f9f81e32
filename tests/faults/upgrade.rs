//! Hot restarts under load, one after the other: no connection is refused, no answer is cut, each
//! request has one record, and what limits and quotas count is what was used.
//!
//! `LLMPROXY_UPGRADES` is how many there are (3 unless set); `scripts/faults` sets it.

use crate::harness::message::Ended;
use crate::harness::process::{program, run, Process};
use crate::harness::scratch::Scratch;
use crate::harness::{await_some, await_until, pause, Conn, Engine, SOON};
use crate::metering::free_address;
use crate::receiver::Receiver;
use crate::reload::Random;
use rustix::process::{kill_process, test_kill_process, Pid, Signal};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Clients that stream, that keep a connection, and that make one for each request.
const CLIENTS: [(Habit, usize); 3] =
    [(Habit::Streams, 20), (Habit::Keeps, 10), (Habit::Connects, 10)];
/// Tokens that the key may use; more than there will be.
const QUOTA: u64 = 1_000_000_000;
/// How an upgrade is refused for want of a place among those that count.
const FULL: &str = "4 processes count limits together";
/// Requests of the key at one time.
const AT_ONCE: usize = 60;
const CHATS: &str = "/v1/chat/completions";
const BODY: &str =
    r#"{"model":"m","max_tokens":8,"messages":[{"role":"user","content":"Count."}]}"#;
const STREAM: &str =
    r#"{"model":"m","max_tokens":8,"stream":true,"messages":[{"role":"user","content":"Count."}]}"#;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Streams,
    Keeps,
    Connects,
}

/// Clients that go on until they are told not to. Whatever is not a whole answer is a panic.
struct Clients {
    running: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    fn start(proxy: SocketAddr) -> Clients {
        let running = Arc::new(AtomicBool::new(true));
        let habits = CLIENTS.into_iter().flat_map(|(habit, count)| vec![habit; count]);
        let start = |(number, habit): (usize, Habit)| {
            let running = Arc::clone(&running);
            let body = move || {
                pause(Duration::from_millis(7 * number as u64));
                let (mut kept, mut ids) = (None, Vec::new());
                while running.load(Ordering::Relaxed) {
                    let mut conn = kept.take().unwrap_or_else(|| Conn::open(proxy));
                    let (id, closes) = ask(&mut conn, habit);
                    ids.push(id);
                    if habit != Habit::Connects && !closes {
                        kept = Some(conn);
                    }
                }
                ids
            };
            thread::Builder::new().stack_size(256 << 10).spawn(body).unwrap()
        };
        let threads = habits.enumerate().map(start).collect();
        Clients { running, threads }
    }

    /// The ids of all answers.
    fn stop(self) -> Vec<String> {
        self.running.store(false, Ordering::Relaxed);
        let ids = self.threads.into_iter().map(JoinHandle::join);
        ids.flat_map(|ids| ids.expect("a client saw something wrong")).collect()
    }
}

/// One request: its id, and whether its connection closes.
fn ask(conn: &mut Conn, habit: Habit) -> (String, bool) {
    let (body, knobs) = match habit {
        Habit::Streams => (STREAM, "x-mock-tokens: 10\r\nx-mock-gap-ms: 50\r\n"),
        Habit::Keeps => (BODY, "x-mock-tokens: 5\r\nx-mock-ttft-ms: 30\r\n"),
        Habit::Connects => (BODY, "x-mock-tokens: 3\r\nx-mock-ttft-ms: 60\r\n"),
    };
    let answer = conn.post(CHATS, &format!("Authorization: Bearer k\r\n{knobs}"), body);
    assert_eq!((answer.status(), answer.ended), (200, Ended::Whole), "{}", answer.text());
    if habit == Habit::Streams {
        assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    }
    let id = answer.head.get("x-request-id").unwrap().to_owned();
    (id, answer.head.get("connection") == Some("close"))
}

/// Everything around the processes.
struct Stage {
    scratch: Scratch,
    engine: Engine,
    receiver: Receiver,
    address: SocketAddr,
    first: Process,
    /// The one that serves now.
    serving: Pid,
}

impl Stage {
    fn set() -> Stage {
        let engine = Engine::start(&["--log", "200000", "--threads", "1"]);
        let (scratch, receiver, address) = (Scratch::new(), Receiver::start(), free_address());
        let file = |name: &str| scratch.file(name).display().to_string();
        let yaml = format!(
            "server: {{listen: \"{address}\", workers: 2, cpu_affinity: \"off\", \
             pid_file: \"{}\"}}\n\
             log: {{level: info, format: json, output: stdout}}\n\
             backends: [{{url: \"{}\"}}]\n\
             api_keys: [{{key: k, total_quota: {QUOTA}}}]\n\
             rate_limit: {{per_key: {{max_concurrent: {AT_ONCE}}}}}\n\
             counters: {{entries: 1024}}\n\
             usage:\n\
             \x20 spool: {{dir: \"{}\"}}\n\
             \x20 reporters:\n\
             \x20   - {{name: hook, type: webhook, webhook: {{url: \"{}\", batch: array}}}}\n\
             \x20   - {{name: own, type: builtin, builtin: {{path: \"{}\"}}}}\n",
            file("run.pid"),
            engine.url(),
            file("spool"),
            receiver.url(),
            file("own.db"),
        );
        let config = scratch.write("config.yaml", yaml);
        let first = Process::start(&program("llmproxy"), &["-c", &config.to_string_lossy()]);
        first.await_line(SOON, |line| line.contains("\"listening\"").then_some(()));
        let serving = Pid::from_raw(first.pid().cast_signed()).unwrap();
        Stage { scratch, engine, receiver, address, first, serving }
    }

    /// Lines of the log of all processes with this in them.
    fn count(&self, message: &str) -> usize {
        self.first.stdout.all().iter().filter(|line| line.contains(message)).count()
    }

    /// One upgrade, by the command, with the number in the pid file. Where four processes run it is
    /// refused, and nothing has happened.
    fn upgrade(&mut self) {
        let pid_file = self.scratch.file("run.pid").display().to_string();
        let ran = await_some("there is a place for one more", 4 * SOON, || {
            let args = ["upgrade", "--pid-file", &pid_file];
            let ran = run(&program("llmproxy"), &args, 2 * SOON);
            let is_full = ran.code == Some(1) && ran.stderr.contains(FULL);
            (!is_full).then_some(ran)
        });
        assert_eq!(ran.code, Some(0), "{ran:?}\n{}", self.first.stdout.text());
        let number = ran.stdout.split_whitespace().nth(1).unwrap().parse().unwrap();
        self.serving = Pid::from_raw(number).unwrap();
    }

    /// Tokens of all records in the builtin store, and the ids of these.
    fn recorded(&self) -> (u64, HashSet<String>) {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let path = self.scratch.file("own.db");
        let database = rusqlite::Connection::open_with_flags(path, flags).unwrap();
        database.busy_timeout(SOON).unwrap();
        let text = "SELECT request_id, prompt_tokens + completion_tokens FROM usage_records";
        let mut rows = database.prepare(text).unwrap();
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let rows: Vec<(String, i64)> = rows.map(Result::unwrap).collect();
        let ids: HashSet<String> = rows.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids.len(), rows.len(), "a record is there twice");
        (rows.iter().map(|(_, tokens)| tokens.unsigned_abs()).sum(), ids)
    }

    /// Each answer has one record at each reporter, and there are no others.
    fn check_records(&self, answered: &HashSet<String>) -> u64 {
        let mut tokens = 0;
        await_until("all records are there", 2 * SOON, || {
            let (sum, ids) = self.recorded();
            tokens = sum;
            let hooked = self.receiver.seen();
            ids == *answered && hooked.len() == answered.len()
        });
        let hooked = self.receiver.seen();
        assert!(hooked.keys().all(|id| answered.contains(id)));
        let whole = |(_, got): (&String, &crate::receiver::Got)| {
            got.status == "complete" && got.times == 1 && !got.differs
        };
        assert!(hooked.iter().all(whole), "told twice, or not whole");
        assert_eq!(self.engine.posts().len(), answered.len(), "none was asked twice");
        tokens
    }

    /// What the counters of the key stand at: a quota of that leaves nothing, one more does.
    fn check_quota(&self, tokens: u64) {
        let config = self.scratch.file("config.yaml");
        let yaml = std::fs::read_to_string(&config).unwrap();
        // The least that a request is taken for; the key has used as much as its records say.
        for (quota, wanted) in [(tokens, 429), (tokens + 1_000, 200), (QUOTA + 1, 200)] {
            let quota = format!("total_quota: {quota}}}");
            std::fs::write(&config, yaml.replace(&format!("total_quota: {QUOTA}}}"), &quota))
                .unwrap();
            let before = self.count("configuration reloaded");
            kill_process(self.serving, Signal::HUP).unwrap();
            await_until("it is in use", SOON, || self.count("configuration reloaded") > before);
            let mut conn = Conn::open(self.address);
            let answer = conn.post(CHATS, "Authorization: Bearer k\r\n", BODY);
            assert_eq!(answer.status(), wanted, "{quota}: {}", answer.text());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = kill_process(self.serving, Signal::KILL);
    }
}

/// Catches: whatever an upgrade loses, cuts, counts twice or forgets.
#[test]
fn upgrades_under_load_are_not_noticed() {
    let rounds: usize =
        std::env::var("LLMPROXY_UPGRADES").map_or(3, |rounds| rounds.parse().unwrap());
    let mut stage = Stage::set();
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    let clients = Clients::start(stage.address);
    for _ in 0..rounds {
        pause(Duration::from_millis(random.below(700)));
        stage.upgrade();
    }
    pause(Duration::from_millis(500));
    let answers = clients.stop();
    let answered: HashSet<String> = answers.iter().cloned().collect();
    assert_eq!(answered.len(), answers.len(), "an id for each");
    println!("{rounds} upgrades, {} answers, all whole", answers.len());
    await_until("all but the last have left", 2 * SOON, || stage.count("\"stopped\"") == rounds);
    let drained = stage.count("\"drained\":true");
    assert_eq!(drained, rounds, "something was cut");
    let tokens = stage.check_records(&answered);
    stage.check_quota(tokens);
    // No place of a request is kept by a process that is gone.
    let full = thread::scope(|scope| {
        let hold = || {
            let mut conn = Conn::open(stage.address);
            let knobs = "Authorization: Bearer k\r\nx-mock-ttft-ms: 3000\r\n";
            conn.post(CHATS, knobs, BODY).status()
        };
        let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(hold)).collect();
        all.into_iter().filter(|_| true).map(|one| one.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(full, vec![200; AT_ONCE]);
    kill_process(stage.serving, Signal::TERM).unwrap();
    await_until("the last one ends", SOON, || {
        stage.count("\"stopped\"") == rounds + 1 || test_kill_process(stage.serving).is_err()
    });
    let failed = stage.first.stdout.all();
    let failed: Vec<&String> = failed
        .iter()
        .filter(|line| line.contains("\"level\":\"ERROR\"") && !line.contains(FULL))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}
