//! Against real SQLite files. The servers are in the end-to-end tests.

use super::*;
use crate::base::id::RequestIds;
use crate::store::left;
use crate::usage::record::json::tests::any_record;
use crate::usage::record::{tests::record, UsageRecord};
use rusqlite::Connection;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::Arc;

const LIMIT: Duration = Duration::from_secs(5);

/// A folder that goes away.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("llmproxy-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }

    fn db(&self) -> PathBuf {
        self.0.join("made").join("usage.db")
    }

    fn table(&self) -> SqlTable {
        open_file("r", &self.db(), "usage_records")
    }

    /// A connection to a file with this table.
    fn with(&self, table: &str) -> Connection {
        std::fs::create_dir_all(self.db().parent().unwrap()).unwrap();
        let connection = Connection::open(self.db()).unwrap();
        connection.execute_batch(table).unwrap();
        connection
    }

    fn count(&self) -> u32 {
        let connection = Connection::open(self.db()).unwrap();
        let text = "SELECT count(*) FROM usage_records";
        connection.query_row(text, [], |row| row.get(0)).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn records(count: usize) -> Vec<UsageRecord> {
    let mut ids = RequestIds::new(7);
    (0..count).map(|_| UsageRecord { request_id: ids.next_id(), ..record() }).collect()
}

fn send(table: &mut SqlTable, records: &[UsageRecord]) -> Tried {
    table.send(&records.iter().map(UsageRecord::borrowed).collect::<Vec<_>>(), LIMIT)
}

/// Catches: a file that others may read, a row twice, a second start that makes the table anew.
#[test]
fn a_file_is_made_for_our_eyes_and_takes_each_record_once() {
    let folder = Folder::new("sqlite-once");
    let records = records(600);
    assert_eq!(send(&mut folder.table(), &records[..500]), Tried::Delivered);
    let mode = std::fs::metadata(folder.db()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(send(&mut folder.table(), &records[100..]), Tried::Delivered);
    assert_eq!(folder.count(), 600);
    let connection = Connection::open(folder.db()).unwrap();
    let text = "SELECT timestamp, is_stream, total_tokens, reasoning_tokens, status \
                FROM usage_records LIMIT 1";
    let row: (String, bool, i64, Option<i64>, String) = connection
        .query_row(text, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?)))
        .unwrap();
    let wanted = ("2026-01-14T10:30:00.007Z".to_owned(), true, 57, None, "complete".to_owned());
    assert_eq!(row, wanted);
    let mode: String = connection.pragma_query_value(None, "journal_mode", |r| r.get(0)).unwrap();
    assert_eq!(mode, "wal");
}

