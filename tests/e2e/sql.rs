//! Records in SQL, against real servers: what is written, each once, whatever happens to them.

use crate::clients::is_there;
use crate::harness::config::SPOOL;
use crate::harness::scratch::Scratch;
use crate::harness::services::Rows;
use crate::harness::{await_until, proxy, Config, Engine, MariaDb, Postgres, Redis, SOON};
use crate::rig::CHAT;
use llmproxy::base::id::{RequestId, RequestIds};
use llmproxy::llm::tokens::Usage;
use llmproxy::usage::record::UsageRecord;
use llmproxy::usage::reporter::{self, Reporter, Tried};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Of one try.
pub const LIMIT: Duration = Duration::from_secs(10);

/// One of the two products.
pub trait Server {
    const DRIVER: &'static str;
    fn is_there() -> bool;
    fn start() -> Self;
    fn dsn(&self) -> String;
    fn dsn_with(&self, password: &str, database: &str) -> String;
    fn query(&self, statement: &str) -> Rows;
    fn stop(&mut self);
    fn kill(&mut self);
    fn start_again(&mut self);
    fn freeze(&self);
    fn thaw(&self);

    /// One text.
    fn text(&self, statement: &str) -> String {
        self.query(statement)[0][0].clone().unwrap()
    }
}

macro_rules! server {
    ($name:ident, $driver:literal) => {
        impl Server for $name {
            const DRIVER: &'static str = $driver;
            fn is_there() -> bool {
                $name::is_there()
            }
            fn start() -> Self {
                $name::start()
            }
            fn dsn(&self) -> String {
                self.dsn()
            }
            fn dsn_with(&self, password: &str, database: &str) -> String {
                self.dsn_with(password, database)
            }
            fn query(&self, statement: &str) -> Rows {
                self.query(statement)
            }
            fn stop(&mut self) {
                self.stop();
            }
            fn kill(&mut self) {
                self.kill();
            }
            fn start_again(&mut self) {
                self.start_again();
            }
            fn freeze(&self) {
                self.freeze();
            }
            fn thaw(&self) {
                self.thaw();
            }
        }
    };
}

server!(MariaDb, "mysql");
server!(Postgres, "postgres");

/// The reporter that a file with this address means.
pub fn open(driver: &str, dsn: &str) -> std::io::Result<Box<dyn Reporter>> {
    open_table(driver, dsn, "usage_records")
}

pub fn open_table(driver: &str, dsn: &str, table: &str) -> std::io::Result<Box<dyn Reporter>> {
    let scratch = Scratch::new();
    let config = scratch.write(
        "config.yaml",
        format!(
            "backends: [{{url: 'http://a'}}]\nusage: {{reporters: [{{name: rows, type: database, \
             database: {{driver: {driver}, table: {table}, dsn: \"{dsn}\"}}}}]}}\n",
            dsn = dsn.replace('\\', "\\\\").replace('"', "\\\"")
        ),
    );
    let loaded = llmproxy::config::load_file(&config, &|_| None).unwrap();
    reporter::open(&loaded.plan.usage.reporters[0])
}

pub fn rows<S: Server>(server: &S) -> Box<dyn Reporter> {
    open(S::DRIVER, &server.dsn()).unwrap()
}

pub fn send(reporter: &mut Box<dyn Reporter>, records: &[UsageRecord]) -> Tried {
    reporter.send(&records.iter().map(UsageRecord::borrowed).collect::<Vec<_>>(), LIMIT)
}

