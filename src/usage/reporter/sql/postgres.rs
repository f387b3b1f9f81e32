//! PostgreSQL. The client library is asynchronous: it runs on a small runtime of this reporter's
//! own thread, where a time limit holds for whatever is waited for.

use super::columns::{Found, Key, Layout, Letters, Row, Unusable, Width};
use super::statement::{insert, quoted};
use super::tls::{self, Connector};
use super::{left, refused, resolved, without, Database, Trouble};
use crate::base::tls_fault;
use crate::config::plan::sql_options::{self as options, PostgresOptions, Tls};
use crate::config::plan::{SqlDriver, SqlPlace, SqlServer};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Statement};

/// What of a table's columns matters. A `varchar(n)` has `n + 4` as its modifier, be it that of the
/// column or of the domain that it is of. The type `"char"` has one letter.
const COLUMNS: &str = "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), \
     CASE WHEN COALESCE(b.typname, t.typname) IN ('varchar', 'bpchar') \
               AND GREATEST(a.atttypmod, t.typtypmod) > 4 \
          THEN GREATEST(a.atttypmod, t.typtypmod) - 4 \
          WHEN COALESCE(b.typname, t.typname) = 'char' THEN 1 END, \
     a.attnotnull, a.atthasdef OR a.attidentity <> '', \
     a.attgenerated <> '' OR a.attidentity = 'a' \
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
     LEFT JOIN pg_type b ON b.oid = t.typbasetype \
     WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped \
     ORDER BY a.attnum";

/// The indexes that begin with a column and have all rows: is each a unique one of it alone?
const INDEXES: &str = "SELECT i.indisunique AND i.indnkeyatts = 1 AND i.indimmediate \
     FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
     WHERE i.indrelid = to_regclass($1::text) AND a.attname = $2::text AND i.indisvalid \
     AND i.indpred IS NULL";

/// Unique indexes of a part of the rows by a column alone, and of expressions that it stands in.
const UNUSABLE: &str = "SELECT c.relname::text, i.indkey[0] = a.attnum \
     FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
     JOIN pg_attribute a ON a.attrelid = i.indrelid \
     WHERE i.indrelid = to_regclass($1::text) AND a.attname = $2::text AND i.indisunique \
     AND (i.indkey[0] = a.attnum AND i.indnkeyatts = 1 AND i.indpred IS NOT NULL \
          OR i.indexprs IS NOT NULL AND a.attnum <> ALL (i.indkey) AND EXISTS \
          (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
           AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass \
           AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum))";

/// A server, and the connection to it.
pub struct Postgres {
    server: SqlServer,
    options: PostgresOptions,
    connector: Connector,
    runtime: Runtime,
    connection: Option<Connection>,
}

struct Connection {
    client: Client,
    /// Of the table's layout, which does not change while connected.
    insert: Option<Statement>,
}

impl Postgres {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A line for a person: the address asks for something that is not done here.
    pub fn new(server: &SqlServer) -> Result<Postgres, String> {
        let options = options::postgres(server)?;
        let connector = Connector(Arc::new(tls::config(&options.tls, options.roots.as_deref())?));
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
        Ok(Postgres { server: server.clone(), options, connector, runtime, connection: None })
    }

    fn config(&self, until: Instant) -> Result<Config, Trouble> {
        let mut config = Config::new();
        let mode = match self.options.tls {
            Tls::Off => SslMode::Disable,
            Tls::IfOffered => SslMode::Prefer,
            Tls::Unchecked | Tls::Authority | Tls::Full => SslMode::Require,
        };
        config.ssl_mode(mode).connect_timeout(left(until)?);
        config.dbname(&self.server.database);
        // PgBouncer takes none.
        if !self.options.options.is_empty() {
            config.options(&self.options.options);
        }
        config.application_name(self.options.application.as_deref().unwrap_or("llmproxy"));
        // The library tries one after the other, and each address of a host that has several.
        let mut unknown = None;
        for place in std::iter::once(&self.server.place).chain(&self.server.others) {
            match place {
                SqlPlace::Tcp { host, port } => match resolved(host, *port, left(until)?) {
                    Ok(found) => found.iter().for_each(|address| {
                        config.host(host).hostaddr(address.ip()).port(*port);
                    }),
                    Err(error) => unknown = Some(error),
                },
                SqlPlace::Unix(path) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    let port = name.rsplit('.').next().and_then(|port| port.parse().ok());
                    // TLS is for the network, as with libpq.
                    config.ssl_mode(SslMode::Disable).port(port.unwrap_or(5432));
                    config.host_path(path.parent().unwrap_or(path));
                }
            }
        }
        if let Some(error) = unknown.filter(|_| config.get_hosts().is_empty()) {
            return Err(error);
        }
        if !self.server.user.is_empty() {
            config.user(&self.server.user);
        }
        if !self.server.password.is_empty() {
            config.password(self.server.password.reveal());
        }
        if self.options.read_write {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        Ok(config)
    }

