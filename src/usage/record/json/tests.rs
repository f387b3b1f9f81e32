//! Compared with the serialiser of a library, which the writer stands in for.

use super::*;
use crate::base::id::RequestId;
use crate::config::plan::KeyForm;
use crate::usage::record::tests::record;
use crate::usage::record::{line, Outcome, UsageRecord};
use proptest::option;
use proptest::prelude::*;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{json, Value};

const FORMATS: [RecordFormat; 3] = [RecordFormat::Full, RecordFormat::Flat, RecordFormat::Nested];

/// A record in one of its forms, as the library writes it.
struct Form<'a> {
    record: &'a RecordRef<'a>,
    format: RecordFormat,
}

fn maybe<M: SerializeMap>(map: &mut M, name: &str, count: Option<u64>) -> Result<(), M::Error> {
    count.map_or(Ok(()), |count| map.serialize_entry(name, &count))
}

impl Serialize for Form<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let r = self.record;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("request_id", r.request_id)?;
        map.serialize_entry("timestamp", &timestamp(r.timestamp_ms))?;
        map.serialize_entry("user_id", &r.user_id)?;
        if let Some(name) = r.key_name {
            map.serialize_entry("key_name", name)?;
        }
        if let Some(id) = r.key_id {
            map.serialize_entry("key_id", &format!("{id:016x}"))?;
        }
        if let Some(text) = r.key_metadata {
            map.serialize_entry("key_metadata", &json_or_null(text))?;
        }
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
        maybe(&mut map, "audio_seconds", r.audio_seconds)?;
        maybe(&mut map, "quota_tokens", r.quota_tokens)?;
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
            let body = Body::of(body);
            match &body {
                Body::Json(json) => map.serialize_entry("request_body", &compact(json))?,
                Body::Text(text) => map.serialize_entry("request_body", text)?,
                Body::Base64(text) => map.serialize_entry("request_body", text)?,
            }
            if let Some(encoding) = body.encoding() {
                map.serialize_entry("request_body_encoding", encoding)?;
            }
        }
        map.end()
    }
}

fn json_or_null(text: &str) -> Box<RawValue> {
    compact(if let Body::Json(json) = Body::of(text.as_bytes()) { json } else { "null" })
}

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

fn timestamp(unix_ms: u64) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
    Some(format!("{time:.3}"))
}

/// Valid JSON without the white space between its tokens, letter by letter.
fn compact(json: &str) -> Box<RawValue> {
    let (mut in_string, mut escaped) = (false, false);
    let mut compact = json.to_owned();
    compact.retain(|letter| {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !matches!(letter, ' ' | '\t' | '\n' | '\r')
    });
    RawValue::from_string(compact).unwrap()
}

/// Texts of which each letter may be one that has to be escaped.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z/-]{0,40}",
        "[\\x00-\\x1f\"\\\\/a\u{7f}-\u{ff}\u{2020}-\u{2030}\u{1f980}]{0,24}",
    ]
}

fn id() -> impl Strategy<Value = RequestId> {
    "[A-Za-z0-9._-]{1,64}".prop_map(|id| RequestId::from_client(id.as_bytes()).unwrap())
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        json_text().prop_map(String::into_bytes),
        hostile().prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..60),
    ]
}

const OUTCOMES: [Outcome; 6] = [
    Outcome::Complete,
    Outcome::ClientLeft,
    Outcome::BackendError,
    Outcome::TimedOut,
    Outcome::Refused,
    Outcome::Aborted,
];

