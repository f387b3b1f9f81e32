//! A Redis stream, and hashes that count requests and tokens per day and key.
//!
//! One script per batch does all of it with nothing in between (`redis/add.lua`). Ids are
//! remembered for a day, in a set per hour of their requests: a batch that is repeated because
//! nobody knows what became of it neither appears nor counts twice. The keys are those of one
//! server, not of a cluster.

use super::{Reporter, Shape, Tried};
use crate::base::tls_fault;
use crate::config::plan;
use crate::config::plan::RecordFormat;
use crate::usage::record::UsageRecord;
use ::redis::{
    cmd, Client, Cmd, Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, ServerErrorKind, TlsCertificates,
};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("redis/add.lua");
/// Records of one script.
const BATCH_RECORDS: usize = 500;
/// Ids are remembered for so long after the last of their hour came: longer than a server is away
/// between a batch and its repetition.
const SEEN_SECONDS: u64 = 24 * 3600;
/// The port that an address without one means.
const PORT: u16 = 6379;
/// Words of a server that is not well, wherever they stand in an error: versions before 7 put the
/// error of a command in a script behind words of their own; and who did not log in may not even
/// send as much as a script.
const NOT_WELL: [&str; 5] = ["OOM", "READONLY", "MISCONF", "NOREPLICAS", "unauthenticated"];

/// A stream and its connection.
pub struct Stream {
    plan: plan::RedisReporter,
    kept: Option<Connection>,
}

/// How it wants to be called.
pub fn shape(plan: &plan::RedisReporter) -> Shape {
    let pool = &plan.redis.pool;
    let timeout = pool.dial_timeout.saturating_add(pool.write_timeout);
    let timeout = timeout.saturating_add(pool.read_timeout);
    Shape { batch: BATCH_RECORDS, concurrency: 1, retries: 4, timeout }
}

impl Stream {
    /// Connects to nothing yet.
    pub fn new(plan: plan::RedisReporter) -> Self {
        Stream { plan, kept: None }
    }

    fn connect(&self, limit: Duration) -> RedisResult<Connection> {
        let redis = &self.plan.redis;
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

    /// Connects, logs in, and asks whether it is there.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub fn probe(&mut self, limit: Duration) -> Result<(), String> {
        match self.call(&cmd("PING"), Instant::now() + limit) {
            Ok(()) => Ok(()),
            Err(error) => Err(match judge(&error) {
                Tried::Again(cause) | Tried::Failed(cause) | Tried::Refused(cause) => cause,
                Tried::Later(cause, _) => cause,
                Tried::Delivered => String::new(),
            }),
        }
    }

    /// One call of the script. What became of it is unknown if the connection breaks; then this one
    /// is not used again, for its answer may still come.
    fn call(&mut self, command: &Cmd, end: Instant) -> RedisResult<()> {
        let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut connection = match self.kept.take() {
            Some(kept) => kept,
            None => self.connect(left())?,
        };
        let pool = &self.plan.redis.pool;
        connection.set_write_timeout(Some(pool.write_timeout.min(left())))?;
        connection.set_read_timeout(Some(pool.read_timeout.min(left())))?;
        let called = command.exec(&mut connection);
        if called.as_ref().err().is_none_or(|error| matches!(error.kind(), ErrorKind::Server(_))) {
            self.kept = Some(connection);
        }
        called
    }

    fn command(&self, records: &[&UsageRecord]) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(&self.plan.stream).arg(self.plan.max_len).arg(SEEN_SECONDS);
        for record in records {
            let (day, hour) = times(record.timestamp_ms);
            let usage = record.usage.unwrap_or_default();
            command.arg(record.request_id.as_str());
            command.arg(format!("{}:seen:{hour}", self.plan.stream));
            command.arg(self.counter(record, &day));
            command.arg(usage.prompt_tokens);
            command.arg(record.completion_tokens().unwrap_or(0));
            command.arg(usage.total_tokens);
            let fields = fields(record);
            command.arg(fields.len() * 2);
            for (name, value) in fields {
                command.arg(name).arg(value);
            }
        }
        command
    }

    /// The hash that counts a record; empty = none.
    fn counter(&self, record: &UsageRecord, day: &str) -> String {
        let prefix = &self.plan.counters;
        if prefix.is_empty() {
            return String::new();
        }
        let who = record.api_key.as_deref().or(record.user_id.as_deref()).unwrap_or("-");
        format!("{prefix}:{day}:{who}")
    }
}

impl Reporter for Stream {
    fn send(&mut self, records: &[&UsageRecord], limit: Duration) -> Tried {
        let end = Instant::now() + limit;
        let command = self.command(records);
        let was_kept = self.kept.is_some();
        let mut called = self.call(&command, end);
        // A server that restarted, or that closes what is idle, is there again at once.
        let is_gone = |error: &RedisError| error.is_connection_dropped();
        if was_kept && called.as_ref().err().is_some_and(is_gone) {
            called = self.call(&command, end);
        }
        called.map_or_else(|error| judge(&error), |()| Tried::Delivered)
    }

    fn place(&self) -> String {
        let redis = &self.plan.redis;
        match redis.addr.starts_with('/') {
            true => format!("unix:{}", redis.addr),
            false => {
                let scheme = if redis.tls { "rediss" } else { "redis" };
                format!("{scheme}://{}/{}", redis.addr, redis.db)
            }
        }
    }
}

/// Day and hour of a time, UTC.
fn times(unix_ms: u64) -> (String, String) {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let time = time.unwrap_or_default();
    (time.strftime("%Y-%m-%d").to_string(), time.strftime("%Y-%m-%dT%H").to_string())
}

/// All that a record says, as names and texts; what it does not know is left out.
fn fields(record: &UsageRecord) -> Vec<(String, String)> {
    let json = record.to_json(RecordFormat::Flat);
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&json).unwrap_or_default();
    let text = |(name, value): (String, &RawValue)| match value.get() {
        "null" => None,
        // A text without its quotes; anything else as it stands.
        raw => Some((name, serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned()))),
    };
    fields.into_iter().filter_map(text).collect()
}

/// Only what the server says of the command itself can be the fault of a record; the rest is the
/// server's state or its configuration. In our words: the library's may hold what we sent.
fn judge(error: &RedisError) -> Tried {
    let told = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Io if error.is_timeout() => Tried::Again("timed out".to_owned()),
        // Of the network or of TLS: what was sent is not in it.
        ErrorKind::Io => Tried::Again(match std::error::Error::source(error) {
            Some(cause) => {
                format!("no connection: {}", tls_fault::told(cause).unwrap_or(cause.to_string()))
            }
            None => "no connection".to_owned(),
        }),
        ErrorKind::AuthenticationFailed => {
            Tried::Again("it refuses the user or the password".to_owned())
        }
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            match NOT_WELL.into_iter().find(|word| told.contains(word)) {
                Some(word) => Tried::Again(format!("it answered {word}")),
                None => Tried::Failed("it answered ERR".to_owned()),
            }
        }
        _ => Tried::Again(match error.code() {
            Some(code) => format!("it answered {code}"),
            None => error.category().to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests;
