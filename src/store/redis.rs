//! A Redis server: one connection to it, which is made when it is needed.

use super::Trouble;
use crate::base::{certificate, tls_fault};
use crate::config::plan::Redis;
use ::redis::{
    cmd, Client, Cmd, Connection, ConnectionAddr, ErrorKind, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates,
};
use std::time::{Duration, Instant};

/// The port that an address without one means.
const PORT: u16 = 6379;
/// Words of a server that is not well, wherever they stand in an error: versions before 7 put the
/// error of a command in a script behind words of their own; and who did not log in may not even
/// send as much as a script.
const NOT_WELL: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "unauthenticated"];

/// A server, and the connection to it.
pub struct RedisServer {
    plan: Redis,
    kept: Option<Connection>,
}

/// Reads the files that a connection needs, and connects to nothing.
///
/// # Errors
/// One cannot be read, or holds nothing of use; in words that name it.
pub fn readable(plan: &Redis) -> Result<(), String> {
    match &plan.ca_file {
        Some(file) => certificate::read(file).map(drop).map_err(|error| format!("ca_file {error}")),
        None => Ok(()),
    }
}

impl RedisServer {
    /// Connects to nothing yet.
    pub fn new(plan: Redis) -> RedisServer {
        RedisServer { plan, kept: None }
    }

    /// Where it is, for a log: without credentials.
    pub fn place(&self) -> String {
        let redis = &self.plan;
        match redis.addr.starts_with('/') {
            true => format!("unix:{}", redis.addr),
            false => {
                let scheme = if redis.tls { "rediss" } else { "redis" };
                format!("{scheme}://{}/{}", redis.addr, redis.db)
            }
        }
    }

    /// Connects, logs in, and asks whether it is there.
    ///
    /// # Errors
    /// What is in the way.
    pub fn probe(&mut self, until: Instant) -> Result<(), Trouble> {
        self.call(&cmd("PING"), until).map_err(|error| trouble(&error))
    }

    /// Asks for one command. A server that has closed a kept connection is asked once more over a
    /// new one, so it may have done the command twice.
    ///
    /// # Errors
    /// It cannot be reached, does not answer in time, is not well, or does not take the command. If
    /// it did not answer, nobody knows whether it has done it.
    pub fn run<T: FromRedisValue>(&mut self, command: &Cmd, until: Instant) -> Result<T, Trouble> {
        let was_kept = self.kept.is_some();
        let mut called = self.call(command, until);
        // A server that restarted, or that closes what is idle, is there again at once.
        let is_gone = |error: &RedisError| error.is_connection_dropped();
        if was_kept && called.as_ref().err().is_some_and(is_gone) {
            called = self.call(command, until);
        }
        called.map_err(|error| trouble(&error))
    }

    /// One try. If the connection breaks or is silent it is not used again: the answer may still
    /// come, and would be taken for that of the next command.
    fn call<T: FromRedisValue>(&mut self, command: &Cmd, until: Instant) -> RedisResult<T> {
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut connection = match self.kept.take() {
            Some(kept) => kept,
            None => self.connect(left())?,
        };
        let pool = &self.plan.pool;
        connection.set_write_timeout(Some(pool.write_timeout.min(left())))?;
        connection.set_read_timeout(Some(pool.read_timeout.min(left())))?;
        let called = command.query(&mut connection);
        if called.as_ref().err().is_none_or(|error| matches!(error.kind(), ErrorKind::Server(_))) {
            self.kept = Some(connection);
        }
        called
    }

    fn connect(&self, limit: Duration) -> RedisResult<Connection> {
        let redis = &self.plan;
        let (host, port) = redis.addr.rsplit_once(':').unwrap_or((&redis.addr, ""));
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = port.parse().unwrap_or(PORT);
        let address = match redis.tls {
            _ if redis.addr.starts_with('/') => ConnectionAddr::Unix(redis.addr.clone().into()),
            false => ConnectionAddr::Tcp(host, port),
            true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        };
        let mut settings = RedisConnectionInfo::default().set_db(i64::from(redis.db));
        if !redis.username.is_empty() {
            settings = settings.set_username(&redis.username);
        }
        if !redis.password.is_empty() {
            settings = settings.set_password(redis.password.reveal());
        }
        let info = address.into_connection_info()?.set_redis_settings(settings);
        let client = match redis.tls {
            false => Client::open(info)?,
            true => {
                let root_cert = redis.ca_file.as_ref().map(std::fs::read).transpose()?;
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?
            }
        };
        client.get_connection_with_timeout(redis.pool.dial_timeout.min(limit))
    }
}

/// Only what the server says of the command itself can be the fault of what we sent; the rest is
/// the server's state or its configuration. In our words: the library's may hold what we sent.
fn trouble(error: &RedisError) -> Trouble {
    let told = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => Trouble::Later("timed out".to_owned()),
        // Of the network or of TLS: what was sent is not in it.
        ErrorKind::Io => Trouble::Later(match std::error::Error::source(error) {
            Some(cause) => {
                format!("no connection: {}", tls_fault::told(cause).unwrap_or(cause.to_string()))
            }
            None => "no connection".to_owned(),
        }),
        ErrorKind::AuthenticationFailed => {
            Trouble::Later("it refuses the user or the password".to_owned())
        }
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            match NOT_WELL.into_iter().find(|word| told.contains(word)) {
                Some(word) => Trouble::Later(format!("it answered {word}")),
                None => Trouble::Data("it answered ERR".to_owned()),
            }
        }
        _ => Trouble::Later(match error.code() {
            Some(code) => format!("it answered {code}"),
            None => error.category().to_owned(),
        }),
    }
}
