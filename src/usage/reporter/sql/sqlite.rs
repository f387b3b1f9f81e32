//! SQLite: a file beside the gateway.

use super::columns::{Found, Key, Layout, Letters, Row, Unusable};
use super::statement::{insert, schema_and_name};
use super::{left, refused, Database, Trouble};
use rusqlite::{params_from_iter, Connection, ErrorCode, OpenFlags};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// SQLite's name of the schema that is meant where none is said.
const MAIN: &str = "main";

/// The indexes that begin with a column and have all rows: is each a unique one of it alone?
const INDEXES: &str = "SELECT l.\"unique\" AND \
     (SELECT count(*) FROM pragma_index_info(l.name, ?2)) = 1 \
     FROM pragma_index_list(?1, ?2) AS l, pragma_index_info(l.name, ?2) AS i \
     WHERE i.seqno = 0 AND lower(i.name) = lower(?3) AND NOT l.partial";

/// Unique indexes of a part of the rows by a column alone, and of expressions that it stands in:
/// SQLite says of an expression only what the index was made with.
const UNUSABLE: &str = "SELECT l.name, o.is_own FROM pragma_index_list(?1, ?2) AS l \
     JOIN sqlite_schema AS s ON s.type = 'index' AND s.name = l.name, \
     (SELECT 1 AS is_own UNION SELECT 0) AS o \
     WHERE l.\"unique\" AND CASE o.is_own \
     WHEN 1 THEN l.partial AND (SELECT group_concat(lower(i.name)) \
                                FROM pragma_index_info(l.name, ?2) AS i) = lower(?3) \
     ELSE instr(lower(s.sql), lower(?3)) \
          AND EXISTS (SELECT 1 FROM pragma_index_info(l.name, ?2) AS i WHERE i.name IS NULL) \
          AND NOT EXISTS (SELECT 1 FROM pragma_index_info(l.name, ?2) AS i \
                          WHERE lower(i.name) = lower(?3)) END";

/// A file, and the connection to it.
pub struct Sqlite {
    path: PathBuf,
    /// Rows will be deleted: what they leave is to go back to the system.
    shrinks: bool,
    connection: Option<Connection>,
}

impl Sqlite {
    /// Opens nothing yet.
    pub fn new(path: &Path, shrinks: bool) -> Sqlite {
        Sqlite { path: path.to_owned(), shrinks, connection: None }
    }

    fn connection(&mut self, until: Instant) -> Result<&mut Connection, Trouble> {
        let left = left(until)?;
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        // What waits, waits for another writer.
        connection.busy_timeout(left).map_err(trouble)?;
        Ok(connection)
    }
}

impl Database for Sqlite {
    fn connect(&mut self, until: Instant) -> Result<(), Trouble> {
        if self.connection.is_none() {
            let connection = open_to_write(&self.path, self.shrinks)?;
            connection.busy_timeout(left(until)?).map_err(trouble)?;
            make_durable(&connection).map_err(trouble)?;
            self.connection = Some(connection);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.connection = None;
    }

    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<Found>, Trouble> {
        let connection = self.connection(until)?;
        let (schema, bare) = schema_and_name(table);
        let text = "SELECT name, type, \"notnull\", dflt_value, pk, hidden \
                    FROM pragma_table_xinfo(?1, ?2)";
        let mut statement = connection.prepare(text).map_err(trouble)?;
        let found = statement.query_map([bare, schema.unwrap_or(MAIN)], |row| {
            let type_name = row.get::<_, String>(1)?.to_ascii_lowercase();
            // That one is the row's number, under another name.
            let automatic = row.get::<_, i64>(4)? > 0 && type_name == "integer";
            Ok(Found {
                name: row.get(0)?,
                width: None,
                letters: Letters::All,
                required: row.get::<_, i64>(2)? != 0,
                filled: automatic || row.get::<_, Option<String>>(3)?.is_some(),
                computed: row.get::<_, i64>(5)? != 0,
                type_name,
            })
        });
        found.and_then(Iterator::collect).map_err(trouble)
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let connection = self.connection(until)?;
        let (schema, bare) = schema_and_name(table);
        let asked = [bare, schema.unwrap_or(MAIN), column];
        let mut statement = connection.prepare(INDEXES).map_err(trouble)?;
        let found = statement.query_map(asked, |row| row.get::<_, bool>(0));
        let unique: Vec<bool> = found.and_then(Iterator::collect).map_err(trouble)?;
        let mut statement = connection.prepare(UNUSABLE).map_err(trouble)?;
        let found = statement
            .query_map(asked, |row| Ok(Unusable { index: row.get(0)?, is_partial: row.get(1)? }));
        let unusable: Vec<Unusable> = found.and_then(Iterator::collect).map_err(trouble)?;
        refused(table, column, Key::of_indexes(unique), &unusable)
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        let connection = self.connection(until)?;
        let all = statements.join(";\n");
        connection.execute_batch(&format!("BEGIN;\n{all};\nCOMMIT;")).map_err(trouble)
    }

    fn insert(&mut self, layout: &Layout, runs: &[&[Row]], until: Instant) -> Result<(), Trouble> {
        let connection = self.connection(until)?;
        let transaction = connection.transaction().map_err(trouble)?;
        let mut statement = transaction.prepare(&insert(layout, 1)).map_err(trouble)?;
        for row in runs.iter().copied().flatten() {
            left(until)?;
            statement.execute(params_from_iter(layout.values(row))).map_err(trouble)?;
        }
        drop(statement);
        transaction.commit().map_err(trouble)
    }

    /// There is no way to a server that many rows would share.
    fn sizes(&self) -> &'static [usize] {
        &[1]
    }
}

/// Opens a file to write, and makes it and its folder where they are not there, for our eyes only.
fn open_to_write(path: &Path, shrinks: bool) -> Result<Connection, Trouble> {
    let said = |error: io::Error| later(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(said)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let empty = file.and_then(|file| file.metadata()).map_err(said)?.len() == 0;
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE);
    let connection = connection.map_err(trouble)?;
    if shrinks && empty {
        // Has to be the first that is said to a new file.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(trouble)?;
    }
    Ok(connection)
}

fn make_durable(connection: &Connection) -> rusqlite::Result<()> {
    // Readers (`llmproxy usage`) and the writer do not wait for each other.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A batch is on the disk before it counts as delivered: the spool lets go of it then. It is
    // one flush for each batch, on a thread that nobody waits for.
    connection.pragma_update(None, "synchronous", "FULL")
}

fn later(message: impl Into<String>) -> Trouble {
    Trouble::Later(message.into())
}

fn trouble(error: rusqlite::Error) -> Trouble {
    let message = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            Trouble::Data(message)
        }
        _ => Trouble::Later(message),
    }
}
