use super::*;
use crate::base::secret::Secret;
use crate::config::plan::{Sql, SqlPool};
use rusqlite::Connection;
use serde_json::json;
use std::path::PathBuf;

fn plan(driver: SqlDriver, path: PathBuf) -> DatabaseKeys {
    DatabaseKeys {
        sql: Sql {
            driver,
            address: SqlAddress::File(path),
            pool: SqlPool {
                max_open_conns: 1,
                max_idle_conns: 1,
                conn_max_lifetime: Duration::ZERO,
                conn_max_idle_time: Duration::ZERO,
            },
        },
        table: "app.keys".into(),
        key_column: "api_key".into(),
        key_form: StoredKeyForm::Plain,
        fields: Vec::new(),
    }
}

/// Catches: a value in the text of a statement, a name that is not quoted.
#[test]
fn the_key_is_a_parameter_and_names_are_quoted() {
    let mut mysql = plan(SqlDriver::Mysql, PathBuf::new());
    mysql.fields = vec!["status".into(), "user_id".into()];
    assert_eq!(
        statement(&mysql),
        "SELECT `status`, `user_id`, `api_key` AS llmproxy_found_key FROM `app`.`keys` \
         WHERE `api_key` = ? LIMIT 8"
    );
    assert_eq!(
        statement(&plan(SqlDriver::Postgres, PathBuf::new())),
        "SELECT row_to_json(k)::text FROM (SELECT *, \"api_key\" AS llmproxy_found_key \
         FROM \"app\".\"keys\" WHERE \"api_key\" = $1 LIMIT 8) k"
    );
}

/// A file of SQLite in a folder of its own.
struct File(PathBuf);

