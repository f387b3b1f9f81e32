//! Records as rows of a SQL table.
//!
//! *Takes:* records. *Gives:* rows, each once. *Runs on:* the threads of that reporter. *May:*
//! block, make the table. *Never:* puts a value or an unquoted name into the text of a
//! statement, says a password, changes a table that is there.
//!
//! A table that is there already gets the columns that it has. A batch is one transaction; what is
//! sent twice is ignored by the request id.

mod cells;
mod columns;
mod statement;
mod sqlite;
mod mysql;
mod postgres;

use super::{Reporter, Shape, Tried};
use crate::base::clock::unix_ms;
use crate::base::limits::{GATHER_COSTLY, SQL_BATCH_RECORDS_MAX};
use crate::config::plan::{DatabaseReporter, SqlAddress, SqlDriver, SqlPool};
use crate::store::sql::mysql::Mysql;
use crate::store::sql::postgres::Postgres;
use crate::store::sql::sqlite::Sqlite;
use crate::store::sql::{place, Connect, Lifetime};
use crate::store::Trouble;
use crate::usage::record::borrowed::RecordRef;
use columns::{FoundColumn, Key, Layout, Unusable};
use jiff::tz::TimeZone;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// A database in which records are written into a table.
trait Database: Connect {
    /// The columns of a table; none when there is no such table.
    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<FoundColumn>, Trouble>;

    /// How a request id is found in this column.
    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble>;

    /// Runs statements that make a table.
    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble>;

    /// Inserts the rows of records in one transaction; all or none of them.
    fn insert(
        &mut self,
        layout: &Layout,
        records: &[RecordRef<'_>],
        until: Instant,
    ) -> Result<(), Trouble>;

    /// Zone of times without one.
    fn zone(&self) -> TimeZone {
        TimeZone::UTC
    }

    /// Bytes of a request body that fit into a packet.
    fn body_max(&self) -> usize {
        usize::MAX
    }
}

/// A table that records go to.
pub struct SqlTable {
    name: String,
    driver: SqlDriver,
    table: String,
    place: String,
    database: Box<dyn Database>,
    /// Columns that get an index when the table is made.
    indexed: &'static [&'static str],
    lifetime: Lifetime,
    layout: Option<Layout>,
    told: bool,
}

/// How a database wants to be called. One connection writes more than a gateway sends, and keeps
/// the order.
pub fn shape() -> Shape {
    Shape {
        batch: SQL_BATCH_RECORDS_MAX,
        gather: GATHER_COSTLY,
        concurrency: 1,
        retries: 4,
        timeout: Duration::from_secs(10),
    }
}

/// How the id of a record is found, unless an index stands in the way.
fn refused(table: &str, id: &str, key: Key, found: &[Unusable]) -> Result<Key, Trouble> {
    match Unusable::why(found, key, id) {
        Some(why) => Err(Trouble::Later(format!("table {table}: {why}"))),
        None => Ok(key),
    }
}

/// Makes the writer of a table; connects to nothing yet.
///
/// # Errors
/// The address asks for something that is not done here.
pub fn open(name: &str, plan: &DatabaseReporter) -> io::Result<SqlTable> {
    let said = |message| io::Error::other(format!("reporter {name}: {message}"));
    let database: Box<dyn Database> = match (&plan.sql.address, plan.sql.driver) {
        (SqlAddress::File(path), _) => Box::new(Sqlite::new(path, false)),
        (SqlAddress::Server(server), SqlDriver::Mysql) => {
            Box::new(Mysql::new(server).map_err(said)?)
        }
        (SqlAddress::Server(server), _) => Box::new(Postgres::new(server).map_err(said)?),
    };
    let place = place(plan.sql.driver, &plan.sql.address);
    Ok(SqlTable::new(name, plan.sql.driver, &plan.table, plan.sql.pool.clone(), place, database))
}

