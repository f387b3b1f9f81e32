//! SQLite: a file beside the gateway.

use super::{left, Connect, Trouble};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

    /// The open file.
    ///
    /// # Errors
    /// It is not open, or the time is over.
    pub fn connection(&mut self, until: Instant) -> Result<&mut Connection, Trouble> {
        let left = left(until)?;
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        // What waits, waits for another writer.
        connection.busy_timeout(left).map_err(trouble)?;
        Ok(connection)
    }
}

impl Connect for Sqlite {
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
}

/// Opens a file that is there, to write or only to read. A call waits so long for another writer.
///
/// # Errors
/// There is none, it may not be opened, or is no database.
pub fn open_existing(
    path: &Path,
    writes: bool,
    patience: Duration,
) -> rusqlite::Result<Connection> {
    let flags = match writes {
        true => OpenFlags::SQLITE_OPEN_READ_WRITE,
        false => OpenFlags::SQLITE_OPEN_READ_ONLY,
    };
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(patience)?;
    Ok(connection)
}

/// Opens a file to write, and makes it and its folder where they are not there, for our eyes only.
fn open_to_write(path: &Path, shrinks: bool) -> Result<Connection, Trouble> {
    let said = |error: io::Error| later(format!("{}: {error}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(said)?;
    }
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let empty = file.and_then(|file| file.metadata()).map_err(said)?.len() == 0;
    // A connection is of one thread: no call has to lock it.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(trouble)?;
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

/// What an error of SQLite means.
pub fn trouble(error: rusqlite::Error) -> Trouble {
    let message = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            Trouble::Data(message)
        }
        _ => Trouble::Later(message),
    }
}
