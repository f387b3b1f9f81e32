//! The billable fact of one request, and its JSON forms.
//!
//! The worker fills in plain fields and formats nothing; rendering happens on the reporter's
//! thread. The default form is the union of both forms that receivers were built for: token fields
//! at the top *and* `usage{}`, `endpoint` *and* `path`.

pub mod borrowed;
pub mod line;

use crate::base::id::RequestId;
use crate::config::plan::{KeyForm, RecordFormat};
use crate::llm::tokens::{Oddities, Usage};
use borrowed::RecordRef;
use serde::ser::{Serialize, SerializeMap, Serializer};
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

/// A record in one of its forms.
struct Form<'a> {
    record: &'a RecordRef<'a>,
    format: RecordFormat,
}

impl Serialize for Form<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let r = self.record;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("request_id", r.request_id)?;
        map.serialize_entry("timestamp", &rfc3339(r.timestamp_ms))?;
        map.serialize_entry("user_id", &r.user_id)?;
        map.serialize_entry("api_key", &r.api_key)?;
        map.serialize_entry("model", &r.model)?;
        if self.format != RecordFormat::Nested {
            map.serialize_entry("prompt_tokens", &r.usage.map(|u| u.prompt_tokens))?;
            map.serialize_entry("completion_tokens", &r.completion_tokens())?;
            map.serialize_entry("total_tokens", &r.usage.map(|u| u.total_tokens))?;
        }
        if self.format != RecordFormat::Flat {
            map.serialize_entry("usage", &r.usage.map(Tokens))?;
        }
        map.serialize_entry("usage_source", r.usage_source())?;
        if let Some(seconds) = r.audio_seconds {
            map.serialize_entry("audio_seconds", &seconds)?;
        }
        if !r.oddities.is_empty() {
            map.serialize_entry("usage_warnings", &r.oddities.names().collect::<Vec<_>>())?;
        }
        if let Some(reason) = &r.usage_missing_reason {
            map.serialize_entry("usage_missing_reason", reason)?;
        }
        map.serialize_entry("is_stream", &r.is_stream)?;
        map.serialize_entry("method", &r.method)?;
        map.serialize_entry("path", &r.path)?;
        map.serialize_entry("endpoint", &r.path)?;
        map.serialize_entry("backend", &r.backend)?;
        map.serialize_entry("backend_url", &r.backend_url)?;
        map.serialize_entry("status_code", &r.status_code)?;
        map.serialize_entry("latency_ms", &r.latency_ms)?;
        map.serialize_entry("ttft_ms", &r.ttft_ms)?;
        map.serialize_entry("first_byte_ms", &r.first_byte_ms)?;
        map.serialize_entry("retry_count", &r.retry_count)?;
        map.serialize_entry("fallback_used", &r.fallback_used)?;
        map.serialize_entry("status", r.outcome.as_str())?;
        map.serialize_entry("error", &r.error)?;
        if let Some(code) = &r.engine_error {
            map.serialize_entry("engine_error", code)?;
        }
        map.serialize_entry("upstream_id", &r.upstream_id)?;
        map.serialize_entry("client_request_id", &r.client_request_id)?;
        map.serialize_entry("request_bytes", &r.request_bytes)?;
        map.serialize_entry("response_bytes", &r.response_bytes)?;
        map.serialize_entry("events", &r.events)?;
        if let Some(body) = &r.request_body {
            let body = line::body_of(body);
            map.serialize_entry("request_body", &body)?;
            if let Some(encoding) = body.encoding() {
                map.serialize_entry("request_body_encoding", encoding)?;
            }
        }
        map.end()
    }
}

/// `usage{}`, with the details only when the engine gave them.
struct Tokens(Usage);

impl Serialize for Tokens {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("prompt_tokens", &self.0.prompt_tokens)?;
        map.serialize_entry("completion_tokens", &self.0.completion_tokens)?;
        map.serialize_entry("total_tokens", &self.0.total_tokens)?;
        if let Some(cached) = self.0.cached_tokens {
            map.serialize_entry("cached_tokens", &cached)?;
        }
        if let Some(reasoning) = self.0.reasoning_tokens {
            map.serialize_entry("reasoning_tokens", &reasoning)?;
        }
        map.end()
    }
}

/// RFC 3339 in UTC, always with three digits of milliseconds so that texts sort as times do.
pub(super) fn rfc3339(unix_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

#[cfg(test)]
pub(crate) mod tests;
