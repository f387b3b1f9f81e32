//! The one writer of records as JSON: constant keys and escaped texts, straight into a buffer.
//!
//! Files, NDJSON, exports and dead letters tell one record from the next by its line's end, so
//! nothing that a client or an engine wrote may bring one along. Here every text goes through one
//! of two functions, which escape whatever ends a line in any reader's sense of the word: control
//! characters, U+0085, U+2028 and U+2029 (see [`base::line`](crate::base::line)).

use super::body::Body;
use super::borrowed::RecordRef;
use super::key_id_text;
use crate::base::digits::push_decimal;
use crate::base::utc::Stamp;
use crate::base::word::{no_plain_json, run_len};
use crate::config::plan::RecordFormat;
use crate::llm::tokens::{Oddities, Usage};
use memchr::{memchr, memchr2};
use std::ops::Range;

/// Of `null`.
const NULL_BYTES: usize = 4;

/// Writes records behind one another into a buffer, which is its own for so long.
pub struct JsonWriter<'o, 'r> {
    out: &'o mut Vec<u8>,
    format: RecordFormat,
    /// Of the record before, and where the members that say so stand in the buffer: those of the
    /// next are mostly the same, and then copied from there.
    last: Option<(Target<'r>, Range<usize>)>,
}

/// What was asked of whom: few things, compared with how many records say so.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Target<'r> {
    method: &'r str,
    path: &'r str,
    backend: Option<&'r str>,
    backend_url: Option<&'r str>,
}

impl<'o, 'r> JsonWriter<'o, 'r> {
    /// Behind what is in the buffer.
    pub fn new(out: &'o mut Vec<u8>, format: RecordFormat) -> Self {
        JsonWriter { out, format, last: None }
    }

    /// Appends what stands around and between records.
    pub fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    /// The same as [`JsonWriter::record`], as a line: the only line end is its last byte.
    pub fn line(&mut self, record: &RecordRef<'r>) {
        self.record(record);
        self.byte(b'\n');
    }

    /// Appends a record as one JSON object, without a line end in it.
    pub fn record(&mut self, r: &RecordRef<'r>) {
        let out = &mut *self.out;
        text(out, b"{\"request_id\":\"", r.request_id);
        match Stamp::of(r.timestamp_ms) {
            Some(stamp) => plain(out, b",\"timestamp\":\"", stamp.as_bytes()),
            None => out.extend_from_slice(b",\"timestamp\":null"),
        }
        text_or_null(out, b",\"user_id\":null", r.user_id);
        if r.key_name.is_some() {
            text_or_null(out, b",\"key_name\":null", r.key_name);
        }
        if let Some(id) = r.key_id {
            plain(out, b",\"key_id\":\"", key_id_text(id).as_bytes());
        }
        if let Some(metadata) = r.key_metadata() {
            out.extend_from_slice(b",\"key_metadata\":");
            push_compact(out, metadata.unwrap_or("null"));
        }
        text_or_null(out, b",\"api_key\":null", r.api_key);
        text_or_null(out, b",\"model\":null", r.model);
        push_counts(out, r, self.format);
        truth(out, b",\"is_stream\":", r.is_stream);
        self.target(r);
        let out = &mut *self.out;
        number(out, b",\"status_code\":", r.status_code.into());
        number(out, b",\"latency_ms\":", r.latency_ms);
        number_or_null(out, b",\"ttft_ms\":null", r.ttft_ms);
        number_or_null(out, b",\"first_byte_ms\":null", r.first_byte_ms);
        number(out, b",\"retry_count\":", r.retry_count.into());
        truth(out, b",\"fallback_used\":", r.fallback_used);
        plain(out, b",\"status\":\"", r.outcome.as_str().as_bytes());
        text_or_null(out, b",\"error\":null", r.error);
        if r.engine_error.is_some() {
            text_or_null(out, b",\"engine_error\":null", r.engine_error);
        }
        text_or_null(out, b",\"upstream_id\":null", r.upstream_id);
        text_or_null(out, b",\"client_request_id\":null", r.client_request_id);
        number(out, b",\"request_bytes\":", r.request_bytes);
        number(out, b",\"response_bytes\":", r.response_bytes);
        number(out, b",\"events\":", r.events);
        if let Some(body) = r.request_body {
            push_body(out, &Body::of(body));
        }
        out.push(b'}');
    }

