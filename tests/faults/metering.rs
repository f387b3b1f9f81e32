//! The promise of metering, by counting: whatever dies, each request that an engine or a client
//! saw has one record at every reporter.

use crate::harness::process::{program, Process};
use crate::harness::scratch::Scratch;
use crate::harness::services::free_port;
use crate::harness::{pause, skip, Engine, MariaDb, Postgres, Redis};
use crate::load::{Answer, Kind, Load, CHAT, STREAM};
use crate::receiver::Receiver;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Kills of a round; the long form has many rounds.
const KILLS: u32 = 50;
/// The proxy is up for so long between two kills, at least and at most.
const UP_MS: (u64, u64) = (60, 600);
/// All records are there so long after the last kill: retries back off for seconds while their
/// receivers are down.
const DRAINED: Duration = Duration::from_secs(60);

/// Catches: a request without a record, or with two in a database, after a kill at any moment.
#[test]
fn no_request_is_lost_or_billed_twice_by_kills() {
    if !(Redis::is_there() && MariaDb::is_there() && Postgres::is_there()) {
        assert!(std::env::var_os("LLMPROXY_TEST_CLIENTS").is_none(), "no servers");
        skip("redis, mariadb or postgresql is not installed");
        return;
    }
    let kills = std::env::var("LLMPROXY_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let mut stage = Stage::set();
    let mut left = kills;
    let mut sum = Figures::default();
    while left > 0 {
        let figures = stage.round(left.min(KILLS));
        println!("{figures:?}");
        sum.add(figures);
        left -= left.min(KILLS);
    }
    println!("{kills} kills: {sum:?}");
}

/// What a round counted.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    /// Requests that an engine or a client saw.
    seen: usize,
    /// Of those, answers that clients had to the last byte.
    whole: usize,
    /// Records that say `aborted`.
    aborted: usize,
    /// Records of requests that were admitted, and killed before an engine had them.
    unseen: usize,
    /// Records that the webhook had more than once.
    doubled: usize,
}

impl Figures {
    fn add(&mut self, more: Figures) {
        self.seen += more.seen;
        self.whole += more.whole;
        self.aborted += more.aborted;
        self.unseen += more.unseen;
        self.doubled += more.doubled;
    }
}

/// Everything around the proxy, and its configuration.
struct Stage {
    scratch: Scratch,
    engines: Vec<Engine>,
    receiver: Receiver,
    redis: Redis,
    maria: MariaDb,
    postgres: Postgres,
    proxy: SocketAddr,
    config: String,
    random: u64,
}

impl Stage {
    fn set() -> Stage {
        let scratch = Scratch::new();
        let engines: Vec<Engine> =
            (0..2).map(|_| Engine::start(&["--log", "200000", "--threads", "1"])).collect();
        let (receiver, redis) = (Receiver::start(), Redis::start());
        let (maria, postgres) = (MariaDb::start(), Postgres::start());
        let proxy = free_address();
        let yaml = format!(
            "server: {{listen: \"{proxy}\", workers: 2, cpu_affinity: \"off\"}}\n\
             log: {{level: info, format: json, output: stdout}}\n\
             backends: [{{url: \"{}\"}}, {{url: \"{}\"}}]\n\
             usage:\n\
             \x20 spool: {{dir: \"{spool}\"}}\n\
             \x20 reporters:\n\
             \x20   - {{name: hook, type: webhook, webhook: {{url: \"{}\", batch: array, \
             batch_size: {BATCH}, concurrency: 1}}}}\n\
             \x20   - {{name: redis, type: redis, redis: {{addr: \"{}\", stream: usage}}}}\n\
             \x20   - {{name: maria, type: database, database: {{driver: mysql, dsn: \"{}\"}}}}\n\
             \x20   - {{name: pg, type: database, database: {{driver: postgres, dsn: \"{}\"}}}}\n\
             \x20   - {{name: file, type: file, file: {{path: \"{file}\"}}}}\n\
             \x20   - {{name: own, type: builtin, builtin: {{path: \"{own}\"}}}}\n",
            engines[0].url(),
            engines[1].url(),
            receiver.url(),
            redis.addr(),
            maria.dsn(),
            postgres.dsn(),
            spool = scratch.file("spool").display(),
            file = scratch.file("usage.jsonl").display(),
            own = scratch.file("own.db").display(),
        );
        let config = scratch.write("config.yaml", yaml).to_string_lossy().into_owned();
        let random = u64::from(std::process::id()) << 20 | 1;
        println!("seed {random}");
        Stage { scratch, engines, receiver, redis, maria, postgres, proxy, config, random }
    }