/// Any record at all.
pub fn any_record() -> impl Strategy<Value = UsageRecord> {
    let count = || prop_oneof![Just(0), 0..100_000_u64, any::<u64>()];
    let time = prop_oneof![any::<u64>(), 0..260_000_000_000_000_u64];
    let usage = (count(), count(), count(), option::of(count()), option::of(count()));
    let words = (
        option::of(id()),
        proptest::collection::vec(option::of(hostile()), 10),
        (hostile(), hostile()),
        option::of(body()),
    );
    let numbers = (
        (time, any::<u16>(), any::<u32>(), any::<u8>()),
        option::of(usage),
        proptest::collection::vec(option::of(count()), 5),
        proptest::collection::vec(count(), 4),
    );
    let others = (id(), any::<bool>(), any::<bool>(), proptest::sample::select(OUTCOMES.to_vec()));
    (words, numbers, others).prop_map(|(words, numbers, others)| {
        let (client_request_id, mut texts, (method, path), request_body) = words;
        let ((timestamp_ms, status_code, retry_count, bits), usage, maybe, sure) = numbers;
        let (request_id, is_stream, fallback_used, outcome) = others;
        let texts_before = texts[0].clone().unwrap_or_default();
        let mut text = || texts.pop().unwrap();
        UsageRecord {
            request_id,
            client_request_id,
            timestamp_ms,
            user_id: text(),
            key_name: text(),
            key_metadata: maybe[0].map(|n| match n % 4 {
                0 => String::new(),
                1 => texts_before.clone(),
                _ => json!({"a": [n, texts_before], "b": null}).to_string(),
            }),
            key_id: maybe[0],
            api_key: text(),
            key_form: KeyForm::Plain,
            model: text(),
            method: method.into(),
            path,
            backend: text().map(Into::into),
            backend_url: text().map(Into::into),
            status_code,
            is_stream,
            usage: usage.map(|(prompt, completion, total, cached, reasoning)| Usage {
                prompt_tokens: prompt,
                completion_tokens: completion,
                total_tokens: total,
                cached_tokens: cached,
                reasoning_tokens: reasoning,
            }),
            counted: maybe[0],
            audio_seconds: maybe[1],
            quota_tokens: maybe[4],
            oddities: Oddities::from_bits(bits),
            usage_missing_reason: text().map(Into::into),
            latency_ms: sure[0],
            ttft_ms: maybe[2],
            first_byte_ms: maybe[3],
            retry_count,
            fallback_used,
            outcome,
            error: text().map(Into::into),
            engine_error: text(),
            upstream_id: text(),
            request_bytes: sure[1],
            response_bytes: sure[2],
            events: sure[3],
            request_body,
        }
    })
}

/// The line of a record with this body; asserts that it is one line by anybody's count, and
/// that all of the record but its body is what it is without.
fn line_with(body: &[u8]) -> Value {
    let with = UsageRecord { request_body: Some(body.to_vec()), ..record() };
    let without = UsageRecord { request_id: with.request_id, ..record() };
    let line = String::from_utf8(with.to_line(RecordFormat::Full)).unwrap();
    // What Python's `splitlines` splits at.
    let is_end = |c: char| "\u{85}\u{2028}\u{2029}".contains(c) || c < ' ';
    assert_eq!(line.find(is_end), Some(line.len() - 1), "{line}");
    let mut json: Value = serde_json::from_str(&line).unwrap();
    let members = json.as_object_mut().unwrap();
    let body = members.remove("request_body").unwrap();
    let encoding = members.remove("request_body_encoding");
    let expected: Value = serde_json::from_slice(&without.to_json(RecordFormat::Full)).unwrap();
    assert_eq!(json, expected);
    json!([body, encoding])
}

/// Catches: a client that writes a line of its own into a bill, or makes its own unreadable.
#[test]
fn a_body_cannot_begin_a_line() {
    let forged = "{\"model\":\"m\",\"x\":\r\n{\"request_id\":\"forged\"}\n}";
    let said = json!({"model": "m", "x": {"request_id": "forged"}});
    assert_eq!(line_with(forged.as_bytes()), json!([said, null]));
    let inside = "\"a\u{2028}{}\u{2029}[]\u{85}b \\\" c\"";
    let said = "a\u{2028}{}\u{2029}[]\u{85}b \" c";
    assert_eq!(line_with(inside.as_bytes()), json!([said, null]));
    let twice = "{}\n{\"request_id\":\"forged\"}\n";
    assert_eq!(line_with(twice.as_bytes()), json!([twice, "text"]));
}