    fn target(&mut self, r: &RecordRef<'r>) {
        let RecordRef { method, path, backend, backend_url, .. } = *r;
        let target = Target { method, path, backend, backend_url };
        if let Some((_, members)) = self.last.as_ref().filter(|(last, _)| *last == target) {
            self.out.extend_from_within(members.clone());
            return;
        }
        let out = &mut *self.out;
        let begin = out.len();
        text(out, b",\"method\":\"", method);
        text(out, b",\"path\":\"", path);
        text(out, b",\"endpoint\":\"", path);
        text_or_null(out, b",\"backend\":null", backend);
        text_or_null(out, b",\"backend_url\":null", backend_url);
        self.last = Some((target, begin..out.len()));
    }
}

/// What is known of tokens, in one or both of the places where receivers look for it.
fn push_counts(out: &mut Vec<u8>, r: &RecordRef<'_>, format: RecordFormat) {
    if format != RecordFormat::Nested {
        number_or_null(out, b",\"prompt_tokens\":null", r.usage.map(|u| u.prompt_tokens));
        number_or_null(out, b",\"completion_tokens\":null", r.completion_tokens());
        number_or_null(out, b",\"total_tokens\":null", r.usage.map(|u| u.total_tokens));
    }
    if format != RecordFormat::Flat {
        match r.usage {
            Some(usage) => push_usage(out, usage),
            None => out.extend_from_slice(b",\"usage\":null"),
        }
    }
    plain(out, b",\"usage_source\":\"", r.usage_source().as_bytes());
    if r.audio_seconds.is_some() {
        number_or_null(out, b",\"audio_seconds\":null", r.audio_seconds);
    }
    if r.quota_tokens.is_some() {
        number_or_null(out, b",\"quota_tokens\":null", r.quota_tokens);
    }
    if !r.oddities.is_empty() {
        out.extend_from_slice(b",\"usage_warnings\":");
        push_warnings(out, r.oddities);
    }
    if r.usage_missing_reason.is_some() {
        text_or_null(out, b",\"usage_missing_reason\":null", r.usage_missing_reason);
    }
}

/// `usage{}` and its key, with the details only when the engine gave them.
fn push_usage(out: &mut Vec<u8>, usage: Usage) {
    number(out, b",\"usage\":{\"prompt_tokens\":", usage.prompt_tokens);
    number(out, b",\"completion_tokens\":", usage.completion_tokens);
    number(out, b",\"total_tokens\":", usage.total_tokens);
    if let Some(cached) = usage.cached_tokens {
        number(out, b",\"cached_tokens\":", cached);
    }
    if let Some(reasoning) = usage.reasoning_tokens {
        number(out, b",\"reasoning_tokens\":", reasoning);
    }
    out.push(b'}');
}

/// Appends the names of oddities as a list.
pub fn push_warnings(out: &mut Vec<u8>, oddities: Oddities) {
    out.push(b'[');
    for (place, name) in oddities.names().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        push_text(out, name);
    }
    out.push(b']');
}

fn push_body(out: &mut Vec<u8>, body: &Body<'_>) {
    out.extend_from_slice(b",\"request_body\":");
    match body {
        Body::Json(json) => push_compact(out, json),
        Body::Text(plain) => push_text(out, plain),
        Body::Base64(digits) => push_text(out, digits),
    }
    if let Some(encoding) = body.encoding() {
        plain(out, b",\"request_body_encoding\":\"", encoding.as_bytes());
    }
}

// Keys are arrays: their lengths are known, and to append them takes no call.

/// The key ends with the quote before the text.
fn text<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: &str) {
    out.extend_from_slice(key);
    push_inner(out, value);
    out.push(b'"');
}

/// The same for one of our own words, in which nothing has to be escaped.
fn plain<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], word: &[u8]) {
    out.extend_from_slice(key);
    out.extend_from_slice(word);
    out.push(b'"');
}

/// The key ends with `null`, which stands there without a value.
fn text_or_null<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: Option<&str>) {
    match value {
        Some(value) => {
            out.extend_from_slice(&key[..N - NULL_BYTES]);
            push_text(out, value);
        }
        None => out.extend_from_slice(key),
    }
}