    /// Does something with the connection, in time.
    fn ask<'a, T, F>(
        &'a mut self,
        until: Instant,
        ask: impl FnOnce(&'a mut Connection) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, tokio_postgres::Error>>,
    {
        let connection = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        within(&self.runtime, until, &self.server, ask(connection))
    }
}

fn within<T>(
    runtime: &Runtime,
    until: Instant,
    server: &SqlServer,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, Trouble> {
    let limit = left(until)?;
    let done = runtime.block_on(async { tokio::time::timeout(limit, work).await });
    match done {
        Err(_) => Err(Trouble::late()),
        Ok(done) => done.map_err(|error| trouble(server, &error)),
    }
}

impl Database for Postgres {
    fn connect(&mut self, until: Instant) -> Result<(), Trouble> {
        if self.connection.is_none() {
            let config = self.config(until)?;
            let connector = self.connector.clone();
            let connect = async move {
                let (client, connection) = config.connect(connector).await?;
                // It ends with the client; what it says of its end, the client says too.
                tokio::spawn(connection);
                Ok(client)
            };
            let client = within(&self.runtime, until, &self.server, connect)?;
            self.connection = Some(Connection { client, insert: None });
        }
        Ok(())
    }

    fn close(&mut self) {
        self.connection = None;
    }

    fn columns(&mut self, table: &str, until: Instant) -> Result<Vec<Found>, Trouble> {
        let table = quoted(SqlDriver::Postgres, table);
        let rows = self.ask(until, |connection| async move {
            connection.client.query(COLUMNS, &[&table]).await
        })?;
        let found = rows.iter().map(|row| {
            Ok(Found {
                name: row.try_get(0)?,
                type_name: row.try_get(1)?,
                width: row
                    .try_get::<_, Option<i32>>(2)?
                    .and_then(|letters| usize::try_from(letters).ok())
                    .map(Width::Letters),
                letters: Letters::All,
                required: row.try_get(3)?,
                filled: row.try_get(4)?,
                computed: row.try_get(5)?,
            })
        });
        let found: Result<_, tokio_postgres::Error> = found.collect();
        found.map_err(|error| trouble(&self.server, &error))
    }

    fn key(&mut self, table: &str, column: &str, until: Instant) -> Result<Key, Trouble> {
        let quoted = quoted(SqlDriver::Postgres, table);
        let (indexes, unusable) = self.ask(until, |connection| async move {
            let asked: [&(dyn ToSql + Sync); 2] = [&quoted, &column];
            let indexes = connection.client.query(INDEXES, &asked).await?;
            Ok((indexes, connection.client.query(UNUSABLE, &asked).await?))
        })?;
        let key = Key::of_indexes(indexes.iter().filter_map(|row| row.try_get(0).ok()));
        let unusable = unusable
            .iter()
            .map(|row| Ok(Unusable { index: row.try_get(0)?, is_partial: row.try_get(1)? }));
        let unusable: Result<Vec<Unusable>, tokio_postgres::Error> = unusable.collect();
        let unusable = unusable.map_err(|error| trouble(&self.server, &error))?;
        refused(table, column, key, &unusable)
    }

    fn make(&mut self, statements: &[String], until: Instant) -> Result<(), Trouble> {
        // Statements of one message are one transaction.
        let all = statements.join(";\n");
        self.ask(until, |connection| async move { connection.client.batch_execute(&all).await })
    }

    fn insert(&mut self, layout: &Layout, runs: &[&[Row]], until: Instant) -> Result<(), Trouble> {
        self.ask(until, |connection| async move {
            let statement = match &connection.insert {
                Some(statement) => statement.clone(),
                None => {
                    let made = connection.client.prepare(&insert(layout, 0)).await?;
                    connection.insert.insert(made).clone()
                }
            };
            let transaction = connection.client.transaction().await?;
            for rows in runs {
                let columns: Vec<Vec<Option<&str>>> = (0..layout.columns.len())
                    .map(|index| {
                        rows.iter().map(|row| row.get(index).and_then(Option::as_deref)).collect()
                    })
                    .collect();
                let values: Vec<&(dyn ToSql + Sync)> =
                    columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
                transaction.execute(&statement, &values).await?;
            }
            transaction.commit().await
        })
    }

    /// The text of the statement is the same for any number of rows.
    fn sizes(&self) -> &'static [usize] {
        &[]
    }
}

fn trouble(server: &SqlServer, error: &tokio_postgres::Error) -> Trouble {
    // The detail of an error holds the whole row: only the message is said.
    if let Some(said) = error.as_db_error() {
        let state = said.code().code();
        let message = without(server, &format!("{} (SQLSTATE {state})", said.message()));
        return Trouble::of_state(state, message);
    }
    if let Some(words) = tls_fault::told(error) {
        return Trouble::Later(words);
    }
    let mut message = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Trouble::Later(without(server, &message))
}
