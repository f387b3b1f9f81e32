//! Against a real server where there is one on this machine.

use super::*;
use crate::base::id::RequestId;
use crate::base::secret::Secret;
use crate::config::plan::{RecordFormat, Redis, RedisPool};
use crate::usage::record::json::tests::any_record;
use crate::usage::record::{tests::record, UsageRecord};
use ::redis::{cmd, Client};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const PATIENCE: Duration = Duration::from_secs(10);

/// A server that ends with its owner.
struct Server {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl Server {
    /// `None` where the program is not installed.
    fn start(more: &[&str]) -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Server::start_at(port, more)
    }

    fn start_at(port: u16, more: &[&str]) -> Option<Server> {
        let folder = std::env::temp_dir().join(format!("llmproxy-redis-{port}"));
        std::fs::create_dir_all(&folder).unwrap();
        // Debian's redis-tools has the server too: it goes by the name under which it is started.
        let tools = PathBuf::from("/usr/bin/redis-check-rdb");
        let mut program = PathBuf::from("redis-server");
        if tools.exists() {
            program = folder.join("redis-server");
            // It is there already when a server comes back.
            let _ = std::os::unix::fs::symlink(tools, &program);
        }
        let started = Command::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string(), "--dir"])
            .arg(&folder)
            .args(more)
            .stdout(Stdio::null())
            .spawn();
        let server = match started {
            Ok(process) => Server { process, folder, port },
            Err(_) => {
                // Where scripts/test has installed it, nothing may go untested.
                assert!(std::env::var_os("LLMPROXY_TEST_CLIENTS").is_none(), "no redis-server");
                eprintln!("redis-server is not installed: not tested");
                return None;
            }
        };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "it does not listen");
            std::thread::yield_now();
        }
        Some(server)
    }

    fn stream(&self, password: &str, max_len: u64) -> Stream {
        stream(self.port, password, max_len)
    }

    fn ask<T: ::redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_connection().unwrap();
        let mut asked = cmd(command[0]);
        asked.arg(&command[1..]);
        asked.query(&mut connection).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn stream(port: u16, password: &str, max_len: u64) -> Stream {
    let pool = RedisPool {
        pool_size: 1,
        min_idle_conns: 0,
        dial_timeout: PATIENCE,
        read_timeout: PATIENCE,
        write_timeout: PATIENCE,
    };
    let addr = format!("127.0.0.1:{port}");
    Stream::new(plan::RedisReporter {
        redis: Redis {
            addr,
            username: String::new(),
            password: Secret::new(password),
            db: 0,
            tls: false,
            ca_file: None,
            pool,
        },
        stream: "usage".into(),
        max_len,
        counters: "count".into(),
    })
}

fn with_id(id: &str) -> UsageRecord {
    let request_id = RequestId::from_client(id.as_bytes()).unwrap();
    UsageRecord { request_id, api_key: Some("sk-l...6789".into()), ..record() }
}

fn send(stream: &mut Stream, ids: &[&str]) -> Tried {
    let records: Vec<UsageRecord> = ids.iter().map(|id| with_id(id)).collect();
    stream.send(&records.iter().map(UsageRecord::borrowed).collect::<Vec<_>>(), PATIENCE)
}

