//! Connections to SQL databases, one kind for each product.
//!
//! *Takes:* an address from the plan, and until when a call may last. *Gives:* connections, and why
//! there is none. *Runs on:* threads that may block. *May:* block, connect, make the file of a
//! database. *Never:* knows a table, says a password.

pub mod mysql;
pub mod postgres;
pub mod sqlite;
mod tls;

use super::names;
use super::{left, Trouble};
use crate::config::plan::{SqlAddress, SqlDriver, SqlPlace, SqlPool, SqlServer};
use std::time::{Duration, Instant};

/// One connection to a database of one product. Every call ends about when its time does.
pub trait Connect: Send {
    /// Connects, if it is not connected.
    ///
    /// # Errors
    /// It cannot be reached, or refuses us.
    fn connect(&mut self, until: Instant) -> Result<(), Trouble>;

    /// Drops the connection.
    fn close(&mut self);
}

/// How old a connection is, and how old the plan lets it get.
pub struct Lifetime {
    pool: SqlPool,
    opened: Instant,
    used: Instant,
}

impl Lifetime {
    /// Of a connection that is made now.
    pub fn new(pool: SqlPool) -> Lifetime {
        let now = Instant::now();
        Lifetime { pool, opened: now, used: now }
    }

    /// A connection was made.
    pub fn begin(&mut self) {
        self.opened = Instant::now();
    }

    /// It was of use.
    pub fn touch(&mut self) {
        self.used = Instant::now();
    }

    /// It is too old, or was unused for too long. No limit is written as zero, as in Go.
    pub fn is_over(&self) -> bool {
        let old = |limit: Duration, since: Instant| !limit.is_zero() && since.elapsed() > limit;
        old(self.pool.conn_max_lifetime, self.opened)
            || old(self.pool.conn_max_idle_time, self.used)
    }

    /// Whether it is kept when a call is over.
    pub fn keeps_idle(&self) -> bool {
        self.pool.max_idle_conns > 0
    }
}

/// Where a database is, for a log: without credentials.
pub fn place(driver: SqlDriver, address: &SqlAddress) -> String {
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

/// By its SQLSTATE: the classes of data exceptions, violated constraints and exceeded limits
/// mean the values; everything else means the server, the login or the table.
fn of_state(state: &str, message: String) -> Trouble {
    match state.get(..2) {
        Some("22" | "23" | "54") => Trouble::Data(message),
        _ => Trouble::Later(message),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;

    /// Catches: a password in a log line.
    #[test]
    fn a_place_and_a_message_have_no_password() {
        let server = SqlServer {
            place: SqlPlace::Tcp { host: "h".into(), port: 5 },
            others: Vec::new(),
            user: "u".into(),
            password: Secret::new("hunter2"),
            database: "d".into(),
            options: vec![("sslrootcert".into(), "/x".into())],
        };
        let place = place(SqlDriver::Mysql, &SqlAddress::Server(Box::new(server.clone())));
        assert_eq!(place, "mysql://h:5/d");
        assert_eq!(without(&server, "no hunter2 here"), "no *** here");
    }

    /// Catches: an error of the server that gives values up, or one of the values that blocks all.
    #[test]
    fn only_errors_of_values_are_final() {
        for (state, data) in [
            ("22001", true),
            ("23502", true),
            ("54000", true),
            ("28P01", false),
            ("42P01", false),
            ("40001", false),
            ("53100", false),
            ("57P01", false),
            ("HY000", false),
            ("", false),
        ] {
            let trouble = of_state(state, String::new());
            assert_eq!(matches!(trouble, Trouble::Data(_)), data, "{state}");
        }
    }
}
