//! The store inside the gateway: a SQLite file that keeps records for so many days and that
//! `llmproxy usage` reads. Old records are deleted by a thread of their own, in small steps, so
//! that neither new ones nor readers wait for it, and without traffic too.

use super::sql::{self, SqlTable};
use super::{Reporter, Tried};
use crate::base::clock::unix_ms;
use crate::base::limits::RETENTION_ROWS_MAX;
use crate::config::plan::BuiltinReporter;
use crate::store::sql::sqlite::open_existing;
use crate::usage::record::borrowed::RecordRef;
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use rusqlite::{params, Connection};
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

/// The table of the store.
pub const TABLE: &str = "usage_records";

/// How often old records are looked for.
const ROUND: Duration = Duration::from_secs(3600);
/// Between two steps of a round, others write.
const BREATH: Duration = Duration::from_millis(20);
/// A step waits so long for another writer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The store is not made yet, or is locked: looked at again after so long.
const AGAIN: Duration = Duration::from_secs(10);
/// Free pages that are given back to the system by one step.
const PAGES: u32 = 1000;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The store, open to write.
pub struct Builtin {
    table: SqlTable,
    retention: Option<Retention>,
}

impl Builtin {
    /// Makes the writer, and starts to delete what is too old.
    ///
    /// # Errors
    /// No thread.
    pub fn open(name: &str, plan: &BuiltinReporter) -> io::Result<Builtin> {
        let retention = match plan.retention_days {
            0 => None,
            days => Some(Retention::start(name, &plan.path, days)?),
        };
        Ok(Builtin { table: sql::open_file(name, &plan.path, TABLE), retention })
    }
}

impl Reporter for Builtin {
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        self.table.send(records, limit)
    }

    fn place(&self) -> String {
        self.table.place()
    }
}

impl Drop for Builtin {
    fn drop(&mut self) {
        if let Some(Retention { running, thread }) = self.retention.take() {
            drop(running);
            // One that panicked has nothing more to say.
            let _ = thread.join();
        }
    }
}

/// The thread that deletes.
struct Retention {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl Retention {
    fn start(name: &str, path: &Path, days: u32) -> io::Result<Retention> {
        let (running, stop) = bounded(0);
        let store = Store { reporter: name.to_owned(), path: path.to_owned(), days };
        let thread = std::thread::Builder::new().name("usage-retention".to_owned());
        let thread = thread.spawn(move || store.keep_clean(&stop))?;
        Ok(Retention { running, thread })
    }
}

struct Store {
    reporter: String,
    path: PathBuf,
    days: u32,
}

impl Store {
    /// Until stopped.
    fn keep_clean(&self, stop: &Receiver<Infallible>) {
        let mut failing = false;
        let on = |wait| stop.recv_timeout(wait) == Err(RecvTimeoutError::Timeout);
        loop {
            let wait = match self.clean(&on) {
                Ok(deleted) => {
                    failing = false;
                    if deleted > 0 {
                        tracing::info!(reporter = self.reporter, deleted, "old usage records");
                    }
                    ROUND
                }
                // It is made with its first record.
                Err(_) if !self.path.exists() => AGAIN,
                Err(error) => {
                    if !failing {
                        let reporter = &self.reporter;
                        tracing::warn!(reporter, %error, "old usage records are not deleted");
                    }
                    failing = true;
                    AGAIN
                }
            };
            if !on(wait) {
                return;
            }
        }
    }

    /// Deletes all that is too old, as long as it may go on; gives how many.
    fn clean(&self, on: &impl Fn(Duration) -> bool) -> rusqlite::Result<usize> {
        let connection = open_existing(&self.path, true, PATIENCE)?;
        let oldest = unix_ms().saturating_sub(u64::from(self.days).saturating_mul(DAY_MS));
        let Some(column) = time_column(&connection)? else { return Ok(0) };
        let mut all = 0;
        loop {
            let deleted = delete_before(&connection, column, oldest)?;
            all += deleted;
            if deleted < RETENTION_ROWS_MAX || !on(BREATH) {
                break;
            }
        }
        // 2 = pages are given back when asked. A file that another program made may not do that.
        let number =
            |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        if number("auto_vacuum")? == 2 {
            while number("freelist_count")? > 0 && on(BREATH) {
                connection.execute_batch(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
            }
        }
        Ok(all)
    }
}

/// The column with the time of a record: tables of others have but `created_at`. `None` = there is
/// no table yet.
fn time_column(connection: &Connection) -> rusqlite::Result<Option<&'static str>> {
    let text = "SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2";
    for column in ["timestamp", "created_at"] {
        let has: u32 = connection.query_row(text, [TABLE, column], |row| row.get(0))?;
        if has > 0 {
            return Ok(Some(column));
        }
    }
    Ok(None)
}

/// Deletes some of the rows that are older than a time; gives how many.
fn delete_before(connection: &Connection, column: &str, unix_ms: u64) -> rusqlite::Result<usize> {
    let text = format!(
        "DELETE FROM {TABLE} WHERE rowid IN \
         (SELECT rowid FROM {TABLE} WHERE {column} < ?1 ORDER BY {column} LIMIT ?2)"
    );
    let time = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).unwrap_or_default());
    // As the rows have it, so that texts sort as times do.
    let time = format!("{:.3}", time.unwrap_or_default());
    connection.execute(&text, params![time, i64::try_from(RETENTION_ROWS_MAX).unwrap_or(i64::MAX)])
}

#[cfg(test)]
mod tests;
