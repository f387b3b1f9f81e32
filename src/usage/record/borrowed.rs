//! A record whose texts lie elsewhere: in a worker's request, from where it is written into the
//! journal's ring, or in the bytes that a lane has read, from where it is sent.

use super::body::Body;
use super::{json, Outcome, UsageRecord};
use crate::base::id::RequestId;
use crate::config::plan::{KeyForm, RecordFormat};
use crate::llm::tokens::{Oddities, Usage};
use std::borrow::Cow;

/// The same as a [`UsageRecord`], field by field.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "each field stands in `UsageRecord`, with what it means")]
pub struct RecordRef<'a> {
    /// Empty, or one that [`RequestId`] takes.
    pub request_id: &'a str,
    /// The same.
    pub client_request_id: Option<&'a str>,
    pub timestamp_ms: u64,
    pub user_id: Option<&'a str>,
    pub key_name: Option<&'a str>,
    pub key_metadata: Option<&'a str>,
    pub key_id: Option<u64>,
    pub api_key: Option<&'a str>,
    pub key_form: KeyForm,
    pub model: Option<&'a str>,
    pub method: &'a str,
    pub path: &'a str,
    pub backend: Option<&'a str>,
    pub backend_url: Option<&'a str>,
    pub status_code: u16,
    pub is_stream: bool,
    pub usage: Option<Usage>,
    pub counted: Option<u64>,
    pub audio_seconds: Option<u64>,
    pub quota_tokens: Option<u64>,
    pub oddities: Oddities,
    pub usage_missing_reason: Option<&'a str>,
    pub latency_ms: u64,
    pub ttft_ms: Option<u64>,
    pub first_byte_ms: Option<u64>,
    pub retry_count: u32,
    pub fallback_used: bool,
    pub outcome: Outcome,
    pub error: Option<&'a str>,
    pub engine_error: Option<&'a str>,
    pub upstream_id: Option<&'a str>,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub events: u64,
    pub request_body: Option<&'a [u8]>,
}

impl UsageRecord {
    /// The same, borrowed.
    pub fn borrowed(&self) -> RecordRef<'_> {
        RecordRef {
            request_id: self.request_id.as_str(),
            client_request_id: self.client_request_id.as_ref().map(RequestId::as_str),
            timestamp_ms: self.timestamp_ms,
            user_id: self.user_id.as_deref(),
            key_name: self.key_name.as_deref(),
            key_metadata: self.key_metadata.as_deref(),
            key_id: self.key_id,
            api_key: self.api_key.as_deref(),
            key_form: self.key_form,
            model: self.model.as_deref(),
            method: &self.method,
            path: &self.path,
            backend: self.backend.as_deref(),
            backend_url: self.backend_url.as_deref(),
            status_code: self.status_code,
            is_stream: self.is_stream,
            usage: self.usage,
            counted: self.counted,
            audio_seconds: self.audio_seconds,
            quota_tokens: self.quota_tokens,
            oddities: self.oddities,
            usage_missing_reason: self.usage_missing_reason.as_deref(),
            latency_ms: self.latency_ms,
            ttft_ms: self.ttft_ms,
            first_byte_ms: self.first_byte_ms,
            retry_count: self.retry_count,
            fallback_used: self.fallback_used,
            outcome: self.outcome,
            error: self.error.as_deref(),
            engine_error: self.engine_error.as_deref(),
            upstream_id: self.upstream_id.as_deref(),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            events: self.events,
            request_body: self.request_body.as_deref(),
        }
    }
}

impl RecordRef<'_> {
    /// Where the token counts come from: `engine`, `counted` by us from the events that passed, or
    /// `missing`. Whether they are final is for `status` to say.
    pub fn usage_source(&self) -> &'static str {
        match (self.usage, self.audio_seconds, self.counted) {
            (Some(_), _, _) | (None, Some(_), _) => "engine",
            (None, None, Some(_)) => "counted",
            (None, None, None) => "missing",
        }
    }

    /// What the provider says of the key beside, as valid JSON; `None` within: it is too large.
    pub fn key_metadata(&self) -> Option<Option<&str>> {
        let text = self.key_metadata?;
        Some(match Body::of(text.as_bytes()) {
            Body::Json(_) => Some(text),
            Body::Text(_) | Body::Base64(_) => None,
        })
    }

    /// Completion tokens, from wherever they are known.
    pub fn completion_tokens(&self) -> Option<u64> {
        self.usage.map(|usage| usage.completion_tokens).or(self.counted)
    }

    /// The record as one JSON object, without a line end in it.
    pub fn to_json(&self, format: RecordFormat) -> Vec<u8> {
        let mut out = Vec::new();
        json::JsonWriter::new(&mut out, format).record(self);
        out
    }

    /// The same as a line: the only line end is its last byte, whatever a client wrote.
    pub fn to_line(&self, format: RecordFormat) -> Vec<u8> {
        let mut out = Vec::new();
        json::JsonWriter::new(&mut out, format).line(self);
        out
    }

    /// The same, with everything in it. It allocates.
    pub fn to_record(&self) -> UsageRecord {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let cow = |text: &str| Cow::<'static, str>::Owned(text.to_owned());
        UsageRecord {
            request_id: RequestId::from_client(self.request_id.as_bytes()).unwrap_or_default(),
            client_request_id: self
                .client_request_id
                .and_then(|id| RequestId::from_client(id.as_bytes())),
            timestamp_ms: self.timestamp_ms,
            user_id: text(self.user_id),
            key_name: text(self.key_name),
            key_metadata: text(self.key_metadata),
            key_id: self.key_id,
            api_key: text(self.api_key),
            key_form: self.key_form,
            model: text(self.model),
            method: match self.method {
                "POST" => "POST".into(),
                "GET" => "GET".into(),
                other => cow(other),
            },
            path: self.path.to_owned(),
            backend: self.backend.map(Into::into),
            backend_url: self.backend_url.map(Into::into),
            status_code: self.status_code,
            is_stream: self.is_stream,
            usage: self.usage,
            counted: self.counted,
            audio_seconds: self.audio_seconds,
            quota_tokens: self.quota_tokens,
            oddities: self.oddities,
            usage_missing_reason: self.usage_missing_reason.map(cow),
            latency_ms: self.latency_ms,
            ttft_ms: self.ttft_ms,
            first_byte_ms: self.first_byte_ms,
            retry_count: self.retry_count,
            fallback_used: self.fallback_used,
            outcome: self.outcome,
            error: self.error.map(cow),
            engine_error: text(self.engine_error),
            upstream_id: text(self.upstream_id),
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            events: self.events,
            request_body: self.request_body.map(<[u8]>::to_vec),
        }
    }
}
