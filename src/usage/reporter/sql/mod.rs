//! Records as rows of a SQL table.
//!
//! *Takes:* records. *Gives:* rows, each once. *Runs on:* the threads of that reporter. *May:*
//! block, connect, make the table. *Never:* puts a value or an unquoted name into the text of a
//! statement, says a password, changes a table that is there.
//!
//! A table that is there already gets the columns that it has. A batch is one transaction; what is
//! sent twice is ignored by the request id.

mod columns;
mod statement;
mod tls;
mod sqlite;
mod mysql;
mod postgres;

use super::{Reporter, Shape, Tried};
use crate::base::limits::SQL_BATCH_RECORDS_MAX;
use crate::config::plan::{DatabaseReporter, SqlAddress, SqlDriver, SqlPlace, SqlPool, SqlServer};
use crate::usage::record::UsageRecord;
use columns::{Found, Key, Layout, Row, Unusable};
use jiff::tz::TimeZone;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::{Duration, Instant};

/// One connection to a database of one product. Every call ends about when its time does.
trait Database: Send {
    /// Connects, if it is not connected.
    fn connect(&mut self, until: Instant) -> Result<(), Trouble>;

    /// Drops the connection.
    fn close(&mut self);

    /// The columns of a table; none when there is no such table.
    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<Found>, Trouble>;

    /// How a request id is found in this column.
    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble>;

    /// Runs statements that make a table.
    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble>;

    /// Inserts runs of rows in one transaction, each run with one statement; all or none of them.
    fn insert(&mut self, layout: &Layout, runs: &[&[Row]], until: Instant) -> Result<(), Trouble>;

    /// Rows of one statement: these counts, or any where there are none.
    fn sizes(&self) -> &'static [usize] {
        statement::ROWS
    }

    /// Zone of times without one.
    fn zone(&self) -> TimeZone {
        TimeZone::UTC
    }

    /// Bytes of a request body that fit into a packet.
    fn body_max(&self) -> usize {
        usize::MAX
    }
}

/// Why nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// Whatever the records are, it may be over later; why.
    Later(String),
    /// The database does not take these values; why.
    Data(String),
}

impl Trouble {
    /// There is no connection.
    fn closed() -> Trouble {
        Trouble::Later("it is closed".to_owned())
    }

    fn into_words(self) -> String {
        match self {
            Trouble::Later(cause) | Trouble::Data(cause) => cause,
        }
    }

    /// The time is over.
    fn late() -> Trouble {
        Trouble::Later("it did not answer in time".to_owned())
    }

    /// By its SQLSTATE: the classes of data exceptions, violated constraints and exceeded limits
    /// mean the values; everything else means the server, the login or the table.
    fn of_state(state: &str, message: String) -> Trouble {
        match state.get(..2) {
            Some("22" | "23" | "54") => Trouble::Data(message),
            _ => Trouble::Later(message),
        }
    }
}

/// The time that is left, if any is.
fn left(until: Instant) -> Result<Duration, Trouble> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Trouble::late());
    }
    Ok(left)
}