    /// Kills the proxy so often under load, and checks what every reporter has.
    fn round(&mut self, kills: u32) -> Figures {
        let mut proxy = self.start();
        let load = Load::start(self.proxy, &KINDS);
        for kill in 0..kills {
            self.disturb(kill, kills);
            if kill % 4 == 0 {
                load.await_answers(10);
            }
            // To the nanosecond: between any two instructions.
            let (least, most) = (UP_MS.0 * 1_000_000, UP_MS.1 * 1_000_000);
            pause(Duration::from_nanos(least + self.next() % (most - least)));
            proxy.signal(Signal::KILL);
            proxy.wait(Duration::from_secs(10));
            proxy = self.start();
        }
        self.receiver.set_down(false);
        let answers = load.stop();
        let figures = self.check(&answers, kills);
        proxy.signal(Signal::TERM);
        assert!(proxy.wait(Duration::from_secs(30)).success(), "{}", proxy.stdout.text());
        self.clear();
        figures
    }

    /// The webhook is down half of the time; each of the servers goes away once a round.
    fn disturb(&mut self, kill: u32, kills: u32) {
        self.receiver.set_down(kill % 10 < 5);
        let part = |n: u32| kills * n / 8;
        match kill {
            k if k == part(1) => self.redis.stop(),
            k if k == part(2) => self.redis.start_again(),
            k if k == part(3) => self.maria.kill(),
            k if k == part(4) => self.maria.start_again(),
            k if k == part(5) => self.postgres.stop(),
            k if k == part(6) => self.postgres.start_again(),
            _ => {}
        }
    }

    fn start(&self) -> Process {
        let process = Process::start(&program("llmproxy"), &["--config", &self.config]);
        process.await_line(Duration::from_secs(20), |line| {
            line.contains("\"message\":\"listening\"").then_some(())
        });
        process
    }

    /// Ids that the engines had.
    fn asked(&self) -> HashSet<String> {
        let posts = self.engines.iter().flat_map(Engine::posts);
        let id = |post: Value| {
            let head = post["head"].as_str().unwrap();
            let id = head.lines().find_map(|line| line.strip_prefix("x-request-id: "));
            id.unwrap_or_else(|| panic!("no id: {head}")).to_owned()
        };
        posts.map(id).collect()
    }

    fn check(&self, answers: &HashMap<String, Answer>, kills: u32) -> Figures {
        let mut seen = self.asked();
        assert!(answers.keys().all(|id| seen.contains(id)), "an answer without a request");
        seen.extend(answers.keys().cloned());
        // So many are waited for before one kill in four.
        let least = 10 * kills.div_ceil(4) as usize;
        assert!(seen.len() >= least, "there was hardly a load: {}", seen.len());
        for (name, ids) in self.reporters() {
            let missing = || {
                let ids = ids();
                seen.iter().filter(|id| !ids.contains_key(*id)).cloned().collect::<Vec<_>>()
            };
            let begun = Instant::now();
            let mut lost = missing();
            while !lost.is_empty() && begun.elapsed() < DRAINED {
                pause(Duration::from_millis(100));
                lost = missing();
            }
            let records = self.receiver.seen();
            let shown: Vec<_> = lost.iter().take(5).map(|id| (id, records.get(id))).collect();
            assert!(lost.is_empty(), "{name} lost {} of {}: {shown:?}", lost.len(), seen.len());
            // Each of them in one row, whatever was delivered twice.
            let twice: Vec<_> = ids().into_iter().filter(|(_, times)| *times > 1).collect();
            let is_webhook = name == "webhook";
            assert!(is_webhook || name == "file" || twice.is_empty(), "{name}: {twice:?}");
            let most = kills as usize * BATCH;
            assert!(twice.len() <= most, "{name}: more than a batch a kill: {}", twice.len());
        }
        self.look_at_records(&seen, answers)
    }