impl File {
    fn new(name: &str, statements: &str) -> File {
        let folder = format!("llmproxy-keys-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let file = File(folder.join("keys.db"));
        file.make("keys.db", statements);
        file
    }

    fn make(&self, name: &str, statements: &str) -> PathBuf {
        let path = self.0.with_file_name(name);
        Connection::open(&path).unwrap().execute_batch(statements).unwrap();
        path
    }

    fn source(&self, tune: impl FnOnce(&mut DatabaseKeys)) -> Box<dyn KeySource> {
        let mut plan = plan(SqlDriver::Sqlite, self.0.clone());
        plan.table = "api_keys".into();
        tune(&mut plan);
        open(&plan).unwrap().sources.remove(0)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn find(source: &mut dyn KeySource, key: &str) -> Result<FoundKey, Trouble> {
    let question = KeyQuestion { digest: KeyDigest::of(key.as_bytes()), key: Secret::new(key) };
    source.find(&question, Instant::now() + Duration::from_secs(20))
}

/// Catches: a key that is let in as another spelling of itself (each would have a quota of its
/// own), a row that is not the key's, a value that loses its type, the key in what scripts see
/// although no list of fields names it.
#[test]
fn a_row_is_found_by_exactly_its_key() {
    let file = File::new(
        "exact",
        "CREATE TABLE api_keys (API_KEY TEXT COLLATE NOCASE, status INTEGER, balance REAL, \
         note BLOB, expires_at TEXT); \
         INSERT INTO api_keys VALUES ('sk-A', 1, 2.5, x'6869', NULL), ('sk-a', 0, 0, NULL, ''), \
         ('%', 0, 0, NULL, NULL);",
    );
    let mut source = file.source(|_| {});
    let Ok(FoundKey::Fields(row)) = find(source.as_mut(), "sk-A") else { panic!() };
    let expected = json!({"status": 1, "balance": 2.5, "note": "hi", "expires_at": null});
    assert_eq!(Value::Object(row), expected);
    let Ok(FoundKey::Fields(row)) = find(source.as_mut(), "sk-a") else { panic!() };
    assert_eq!(row["status"], 0);
    for other in ["SK-A", "sk-A ", "sk-", "' OR 1=1 --", "sk_A", "_"] {
        assert_eq!(find(source.as_mut(), other), Ok(FoundKey::Unknown), "{other}");
    }
    let mut source = file.source(|plan| plan.fields = vec!["status".into()]);
    let Ok(FoundKey::Fields(row)) = find(source.as_mut(), "sk-A") else { panic!() };
    assert_eq!(Value::Object(row), json!({"status": 1}));
    let mut source = file.source(|plan| plan.fields = vec!["status".into(), "api_key".into()]);
    let Ok(FoundKey::Fields(row)) = find(source.as_mut(), "sk-A") else { panic!() };
    assert_eq!(row.len(), 2);
}

/// Catches: a key that is let in by one of its rows although another one switches it off.
#[test]
fn several_rows_of_one_key_are_unclear() {
    let file = File::new(
        "several",
        "CREATE TABLE api_keys (api_key TEXT COLLATE NOCASE, status TEXT); \
         INSERT INTO api_keys VALUES ('a', 'active'), ('a', 'disabled'), ('b', 'active'), \
         ('B', 'disabled');",
    );
    let mut source = file.source(|_| {});
    assert!(matches!(find(source.as_mut(), "a"), Ok(FoundKey::Unclear(_))));
    assert!(matches!(find(source.as_mut(), "b"), Ok(FoundKey::Fields(_))));
}

/// Catches: a statement that runs on and on, and holds its thread for good.
#[test]
fn a_statement_ends_when_its_time_is_over() {
    let file = File::new(
        "endless",
        "CREATE VIEW api_keys AS WITH RECURSIVE all_keys(api_key) AS \
         (SELECT 'a' UNION ALL SELECT 'b' FROM all_keys) SELECT api_key FROM all_keys;",
    );
    let mut source = file.source(|_| {});
    let question = KeyQuestion { digest: KeyDigest::of(b"k"), key: Secret::new("k") };
    for _ in 0..2 {
        let found = source.find(&question, Instant::now() + Duration::from_millis(50));
        assert!(matches!(found, Err(Trouble::Later(_))));
    }
}

/// Catches: digests that are not those of other programs, a digest that serves as a key.
#[test]
fn keys_may_be_there_as_digests() {
    let file = File::new(
        "digest",
        "CREATE TABLE api_keys (hash CHAR(64), user_id TEXT); INSERT INTO api_keys VALUES \
         ('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad', 'u');",
    );
    let mut source = file.source(|plan| {
        plan.key_column = "hash".into();
        plan.key_form = StoredKeyForm::Sha256;
    });
    assert!(matches!(find(source.as_mut(), "abc"), Ok(FoundKey::Fields(_))));
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(find(source.as_mut(), digest), Ok(FoundKey::Unknown));
}

/// Catches: a file that is made because it is not there, one that is read although another has
/// taken its place, a missing column that is not told.
#[test]
fn a_file_is_another_programs() {
    let file = File::new("file", "CREATE TABLE api_keys (api_key TEXT, status TEXT);");
    let missing = file.0.with_file_name("none.db");
    let mut absent = file.source(|plan| plan.sql.address = SqlAddress::File(missing.clone()));
    assert!(matches!(find(absent.as_mut(), "k"), Err(Trouble::Later(_))));
    assert!(!missing.exists());
    let mut source = file.source(|_| {});
    assert_eq!(find(source.as_mut(), "k"), Ok(FoundKey::Unknown));
    let fresh = file.make(
        "fresh.db",
        "CREATE TABLE api_keys (api_key TEXT); INSERT INTO api_keys VALUES ('k');",
    );
    std::fs::rename(fresh, &file.0).unwrap();
    assert!(matches!(find(source.as_mut(), "k"), Ok(FoundKey::Fields(_))));
    let mut other = file.source(|plan| plan.key_column = "token".into());
    for key in ["k", "token"] {
        let Err(Trouble::Later(why)) = find(other.as_mut(), key) else { panic!("{key}") };
        assert!(why.contains("token"), "{why}");
    }
}
