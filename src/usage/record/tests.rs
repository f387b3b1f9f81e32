use super::*;
use crate::base::id::RequestIds;
use crate::llm::usage::number::Odd;
use serde_json::{json, Value};

/// A finished request, for the tests of the room.
pub fn record() -> UsageRecord {
    UsageRecord {
        request_id: RequestIds::new(1).next_id(),
        client_request_id: RequestId::from_client(b"theirs"),
        timestamp_ms: 1_768_386_600_007,
        user_id: None,
        key_name: None,
        key_metadata: None,
        key_id: None,
        api_key: None,
        key_form: KeyForm::Plain,
        model: Some("org/m".into()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        backend: Some("vllm".into()),
        backend_url: Some("http://vllm:8000".into()),
        status_code: 200,
        is_stream: true,
        usage: Some(Usage {
            prompt_tokens: 15,
            completion_tokens: 42,
            total_tokens: 57,
            cached_tokens: Some(8),
            reasoning_tokens: None,
        }),
        latency_ms: 1234,
        ttft_ms: Some(56),
        first_byte_ms: Some(40),
        audio_seconds: None,
        quota_tokens: None,
        oddities: Oddities::default(),
        engine_error: None,
        retry_count: 1,
        fallback_used: false,
        outcome: Outcome::Complete,
        error: None,
        counted: None,
        usage_missing_reason: None,
        upstream_id: Some("chatcmpl-a".into()),
        request_bytes: 20,
        response_bytes: 900,
        events: 43,
        request_body: None,
    }
}

fn rendered(record: &UsageRecord, format: RecordFormat) -> Value {
    serde_json::from_slice(&record.to_json(format)).unwrap()
}

#[test]
fn the_full_form_has_every_field_of_both_generations() {
    let record = UsageRecord { request_body: Some(b"{\"model\":\"org/m\"}".to_vec()), ..record() };
    let expected = json!({
        "request_id": record.request_id.as_str(),
        "client_request_id": "theirs",
        "timestamp": "2026-01-14T10:30:00.007Z",
        "user_id": null,
        "api_key": null,
        "model": "org/m",
        "prompt_tokens": 15,
        "completion_tokens": 42,
        "total_tokens": 57,
        "usage": {
            "prompt_tokens": 15,
            "completion_tokens": 42,
            "total_tokens": 57,
            "cached_tokens": 8,
        },
        "usage_source": "engine",
        "is_stream": true,
        "method": "POST",
        "path": "/v1/chat/completions",
        "endpoint": "/v1/chat/completions",
        "backend": "vllm",
        "backend_url": "http://vllm:8000",
        "status_code": 200,
        "latency_ms": 1234,
        "ttft_ms": 56,
        "first_byte_ms": 40,
        "retry_count": 1,
        "fallback_used": false,
        "status": "complete",
        "error": null,
        "upstream_id": "chatcmpl-a",
        "request_bytes": 20,
        "response_bytes": 900,
        "events": 43,
        "request_body": {"model": "org/m"},
    });
    assert_eq!(rendered(&record, RecordFormat::Full), expected);
}

/// Catches: a key that cannot be told from others in a record, or an id of it that is no text.
#[test]
fn a_record_of_a_checked_key_says_whose_it_is() {
    let known = UsageRecord {
        user_id: Some("ann".into()),
        key_name: Some("laptop".into()),
        key_id: Some(0x00ab),
        key_metadata: Some("{\"team\": \"red\"}".into()),
        ..record()
    };
    let json = rendered(&known, RecordFormat::Full);
    assert_eq!(json["key_metadata"], json!({"team": "red"}));
    assert_eq!((&json["user_id"], &json["key_name"]), (&json!("ann"), &json!("laptop")));
    assert_eq!(json["key_id"], "00000000000000ab");
    for (too_large, said) in [(None, None), (Some(String::new()), Some(&Value::Null))] {
        let json =
            rendered(&UsageRecord { key_metadata: too_large, ..record() }, RecordFormat::Full);
        assert_eq!(json.get("key_metadata"), said);
    }
}

#[test]
fn the_other_forms_leave_out_one_place_of_the_tokens() {
    let flat = rendered(&record(), RecordFormat::Flat);
    assert_eq!((flat.get("usage"), &flat["total_tokens"]), (None, &json!(57)));
    let nested = rendered(&record(), RecordFormat::Nested);
    assert_eq!((nested.get("prompt_tokens"), nested.get("total_tokens")), (None, None));
    assert_eq!(nested["usage"]["total_tokens"], 57);
}

#[test]
fn a_record_without_usage_says_null_and_where_counts_come_from() {
    let json = rendered(&UsageRecord { usage: None, ..record() }, RecordFormat::Full);
    assert_eq!(json["usage_source"], "missing");
    // Zero would be a bill; a receiver must see that nothing is known.
    assert_eq!(json.get("usage"), Some(&Value::Null));
    assert_eq!(json.get("prompt_tokens"), Some(&Value::Null));
    let counted = UsageRecord { usage: None, counted: Some(9), ..record() };
    let json = rendered(&counted, RecordFormat::Full);
    assert_eq!((&json["usage_source"], &json["completion_tokens"]), (&json!("counted"), &json!(9)));
    assert_eq!((&json["prompt_tokens"], &json["usage"]), (&Value::Null, &Value::Null));
    let cut = UsageRecord { outcome: Outcome::ClientLeft, ..record() };
    assert_eq!(rendered(&cut, RecordFormat::Full)["usage_source"], "engine");
    for word in ["complete", "client_left", "backend_error", "timed_out", "refused", "aborted"] {
        assert_eq!(Outcome::from_word(word).map(Outcome::as_str), Some(word));
    }
}

/// What docs/records.md has in the first column of its tables, field by field.
fn documented() -> Vec<&'static str> {
    let rows =
        include_str!("../../../docs/records.md").lines().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// Catches: a field, a word or a warning that receivers get and nobody explains.
#[test]
fn all_that_a_record_says_is_documented() {
    let all = UsageRecord {
        audio_seconds: Some(1),
        quota_tokens: Some(2),
        oddities: Oddities::from_bits(u8::MAX),
        usage_missing_reason: Some("count_negative".into()),
        engine_error: Some("504".into()),
        key_metadata: Some("{}".into()),
        request_body: Some(b"text".to_vec()),
        ..record()
    };
    let (json, documented) = (rendered(&all, RecordFormat::Full), documented());
    let fields = json.as_object().unwrap().keys().map(String::as_str);
    let warnings = json["usage_warnings"].as_array().unwrap().iter().filter_map(Value::as_str);
    let odd = Odd::ALL.map(Odd::as_str);
    let unknown: Vec<_> =
        fields.chain(warnings).chain(odd).filter(|word| !documented.contains(word)).collect();
    assert!(unknown.is_empty(), "not in docs/records.md: {unknown:?}");
}
