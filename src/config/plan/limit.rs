//! Limits on rates and concurrency.

use super::{print, ModelPattern, Redis};
use serde::Serialize;

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Requests per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Requests per minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens per minute, prompt and completion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests at one time, to the last byte of their answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Size of the bucket of `requests_per_second`; twice that rate unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst_size: Option<u32>,
}