pub fn records(count: usize) -> Vec<UsageRecord> {
    let mut ids = RequestIds::new(rand());
    let record = || UsageRecord {
        request_id: ids.next_id(),
        timestamp_ms: 1_768_386_600_007,
        model: Some("org/m".into()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        backend: Some("vllm".into()),
        backend_url: Some("http://vllm:8000".into()),
        status_code: 200,
        usage: Some(Usage {
            prompt_tokens: 15,
            completion_tokens: 42,
            total_tokens: 57,
            cached_tokens: Some(8),
            reasoning_tokens: None,
        }),
        latency_ms: 1234,
        ..UsageRecord::default()
    };
    std::iter::repeat_with(record).take(count).collect()
}

fn rand() -> u64 {
    getrandom::u64().unwrap()
}

/// Catches: a harness whose servers lose what they were told over a stop, or do not come back.
#[test]
fn the_servers_of_the_tests_keep_their_data_over_a_stop() {
    if !is_there("servers of the tests", Redis::is_there()) {
        return;
    }
    let mut redis = Redis::start();
    let said = |redis: &Redis, word: &str| {
        let mut stream = TcpStream::connect(redis.addr()).unwrap();
        stream.write_all(word.as_bytes()).unwrap();
        let mut said = vec![0; 100];
        let n = stream.read(&mut said).unwrap();
        String::from_utf8_lossy(&said[..n]).into_owned()
    };
    assert_eq!(said(&redis, "SET a 7\r\n"), "+OK\r\n");
    redis.kill();
    redis.start_again();
    assert_eq!(said(&redis, "GET a\r\n"), "$1\r\n7\r\n");
}

#[test]
fn mariadb_has_each_record_once_with_all_it_says() {
    has_each_record_once::<MariaDb>("JSON_VALUE(request_body, '$.a')");
}

#[test]
fn postgres_has_each_record_once_with_all_it_says() {
    has_each_record_once::<Postgres>("request_body->>'a'");
}

/// Catches: a column that is empty or cut, a letter that is lost, zero instead of NULL, a second
/// start that makes the table anew, a record that is there twice.
fn has_each_record_once<S: Server>(member: &str) {
    if !is_there(S::DRIVER, S::is_there()) {
        return;
    }
    let server = S::start();
    let mut records = records(600);
    let odd = &mut records[0];
    odd.client_request_id = RequestId::from_client(b"theirs");
    odd.model = Some("größer/🦀\0".into());
    odd.api_key = Some("k".repeat(200));
    odd.user_id = Some("u'; DROP TABLE usage_records; --".into());
    odd.latency_ms = u64::MAX;
    odd.request_body = Some(b"{\"a\": \"\xf0\x9f\xa6\x80\", \"n\": 0.70}".to_vec());
    records[1].usage = None;
    records[1].request_body = Some(b"{\"a\":\"\\u0000\"}".to_vec());
    records[2].request_body = Some(b"no \xff JSON".to_vec());

    let named = server.dsn().replace("127.0.0.1", "localhost");
    let mut first = open(S::DRIVER, &named).unwrap();
    assert_eq!(send(&mut first, &records[..400]), Tried::Delivered);
    let mut second = rows(&server);
    assert_eq!(send(&mut second, &records[100..]), Tried::Delivered);
    assert_eq!(send(&mut second, &records[..1]), Tried::Delivered);
    let counts =
        "SELECT count(*), count(DISTINCT request_id), sum(total_tokens) FROM usage_records";
    let all = |texts: &[&str]| texts.iter().map(|t| Some((*t).to_owned())).collect::<Vec<_>>();
    assert_eq!(server.query(counts), [all(&["600", "600", "34143"])]);

    let of = |columns: &str, index: usize| {
        let id = records[index].request_id.as_str();
        server.query(&format!("SELECT {columns} FROM usage_records WHERE request_id = '{id}'"))
    };
    let long = "k".repeat(128);
    assert_eq!(
        of("client_request_id, model, api_key, user_id, latency_ms, path, endpoint, status", 0),
        [all(&[
            "theirs",
            "größer/🦀\u{fffd}",
            &long,
            "u'; DROP TABLE usage_records; --",
            "9223372036854775807",
            "/v1/chat/completions",
            "/v1/chat/completions",
            "complete",
        ])]
    );
    let body = of(&format!("request_body, {member}"), 0);
    assert_eq!(body, [all(&["{\"a\": \"🦀\", \"n\": 0.70}", "🦀"])]);
    let none: Vec<Option<String>> = vec![None; 4];
    let tokens = "prompt_tokens, completion_tokens, total_tokens, cached_tokens";
    assert_eq!(of(tokens, 1), [none]);
    assert_eq!(of(tokens, 2), [all(&["15", "42", "57", "8"])]);
    assert_eq!(of("request_body", 2), [all(&["\"no \u{fffd} JSON\""])]);
    let time = server.text("SELECT min(timestamp) FROM usage_records");
    assert!(time.starts_with("2026-01-14 10:30:00.007"), "{time}");
    // When it was written is told by the database's own clock.
    assert_ne!(server.text("SELECT min(created_at) FROM usage_records")[..10], time[..10]);
}

#[test]
fn mariadb_goes_away_and_comes_back_and_nothing_is_lost() {
    goes_away_and_comes_back::<MariaDb>();
}

#[test]
fn postgres_goes_away_and_comes_back_and_nothing_is_lost() {
    goes_away_and_comes_back::<Postgres>();
}

/// Catches: a batch that is lost or there twice when its connection breaks, a reporter that never
/// connects again, one that waits for ever for a server that is silent.
fn goes_away_and_comes_back<S: Server>() {
    if !is_there(S::DRIVER, S::is_there()) {
        return;
    }
    let mut server = S::start();
    let mut reporter = rows(&server);
    let records = records(10_000);
    for (number, batch) in records.chunks(500).enumerate() {
        match number {
            5 => server.stop(),
            10 => server.kill(),
            15 => server.freeze(),
            _ => {}
        }
        if number % 5 == 0 && number > 0 {
            let batch: Vec<_> = batch.iter().map(UsageRecord::borrowed).collect();
            let started = Instant::now();
            let tried = reporter.send(&batch, Duration::from_secs(1));
            assert!(matches!(tried, Tried::Again(_)), "{number}: {tried:?}");
            let waited = started.elapsed();
            assert!(waited < Duration::from_secs(8), "{number}: {waited:?}");
            if number == 15 {
                server.thaw();
            } else {
                server.start_again();
            }
        }
        // The connection from before is broken: once more is what the caller does.
        let mut tried = send(&mut reporter, batch);
        if matches!(tried, Tried::Again(_)) {
            tried = send(&mut reporter, batch);
        }
        assert_eq!(tried, Tried::Delivered, "{number}");
    }
    let counts = server.query("SELECT count(*), count(DISTINCT request_id) FROM usage_records");
    assert_eq!(counts, [vec![Some("10000".to_owned()); 2]]);
}

/// Catches: tables of earlier programs that are not filled or filled wrongly; a record that no
/// table takes and that is not refused by itself; a table that is not understood and says nothing.
#[test]
fn mariadb_fills_the_table_that_is_there() {
    if !is_there("mysql", MariaDb::is_there()) {
        return;
    }
    let server = MariaDb::start();
    // Everything that old tables have: old character sets, narrow columns, NOT NULL.
    server.query(
        "CREATE TABLE usage_records (id INT AUTO_INCREMENT PRIMARY KEY, \
         request_id VARCHAR(64) NOT NULL, api_key VARCHAR(8) NOT NULL, \
         model VARCHAR(64) CHARACTER SET utf8mb3 NOT NULL, user_id VARCHAR(64), \
         prompt_tokens INT NOT NULL, endpoint TINYTEXT CHARACTER SET utf8mb4, \
         streaming TINYINT(1), status_code SMALLINT, request_body TEXT, \
         created_at TIMESTAMP NOT NULL DEFAULT '2000-01-01 00:00:00', \
         both_names VARCHAR(80) AS (concat(model, user_id)), KEY (request_id))",
    );
    let mut records = records(2);
    records[0].usage = None;
    records[0].model = Some("a🦀ö".into());
    records[0].user_id = Some("ö🦀".into());
    records[0].api_key = Some("0123456789".into());
    records[0].path = "ö".repeat(200);
    records[0].request_body = Some(format!("{{\"a\":\"{}\"}}", "x".repeat(70_000)).into());
    for _ in 0..2 {
        assert_eq!(send(&mut rows(&server), &records), Tried::Delivered);
    }
    let row = server.query(
        "SELECT count(*) OVER (), api_key, model, user_id, prompt_tokens, length(endpoint), \
         streaming, status_code, length(request_body) < 65536 AND json_valid(request_body), \
         created_at = FROM_UNIXTIME(1768386600) FROM usage_records ORDER BY id LIMIT 1",
    );
    let wanted = ["2", "01234567", "a\u{fffd}ö", "??", "0", "254", "0", "200", "1", "1"];
    let row: Vec<_> = row[0].iter().map(|cell| cell.as_deref().unwrap()).collect();
    assert_eq!(row, wanted);

    let mut reporter = rows(&server);
    let mut refused = records.clone();
    refused.iter_mut().for_each(|record| record.request_id = RequestIds::new(rand()).next_id());
    refused[0].api_key = Some("other".into());
    refused[1].status_code = 65_000;
    let Tried::Refused(cause) = send(&mut reporter, &refused) else { panic!() };
    assert!(cause.contains("status_code"), "{cause}");
    assert_eq!(server.text("SELECT count(*) FROM usage_records"), "2", "all or none");
    assert_eq!(send(&mut reporter, &refused[..1]), Tried::Delivered);

    // A row that another key of the table refuses is none that is there.
    server.query("ALTER TABLE usage_records DROP KEY request_id, ADD UNIQUE (request_id)");
    server.query("ALTER TABLE usage_records ADD UNIQUE (api_key)");
    let mut reporter = rows(&server);
    assert_eq!(send(&mut reporter, &refused[..1]), Tried::Delivered);
    let mut other = self::records(1);
    other[0].api_key = records[0].api_key.clone();
    let tried = send(&mut reporter, &other);
    assert!(matches!(tried, Tried::Refused(_)), "{tried:?}");

    server.query("ALTER TABLE usage_records ADD COLUMN tenant INT NOT NULL");
    let mut reporter = rows(&server);
    let Tried::Again(cause) = send(&mut reporter, &records) else { panic!() };
    assert!(cause.contains("usage_records") && cause.contains("tenant"), "{cause}");
    server.query("ALTER TABLE usage_records ALTER COLUMN tenant SET DEFAULT 0");
    assert_eq!(send(&mut reporter, &records), Tried::Delivered);
}

/// Catches: as above, with the types that only PostgreSQL has, and a schema.
#[test]
fn postgres_fills_the_table_that_is_there() {
    if !is_there("postgres", Postgres::is_there()) {
        return;
    }
    let server = Postgres::start();
    server.query(
        "CREATE TABLE usage_records (id SERIAL PRIMARY KEY, request_id TEXT, \
         api_key VARCHAR(8) NOT NULL, model CHAR(5), user_id VARCHAR(64), \
         prompt_tokens INTEGER NOT NULL, timestamp TIMESTAMP, streaming BOOLEAN, \
         status_code SMALLINT, status INTEGER, request_body JSONB, \
         created_at DOUBLE PRECISION NOT NULL, \
         twice INTEGER GENERATED ALWAYS AS (prompt_tokens * 2) STORED)",
    );
    let mut records = records(2);
    records[0].model = Some("größer".into());
    records[0].api_key = Some("0123456789".into());
    records[0].request_body = Some(b"{\"a\":\"\\u0000\"}".to_vec());
    records[1].usage = None;
    records[1].request_body = Some(b"{\"a\": 1}".to_vec());
    assert_eq!(send(&mut rows(&server), &records), Tried::Delivered);
    let found = server.query(
        "SELECT api_key, model, prompt_tokens, timestamp, streaming, status, request_body, \
         round(created_at), twice FROM usage_records ORDER BY id",
    );
    let row = |index: usize| -> Vec<&str> {
        found[index].iter().map(|cell| cell.as_deref().unwrap()).collect()
    };
    let time = "2026-01-14 10:30:00.007";
    let body = "\"{\\\"a\\\":\\\"\\\\u0000\\\"}\"";
    assert_eq!(row(0), ["01234567", "größe", "15", time, "f", "200", body, "1768386600", "30"]);
    assert_eq!(row(1)[..3], ["", "org/m", "0"]);
    assert_eq!(row(1)[6], "{\"a\": 1}");

    // Without any index, a record that is sent again is there again; with one it is not.
    for (index, count) in [("", "4"), ("CREATE INDEX i ON usage_records (request_id)", "4")] {
        server.query(index);
        assert_eq!(send(&mut rows(&server), &records), Tried::Delivered);
        assert_eq!(server.text("SELECT count(*) FROM usage_records"), count);
    }
    let mut reporter = rows(&server);
    let mut refused = self::records(2);
    refused[1].status_code = 65_000;
    let Tried::Refused(cause) = send(&mut reporter, &refused) else { panic!() };
    assert!(cause.contains("smallint"), "{cause}");
    assert_eq!(send(&mut reporter, &refused[..1]), Tried::Delivered);
    assert_eq!(server.text("SELECT count(*) FROM usage_records"), "5");
}

/// Catches: a gateway that does not write what it metered, and a tool that does not find it or
/// disturbs the gateway beside it.
#[test]
fn what_was_metered_is_in_the_store_and_in_the_table() {
    if !is_there("mysql", MariaDb::is_there()) {
        return;
    }
    let server = MariaDb::start();
    let scratch = Scratch::new();
    let db = scratch.file("usage.db");
    let yaml = Config::backend_at("http://127.0.0.1:1")
        .section(format!(
            "usage: {{reporters: [{{type: builtin, builtin: {{path: {}}}}}, \
             {{type: database, database: {{driver: mysql, dsn: '{}'}}}}]}}",
            db.display(),
            server.dsn()
        ))
        .yaml();
    let engine = Engine::start(&[]);
    let spool = scratch.file("spool").to_string_lossy().into_owned();
    let config = scratch.write(
        "config.yaml",
        yaml.replace("http://127.0.0.1:1", &engine.url()).replace(SPOOL, &spool),
    );
    let config = config.to_string_lossy().into_owned();
    let usage = |more: &[&str]| {
        let args: Vec<&str> = ["usage", "--config", &config].iter().chain(more).copied().collect();
        proxy::llmproxy(&args)
    };
    let early = usage(&[]);
    assert!(early.code == Some(0) && early.stdout.contains("total"), "{early:?}");
    assert!(early.stderr.contains("no records yet"), "{early:?}");

    let proxy = proxy::Proxy::start_with(&["--config", &config], Scratch::new());
    for _ in 0..3 {
        let knobs = "x-mock-usage: 31,17\r\n";
        let answer = proxy.connect().post("/v1/chat/completions", knobs, CHAT);
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    let count = "SELECT count(*) FROM usage_records WHERE total_tokens = 48";
    let there = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'usage_records'";
    await_until("rows in MariaDB", SOON, || server.text(there) == "1" && server.text(count) == "3");
    await_until("rows in the store", SOON, || {
        let ran = usage(&["--by", "model", "--csv", "--since", "1h"]);
        ran.stdout.lines().nth(1).is_some_and(|line| line.starts_with("m,3,0,0,93,51,144,"))
    });
    let json = usage(&["--by", "status", "--json", "--until", "2020-01-01"]);
    assert_eq!((json.code, json.stdout.trim()), (Some(0), "[]"));
    let db = db.to_string_lossy();
    let table = proxy::llmproxy(&["usage", "--db", &db, "--by", "backend"]);
    assert!(table.stdout.lines().last().unwrap().starts_with("total"), "{table:?}");
    let wrong = proxy::llmproxy(&["usage", "--db", &db, "--since", "yesterday"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.stderr.contains("yesterday") && wrong.stderr.contains("7d"), "{wrong:?}");
}