fn number<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: u64) {
    out.extend_from_slice(key);
    push_decimal(out, value);
}

/// The key ends with `null`, which stands there without a value.
fn number_or_null<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: Option<u64>) {
    match value {
        Some(value) => {
            out.extend_from_slice(&key[..N - NULL_BYTES]);
            push_decimal(out, value);
        }
        None => out.extend_from_slice(key),
    }
}

fn truth<const N: usize>(out: &mut Vec<u8>, key: &[u8; N], value: bool) {
    out.extend_from_slice(key);
    if value {
        out.extend_from_slice(b"true");
    } else {
        out.extend_from_slice(b"false");
    }
}

/// Appends a text as a string of JSON in which nothing ends a line.
fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_inner(out, text);
    out.push(b'"');
}

/// The same without its quotes.
fn push_inner(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some((run, behind)) = rest.split_at_checked(run_len(rest, no_plain_json)) {
        out.extend_from_slice(run);
        if behind.is_empty() {
            break;
        }
        rest = push_odd(out, behind);
    }
}

/// Appends the first letter of a text as it stands in a string of JSON; gives what is behind it.
fn push_odd<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> &'a [u8] {
    let (escape, behind): (&[u8], _) = match text {
        [b'"', behind @ ..] => (b"\\\"", behind),
        [b'\\', behind @ ..] => (b"\\\\", behind),
        [b'\x08', behind @ ..] => (b"\\b", behind),
        [b'\t', behind @ ..] => (b"\\t", behind),
        [b'\n', behind @ ..] => (b"\\n", behind),
        [b'\x0c', behind @ ..] => (b"\\f", behind),
        [b'\r', behind @ ..] => (b"\\r", behind),
        [control @ ..0x20, behind @ ..] => {
            out.extend_from_slice(b"\\u00");
            out.extend(
                [control >> 4, control & 15].map(|digit| b"0123456789abcdef"[usize::from(digit)]),
            );
            (b"", behind)
        }
        _ => return push_wide(out, text),
    };
    out.extend_from_slice(escape);
    behind
}

/// Appends the first byte of what follows, or the whole letter if that ends a line for some reader
/// though it is above ASCII; gives what is behind it.
fn push_wide<'a>(out: &mut Vec<u8>, text: &'a [u8]) -> &'a [u8] {
    let (escape, behind): (&[u8], _) = match text {
        [0xC2, 0x85, behind @ ..] => (b"\\u0085", behind),
        [0xE2, 0x80, 0xA8, behind @ ..] => (b"\\u2028", behind),
        [0xE2, 0x80, 0xA9, behind @ ..] => (b"\\u2029", behind),
        [byte, behind @ ..] => (std::slice::from_ref(byte), behind),
        [] => (b"", text),
    };
    out.extend_from_slice(escape);
    behind
}

/// Appends valid JSON without the white space between its tokens, and with nothing in its strings
/// that ends a line: valid JSON has no control characters there, so that only letters above ASCII
/// are left. Numbers and escapes stay as they are.
pub fn push_compact(out: &mut Vec<u8>, json: &str) {
    let mut rest = json.as_bytes();
    while !rest.is_empty() {
        let (between, string) = rest.split_at(memchr(b'"', rest).unwrap_or(rest.len()));
        out.extend(between.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let (string, behind) = string.split_at(string_len(string));
        push_string(out, string);
        rest = behind;
    }
}

/// Bytes of the string at the beginning, with its quotes.
fn string_len(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = memchr2(b'"', b'\\', json.get(at..).unwrap_or_default()) {
        at += found + 1;
        if json.get(at - 1) == Some(&b'"') {
            return at;
        }
        // Whatever is escaped does not end the string.
        at += 1;
    }
    json.len()
}

/// Appends a string of JSON with its quotes.
fn push_string(out: &mut Vec<u8>, string: &[u8]) {
    let mut rest = string;
    while let Some(at) = memchr2(0xC2, 0xE2, rest) {
        let (run, behind) = rest.split_at(at);
        out.extend_from_slice(run);
        rest = push_wide(out, behind);
    }
    out.extend_from_slice(rest);
}

#[cfg(test)]
pub(crate) mod tests;
