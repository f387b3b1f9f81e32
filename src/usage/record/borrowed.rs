//! A record that a worker made: it borrows each text from where that lies, and is written into the
//! journal's ring from there.

use super::{Outcome, UsageRecord};
use crate::base::id::RequestId;
use crate::config::plan::KeyForm;
use crate::llm::tokens::{Oddities, Usage};
use std::borrow::Cow;

/// The same as a [`UsageRecord`], field by field.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "each field stands in `UsageRecord`, with what it means")]
pub struct RecordRef<'a> {
    pub request_id: &'a RequestId,
    pub client_request_id: Option<&'a RequestId>,
    pub timestamp_ms: u64,
    pub user_id: Option<&'a str>,
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
            request_id: &self.request_id,
            client_request_id: self.client_request_id.as_ref(),
            timestamp_ms: self.timestamp_ms,
            user_id: self.user_id.as_deref(),
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
    /// The same, with everything in it. It allocates.
    pub fn to_record(&self) -> UsageRecord {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let cow = |text: &str| Cow::<'static, str>::Owned(text.to_owned());
        UsageRecord {
            request_id: *self.request_id,
            client_request_id: self.client_request_id.copied(),
            timestamp_ms: self.timestamp_ms,
            user_id: text(self.user_id),
            api_key: text(self.api_key),
            key_form: self.key_form,
            model: text(self.model),
            method: cow(self.method),
            path: self.path.to_owned(),
            backend: self.backend.map(Into::into),
            backend_url: self.backend_url.map(Into::into),
            status_code: self.status_code,
            is_stream: self.is_stream,
            usage: self.usage,
            counted: self.counted,
            audio_seconds: self.audio_seconds,
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
