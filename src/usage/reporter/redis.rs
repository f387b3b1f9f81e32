//! A Redis stream, and hashes that count requests and tokens per day and key.
//!
//! One script per batch does all of it with nothing in between (`redis/add.lua`). Ids are
//! remembered for a day, in a set per hour of their requests: a batch that is repeated because
//! nobody knows what became of it neither appears nor counts twice. The keys are those of one
//! server, not of a cluster.

use super::{Reporter, Shape, Tried};
use crate::config::plan;
use crate::config::plan::RecordFormat;
use crate::store::redis::RedisServer;
use crate::store::Trouble;
use crate::usage::record::borrowed::RecordRef;
use ::redis::{cmd, Cmd};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const SCRIPT: &str = include_str!("redis/add.lua");
/// Records of one script.
const BATCH_RECORDS: usize = 500;
/// Ids are remembered for so long after the last of their hour came: longer than a server is away
/// between a batch and its repetition.
const SEEN_SECONDS: u64 = 24 * 3600;

/// A stream, and the server that it is on.
pub struct Stream {
    plan: plan::RedisReporter,
    server: RedisServer,
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
        let server = RedisServer::new(plan.redis.clone());
        Stream { plan, server }
    }

    fn command(&self, records: &[RecordRef<'_>]) -> Cmd {
        let mut command = cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(&self.plan.stream).arg(self.plan.max_len).arg(SEEN_SECONDS);
        for record in records {
            let (day, hour) = times(record.timestamp_ms);
            let usage = record.usage.unwrap_or_default();
            command.arg(record.request_id);
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
    fn counter(&self, record: &RecordRef<'_>, day: &str) -> String {
        let prefix = &self.plan.counters;
        if prefix.is_empty() {
            return String::new();
        }
        let who = record.api_key.or(record.user_id).unwrap_or("-");
        format!("{prefix}:{day}:{who}")
    }
}

impl Reporter for Stream {
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let until = Instant::now() + limit;
        let command = self.command(records);
        match self.server.run(&command, until) {
            Ok(()) => Tried::Delivered,
            Err(Trouble::Later(cause)) => Tried::Again(cause),
            Err(Trouble::Data(cause)) => Tried::Failed(cause),
        }
    }

    fn place(&self) -> String {
        self.server.place()
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
fn fields(record: &RecordRef<'_>) -> Vec<(String, String)> {
    let json = record.to_json(RecordFormat::Flat);
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(&json).unwrap_or_default();
    let text = |(name, value): (String, &RawValue)| match value.get() {
        "null" => None,
        // A text without its quotes; anything else as it stands.
        raw => Some((name, serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned()))),
    };
    fields.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests;
