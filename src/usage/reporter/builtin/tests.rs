use super::*;
use crate::usage::record::Outcome;
use crate::usage::record::{tests::record, UsageRecord};
use crate::usage::reporter::sql::tests::{records, Folder};
use std::time::Instant;

/// What takes an idle machine an instant takes no longer than that on a busy one.
const BUSY: Duration = Duration::from_secs(300);

fn count(path: &Path) -> usize {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(BUSY).unwrap();
    let text = format!("SELECT count(*) FROM {TABLE}");
    connection.query_row(&text, [], |row| row.get::<_, i64>(0)).unwrap() as usize
}

/// Catches: records that stay for ever, new ones that are deleted, a file that never shrinks, a
/// thread that outlives its reporter.
#[test]
fn old_records_go_away_and_new_ones_stay() {
    let folder = Folder::new("builtin");
    let path = folder.0.join("usage.db");
    let plan = BuiltinReporter { path: path.clone(), retention_days: 0 };
    // More than one step deletes.
    let mut all = records(RETENTION_ROWS_MAX * 2 + 50);
    let now = unix_ms();
    for (index, record) in all.iter_mut().enumerate() {
        let age = if index < 40 { DAY_MS } else { 3 * DAY_MS };
        record.timestamp_ms = now - age;
        record.request_body = Some(vec![b'1'; 200]);
    }
    let mut store = Builtin::open("b", &plan).unwrap();
    for batch in all.chunks(500) {
        let batch: Vec<_> = batch.iter().map(UsageRecord::borrowed).collect();
        assert_eq!(store.send(&batch, BUSY), Tried::Delivered);
    }
    drop(store);
    let size = std::fs::metadata(&path).unwrap().len();
    assert_eq!(count(&path), all.len());

    let started = Instant::now();
    let store = Builtin::open("b", &BuiltinReporter { retention_days: 2, ..plan }).unwrap();
    while count(&path) > 40 || std::fs::metadata(&path).unwrap().len() > size / 2 {
        assert!(started.elapsed() < BUSY, "{} stay", count(&path));
        std::thread::park_timeout(Duration::from_millis(10));
    }
    drop(store);
    assert_eq!(count(&path), 40);
}

/// Catches: a retention that fails on a file without a table, or on the table of another program.
#[test]
fn files_of_others_are_kept_clean_too() {
    let folder = Folder::new("builtin-old");
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("usage.db");
    let connection = Connection::open(&path).unwrap();
    let store = Store { reporter: "b".into(), path: path.clone(), days: 1 };
    assert_eq!(store.clean(&|_| true), Ok(0));
    let text = format!("CREATE TABLE {TABLE} (request_id TEXT, created_at DATETIME)");
    connection.execute_batch(&text).unwrap();
    let mut table = sql::open_file("b", &path, TABLE);
    let new = UsageRecord { timestamp_ms: unix_ms(), ..record() };
    assert_eq!(table.send(&[record().borrowed(), new.borrowed()], PATIENCE), Tried::Delivered);
    assert_eq!(store.clean(&|_| true), Ok(1));
    assert_eq!(count(&path), 1);
}

/// Catches: a record with tokens whose place one of the same id without them takes. After a kill a
/// request may be told twice: whole, and then as aborted.
#[test]
fn a_poorer_record_of_the_same_request_changes_nothing() {
    let folder = Folder::new("builtin-poorer");
    let path = folder.0.join("usage.db");
    let plan = BuiltinReporter { path: path.clone(), retention_days: 0 };
    let mut store = Builtin::open("b", &plan).unwrap();
    let whole = record();
    let aborted = UsageRecord { usage: None, outcome: Outcome::Aborted, ..whole.clone() };
    for one in [&whole, &aborted] {
        assert_eq!(store.send(&[one.borrowed()], PATIENCE), Tried::Delivered);
    }
    drop(store);
    let connection = Connection::open(&path).unwrap();
    let text = format!("SELECT status, total_tokens FROM {TABLE}");
    let rows: Vec<(String, Option<i64>)> = connection
        .prepare(&text)
        .unwrap()
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let [(status, tokens)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_ne!(status, "aborted");
    assert!(tokens.is_some_and(|tokens| tokens > 0), "{rows:?}");
}
