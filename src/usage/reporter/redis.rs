//! A Redis stream, and hashes that count requests and tokens per day and key.
//!
//! One script per batch does all of it with nothing in between (`redis/add.lua`). Ids are
//! remembered for a day, in a set per hour of their requests: a batch that is repeated because
//! nobody knows what became of it neither appears nor counts twice. The keys are those of one
//! server, not of a cluster.

mod entry;

use super::{Reporter, Shape, Tried};
use crate::base::limits::GATHER_CALLS;
use crate::base::utc::Stamp;
use crate::config::plan;
use crate::store::redis::{Call, RedisServer, StoredScript};
use crate::store::Trouble;
use crate::usage::record::borrowed::RecordRef;
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
    script: StoredScript,
    /// Used again for each batch.
    call: Call,
}

/// How it wants to be called.
pub fn shape(plan: &plan::RedisReporter) -> Shape {
    let pool = &plan.redis.pool;
    let timeout = pool.dial_timeout.saturating_add(pool.write_timeout);
    let timeout = timeout.saturating_add(pool.read_timeout);
    Shape { batch: BATCH_RECORDS, gather: GATHER_CALLS, concurrency: 1, retries: 4, timeout }
}

impl Stream {
    /// Connects to nothing yet.
    pub fn new(plan: plan::RedisReporter) -> Self {
        let server = RedisServer::new(plan.redis.clone());
        Stream { plan, server, script: StoredScript::new(SCRIPT), call: Call::new() }
    }

    /// Writes what the script takes.
    fn prepare(&mut self, records: &[RecordRef<'_>]) {
        let (plan, call) = (&self.plan, &mut self.call);
        call.clear();
        call.text("1");
        call.text(&plan.stream);
        call.number(plan.max_len);
        call.number(SEEN_SECONDS);
        for record in records {
            let stamp = Stamp::of(record.timestamp_ms).unwrap_or_default();
            let usage = record.usage.unwrap_or_default();
            call.text(record.request_id);
            call.texts([&plan.stream, ":seen:", stamp.hour()]);
            match plan.counters.as_str() {
                "" => call.text(""),
                prefix => {
                    let who = record.api_key.or(record.user_id).unwrap_or("-");
                    call.texts([prefix, ":", stamp.day(), ":", who]);
                }
            }
            call.number(usage.prompt_tokens);
            call.number(record.completion_tokens().unwrap_or(0));
            call.number(usage.total_tokens);
            entry::push_fields(call, record);
        }
    }
}

impl Reporter for Stream {
    fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let until = Instant::now() + limit;
        self.prepare(records);
        match self.server.run(&self.script, &mut self.call, until) {
            Ok(_) => Tried::Delivered,
            Err(Trouble::Later(cause)) => Tried::Again(cause),
            Err(Trouble::Data(cause)) => Tried::Failed(cause),
        }
    }

    fn place(&self) -> String {
        self.server.place()
    }
}

#[cfg(test)]
mod tests;