/// Catches: JSON that one parser takes and another does not, which would cost the record.
#[test]
fn what_a_receiver_may_not_read_goes_as_text() {
    let deep = "[".repeat(65) + &"]".repeat(65);
    let halves = [r#""\ud800""#, r#"{"\udc00":1}"#];
    for text in ["1e999", halves[0], halves[1], &deep, "", "{\"cut\":\"sh", "\u{feff}{}"] {
        assert_eq!(line_with(text.as_bytes()), json!([text, "text"]));
    }
    assert_eq!(line_with(b"--boundary\n\xff"), json!(["LS1ib3VuZGFyeQr/", "base64"]));
    let flat = "[".repeat(64) + &"]".repeat(64);
    assert_eq!(line_with(flat.as_bytes())[1], Value::Null);
}

/// Catches: a target that is taken for the last one because it looks like it, put together.
#[test]
fn neighbours_with_other_targets_keep_theirs() {
    let record = record();
    let base = RecordRef { method: "POST", path: "/v1/a", ..record.borrowed() };
    let backends = |backend, backend_url| RecordRef { backend, backend_url, ..base };
    let row = [
        backends(Some("a"), Some("b")),
        backends(Some("a"), Some("b")),
        backends(Some("ab"), Some("")),
        backends(Some("ab"), None),
        backends(None, Some("ab")),
        backends(None, Some("null")),
        RecordRef { method: "POST/", path: "v1/a", ..backends(None, Some("null")) },
        RecordRef { method: "POST", path: "/v1/\"a\"", ..backends(None, Some("null")) },
        RecordRef { method: "POST", path: "/v1/\"a\"", ..backends(None, Some("null")) },
    ];
    for format in FORMATS {
        let mut out = Vec::new();
        let mut writer = JsonWriter::new(&mut out, format);
        row.iter().for_each(|record| writer.line(record));
        let wanted: Vec<u8> =
            row.iter().flat_map(|record| line::line_of(&Form { record, format })).collect();
        assert_eq!(String::from_utf8(out), String::from_utf8(wanted));
    }
}

/// Catches: a number that changes its digits on the way to a bill.
#[test]
fn a_body_loses_nothing_but_white_space() {
    let body = r#" {"t" : 0.70,  "seed":123456789012345678901234567890, "a":"\u00e9 \\" } "#;
    assert_eq!(Body::of(body.as_bytes()), Body::Json(body));
    let mut compact = Vec::new();
    push_compact(&mut compact, body);
    let wanted = r#"{"t":0.70,"seed":123456789012345678901234567890,"a":"\u00e9 \\"}"#;
    assert_eq!(String::from_utf8(compact).unwrap(), wanted);
}

fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("-1.50e3".to_owned()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        Just("\"\\ud83d\\n\"".to_owned()),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let blank = prop_oneof![Just(""), Just(" \n"), Just("\r\n\t")];
        let items = proptest::collection::vec(inner, 0..5);
        (items, blank, any::<bool>()).prop_map(|(items, blank, is_list)| match is_list {
            true => format!("[{blank}{}{blank}]", items.join(&format!("{blank},{blank}"))),
            false => {
                let members: Vec<String> =
                    items.iter().map(|item| format!("\"k\"{blank}:{item}{blank}")).collect();
                format!("{{{blank}{}}}", members.join(","))
            }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Catches: a byte that differs from what receivers have got so far, in any of the forms.
    #[test]
    fn any_record_is_what_the_library_writes(record in any_record()) {
        let record = record.borrowed();
        for format in FORMATS {
            let mut out = b"before".to_vec();
            JsonWriter::new(&mut out, format).record(&record);
            let mut wanted = b"before".to_vec();
            wanted.extend(line::json_of(&Form { record: &record, format }));
            prop_assert_eq!(String::from_utf8(out), String::from_utf8(wanted));
        }
    }

    /// Catches: what is said of the record before, in place of what is true of this one.
    #[test]
    fn any_row_of_records_is_what_the_library_writes(
        records in proptest::collection::vec(any_record(), 2..4),
        row in proptest::collection::vec((0..3_usize, 0..3_usize, 0..16_u8), 1..12),
    ) {
        let row: Vec<RecordRef<'_>> = row.iter().map(|(own, other, shared)| {
            // Each member of the target is its own or that of another record in the row.
            let own = records[own % records.len()].borrowed();
            let other = records[other % records.len()].borrowed();
            let [method, path, backend, backend_url] = [1, 2, 4, 8].map(|bit| match shared & bit {
                0 => &own,
                _ => &other,
            });
            RecordRef {
                method: method.method,
                path: path.path,
                backend: backend.backend,
                backend_url: backend_url.backend_url,
                ..own
            }
        }).collect();
        let (mut out, mut wanted) = (b"before".to_vec(), b"before".to_vec());
        let mut writer = JsonWriter::new(&mut out, RecordFormat::Full);
        for record in &row {
            writer.line(record);
            wanted.extend(line::line_of(&Form { record, format: RecordFormat::Full }));
        }
        prop_assert_eq!(String::from_utf8(out), String::from_utf8(wanted));
    }

    /// Catches: a letter in any field that ends a line for some reader.
    #[test]
    fn any_record_is_one_line(record in any_record()) {
        let mut line = Vec::new();
        JsonWriter::new(&mut line, RecordFormat::Full).line(&record.borrowed());
        let line = String::from_utf8(line).unwrap();
        let is_end = |c: char| "\u{85}\u{2028}\u{2029}".contains(c) || c < ' ';
        prop_assert_eq!(line.find(is_end), Some(line.len() - 1));
        prop_assert!(serde_json::from_str::<Value>(&line).is_ok());
    }
}

proptest! {
    #[test]
    fn any_bytes_are_one_line(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        line_with(&body);
    }

    #[test]
    fn any_text_is_one_line(body in "[\\[\\]{}\",:\\\\u0-9a-f\n\r \u{85}\u{2028}]{0,60}") {
        line_with(body.as_bytes());
    }

    /// Catches: a body that is another value than the one that was sent.
    #[test]
    fn any_json_keeps_its_meaning(body in json_text()) {
        let said = line_with(body.as_bytes());
        match serde_json::from_str::<Value>(&body) {
            Ok(value) => prop_assert_eq!(said, json!([value, null])),
            Err(_) => prop_assert_eq!(said, json!([body, "text"])),
        }
    }

    /// Catches: a line end in any other field that a client or an engine can fill.
    #[test]
    fn any_texts_are_one_line(text in any::<String>()) {
        let text = format!("{text}\n\r\u{2028}");
        let record = UsageRecord {
            user_id: Some(text.clone()),
            key_name: Some(text.clone()),
            key_metadata: Some(json!({"a": text}).to_string()),
            api_key: Some(text.clone()),
            model: Some(text.clone()),
            method: text.clone().into(),
            path: text.clone(),
            backend: Some(text.as_str().into()),
            backend_url: Some(text.as_str().into()),
            usage_missing_reason: Some(text.clone().into()),
            error: Some(text.clone().into()),
            upstream_id: Some(text.clone()),
            ..record()
        };
        for format in [RecordFormat::Full, RecordFormat::Flat, RecordFormat::Nested] {
            let line = String::from_utf8(record.to_line(format)).unwrap();
            prop_assert_eq!(line.find(['\n', '\r', '\u{2028}']), Some(line.len() - 1));
            let json: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(&json["model"], &json!(text));
        }
    }
}
