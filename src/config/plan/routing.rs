//! How a request finds its engine, and what happens when the engine fails.

use super::{print, ModelPattern};
use serde::Serialize;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// Routing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Routing {
    /// How one of several healthy backends is chosen.
    pub load_balance: LoadBalance,
    /// By what requests are known that belong together, which then go to the same backend; `None`:
    /// by nothing.
    #[serde(serialize_with = "print::or_off")]
    pub session_affinity: Option<SessionAffinity>,
    /// `first_byte_timeout` of backends that have none of their own.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// `connect_timeout` of backends that have none of their own.
    #[serde(serialize_with = "print::duration")]
    pub connect_timeout: Duration,
    /// Names that clients use, and the names engines know, in the order of the file.
    #[serde(serialize_with = "print::pairs")]
    pub model_mapping: Vec<(String, String)>,
    /// Retries with waits; `None` = only the one fresh retry that is always safe.
    #[serde(serialize_with = "print::or_off")]
    pub retry: Option<Retry>,
    /// Where to go when a backend failed, first match.
    pub fallback: Vec<Fallback>,
    /// How long an event stream is silent before its client gets a comment, and then again; zero:
    /// it gets what the engine sends and nothing else.
    #[serde(serialize_with = "print::duration")]
    pub sse_keepalive: Duration,
    /// How long the beginning of a stream is held back until its model says something, so that an
    /// error in its first events can be retried; zero: not at all.
    #[serde(serialize_with = "print::duration")]
    pub hold_preamble: Duration,
    /// A stream whose answer has not begun when its first comment is due gets its head with that:
    /// what fails from then on is told inside the stream.
    pub early_head: bool,
    /// Where requests wait while all backends that could take them have as many as they may;
    /// `None`: they are refused.
    #[serde(serialize_with = "print::or_off")]
    pub queue: Option<Queue>,
    /// What answers say of their way here, beside what engines send.
    pub response_headers: Vec<ResponseHeader>,
}

/// Waiting instead of refusing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Requests that may wait at one time, of all workers together.
    pub max_waiting: u32,
    /// The longest that one waits.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
}

/// A field that is put into the answers of engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ResponseHeader {
    /// Name of the backend that answered.
    #[serde(rename = "x-llmproxy-backend")]
    Backend,
    /// Milliseconds from the head of the request to the head of the answer, and the number of tries
    /// (W3C Server Timing).
    #[serde(rename = "server-timing")]
    ServerTiming,
}

/// How a backend is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadBalance {
    /// In turn, by weight.
    RoundRobin,
    /// The one with the fewest requests per weight.
    LeastConnections,
    /// The one that answers soonest.
    LatencyBased,
    /// Any.
    Random,
    /// The one that has read the longest beginning of the prompt, within what it can take.
    PrefixAffinity,
}

/// What names the session that a request belongs to; the first of these that a request has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionAffinity {
    /// Fields of the head.
    pub header: Vec<String>,
    /// Members of the body.
    #[serde(serialize_with = "print::texts")]
    pub body: Vec<SessionKey>,
}

/// A member of a body that may name a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKey {
    /// `user` (OpenAI).
    User,
    /// `prompt_cache_key` (OpenAI).
    PromptCacheKey,
    /// `safety_identifier` (OpenAI).
    SafetyIdentifier,
    /// `session_id` (vLLM).
    SessionId,
    /// `metadata.user_id` (Anthropic).
    MetadataUserId,
}

impl SessionKey {
    /// All of them.
    pub const ALL: [SessionKey; 5] = [
        SessionKey::User,
        SessionKey::PromptCacheKey,
        SessionKey::SafetyIdentifier,
        SessionKey::SessionId,
        SessionKey::MetadataUserId,
    ];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            SessionKey::User => "user",
            SessionKey::PromptCacheKey => "prompt_cache_key",
            SessionKey::SafetyIdentifier => "safety_identifier",
            SessionKey::SessionId => "session_id",
            SessionKey::MetadataUserId => "metadata.user_id",
        }
    }
}

impl Display for SessionKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Retries of a request of which nothing reached the client yet.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retry {
    /// Tries after the first.
    pub max_retries: u32,
    /// Before the first retry.
    #[serde(serialize_with = "print::duration")]
    pub initial_wait: Duration,
    /// Longest wait.
    #[serde(serialize_with = "print::duration")]
    pub max_wait: Duration,
    /// Factor from one wait to the next; at least 1.
    pub multiplier: f64,
    /// Since the first try began; after that no further one begins, and none that follows the first
    /// goes on.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// What is retried.
    #[serde(serialize_with = "print::texts")]
    pub retry_on: Vec<RetryOn>,
}

impl Retry {
    /// How long to wait before backends are asked anew, after so many waits. `spread`, between 0
    /// and 1 and different for each request, takes up to half of it off: what failed together does
    /// not come back together.
    pub fn wait(&self, waits: u32, spread: f64) -> Duration {
        let factor = self.multiplier.powi(i32::try_from(waits).unwrap_or(i32::MAX));
        let whole = (self.initial_wait.as_secs_f64() * factor).min(self.max_wait.as_secs_f64());
        Duration::from_secs_f64(whole * (1.0 - spread.clamp(0.0, 1.0) / 2.0))
    }
}

/// A reason to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection.
    ConnectFailure,
    /// No first byte in time.
    Timeout,
    /// Any status from 500 on.
    ServerError,
    /// This status.
    Status(u16),
}

/// A rule: when `primary` was chosen and failed, try these in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fallback {
    /// Name of a backend. May be none of the plan's (warned): discovery may bring it.
    pub primary: String,
    /// Names of backends in the order in which they are tried.
    pub fallback: Vec<String>,
    /// Models the rule is for; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub models: Vec<ModelPattern>,
    /// Tries after the first under this rule; `None` = as `retry.max_retries` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
}
