//! MySQL and MariaDB.

use super::names;
use super::{left, of_state, without, Connect, Trouble};
use crate::base::tls_fault;
use crate::config::plan::sql_options::{self as options, MysqlOptions, Tls};
use crate::config::plan::{SqlPlace, SqlServer};
use jiff::tz::TimeZone;
use mysql::prelude::Queryable;
use mysql::{Conn, Error, OptsBuilder, Params, SslOpts, TxOpts, Value};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where distributions keep the roots that they trust.
const ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A server, and the connection to it.
pub struct Mysql {
    server: SqlServer,
    options: MysqlOptions,
    connection: Option<Connection>,
}

struct Connection {
    conn: Conn,
    /// What one read or write of it waits at most: fixed when it is made.
    patience: Duration,
    packet: usize,
}

impl Mysql {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A line for a person: the address asks for something that is not done here.
    pub fn new(server: &SqlServer) -> Result<Mysql, String> {
        let options = options::mysql(server)?;
        Ok(Mysql { server: server.clone(), options, connection: None })
    }

    /// Tries the addresses of the host, one after the other.
    fn open(&self, until: Instant) -> Result<Conn, Trouble> {
        let places = match &self.server.place {
            SqlPlace::Unix(path) => {
                let path = Some(path.to_string_lossy().into_owned());
                vec![OptsBuilder::new().socket(path)]
            }
            SqlPlace::Tcp { host, port } => {
                let found = names::addresses(host, *port, left(until)?)?;
                let place =
                    |name: String| OptsBuilder::new().ip_or_hostname(Some(name)).tcp_port(*port);
                match self.options.tls {
                    // A certificate is for the name, which the library looks up once more.
                    Tls::Full => vec![place(host.clone())],
                    _ => found.iter().map(|address| place(address.ip().to_string())).collect(),
                }
            }
        };
        let mut last = Trouble::Later("its host has no address".to_owned());
        for place in places {
            match Conn::new(self.options(place, left(until)?)) {
                Ok(conn) => return Ok(conn),
                Err(error) => last = trouble(&self.server, &error),
            }
        }
        Err(last)
    }

    fn options(&self, place: OptsBuilder, limit: Duration) -> OptsBuilder {
        // A value that does not fit is an error that is told, times are given in UTC.
        let mut init = vec!["SET sql_mode = CONCAT(@@sql_mode, ',STRICT_ALL_TABLES')".to_owned()];
        init.extend_from_slice(&self.options.variables);
        init.push("SET time_zone = '+00:00'".to_owned());
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut builder = place
            .user(some(&self.server.user))
            .pass(some(self.server.password.reveal()))
            .db_name(Some(self.server.database.clone()))
            .prefer_socket(false)
            .tcp_connect_timeout(Some(limit))
            .read_timeout(Some(limit))
            .write_timeout(Some(limit))
            .enable_cleartext_plugin(self.options.cleartext)
            .init(init);
        if self.options.tls != Tls::Off {
            let unchecked = self.options.tls == Tls::Unchecked;
            let roots = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
            let roots = roots.into_iter().chain(ROOTS.iter().map(PathBuf::from));
            let roots = roots.into_iter().find(|path| path.is_file());
            let options = SslOpts::default()
                .with_danger_accept_invalid_certs(unchecked)
                .with_root_cert_path(roots.filter(|_| !unchecked));
            builder = builder.ssl_opts(options);
        }
        builder
    }

    /// Does something with the connection.
    ///
    /// # Errors
    /// There is none, the time is over, or what the server or the library says.
    pub fn ask<T>(
        &mut self,
        until: Instant,
        ask: impl FnOnce(&mut Conn) -> Result<T, Error>,
    ) -> Result<T, Trouble> {
        left(until)?;
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        ask(&mut connection.conn).map_err(|error| trouble(&self.server, &error))
    }

    /// Runs statements, each with its values, in one transaction: all or none of them.
    ///
    /// # Errors
    /// As those of [`Mysql::ask`].
    pub fn transact(
        &mut self,
        until: Instant,
        statements: impl IntoIterator<Item = (String, Vec<Value>)>,
    ) -> Result<(), Trouble> {
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        let said = |error| trouble(&self.server, &error);
        let transaction = connection.conn.start_transaction(TxOpts::default());
        let mut transaction = transaction.map_err(said)?;
        for (text, values) in statements {
            left(until)?;
            // The connection keeps what it has prepared, by the text.
            let statement = transaction.prep(text).map_err(said)?;
            transaction.exec_drop(statement, Params::Positional(values)).map_err(said)?;
        }
        left(until)?;
        transaction.commit().map_err(said)
    }

    /// True while there is a connection, which may be broken.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Zone of times without one.
    pub fn zone(&self) -> TimeZone {
        self.options.zone.clone()
    }

    /// Bytes of a packet at most; none while there is no connection.
    pub fn packet_max(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.packet)
    }
}

impl Connect for Mysql {
    fn connect(&mut self, until: Instant) -> Result<(), Trouble> {
        let patience = left(until)?;
        // At the end of the process there is less time than there was.
        if self.connection.as_ref().is_some_and(|open| open.patience > patience * 2) {
            self.connection = None;
        }
        if self.connection.is_none() {
            let said = |error| trouble(&self.server, &error);
            let mut conn = self.open(until)?;
            let packet: Option<usize> =
                conn.query_first("SELECT @@max_allowed_packet").map_err(said)?;
            let packet = packet.unwrap_or(1 << 20);
            self.connection = Some(Connection { conn, patience, packet });
        }
        Ok(())
    }

    fn close(&mut self) {
        self.connection = None;
    }
}

fn trouble(server: &SqlServer, error: &Error) -> Trouble {
    match error {
        Error::MySqlError(said) => {
            // Some messages repeat the value. A packet that is too large will be so again.
            let message = match said.code {
                1062 => "duplicate entry".to_owned(),
                _ => without(server, &said.message),
            };
            let message = format!("{message} (error {}, SQLSTATE {})", said.code, said.state);
            let state = if said.code == 1153 { "54" } else { said.state.as_str() };
            of_state(state, message)
        }
        Error::DriverError(mysql::DriverError::PacketTooLarge) => {
            Trouble::Data("larger than the server's max_allowed_packet".to_owned())
        }
        Error::DriverError(mysql::DriverError::TlsNotSupported) => {
            Trouble::Later("TLS is asked for, and the server has none".to_owned())
        }
        // The cause itself, without the name of the library's type around it.
        Error::DriverError(cause) => Trouble::Later(without(server, &cause.to_string())),
        Error::IoError(cause) => {
            let words = tls_fault::told(cause);
            Trouble::Later(words.unwrap_or_else(|| without(server, &cause.to_string())))
        }
        other => Trouble::Later(without(server, &other.to_string())),
    }
}
