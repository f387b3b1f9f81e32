//! A record as the fields of an entry: what its flat form says, as names and plain texts. What it
//! does not know is left out.

use crate::base::utc::Stamp;
use crate::store::redis::{argument, argument_len, Call};
use crate::usage::record::body::Body;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::record::{json, key_id_text};

/// A text of the program as an argument that is ready to be sent.
macro_rules! ready {
    ($text:literal) => {{
        const BYTES: [u8; argument_len($text)] = argument($text);
        BYTES.as_slice()
    }};
}

/// Appends how many arguments follow, and the fields in the order of their names.
pub fn push_fields(call: &mut Call, r: &RecordRef<'_>) {
    let hole = call.hole();
    let before = call.arguments();
    maybe(call, ready!("api_key"), r.api_key);
    maybe_number(call, ready!("audio_seconds"), r.audio_seconds);
    maybe(call, ready!("backend"), r.backend);
    maybe(call, ready!("backend_url"), r.backend_url);
    maybe(call, ready!("client_request_id"), r.client_request_id);
    maybe_number(call, ready!("completion_tokens"), r.completion_tokens());
    maybe(call, ready!("endpoint"), Some(r.path));
    maybe(call, ready!("engine_error"), r.engine_error);
    maybe(call, ready!("error"), r.error);
    maybe_number(call, ready!("events"), Some(r.events));
    truth(call, ready!("fallback_used"), r.fallback_used);
    maybe_number(call, ready!("first_byte_ms"), r.first_byte_ms);
    truth(call, ready!("is_stream"), r.is_stream);
    let key_id = r.key_id.map(key_id_text);
    maybe(call, ready!("key_id"), key_id.as_deref());
    if let Some(Some(metadata)) = r.key_metadata() {
        let mut compact = Vec::new();
        json::push_compact(&mut compact, metadata);
        maybe(call, ready!("key_metadata"), std::str::from_utf8(&compact).ok());
    }
    maybe(call, ready!("key_name"), r.key_name);
    maybe_number(call, ready!("latency_ms"), Some(r.latency_ms));
    maybe(call, ready!("method"), Some(r.method));
    maybe(call, ready!("model"), r.model);
    maybe(call, ready!("path"), Some(r.path));
    maybe_number(call, ready!("prompt_tokens"), r.usage.map(|u| u.prompt_tokens));
    maybe_number(call, ready!("quota_tokens"), r.quota_tokens);
    if let Some(body) = r.request_body {
        push_body(call, &Body::of(body));
    }
    maybe_number(call, ready!("request_bytes"), Some(r.request_bytes));
    maybe(call, ready!("request_id"), Some(r.request_id));
    maybe_number(call, ready!("response_bytes"), Some(r.response_bytes));
    maybe_number(call, ready!("retry_count"), Some(r.retry_count.into()));
    maybe(call, ready!("status"), Some(r.outcome.as_str()));
    maybe_number(call, ready!("status_code"), Some(r.status_code.into()));
    let stamp = Stamp::of(r.timestamp_ms);
    maybe(call, ready!("timestamp"), stamp.as_ref().map(Stamp::as_str));
    maybe_number(call, ready!("total_tokens"), r.usage.map(|u| u.total_tokens));
    maybe_number(call, ready!("ttft_ms"), r.ttft_ms);
    maybe(call, ready!("upstream_id"), r.upstream_id);
    maybe(call, ready!("usage_missing_reason"), r.usage_missing_reason);
    maybe(call, ready!("usage_source"), Some(r.usage_source()));
    if !r.oddities.is_empty() {
        let mut list = Vec::new();
        json::push_warnings(&mut list, r.oddities);
        maybe(call, ready!("usage_warnings"), std::str::from_utf8(&list).ok());
    }
    maybe(call, ready!("user_id"), r.user_id);
    call.fill(&hole, call.arguments() - before);
}

/// A body that is a string is said without its quotes, and one that is `null` is not said.
fn push_body(call: &mut Call, body: &Body<'_>) {
    let compact = |json: &str| {
        let mut compact = Vec::new();
        json::push_compact(&mut compact, json);
        String::from_utf8(compact).unwrap_or_default()
    };
    let text = match body {
        Body::Json(json) => match serde_json::from_str(json) {
            Ok(text) => text,
            Err(_) => Some(compact(json)),
        },
        Body::Text(text) => Some((*text).to_owned()),
        Body::Base64(text) => Some(text.clone()),
    };
    maybe(call, ready!("request_body"), text.as_deref());
    maybe(call, ready!("request_body_encoding"), body.encoding());
}

fn maybe(call: &mut Call, name: &[u8], text: Option<&str>) {
    if let Some(text) = text {
        call.ready(name);
        call.text(text);
    }
}

fn maybe_number(call: &mut Call, name: &[u8], number: Option<u64>) {
    if let Some(number) = number {
        call.ready(name);
        call.number(number);
    }
}

fn truth(call: &mut Call, name: &[u8], truth: bool) {
    call.ready(name);
    call.ready(if truth { ready!("true") } else { ready!("false") });
}