/// Catches: a time of writing that is that of the request, has another form than SQLite's own, or
/// stands still after the first batch.
#[test]
fn the_time_of_writing_is_as_if_sqlite_had_looked() {
    let folder = Folder::new("sqlite-written");
    let records = records(2);
    let mut table = folder.table();
    let connection = || Connection::open(folder.db()).unwrap();
    let now = |connection: &Connection| -> String {
        let text = format!("SELECT {}", statement::SQLITE_NOW);
        connection.query_row(&text, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(send(&mut table, &records[..1]), Tried::Delivered);
    let given = table.layout.as_ref().unwrap().columns.iter().any(|c| c.name == "created_at");
    assert!(given, "SQLite says otherwise what the default of the column is");
    let between = now(&connection());
    while now(&connection()) == between {
        std::thread::yield_now();
    }
    assert_eq!(send(&mut table, &records[1..]), Tried::Delivered);
    let after = now(&connection());
    let text = "SELECT created_at FROM usage_records ORDER BY id";
    let connection = connection();
    let mut asked = connection.prepare(text).unwrap();
    let rows = asked.query_map([], |row| row.get::<_, String>(0)).unwrap();
    let written: Vec<String> = rows.map(Result::unwrap).collect();
    assert!(written[0] <= between && between < written[1] && written[1] <= after, "{written:?}");
    assert_eq!(written[0].len(), between.len());
}

/// Catches: a table of an earlier program that is not filled, or filled twice though its index
/// would tell.
#[test]
fn a_table_that_is_there_gets_what_it_has() {
    let builtin = "CREATE TABLE usage_records (id INTEGER PRIMARY KEY AUTOINCREMENT, \
                   request_id TEXT, model TEXT NOT NULL, total_tokens INTEGER NOT NULL, \
                   endpoint TEXT, streaming BOOLEAN, created_at DATETIME NOT NULL)";
    let index = "CREATE INDEX i ON usage_records(request_id)";
    let pair = "CREATE UNIQUE INDEX i ON usage_records(request_id, model)";
    for (index, twice) in [("", 6), (index, 3), (pair, 3)] {
        let folder = Folder::new("sqlite-narrow");
        let connection = folder.with(&format!("{builtin}; {index}"));
        let mut records = records(3);
        records[0].usage = None;
        for _ in 0..2 {
            assert_eq!(send(&mut folder.table(), &records), Tried::Delivered);
        }
        assert_eq!(folder.count(), twice, "{index}");
        let text = "SELECT total_tokens, endpoint, streaming, created_at FROM usage_records \
                    ORDER BY id LIMIT 1";
        let row: (i64, String, bool, String) = connection
            .query_row(text, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
            .unwrap();
        let time = "2026-01-14 10:30:00.007+00:00".to_owned();
        assert_eq!(row, (0, "/v1/chat/completions".to_owned(), true, time));
    }
}

/// Catches: an index that refuses records that are sent twice, and gives them up so; and one that
/// is refused though it does no harm.
#[test]
fn an_index_by_which_an_id_cannot_be_found_is_refused() {
    let table = "CREATE TABLE usage_records (request_id TEXT, model TEXT, total_tokens INTEGER)";
    let unique = "; CREATE UNIQUE INDEX i ON usage_records";
    let records = records(3);
    for index in [
        "(lower(request_id))",
        "(model, substr(request_id, 1, 8))",
        "(request_id) WHERE total_tokens > 0",
    ] {
        let folder = Folder::new("sqlite-unusable");
        folder.with(&format!("{table}{unique} {index}"));
        let Tried::Again(said) = send(&mut folder.table(), &records) else { panic!("{index}") };
        assert!(said.contains("unique index i") && said.contains("request_id"), "{said}");
        assert_eq!(folder.count(), 0);
    }
    let whole = format!("{table}; CREATE UNIQUE INDEX w ON usage_records (request_id){unique}");
    for made in [
        format!("{whole} (request_id) WHERE total_tokens > 0"),
        format!("{whole} (lower(request_id))"),
        format!("{table}{unique} (request_id, lower(model))"),
    ] {
        let folder = Folder::new("sqlite-usable");
        folder.with(&made);
        for _ in 0..2 {
            assert_eq!(send(&mut folder.table(), &records), Tried::Delivered, "{made}");
        }
        assert_eq!(folder.count(), 3, "{made}");
    }
    // None of these is of the id, and nothing else tells of a second time.
    for index in [
        "i ON usage_records (total_tokens, coalesce(client_request_id, ''))",
        "request_id ON usage_records (total_tokens, lower(client_request_id))",
    ] {
        let folder = Folder::new("sqlite-others");
        let table = "CREATE TABLE usage_records \
                     (request_id TEXT, client_request_id TEXT, total_tokens INTEGER)";
        folder.with(&format!("{table}; CREATE UNIQUE INDEX {index}"));
        assert_eq!(send(&mut folder.table(), &records[..1]), Tried::Delivered, "{index}");
        assert_eq!(folder.count(), 1, "{index}");
    }
}

/// Catches: a batch that is half there after one row was refused; a table that does not fit and
/// stops its records from being tried again.
#[test]
fn a_bad_row_is_refused_and_a_bad_table_waits() {
    let folder = Folder::new("sqlite-bad");
    let text = "CREATE TABLE usage_records (request_id TEXT UNIQUE, \
                status_code INTEGER CHECK (status_code < 500), tenant TEXT NOT NULL)";
    let connection = folder.with(text);
    let mut table = folder.table();
    let mut records = records(3);
    let Tried::Again(cause) = send(&mut table, &records) else { panic!() };
    assert!(cause.contains("usage_records") && cause.contains("tenant"), "{cause}");
    connection.execute_batch("ALTER TABLE usage_records DROP COLUMN tenant").unwrap();
    records[1].status_code = 503;
    let Tried::Refused(cause) = send(&mut table, &records) else { panic!() };
    assert!(cause.contains("CHECK"), "{cause}");
    assert_eq!(folder.count(), 0);
    assert_eq!(send(&mut table, &records[2..]), Tried::Delivered);
    assert_eq!(folder.count(), 1);
}

/// Catches: a writer that waits for ever for another one, or gives its records up.
#[test]
fn a_locked_file_is_waited_for_and_then_later() {
    let folder = Folder::new("sqlite-locked");
    let records = records(2);
    let mut table = folder.table();
    assert_eq!(send(&mut table, &records[..1]), Tried::Delivered);
    let other = Connection::open(folder.db()).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let refs: Vec<_> = records.iter().map(UsageRecord::borrowed).collect();
    let tried = table.send(&refs, Duration::from_millis(50));
    assert!(matches!(tried, Tried::Again(_)), "{tried:?}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(send(&mut table, &records), Tried::Delivered);
    assert_eq!(folder.count(), 2);
}

/// A database that counts, and is lost when it is told.
#[derive(Default)]
struct Counted {
    open: bool,
    opened: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
    lost: Arc<AtomicBool>,
}

impl Connect for Counted {
    fn connect(&mut self, until: Instant) -> Result<(), Trouble> {
        left(until)?;
        if !std::mem::replace(&mut self.open, true) {
            self.opened.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.closed.fetch_add(1, Relaxed);
        }
    }
}

impl Database for Counted {
    fn columns(&mut self, _: &str, _: Instant) -> Result<Vec<FoundColumn>, Trouble> {
        let (name, type_name) = ("request_id".into(), "text".into());
        Ok(vec![FoundColumn { name, type_name, ..FoundColumn::default() }])
    }

    fn key(&mut self, _: &str, _: &str, _: Instant) -> Result<Key, Trouble> {
        Ok(Key::Unique)
    }

    fn make(&mut self, _: &[String], _: Instant) -> Result<(), Trouble> {
        panic!("the table is there")
    }

    fn insert(
        &mut self,
        _: &Layout,
        records: &[RecordRef<'_>],
        until: Instant,
    ) -> Result<(), Trouble> {
        left(until)?;
        assert!(!records.is_empty());
        match self.lost.swap(false, Relaxed) {
            true => Err(Trouble::Later("lost".to_owned())),
            false => Ok(()),
        }
    }
}

/// Catches: a connection that is kept longer than configured, given up for each batch, or kept
/// though it is broken; a try without time that does something.
#[test]
fn a_connection_lives_as_long_as_configured() {
    let (opened, closed, lost) = (
        Arc::<AtomicUsize>::default(),
        Arc::<AtomicUsize>::default(),
        Arc::<AtomicBool>::default(),
    );
    let open = |lifetime, idle, max_idle_conns| {
        opened.store(0, Relaxed);
        closed.store(0, Relaxed);
        let database = Counted {
            opened: Arc::clone(&opened),
            closed: Arc::clone(&closed),
            lost: Arc::clone(&lost),
            open: false,
        };
        let pool = SqlPool {
            max_open_conns: 1,
            max_idle_conns,
            conn_max_lifetime: lifetime,
            conn_max_idle_time: idle,
        };
        SqlTable::new("r", SqlDriver::Mysql, "t", pool, String::new(), Box::new(database))
    };
    let records = records(3);
    let (ever, moment) = (Duration::from_secs(3600), Duration::from_nanos(1));
    // Zero is no limit, as in Go.
    for (lifetime, idle, keep, opens) in [
        (ever, ever, 1, 1),
        (Duration::ZERO, Duration::ZERO, 1, 1),
        (moment, ever, 1, 3),
        (ever, moment, 1, 3),
        (ever, ever, 0, 3),
    ] {
        let mut table = open(lifetime, idle, keep);
        for record in &records {
            assert_eq!(table.send(&[record.borrowed()], LIMIT), Tried::Delivered);
        }
        assert_eq!(opened.load(Relaxed), opens, "{lifetime:?} {idle:?} {keep}");
    }
    let mut table = open(ever, ever, 1);
    lost.store(true, Relaxed);
    assert_eq!(send(&mut table, &records), Tried::Again("lost".to_owned()));
    assert_eq!(closed.load(Relaxed), 1);
    assert!(matches!(table.send(&[records[0].borrowed()], Duration::ZERO), Tried::Again(_)));
    assert_eq!(opened.load(Relaxed), 1);
    assert_eq!(send(&mut table, &records), Tried::Delivered);
    assert_eq!(opened.load(Relaxed), 2);
}

/// A table in whose columns a number given as a text is stored in every way there is.
const TYPES: &str = "CREATE TABLE usage_records (request_id TEXT UNIQUE, latency_ms, \
     ttft_ms BLOB, first_byte_ms TEXT, prompt_tokens REAL, completion_tokens NUMERIC, \
     total_tokens DECIMAL(10,2), cached_tokens DOUBLE PRECISION, reasoning_tokens VARCHAR(3), \
     audio_seconds JSON, retry_count ANY, request_bytes INT BLOB, response_bytes BIGINT NOT NULL, \
     events DATE, is_stream BOOLEAN, streaming TEXT, fallback_used BLOB, status INTEGER, \
     status_code BIT, timestamp BIGINT, created_at REAL, model INT, error NUMERIC)";
const STRICT: &str = "CREATE TABLE usage_records (request_id TEXT, latency_ms INTEGER, \
     ttft_ms ANY, first_byte_ms TEXT, is_stream INT, timestamp ANY, created_at TEXT) STRICT";

/// The rows of a table, as they are stored.
fn stored(connection: &Connection) -> Vec<Vec<(String, rusqlite::types::Value)>> {
    let mut asked = connection.prepare("SELECT * FROM usage_records").unwrap();
    let names: Vec<String> = asked.column_names().map(str::to_owned).collect();
    let made = ["id", "created_at"];
    let of_record = |name: &&String| names.len() < 30 || !made.contains(&name.as_str());
    let kinds = names.iter().filter(of_record).map(|name| format!("typeof({name}), {name}"));
    let text = kinds.collect::<Vec<_>>().join(", ");
    asked = connection.prepare(&format!("SELECT {text} FROM usage_records")).unwrap();
    let pairs = asked.column_count() / 2;
    let rows = asked.query_map([], |row| {
        (0..pairs).map(|at| Ok((row.get(2 * at)?, row.get(2 * at + 1)?))).collect()
    });
    rows.unwrap().map(Result::unwrap).collect()
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]

    /// Catches: a value that is stored as another one, or with another type, since numbers are no
    /// longer given as texts.
    #[test]
    fn any_row_is_stored_as_if_it_were_texts(
        some in proptest::collection::vec(any_record(), 1..5),
        again in proptest::collection::vec(0..4_usize, 8),
        made in proptest::sample::select(vec!["", TYPES, STRICT]),
    ) {
        // Rows that are the same but for their ids, next to each other and apart.
        let mut ids = RequestIds::new(7);
        let all: Vec<UsageRecord> = again
            .iter()
            .map(|i| UsageRecord { request_id: ids.next_id(), ..some[i % some.len()].clone() })
            .collect();
        let folder = Folder::new("sqlite-types");
        if !made.is_empty() {
            folder.with(made);
        }
        let mut table = folder.table();
        for batch in all.chunks(3) {
            proptest::prop_assert_eq!(send(&mut table, batch), Tried::Delivered);
        }
        let layout = table.layout.as_ref().unwrap();
        let texts = Connection::open_in_memory().unwrap();
        let ours = statement::create(SqlDriver::Sqlite, "usage_records", &[]).join(";");
        texts.execute_batch(if made.is_empty() { &ours } else { made }).unwrap();
        for record in &all {
            let row = layout.row(&record.borrowed());
            let row = rusqlite::params_from_iter(row.iter().map(Option::as_deref));
            texts.execute(&statement::insert(layout, 1), row).unwrap();
        }
        let written = Connection::open(folder.db()).unwrap();
        proptest::prop_assert_eq!(stored(&written), stored(&texts));
    }
}