/// Makes the writer of the store inside the gateway.
pub fn open_file(name: &str, path: &Path, table: &str) -> SqlTable {
    let forever = Duration::from_secs(u64::from(u32::MAX));
    let pool = SqlPool {
        max_open_conns: 1,
        max_idle_conns: 1,
        conn_max_lifetime: forever,
        conn_max_idle_time: forever,
    };
    let place = place(SqlDriver::Sqlite, &SqlAddress::File(path.to_owned()));
    let database = Box::new(Sqlite::new(path, true));
    let table = SqlTable::new(name, SqlDriver::Sqlite, table, pool, place, database);
    // What reads it (`llmproxy usage`, and the deletion of old rows) goes by the time alone. Each
    // further index would take nearly a microsecond of every request.
    SqlTable { indexed: &["timestamp"], ..table }
}

impl SqlTable {
    fn new(
        name: &str,
        driver: SqlDriver,
        table: &str,
        pool: SqlPool,
        place: String,
        database: Box<dyn Database>,
    ) -> SqlTable {
        let (name, table) = (name.to_owned(), table.to_owned());
        let (lifetime, layout, told) = (Lifetime::new(pool), None, false);
        let indexed = statement::INDEXED;
        SqlTable { name, driver, table, place, database, indexed, lifetime, layout, told }
    }

    fn write(&mut self, records: &[RecordRef<'_>], until: Instant) -> Result<(), Trouble> {
        if self.lifetime.is_over() {
            self.close();
        }
        if self.layout.is_none() {
            self.database.connect(until)?;
            self.lifetime.begin();
            self.layout = Some(self.examine(until)?);
        }
        let Some(layout) = &mut self.layout else { return Ok(()) };
        layout.now_ms = unix_ms();
        self.database.insert(layout, records, until)?;
        self.lifetime.touch();
        Ok(())
    }

    /// Looks at the table, and makes it when it is not there.
    fn examine(&mut self, until: Instant) -> Result<Layout, Trouble> {
        let mut found = self.database.columns(&self.table, until)?;
        if found.is_empty() {
            let statements = statement::create(self.driver, &self.table, self.indexed);
            self.database.make(&statements, until)?;
            found = self.database.columns(&self.table, until)?;
        }
        let said = |message| Trouble::Later(format!("table {}: {message}", self.table));
        let columns = columns::choose(self.driver, &found).map_err(said)?;
        let key = match columns.iter().find(|column| column.is_request_id()) {
            Some(column) => self.database.key(&self.table, &column.name, until)?,
            None => Key::Absent,
        };
        if key == Key::Absent && !self.told {
            self.told = true;
            let (reporter, table) = (&self.name, &self.table);
            tracing::warn!(
                reporter,
                table,
                "the table has no unique index on request_id: a record that is sent twice, which \
                 happens when a connection breaks, will be there twice"
            );
        }
        Ok(Layout {
            driver: self.driver,
            table: self.table.clone(),
            columns,
            key,
            zone: self.database.zone(),
            body_max: self.database.body_max(),
            now_ms: 0,
        })
    }

    /// Connects and looks at the table, if there is one; makes none.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub fn probe(&mut self, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        let looked = self.database.connect(until).and_then(|()| {
            match self.database.columns(&self.table, until)?.is_empty() {
                true => Ok(()),
                false => self.examine(until).map(drop),
            }
        });
        self.close();
        looked.map_err(Trouble::into_words)
    }

    fn close(&mut self) {
        self.database.close();
        self.layout = None;
    }
}

impl Reporter for SqlTable {
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let until = Instant::now() + limit;
        let written = self.write(records, until);
        if matches!(written, Err(Trouble::Later(_))) || !self.lifetime.keeps_idle() {
            // The table may be another one when it is looked at again.
            self.close();
        }
        match written {
            Ok(()) => Tried::Delivered,
            Err(Trouble::Later(cause)) => Tried::Again(cause),
            Err(Trouble::Data(cause)) => Tried::Refused(cause),
        }
    }

    fn place(&self) -> String {
        self.place.clone()
    }
}

#[cfg(test)]
pub(crate) mod tests;
