//! A Redis server: one connection to it, which is made when it is needed.

mod call;
mod read;

pub use call::{argument, argument_len, Call};
pub use read::{RedisValue, ScriptAnswer};

use super::Trouble;
use crate::base::{certificate, tls_fault};
use crate::config::plan::Redis;
use ::redis::{
    Client, Connection, ConnectionAddr, ConnectionLike, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates, Value,
};
use ring::digest::{digest, SHA1_FOR_LEGACY_USE_ONLY};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// The port that an address without one means.
const PORT: u16 = 6379;
/// Words of a server that is not well, wherever they stand in an error: versions before 7 put the
/// error of a command in a script behind words of their own; and who did not log in may not even
/// send as much as a script.
const NOT_WELL: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "unauthenticated"];

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// A server, and the connection to it.
pub struct RedisServer {
    plan: Redis,
    kept: Option<Connection>,
    /// It lets us run scripts by their text alone.
    by_text: bool,
    /// What stood under the last name that was read was a text, and no hash.
    last_was_text: bool,
}

/// A script, which a server keeps once it has read it.
pub struct StoredScript {
    text: &'static str,
    /// The name that the server gives it.
    hash: String,
}

impl StoredScript {
    /// Of this text.
    pub fn new(text: &'static str) -> StoredScript {
        let mut hash = String::new();
        for byte in digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()).as_ref() {
            // Writing to a string cannot fail.
            let _ = write!(hash, "{byte:02x}");
        }
        StoredScript { text, hash }
    }
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
        RedisServer { plan, kept: None, by_text: false, last_was_text: false }
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
        self.call(PING, until).map(drop).map_err(|error| trouble(&error))
    }

    /// Runs a script, and gives what it gives back. The server gets its text only when it does not
    /// have it: a restart has cost it, or it is new. A server that has closed a kept connection is
    /// asked once more over a new one, so it may have run the script twice.
    ///
    /// # Errors
    /// It cannot be reached, does not answer in time, is not well, or does not take the call. If it
    /// did not answer, nobody knows whether it has run the script.
    pub fn run(
        &mut self,
        script: &StoredScript,
        call: &mut Call,
        until: Instant,
    ) -> Result<ScriptAnswer, Trouble> {
        if !self.by_text {
            let called = self.ask(&call.wire("EVALSHA", &script.hash), until);
            match called.as_ref().err().and_then(RedisError::code) {
                Some("NOSCRIPT") => {}
                // Rights may have been given for the one command and not for the other.
                Some("NOPERM") => self.by_text = true,
                _ => return called.map(ScriptAnswer).map_err(|error| trouble(&error)),
            }
        }
        let called = self.ask(&call.wire("EVAL", script.text), until);
        called.map(ScriptAnswer).map_err(|error| trouble(&error))
    }

    /// Sends a command, and once more where a kept connection is closed.
    fn ask(&mut self, command: &[u8], until: Instant) -> RedisResult<Value> {
        let was_kept = self.kept.is_some();
        let called = self.call(command, until);
        // A server that restarted, or that closes what is idle, is there again at once.
        let is_gone = |error: &RedisError| error.is_connection_dropped();
        match was_kept && called.as_ref().err().is_some_and(is_gone) {
            true => self.call(command, until),
            false => called,
        }
    }

    /// One try. If the connection breaks or is silent it is not used again: the answer may still
    /// come, and would be taken for that of the next command.
    fn call(&mut self, command: &[u8], until: Instant) -> RedisResult<Value> {
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut connection = match self.kept.take() {
            Some(kept) => kept,
            None => self.connect(left())?,
        };
        let pool = &self.plan.pool;
        connection.set_write_timeout(Some(pool.write_timeout.min(left())))?;
        connection.set_read_timeout(Some(pool.read_timeout.min(left())))?;
        let called = connection.req_packed_command(command).and_then(Value::extract_error);
        let is_whole = |error: &RedisError| matches!(error.kind(), ErrorKind::Server(_));
        if called.as_ref().err().is_none_or(is_whole) || read::is_wrong_type(&called) {
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
