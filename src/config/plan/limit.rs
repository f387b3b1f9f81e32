//! Limits on rates and concurrency.

use super::{print, ModelPattern, Redis};
use crate::base::limits::COUNTERS_ENTRIES_DEFAULT;
use serde::{Serialize, Serializer};
use std::path::PathBuf;
use std::time::Duration;

/// Where limits and quotas are counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CountersPlan {
    /// Folder of their file; `None` = beside the rings of the journal.
    #[serde(serialize_with = "print::or_auto")]
    pub dir: Option<PathBuf>,
    /// Keys, users and models that there is room for.
    pub entries: u32,
}

impl Default for CountersPlan {
    fn default() -> Self {
        CountersPlan { dir: None, entries: COUNTERS_ENTRIES_DEFAULT }
    }
}

/// Rate limiting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateLimit {
    /// Where the buckets are.
    #[serde(flatten)]
    pub storage: LimitStorage,
    /// What an outage of that store means.
    pub on_error: LimitOnError,
    /// Limits on all requests together; `None` = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<Limits>,
    /// Limits on each key. Without `auth` a key is what the client shows as one, and a client
    /// that shows none is known by its address. `None` = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_key: Option<Limits>,
    /// Limits on all keys of a user together. `None` = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_user: Option<Limits>,
    /// Limits on each group of models, first match.
    #[serde(serialize_with = "print::per_model")]
    pub per_model: Vec<(ModelPattern, Limits)>,
}

/// Where buckets are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "storage", rename_all = "snake_case")]
pub enum LimitStorage {
    /// In this process.
    Memory,
    /// In Redis, shared by several gateways.
    Redis {
        /// The server.
        redis: Redis,
        /// For how long a gateway may keep what it has borrowed and not used.
        #[serde(rename = "redis_lease", serialize_with = "print::duration")]
        lease: Duration,
    },
}

/// What an outage of the store of the buckets means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitOnError {
    /// Buckets of this process stand in.
    Local,
    /// Requests are refused.
    Deny,
}

/// The limits of one bucket set; `None` = no such limit, never a bucket of size zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per second.
    pub requests_per_second: Option<u32>,
    /// Requests per minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens per minute, prompt and completion.
    pub tokens_per_minute: Option<u64>,
    /// Requests at one time, to the last byte of their answers.
    pub max_concurrent: Option<u32>,
    /// Size of the bucket of `requests_per_second`; twice that rate unless given.
    pub burst_size: Option<u32>,
}

impl Limits {
    /// True when nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }

    /// The stricter of both, limit by limit.
    #[must_use]
    pub fn strictest(self, other: Limits) -> Limits {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Limits {
            requests_per_second: least(self.requests_per_second, other.requests_per_second),
            requests_per_minute: least(self.requests_per_minute, other.requests_per_minute),
            tokens_per_minute: least(self.tokens_per_minute, other.tokens_per_minute),
            max_concurrent: least(self.max_concurrent, other.max_concurrent),
            burst_size: least(self.burst(), other.burst()),
        }
    }

    /// What the bucket of `requests_per_second` holds, if there is one.
    pub fn burst(&self) -> Option<u32> {
        let rate = self.requests_per_second?;
        Some(self.burst_size.unwrap_or(rate.saturating_mul(2)))
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let limits = [
            ("requests_per_second", self.requests_per_second.map(u64::from)),
            ("requests_per_minute", self.requests_per_minute.map(u64::from)),
            ("tokens_per_minute", self.tokens_per_minute),
            ("max_concurrent", self.max_concurrent.map(u64::from)),
            ("burst_size", self.burst_size.map(u64::from)),
        ];
        let given = limits.into_iter().filter_map(|(key, limit)| Some((key, limit?)));
        // A section without any key would be a mistake.
        let none = self.is_none().then_some(("requests_per_second", 0));
        serializer.collect_map(given.chain(none))
    }
}
