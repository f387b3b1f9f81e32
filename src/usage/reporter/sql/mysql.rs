//! MySQL and MariaDB.

use super::columns::{Found, Key, Layout, Letters, Row, Width, ID_LETTERS};
use super::statement::{insert, schema_and_name};
use super::{left, resolved, without, Database, Trouble};
use crate::base::tls_fault;
use crate::config::plan::sql_options::{self as options, MysqlOptions, Tls};
use crate::config::plan::{SqlPlace, SqlServer};
use jiff::tz::TimeZone;
use mysql::prelude::Queryable;
use mysql::{Conn, Error, OptsBuilder, Params, SslOpts, TxOpts, Value};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const COLUMNS: &str = "SELECT column_name, data_type, character_maximum_length, \
     character_octet_length, character_set_name, is_nullable = 'NO', \
     column_default IS NOT NULL OR extra LIKE '%auto_increment%', \
     extra LIKE '%GENERATED%' AND extra NOT LIKE '%DEFAULT_GENERATED%' \
     FROM information_schema.columns \
     WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position";

/// The indexes that begin with a column; whether each is a unique one of all of it alone.
const INDEXES: &str = "SELECT s.non_unique = 0 AND s.sub_part IS NULL AND NOT EXISTS \
     (SELECT 1 FROM information_schema.statistics o WHERE o.table_schema = s.table_schema \
      AND o.table_name = s.table_name AND o.index_name = s.index_name AND o.seq_in_index = 2) \
     FROM information_schema.statistics s \
     WHERE s.table_schema = COALESCE(?, DATABASE()) AND s.table_name = ? AND s.column_name = ? \
     AND s.seq_in_index = 1";

/// Unique indexes that have only the beginning of a column, less than so many letters.
const PREFIXES: &str = "SELECT index_name, sub_part FROM information_schema.statistics \
     WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND column_name = ? \
     AND non_unique = 0 AND sub_part < ?";

/// Columns of unique indexes other than this one, expressions (which have no name) among them, and
/// other than a row's number.
const OTHER_KEYS: &str = "SELECT COUNT(*) FROM information_schema.statistics s \
     WHERE s.table_schema = COALESCE(?, DATABASE()) AND s.table_name = ? \
     AND NOT s.column_name <=> ? AND s.non_unique = 0 AND NOT EXISTS \
     (SELECT 1 FROM information_schema.columns c WHERE c.table_schema = s.table_schema \
      AND c.table_name = s.table_name AND c.column_name = s.column_name \
      AND c.extra LIKE '%auto_increment%')";

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
                let found = resolved(host, *port, left(until)?)?;
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
    fn ask<T>(
        &mut self,
        until: Instant,
        ask: impl FnOnce(&mut Conn) -> Result<T, Error>,
    ) -> Result<T, Trouble> {
        left(until)?;
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        ask(&mut connection.conn).map_err(|error| trouble(&self.server, &error))
    }
}

impl Database for Mysql {
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

    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<Found>, Trouble> {
        type Description =
            (String, String, Option<u64>, Option<u64>, Option<String>, bool, bool, bool);
        let place = schema_and_name(table);
        let rows: Vec<Description> = self.ask(until, |conn| conn.exec(COLUMNS, place))?;
        Ok(rows.into_iter().map(found).collect())
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let (schema, name) = schema_and_name(table);
        let asked = (schema, name, column);
        let narrow = (schema, name, column, ID_LETTERS);
        let prefix: Option<(String, u64)> =
            self.ask(until, |conn| conn.exec_first(PREFIXES, narrow))?;
        if let Some((index, letters)) = prefix {
            return Err(Trouble::Later(format!(
                "table {table}: its unique index {index} has only the first {letters} letters of \
                 {column}, and a request id has {ID_LETTERS}: records would be taken for one \
                 another"
            )));
        }
        let unique: Vec<bool> = self.ask(until, |conn| conn.exec(INDEXES, asked))?;
        let others: Option<u64> = self.ask(until, |conn| conn.exec_first(OTHER_KEYS, asked))?;
        Ok(match Key::of_indexes(unique) {
            // ON DUPLICATE KEY would take a row that another key refuses for one that is there.
            Key::Unique if others != Some(0) => Key::Indexed,
            key => key,
        })
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        for statement in statements {
            self.ask(until, |conn| conn.query_drop(statement))?;
        }
        Ok(())
    }

    fn insert(&mut self, layout: &Layout, runs: &[&[Row]], until: Instant) -> Result<(), Trouble> {
        self.connect(until)?;
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        let said = |error| trouble(&self.server, &error);
        let transaction = connection.conn.start_transaction(TxOpts::default());
        let mut transaction = transaction.map_err(said)?;
        for rows in runs {
            left(until)?;
            // The connection keeps what it has prepared, by the text.
            let statement = transaction.prep(insert(layout, rows.len())).map_err(said)?;
            let values: Vec<Value> =
                rows.iter().flat_map(|row| layout.values(row)).map(value).collect();
            transaction.exec_drop(statement, Params::Positional(values)).map_err(said)?;
        }
        left(until)?;
        transaction.commit().map_err(said)
    }

    fn zone(&self) -> TimeZone {
        self.options.zone.clone()
    }

    /// The rest of a row is a few kilobytes.
    fn body_max(&self) -> usize {
        self.connection.as_ref().map_or(0, |connection| connection.packet / 2)
    }
}

#[allow(clippy::type_complexity, reason = "the row of one query")]
fn found(
    (name, type_name, letters, bytes, set, required, filled, computed): (
        String,
        String,
        Option<u64>,
        Option<u64>,
        Option<String>,
        bool,
        bool,
        bool,
    ),
) -> Found {
    let type_name = type_name.to_ascii_lowercase();
    let size = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    // A TEXT is limited by its bytes, a VARCHAR by its letters.
    let width = match type_name.ends_with("char") {
        true => letters.map(|letters| Width::Letters(size(letters))),
        false => bytes.map(|bytes| Width::Bytes(size(bytes))),
    };
    let letters = match set.as_deref() {
        None | Some("utf8mb4" | "utf16" | "utf32" | "binary" | "gb18030") => Letters::All,
        Some("utf8" | "utf8mb3" | "ucs2") => Letters::ThreeBytes,
        Some(_) => Letters::Ascii,
    };
    Found { name, type_name, width, letters, required, filled, computed }
}

fn value(cell: &Option<String>) -> Value {
    cell.as_ref().map_or(Value::NULL, |text| Value::Bytes(text.clone().into_bytes()))
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
            Trouble::of_state(state, message)
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
