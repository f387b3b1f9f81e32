//! The billable fact of one request, and its JSON forms.
//!
//! The worker fills in plain fields and formats nothing; rendering happens on the reporter's
//! thread. The default form is the union of both forms that receivers were built for: token fields
//! at the top *and* `usage{}`, `endpoint` *and* `path`.

pub mod body;
pub mod borrowed;
pub mod json;
pub mod line;

use crate::base::id::RequestId;
use crate::config::plan::{KeyForm, RecordFormat};
use crate::llm::tokens::{Oddities, Usage};
use std::borrow::Cow;
use std::sync::Arc;

/// One finished request.
#[derive(Debug, Clone, Default)]
pub struct UsageRecord {
    /// Ours, unique: the idempotency key of the receiver.
    pub request_id: RequestId,
    /// The client's own, when it sent a harmless one.
    pub client_request_id: Option<RequestId>,
    /// When the request arrived, milliseconds since 1970 UTC.
    pub timestamp_ms: u64,
    /// Owner of the key.
    pub user_id: Option<String>,
    /// Label of the key, where keys are checked.
    pub key_name: Option<String>,
    /// What its provider says of the key beside, an object of JSON; empty: that is too large.
    pub key_metadata: Option<String>,
    /// The first eight bytes of the SHA-256 of the key, where keys are checked: people know it by
    /// these, and nobody else learns it from them.
    pub key_id: Option<u64>,
    /// The key, in one of its forms.
    pub api_key: Option<String>,
    /// In which: configurations change while records wait.
    pub key_form: KeyForm,
    /// As the client asked for it; `None` when the request named none.
    pub model: Option<String>,
    /// Request method.
    pub method: Cow<'static, str>,
    /// Request path, without the query.
    pub path: String,
    /// Name of the backend that answered, or was tried last; `None` when none was.
    pub backend: Option<Arc<str>>,
    /// URL of the backend that answered, or was tried last; `None` when none was.
    pub backend_url: Option<Arc<str>>,
    /// Sent to the client; 499 when it left before.
    pub status_code: u16,
    /// The client asked for a stream.
    pub is_stream: bool,
    /// What the engine reported; `None` when it did not, or not before the end.
    pub usage: Option<Usage>,
    /// Completion tokens counted by content events, where the engine reported nothing and the
    /// configuration asks for an estimate.
    pub counted: Option<u64>,
    /// Seconds of audio, where an engine reported these instead of tokens.
    pub audio_seconds: Option<u64>,
    /// What the quota of its key was debited with; `None` where the key has none. The sum of these
    /// is what is used of a quota.
    pub quota_tokens: Option<u64>,
    /// What is strange in the counts.
    pub oddities: Oddities,
    /// Why an answer that is over has no usage, where we know: its counts are no numbers of tokens,
    /// or it was compressed and too large.
    pub usage_missing_reason: Option<Cow<'static, str>>,
    /// From the complete request head to the last byte of the answer.
    pub latency_ms: u64,
    /// From the complete request head to the first token; of what is no stream, to the first byte.
    pub ttft_ms: Option<u64>,
    /// From the complete request head to the first byte of the answer's body.
    pub first_byte_ms: Option<u64>,
    /// Tries after the first.
    pub retry_count: u32,
    /// A backend other than the one first picked answered.
    pub fallback_used: bool,
    /// How it ended.
    pub outcome: Outcome,
    /// Code of the error that ended it.
    pub error: Option<Cow<'static, str>>,
    /// The engine's own code or type of an error that it told of inside its answer.
    pub engine_error: Option<String>,
    /// The engine's id of its answer.
    pub upstream_id: Option<String>,
    /// Bytes of the request body.
    pub request_bytes: u64,
    /// Bytes of the answer's body that the client took.
    pub response_bytes: u64,
    /// Data events of the stream; 0 when it was none.
    pub events: u64,
    /// The request body, when it is wanted and not longer than configured.
    pub request_body: Option<Vec<u8>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer went to the client.
    #[default]
    Complete,
    /// The client left before the end.
    ClientLeft,
    /// The backend failed, before or inside its answer.
    BackendError,
    /// One of the timeouts fired.
    TimedOut,
    /// Answered by us; no backend was asked.
    Refused,
    /// The gateway ended before the answer did: it was stopped, or killed.
    Aborted,
}

impl Outcome {
    /// The word in records, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Complete => "complete",
            Outcome::ClientLeft => "client_left",
            Outcome::BackendError => "backend_error",
            Outcome::TimedOut => "timed_out",
            Outcome::Refused => "refused",
            Outcome::Aborted => "aborted",
        }
    }

    /// The outcome of a word; `None` when it is none.
    pub fn from_word(word: &str) -> Option<Outcome> {
        let all = [
            Outcome::Complete,
            Outcome::ClientLeft,
            Outcome::BackendError,
            Outcome::TimedOut,
            Outcome::Refused,
            Outcome::Aborted,
        ];
        all.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// The id of a key, as records and logs write it.
pub fn key_id_text(id: u64) -> String {
    format!("{id:016x}")
}

impl UsageRecord {
    /// The record as one JSON object, without a line end in it.
    pub fn to_json(&self, format: RecordFormat) -> Vec<u8> {
        self.borrowed().to_json(format)
    }

    /// The same as a line: the only line end is its last byte, whatever a client wrote.
    pub fn to_line(&self, format: RecordFormat) -> Vec<u8> {
        self.borrowed().to_line(format)
    }
}

#[cfg(test)]
pub(crate) mod tests;