/// The addresses of a host. The system's look-up has no time limit: it runs on a thread of its own,
/// which is left behind when it takes too long.
fn resolved(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Trouble> {
    let (answer, found) = crossbeam_channel::bounded(1);
    let place = (host.to_owned(), port);
    let look_up = move || {
        let _ = answer.send(place.to_socket_addrs().map(Vec::from_iter));
    };
    let thread = std::thread::Builder::new().name("usage-resolve".to_owned());
    thread.spawn(look_up).map_err(|error| Trouble::Later(format!("no thread: {error}")))?;
    match found.recv_timeout(limit) {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err(Trouble::Later(format!("the host {host} has no address"))),
        Ok(Err(error)) => Err(Trouble::Later(format!("the host {host}: {error}"))),
        Err(_) => Err(Trouble::Later(format!("the host {host} was not found in time"))),
    }
}

/// The same for others who look up a name.
pub(super) fn addresses(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, String> {
    resolved(host, port, limit).map_err(Trouble::into_words)
}

/// A message without the password, should a server or a library ever repeat it.
fn without(server: &SqlServer, message: &str) -> String {
    let password = server.password.reveal();
    // To hide a word of two letters would spoil the sentence and hide nothing.
    if password.len() < 3 {
        return message.to_owned();
    }
    message.replace(password, "***")
}

/// A table that records go to.
pub struct SqlTable {
    name: String,
    driver: SqlDriver,
    table: String,
    pool: SqlPool,
    place: String,
    database: Box<dyn Database>,
    layout: Option<Layout>,
    opened: Instant,
    used: Instant,
    told: bool,
}

/// How a database wants to be called. One connection writes more than a gateway sends, and keeps
/// the order.
pub fn shape() -> Shape {
    Shape {
        batch: SQL_BATCH_RECORDS_MAX,
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
        (SqlAddress::File(path), _) => Box::new(sqlite::Sqlite::new(path, false)),
        (SqlAddress::Server(server), SqlDriver::Mysql) => {
            Box::new(mysql::Mysql::new(server).map_err(said)?)
        }
        (SqlAddress::Server(server), _) => Box::new(postgres::Postgres::new(server).map_err(said)?),
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
    let database = Box::new(sqlite::Sqlite::new(path, true));
    SqlTable::new(name, SqlDriver::Sqlite, table, pool, place, database)
}

fn place(driver: SqlDriver, address: &SqlAddress) -> String {
    let product = match driver {
        SqlDriver::Mysql => "mysql",
        SqlDriver::Postgres => "postgres",
        SqlDriver::Sqlite => "sqlite",
    };
    match address {
        SqlAddress::File(path) => format!("{product}:{}", path.display()),
        SqlAddress::Server(server) => match &server.place {
            SqlPlace::Tcp { .. } => {
                let places = std::iter::once(&server.place).chain(&server.others);
                let places: Vec<String> = places.map(SqlPlace::to_string).collect();
                format!("{product}://{}/{}", places.join(","), server.database)
            }
            SqlPlace::Unix(path) => format!("{product}:{}/{}", path.display(), server.database),
        },
    }
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
        let (name, table, now) = (name.to_owned(), table.to_owned(), Instant::now());
        let (opened, used) = (now, now);
        let (layout, told) = (None, false);
        SqlTable { name, driver, table, pool, place, database, layout, opened, used, told }
    }

    fn write(&mut self, records: &[&UsageRecord], until: Instant) -> Result<(), Trouble> {
        let old = |limit: Duration, since: Instant| !limit.is_zero() && since.elapsed() > limit;
        if old(self.pool.conn_max_lifetime, self.opened)
            || old(self.pool.conn_max_idle_time, self.used)
        {
            self.close();
        }
        if self.layout.is_none() {
            self.database.connect(until)?;
            self.opened = Instant::now();
            self.layout = Some(self.examine(until)?);
        }
        let Some(layout) = &self.layout else { return Ok(()) };
        let rows: Vec<Row> = records.iter().map(|record| layout.row(record)).collect();
        let sizes = if layout.key == Key::Indexed && layout.driver != SqlDriver::Postgres {
            &[1]
        } else {
            self.database.sizes()
        };
        let runs = statement::runs(&rows, sizes);
        self.database.insert(layout, &runs, until)?;
        self.used = Instant::now();
        Ok(())
    }

    /// Looks at the table, and makes it when it is not there.
    fn examine(&mut self, until: Instant) -> Result<Layout, Trouble> {
        let mut found = self.database.columns(&self.table, until)?;
        if found.is_empty() {
            let statements = statement::create(self.driver, &self.table);
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
    fn send(&mut self, records: &[&UsageRecord], limit: Duration) -> Tried {
        let until = Instant::now() + limit;
        let written = self.write(records, until);
        if matches!(written, Err(Trouble::Later(_))) || self.pool.max_idle_conns == 0 {
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
