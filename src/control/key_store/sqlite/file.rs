//! Makes and opens the file. It is never made where a store was, or where something else is.

use rusqlite::{Connection, OpenFlags};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Says of a SQLite file that it is a store of keys: `LLMK`.
const APPLICATION: i64 = 0x4c4c_4d4b;
/// The form of the tables. A file with another one is left alone.
const VERSION: i64 = 1;
/// A call waits so long for a writer of another process.
const PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE keys (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        identity BLOB NOT NULL UNIQUE,
        prefix TEXT NOT NULL,
        settings TEXT NOT NULL,
        name TEXT NOT NULL,
        user_id TEXT NOT NULL,
        status TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL,
        last_used_ms INTEGER
    ) STRICT;
    CREATE INDEX keys_of_users ON keys (user_id);
    CREATE INDEX keys_by_name ON keys (name);
    CREATE TABLE texts (
        digest BLOB PRIMARY KEY,
        number INTEGER NOT NULL REFERENCES keys (number),
        until_ms INTEGER
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX texts_of_keys ON texts (number);";

/// Device and number of a file.
pub fn id(path: &Path) -> Result<(u64, u64), String> {
    let found = fs::metadata(path).map_err(|error| error.to_string())?;
    Ok((found.dev(), found.ino()))
}

/// Makes an empty store, whole or not at all.
pub fn make_if_missing(path: &Path) -> Result<(), String> {
    match fs::symlink_metadata(path) {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.to_string()),
        Err(_) => {}
    }
    let log = beside(path, "-wal");
    if log.exists() {
        let log = log.display();
        return Err(format!("is gone, and its log {log} is not: restore both, or remove the log"));
    }
    let number = getrandom::u64().map_err(|error| format!("no randomness: {error}"))?;
    let fresh = beside(path, &format!(".{number:016x}.new"));
    let made = make(path, &fresh);
    for end in ["", "-wal", "-shm", "-journal"] {
        let _ = fs::remove_file(beside(&fresh, end));
    }
    made?;
    tracing::warn!(path = %path.display(), "there was no store of keys: an empty one was made");
    Ok(())
}

fn make(path: &Path, fresh: &Path) -> Result<(), String> {
    let said = |error: io::Error| error.to_string();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(said)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(fresh)
        .map_err(|error| format!("{}: {error}", fresh.display()))?;
    let tables = || -> rusqlite::Result<()> {
        let connection = connect(fresh)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.execute_batch(&format!("BEGIN; {TABLES} COMMIT;"))?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        connection.pragma_update(None, "user_version", VERSION)?;
        // The end of the last connection empties the log into the file.
        connection.close().map_err(|(_, error)| error)
    };
    tables().map_err(|error| error.to_string())?;
    match fs::hard_link(fresh, path) {
        Ok(()) => {}
        // Another process was quicker, and made the same.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.to_string()),
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(said)
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// One more connection to a store that [`open`] has found to be sound.
pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // A connection is used under a lock of ours: no call has to lock it once more.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    // What was answered is on the disk.
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// Opens a store that is there, and looks whether it is sound.
pub fn open(path: &Path) -> Result<Connection, String> {
    let left_alone = "llmproxy leaves it as it is: restore it, or name another file";
    let unusable = |error: rusqlite::Error| format!("cannot be used: {error}; {left_alone}");
    let connection = connect(path).map_err(unusable)?;
    let number = |what: &str| connection.pragma_query_value(None, what, |row| row.get::<_, i64>(0));
    if number("application_id").map_err(unusable)? != APPLICATION {
        return Err(format!("is no store of keys; {left_alone}"));
    }
    match number("user_version").map_err(unusable)? {
        VERSION => {}
        other => {
            return Err(format!(
                "is a store of keys of form {other}, and this version knows form {VERSION}"
            ))
        }
    }
    let sound = connection.pragma_query_value(None, "quick_check", |row| row.get::<_, String>(0));
    match sound.map_err(unusable)?.as_str() {
        "ok" => Ok(connection),
        found => Err(format!("is damaged: {found}; {left_alone}")),
    }
}
