//! PostgreSQL. The client library is asynchronous: it runs on a small runtime of the caller's own
//! thread, where a time limit holds for whatever is waited for.

use super::names;
use super::tls::{self, Connector};
use super::{left, of_state, without, Connect, Trouble};
use crate::base::tls_fault;
use crate::config::plan::sql_options::{self as options, PostgresOptions, Tls};
use crate::config::plan::{SqlPlace, SqlServer};
use std::future::Future;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, Error, Statement};

/// A server, and the connection to it.
pub struct Postgres {
    server: SqlServer,
    options: PostgresOptions,
    connector: Connector,
    runtime: Runtime,
    connection: Option<Session>,
}

/// A connection, and the statement that it prepared last.
pub struct Session {
    /// What asks the server.
    pub client: Client,
    prepared: Option<(String, Statement)>,
}

impl Session {
    /// The statement of this text; prepared anew only when the last one was another.
    ///
    /// # Errors
    /// The server does not understand it, or is gone.
    pub async fn prepare(&mut self, text: String) -> Result<Statement, Error> {
        match &self.prepared {
            Some((known, statement)) if *known == text => Ok(statement.clone()),
            _ => {
                let made = self.client.prepare(&text).await?;
                self.prepared = Some((text, made.clone()));
                Ok(made)
            }
        }
    }
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
                SqlPlace::Tcp { host, port } => match names::addresses(host, *port, left(until)?) {
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
    ///
    /// # Errors
    /// There is none, the time is over, or what the server or the library says.
    pub fn ask<'a, T, F>(
        &'a mut self,
        until: Instant,
        ask: impl FnOnce(&'a mut Session) -> F,
    ) -> Result<T, Trouble>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let session = self.connection.as_mut().ok_or_else(Trouble::closed)?;
        within(&self.runtime, until, &self.server, ask(session))
    }

    /// True while there is a connection, which may be broken.
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// What an error of this connection means.
    pub fn trouble(&self, error: &Error) -> Trouble {
        trouble(&self.server, error)
    }
}

fn within<T>(
    runtime: &Runtime,
    until: Instant,
    server: &SqlServer,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Trouble> {
    let limit = left(until)?;
    let done = runtime.block_on(async { tokio::time::timeout(limit, work).await });
    match done {
        Err(_) => Err(Trouble::late()),
        Ok(done) => done.map_err(|error| trouble(server, &error)),
    }
}

impl Connect for Postgres {
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
            self.connection = Some(Session { client, prepared: None });
        }
        Ok(())
    }

    fn close(&mut self) {
        self.connection = None;
    }
}

fn trouble(server: &SqlServer, error: &Error) -> Trouble {
    // The detail of an error holds the whole row: only the message is said.
    if let Some(said) = error.as_db_error() {
        let state = said.code().code();
        let message = without(server, &format!("{} (SQLSTATE {state})", said.message()));
        return of_state(state, message);
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