/// Catches: a field that is missing, quoted or null; a counter of the wrong day, key or sum.
#[test]
fn a_record_is_an_entry_and_counts_once() {
    let Some(server) = Server::start(&[]) else { return };
    let mut stream = server.stream("", 1000);
    assert_eq!(send(&mut stream, &["a", "b"]), Tried::Delivered);
    assert_eq!(send(&mut stream, &["b", "c"]), Tried::Delivered, "b came through, nobody knew");
    assert_eq!(send(&mut server.stream("", 1000), &["c", "a"]), Tried::Delivered);
    type Entries = Vec<(String, BTreeMap<String, String>)>;
    let entries: Entries = server.ask(&["XRANGE", "usage", "-", "+"]);
    let ids: Vec<&str> = entries.iter().map(|(_, f)| f["request_id"].as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let first = &entries[0].1;
    let usage = record().usage.unwrap();
    assert_eq!(first["model"], "org/m");
    assert_eq!(first["total_tokens"], usage.total_tokens.to_string());
    assert!(first.values().all(|value| value != "null") && !first.contains_key("error"));
    let stamp = Stamp::of(record().timestamp_ms).unwrap();
    let (day, hour) = (stamp.day(), stamp.hour());
    let counted: BTreeMap<String, u64> =
        server.ask(&["HGETALL", &format!("count:{day}:sk-l...6789")]);
    let expected = [
        ("completion_tokens", usage.completion_tokens * 3),
        ("prompt_tokens", usage.prompt_tokens * 3),
        ("requests", 3),
        ("total_tokens", usage.total_tokens * 3),
    ];
    assert_eq!(counted, expected.map(|(name, n)| (name.to_owned(), n)).into());
    let ttl: i64 = server.ask(&["TTL", &format!("usage:seen:{hour}")]);
    assert!((1..=SEEN_SECONDS as i64).contains(&ttl), "{ttl}");
}

/// Catches: a stream that grows for ever.
#[test]
fn the_stream_keeps_about_as_many_as_configured() {
    let Some(server) = Server::start(&[]) else { return };
    let mut stream = server.stream("", 100);
    for batch in 0..4 {
        let ids: Vec<String> = (0..BATCH_RECORDS).map(|i| format!("{batch}-{i}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        assert_eq!(send(&mut stream, &ids), Tried::Delivered);
    }
    let length: u64 = server.ask(&["XLEN", "usage"]);
    assert!((100..400).contains(&length), "{length}");
}

/// Catches: a record blamed for a server that is away; a connection that is not made anew.
#[test]
fn a_server_that_comes_back_is_found() {
    let Some(server) = Server::start(&[]) else { return };
    let port = server.port;
    let mut stream = server.stream("", 0);
    assert_eq!(send(&mut stream, &["a"]), Tried::Delivered);
    drop(server);
    let Tried::Again(said) = send(&mut stream, &["b"]) else { panic!("it is away") };
    assert!(said.contains("refused"), "{said}");
    let Some(server) = Server::start_at(port, &[]) else { return };
    assert_eq!(send(&mut stream, &["b"]), Tried::Delivered);
    drop(server);
    let Some(server) = Server::start_at(port, &[]) else { return };
    assert_eq!(send(&mut stream, &["c"]), Tried::Delivered, "within one try");
    let length: u64 = server.ask(&["XLEN", "usage"]);
    assert_eq!(length, 1);
}

/// Catches: a server's state that costs records, and a password in an error.
#[test]
fn a_server_that_is_not_well_is_asked_again() {
    let Some(server) = Server::start(&["--requirepass", "s3cret"]) else { return };
    for (wrong, cause) in
        [("", "it answered unauthenticated"), ("wr0ng", "it refuses the user or the password")]
    {
        let tried = send(&mut server.stream(wrong, 0), &["a"]);
        assert_eq!(tried, Tried::Again(cause.into()));
    }
    assert_eq!(send(&mut server.stream("s3cret", 0), &["a"]), Tried::Delivered);
    let Some(server) = Server::start(&[]) else { return };
    let mut stream = server.stream("", 0);
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let tried = send(&mut stream, &["a"]);
    assert_eq!(tried, Tried::Again("it answered OOM".into()));
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let _: String = server.ask(&["SET", "usage", "a text"]);
    let tried = send(&mut stream, &["a"]);
    assert_eq!(tried, Tried::Again("it answered WRONGTYPE".into()));
    let _: u64 = server.ask(&["DEL", "usage"]);
    assert_eq!(send(&mut stream, &["a"]), Tried::Delivered);
}

/// Catches: a silent server that holds the lane for longer than its try may take.
#[test]
fn a_silent_server_costs_one_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = stream(silent.local_addr().unwrap().port(), "x", 0);
    let start = Instant::now();
    let record = with_id("a");
    let tried = stream.send(&[record.borrowed()], Duration::from_millis(100));
    assert_eq!(tried, Tried::Again("timed out".into()));
    assert!(start.elapsed() < PATIENCE);
}

/// Catches: values that are not what a receiver of flat fields can read.
#[test]
fn fields_are_plain_texts() {
    let body = Some(br#"{"temperature":0.10000000000000000001}"#.to_vec());
    let record = UsageRecord { request_body: body, ..with_id("a") };
    let fields: BTreeMap<String, String> = fields(&record.borrowed()).into_iter().collect();
    assert_eq!(fields["request_id"], "a");
    assert_eq!(fields["is_stream"], record.is_stream.to_string());
    assert_eq!(fields["request_body"], r#"{"temperature":0.10000000000000000001}"#);
    assert!(!fields.contains_key("usage"));
}

/// Catches: a server that has lost the script, or lets nobody run one by its hash, and whose
/// records wait for ever; a text that is sent with every batch.
#[test]
fn a_server_gets_the_text_of_the_script_when_it_wants_it() {
    let Some(server) = Server::start(&[]) else { return };
    let mut stream = server.stream("", 0);
    let calls = |name: &str| {
        let stats: String = server.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:")));
        let count = line.and_then(|line| line.split(['=', ',']).nth(1)).unwrap_or("0");
        count.parse::<u64>().unwrap()
    };
    for id in ["a", "b", "c"] {
        assert_eq!(send(&mut stream, &[id]), Tried::Delivered);
    }
    assert_eq!((calls("eval"), calls("evalsha")), (1, 3));
    let _: String = server.ask(&["SCRIPT", "FLUSH"]);
    assert_eq!(send(&mut stream, &["d"]), Tried::Delivered);
    assert_eq!((calls("eval"), calls("evalsha")), (2, 4));
    let _: String = server.ask(&["ACL", "SETUSER", "default", "-evalsha"]);
    for id in ["e", "f"] {
        assert_eq!(send(&mut stream, &[id]), Tried::Delivered);
    }
    assert_eq!(calls("eval"), 4);
    let length: u64 = server.ask(&["XLEN", "usage"]);
    assert_eq!(length, 6);
}

/// All that a record says, as names and texts, by way of its JSON.
fn reference(record: &RecordRef<'_>) -> Vec<(String, String)> {
    let json = record.to_json(RecordFormat::Flat);
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&json).unwrap();
    let text = |(name, value): (String, &RawValue)| match value.get() {
        "null" => None,
        // A text without its quotes; anything else as it stands.
        raw => Some((name, serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned()))),
    };
    fields.into_iter().filter_map(text).collect()
}

/// What the script gets of a record.
fn fields(record: &RecordRef<'_>) -> Vec<(String, String)> {
    let mut call = Call::new();
    entry::push_fields(&mut call, record);
    let arguments = call.read();
    assert_eq!(arguments[0].parse(), Ok(arguments.len() - 1));
    arguments[1..].chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
}

proptest::proptest! {
    /// Catches: a field that is another one, in another place, or quoted.
    #[test]
    fn any_record_has_the_fields_of_its_flat_form(record in any_record()) {
        let record = record.borrowed();
        proptest::prop_assert_eq!(fields(&record), reference(&record));
    }

    /// Catches: a set or a counter of another day, hour or key, and a count that is another one.
    #[test]
    fn any_record_is_counted_where_it_belongs(record in any_record()) {
        let mut stream = stream(1, "", 9);
        stream.prepare(&[record.borrowed()]);
        let time = i64::try_from(record.timestamp_ms).ok();
        let time = time.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let time = time.unwrap_or_default();
        let who = record.api_key.as_deref().or(record.user_id.as_deref()).unwrap_or("-");
        let usage = record.usage.unwrap_or_default();
        let wanted = [
            "1".to_owned(),
            "usage".to_owned(),
            "9".to_owned(),
            SEEN_SECONDS.to_string(),
            record.request_id.as_str().to_owned(),
            time.strftime("usage:seen:%Y-%m-%dT%H").to_string(),
            format!("count:{}:{who}", time.strftime("%Y-%m-%d")),
            usage.prompt_tokens.to_string(),
            record.borrowed().completion_tokens().unwrap_or(0).to_string(),
            usage.total_tokens.to_string(),
        ];
        proptest::prop_assert_eq!(&stream.call.read()[..wanted.len()], &wanted[..]);
    }
}
