//! A file of SQLite, which is another program's: it is only read, and looked at anew when another
//! file has taken its place.

use super::{text, Fields, KeyTable};
use crate::store::sql::sqlite::{open_existing, trouble};
use crate::store::sql::Connect;
use crate::store::{left, Trouble};
use rusqlite::types::ValueRef;
use rusqlite::Connection;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Steps of SQLite between two looks at the clock: some tens of microseconds.
const STEPS: i32 = 1000;

/// A file, and the connection to it.
pub struct SqliteKeys {
    path: PathBuf,
    connection: Option<(Connection, FileId)>,
}

/// Device and number of a file.
type FileId = (u64, u64);

impl SqliteKeys {
    /// Opens nothing yet.
    pub fn new(path: &Path) -> SqliteKeys {
        SqliteKeys { path: path.to_owned(), connection: None }
    }

    fn file(&self) -> Result<FileId, Trouble> {
        let said = |error| Trouble::Later(format!("{}: {error}", self.path.display()));
        let file = std::fs::metadata(&self.path).map_err(said)?;
        Ok((file.dev(), file.ino()))
    }
}

impl Connect for SqliteKeys {
    fn connect(&mut self, until: Instant) -> Result<(), Trouble> {
        let file = self.file()?;
        let connection = open_existing(&self.path, false, left(until)?).map_err(trouble)?;
        self.connection = Some((connection, file));
        Ok(())
    }

    fn close(&mut self) {
        self.connection = None;
    }
}

impl KeyTable for SqliteKeys {
    fn is_connected(&self) -> bool {
        let file = self.file().ok();
        self.connection.as_ref().is_some_and(|(_, opened)| file == Some(*opened))
    }

    fn rows(&mut self, statement: &str, key: &str, until: Instant) -> Result<Vec<Fields>, Trouble> {
        let (connection, _) = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        connection.busy_timeout(left(until)?).map_err(trouble)?;
        // Without an index a large table takes long, and a view may take for ever.
        let is_over = move || Instant::now() >= until;
        connection.progress_handler(STEPS, Some(is_over)).map_err(trouble)?;
        let mut statement = connection.prepare_cached(statement).map_err(trouble)?;
        let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut rows = statement.query([key]).map_err(trouble)?;
        let mut found = Vec::new();
        while let Some(row) = rows.next().map_err(trouble)? {
            let mut fields = Fields::new();
            for (place, name) in names.iter().enumerate() {
                fields.insert(name.clone(), value(row.get_ref(place).map_err(trouble)?));
            }
            found.push(fields);
        }
        Ok(found)
    }
}

fn value(cell: ValueRef<'_>) -> Value {
    match cell {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => text(bytes),
    }
}