    /// What the records say, against what clients saw.
    fn look_at_records(
        &self,
        seen: &HashSet<String>,
        answers: &HashMap<String, Answer>,
    ) -> Figures {
        let records = self.receiver.seen();
        let whole = answers.iter().filter(|(_, answer)| answer.is_whole);
        let differing: Vec<_> = records.iter().filter(|(_, record)| record.differs).collect();
        assert!(differing.is_empty(), "two contents: {differing:?}");
        for (id, answer) in whole.clone() {
            let record = &records[id];
            // A client that has the end of its answer is billed for it by the engine's count.
            let told = (record.status.as_str(), record.source.as_str(), record.completion);
            let shown = answer.completion.or(record.completion);
            assert_eq!(told, ("complete", "engine", shown), "{id}");
        }
        let unseen: Vec<_> = records.iter().filter(|(id, _)| !seen.contains(*id)).collect();
        for (id, record) in &unseen {
            let fine =
                ["aborted", "backend_error", "client_left"].contains(&record.status.as_str());
            assert!(fine && record.events == 0, "{id} came from nowhere: {record:?}");
        }
        Figures {
            seen: seen.len(),
            whole: whole.count(),
            aborted: records.values().filter(|record| record.status == "aborted").count(),
            unseen: unseen.len(),
            doubled: records.values().filter(|record| record.times > 1).count(),
        }
    }

    /// How each reporter's ids, and how often it has each, are looked up.
    fn reporters(&self) -> Vec<(&'static str, LookUp<'_>)> {
        const IDS: &str = "SELECT request_id FROM usage_records";
        let rows = |rows: Vec<Vec<Option<String>>>| {
            tally(rows.into_iter().map(|mut row| row.swap_remove(0).unwrap()))
        };
        vec![
            (
                "webhook",
                Box::new(|| {
                    self.receiver.seen().into_iter().map(|(id, got)| (id, got.times)).collect()
                }),
            ),
            ("redis", Box::new(|| tally(self.redis_ids()))),
            ("mariadb", Box::new(move || rows(self.maria.query(IDS)))),
            ("postgresql", Box::new(move || rows(self.postgres.query(IDS)))),
            ("file", Box::new(|| tally(self.file_ids()))),
            ("builtin", Box::new(|| tally(self.builtin_ids()))),
        ]
    }

    fn redis_ids(&self) -> impl Iterator<Item = String> {
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let entries: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(&["usage", "-", "+"]).query(&mut connection).unwrap();
        entries.into_iter().map(|(_, fields)| {
            let at = fields.iter().position(|field| field == "request_id").unwrap();
            fields[at + 1].clone()
        })
    }

    fn file_ids(&self) -> impl Iterator<Item = String> {
        let text = std::fs::read_to_string(self.scratch.file("usage.jsonl")).unwrap_or_default();
        let whole: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        whole.into_iter().filter_map(|line| {
            let record: Value = serde_json::from_str(&line).ok()?;
            Some(record["request_id"].as_str().unwrap().to_owned())
        })
    }

    fn builtin_ids(&self) -> impl Iterator<Item = String> {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let path = self.scratch.file("own.db");
        let database = rusqlite::Connection::open_with_flags(path, flags).unwrap();
        let mut rows = database.prepare("SELECT request_id FROM usage_records").unwrap();
        let ids: Vec<String> =
            rows.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        ids.into_iter()
    }

    /// Forgets a round that was checked, so that the next one's figures are its own.
    fn clear(&self) {
        self.receiver.forget();
        self.engines.iter().for_each(Engine::reset);
        self.maria.query("DELETE FROM usage_records");
        self.postgres.query("DELETE FROM usage_records");
        std::fs::remove_file(self.scratch.file("usage.jsonl")).unwrap();
        let database = rusqlite::Connection::open(self.scratch.file("own.db")).unwrap();
        database.execute("DELETE FROM usage_records", []).unwrap();
        let client = redis::Client::open(self.redis.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        redis::cmd("DEL").arg("usage").exec(&mut connection).unwrap();
    }

    /// xorshift64: a seed in the output makes a round one that can be had again.
    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Gives the ids that a reporter has, and how often.
type LookUp<'a> = Box<dyn Fn() -> HashMap<String, u32> + 'a>;

/// Records of one request of the webhook.
const BATCH: usize = 200;

/// 200 streams at a time, and 300 requests a second.
const KINDS: [Kind; 2] = [
    Kind {
        count: 200,
        body: STREAM,
        fields: "x-mock-tokens: 20\r\nx-mock-gap-ms: 50\r\n",
        period: Duration::from_millis(1000),
    },
    Kind {
        count: 30,
        body: CHAT,
        fields: "x-mock-tokens: 5\r\n",
        period: Duration::from_millis(100),
    },
];

fn tally(ids: impl IntoIterator<Item = String>) -> HashMap<String, u32> {
    let mut times = HashMap::new();
    ids.into_iter().for_each(|id| *times.entry(id).or_default() += 1);
    times
}

/// An address at which nobody listens, and that nobody else is given while its process is away.
pub fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}
