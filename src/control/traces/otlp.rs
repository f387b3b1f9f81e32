//! Spans in OTLP's JSON form: its protobuf messages by the rules of proto3, but for ids, which are
//! hexadecimal. Names of attributes are those of OpenTelemetry's conventions for generative AI and
//! for HTTP; what they have no name for begins with `llmproxy.`.

use crate::base::limits::SPAN_TEXT_BYTES_MAX;
use crate::llm::operation::operation;
use crate::llm::tokens::Usage;
use crate::usage::record::{key_id_text, Outcome, UsageRecord};
use crate::usage::spans::{RequestSpan, SpanTry, TryFailure};
use serde_json::{json, Value};
use std::time::Duration;

/// What generates where it is not known what the engine is: the form in which all of them answer.
const PROVIDER: &str = "openai";
/// `SPAN_KIND_SERVER`.
const SERVER: u8 = 2;
/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;
/// Sampled; and that it is said whether the parent is of another process, and that it is.
const FLAGS: u32 = 0x101;
const REMOTE_PARENT: u32 = 0x200;

/// The body of a request that exports these.
pub fn body(spans: &[Box<RequestSpan>], service: &str) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let resource = [text("service.name", service), text("service.version", version)];
    let spans: Vec<Value> = spans.iter().map(|span| of(span)).collect();
    let scope = json!({"name": "llmproxy", "version": version});
    let scope_spans = json!([{"scope": scope, "spans": spans}]);
    let all = json!([{"resource": {"attributes": resource}, "scopeSpans": scope_spans}]);
    json!({"resourceSpans": all}).to_string().into_bytes()
}

/// How many spans a receiver says that it refused, in an answer of 2xx.
pub fn refused(answer: &[u8]) -> u64 {
    let said: Option<Value> = serde_json::from_slice(answer).ok();
    let count = said.as_ref().map(|said| &said["partialSuccess"]["rejectedSpans"]);
    let text = count.and_then(Value::as_str).and_then(|text| text.parse().ok());
    text.or(count.and_then(Value::as_u64)).unwrap_or(0)
}

fn of(span: &RequestSpan) -> Value {
    let flags = if span.parent_id.is_some() { FLAGS | REMOTE_PARENT } else { FLAGS };
    let mut value = json!({
        "traceId": hex(&span.trace_id),
        "spanId": hex(&span.span_id),
        "flags": flags,
        "name": name(span),
        "kind": SERVER,
        "startTimeUnixNano": at(span, Duration::ZERO),
        "endTimeUnixNano": at(span, span.latency),
        "attributes": attributes(span),
        "events": events(span),
        "status": status(&span.record),
    });
    if let Some(parent) = span.parent_id {
        value["parentSpanId"] = hex(&parent).into();
    }
    value
}

/// What the conventions say: what is asked for, and the model. No more names than there are models:
/// a client may name any, but only one that an engine has is answered well.
fn name(span: &RequestSpan) -> String {
    let record = &span.record;
    let method = if record.method.is_empty() { "HTTP" } else { &record.method };
    match (operation(span.route), &record.model) {
        (Some(operation), Some(model)) if is_served(record) => {
            format!("{operation} {}", cut(model))
        }
        (Some(operation), _) => operation.to_owned(),
        (None, _) if span.route.starts_with('/') => format!("{method} {}", span.route),
        (None, _) => method.to_owned(),
    }
}

/// An engine did what was asked.
fn is_served(record: &UsageRecord) -> bool {
    record.backend.is_some() && (200..300).contains(&record.status_code)
}

fn attributes(span: &RequestSpan) -> Vec<Value> {
    let r = &span.record;
    let mut all = Vec::with_capacity(32);
    if let Some(operation) = operation(span.route) {
        let provider = span.engine.unwrap_or(PROVIDER);
        all.push(text("gen_ai.operation.name", operation));
        all.push(text("gen_ai.provider.name", provider));
        // By its name until 2025, which many still look for.
        all.push(text("gen_ai.system", provider));
    }
    if let Some(model) = &r.model {
        all.push(text("gen_ai.request.model", model));
        if is_served(r) {
            all.push(text("gen_ai.response.model", span.served_model.as_ref().unwrap_or(model)));
        }
    }
    let maybe = |key: &str, value: Option<&str>| value.map(|value| text(key, value));
    all.extend(maybe("gen_ai.response.id", r.upstream_id.as_deref()));
    all.extend(r.usage.iter().flat_map(tokens));
    if let Some((address, port)) = r.backend_url.as_deref().and_then(server_of) {
        all.push(text("server.address", address));
        all.extend(port.map(|port| int("server.port", port.into())));
    }
    if !r.method.is_empty() {
        all.push(text("http.request.method", &r.method));
    }
    all.push(int("http.response.status_code", r.status_code.into()));
    if r.retry_count > 0 {
        all.push(int("http.request.resend_count", r.retry_count.into()));
    }
    if span.route.starts_with('/') {
        all.push(text("http.route", span.route));
    }
    all.push(text("url.path", &r.path));
    all.extend(maybe("error.type", r.error.as_deref()));
    all.extend(maybe("user.id", r.user_id.as_deref()));
    all.push(text("llmproxy.request_id", r.request_id.as_str()));
    all.extend(maybe(
        "llmproxy.client_request_id",
        r.client_request_id.as_ref().map(|id| id.as_str()),
    ));
    all.extend(r.key_id.map(|id| text("llmproxy.key_id", &key_id_text(id))));
    all.extend(maybe("llmproxy.key_name", r.key_name.as_deref()));
    all.extend(maybe("llmproxy.backend", r.backend.as_deref()));
    all.push(text("llmproxy.outcome", r.outcome.as_str()));
    all.extend(maybe("llmproxy.engine_error", r.engine_error.as_deref()));
    all.push(flag("llmproxy.stream", r.is_stream));
    all.push(flag("llmproxy.fallback", r.fallback_used));
    all
}

fn tokens(usage: &Usage) -> Vec<Value> {
    let cached = usage.cached_tokens.map(|n| int("gen_ai.usage.cache_read.input_tokens", n));
    let told = [
        int("gen_ai.usage.input_tokens", usage.prompt_tokens),
        int("gen_ai.usage.output_tokens", usage.completion_tokens),
    ];
    told.into_iter().chain(cached).collect()
}

fn events(span: &RequestSpan) -> Vec<Value> {
    let failed = |tried: &SpanTry| {
        let reason = match tried.reason {
            TryFailure::Code(code) => code.to_owned(),
            TryFailure::Status(status) => status.to_string(),
        };
        let attributes = [text("llmproxy.backend", &tried.backend), text("error.type", &reason)];
        event(span, "llmproxy.retry", tried.at, &attributes)
    };
    let first = span.first_token.map(|time| event(span, "llmproxy.first_token", time, &[]));
    span.tries.iter().map(failed).chain(first).collect()
}

fn event(span: &RequestSpan, name: &str, time: Duration, attributes: &[Value]) -> Value {
    json!({"timeUnixNano": at(span, time), "name": name, "attributes": attributes})
}

/// An error is what went wrong here or behind us. What its client did, or is not allowed to, is
/// none, as the conventions for servers have it.
fn status(record: &UsageRecord) -> Value {
    let is_ours =
        matches!(record.outcome, Outcome::BackendError | Outcome::TimedOut | Outcome::Aborted);
    match is_ours || record.status_code >= 500 {
        true => json!({"code": ERROR, "message": record.error.as_deref().unwrap_or_default()}),
        false => json!({}),
    }
}

/// Host and port of a backend; of a Unix socket its path. The configuration was checked.
fn server_of(url: &str) -> Option<(&str, Option<u16>)> {
    if let Some(socket) = url.strip_prefix("unix:") {
        let socket = socket.strip_prefix("//").unwrap_or(socket);
        return Some((socket.split(':').next()?, None));
    }
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let usual = if scheme.eq_ignore_ascii_case("https") { 443 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (authority, usual),
    };
    Some((host.trim_matches(['[', ']']), Some(port)))
}

/// A moment of a span.
fn at(span: &RequestSpan, since_start: Duration) -> String {
    let since = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX);
    span.start_ns.saturating_add(since).to_string()
}

fn hex(bytes: &[u8]) -> String {
    crate::usage::key_form::hex(bytes)
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": cut(value)}})
}

/// Numbers of 64 bits are texts in JSON.
fn int(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn flag(key: &str, value: bool) -> Value {
    json!({"key": key, "value": {"boolValue": value}})
}

/// No longer than a text may be.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(SPAN_TEXT_BYTES_MAX)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::flight::picked::PickedBy;
    use crate::usage::record::tests::record;

    fn span() -> RequestSpan {
        RequestSpan {
            trace_id: [0xa1; 16],
            span_id: [0xb2; 8],
            parent_id: None,
            start_ns: 1_700_000_000_000_000_000,
            latency: Duration::from_millis(1500),
            first_token: Some(Duration::from_micros(250)),
            tries: Vec::new(),
            route: "/v1/chat/completions",
            engine: Some("vllm"),
            served_model: None,
            record: record(),
        }
    }

    fn sent(span: &RequestSpan) -> Value {
        let body = body(&[Box::new(span.clone())], "gateway");
        let read: Value = serde_json::from_slice(&body).unwrap();
        let all = &read["resourceSpans"][0];
        assert_eq!(all["resource"]["attributes"][0], text("service.name", "gateway"));
        all["scopeSpans"][0]["spans"][0].clone()
    }

    fn attribute(span: &Value, key: &str) -> Option<Value> {
        let all = span["attributes"].as_array().unwrap();
        let found: Vec<_> = all.iter().filter(|one| one["key"] == key).collect();
        assert!(found.len() <= 1, "{key} stands twice");
        let (_, value) = found.first()?["value"].as_object()?.iter().next()?;
        Some(value.clone())
    }

    /// Catches: a span that a receiver takes for another one, or refuses.
    #[test]
    fn a_span_has_the_form_of_otlp() {
        let root = sent(&span());
        assert_eq!(root["traceId"], "a1".repeat(16));
        assert_eq!(root["spanId"], "b2".repeat(8));
        assert_eq!((root.get("parentSpanId"), &root["flags"]), (None, &json!(0x101)));
        assert_eq!(root["startTimeUnixNano"], "1700000000000000000");
        assert_eq!(root["endTimeUnixNano"], "1700000001500000000");
        let first = &root["events"][0];
        assert_eq!(first["name"], "llmproxy.first_token");
        assert_eq!(first["timeUnixNano"], "1700000000000250000");
        assert_eq!(root["status"], json!({}));
        let child = sent(&RequestSpan { parent_id: Some([0xc3; 8]), ..span() });
        assert_eq!(
            (&child["parentSpanId"], &child["flags"]),
            (&json!("c3".repeat(8)), &json!(0x301))
        );
    }

    /// Catches: an attribute that no tool for LLMs looks for, and a key that is told.
    #[test]
    fn attributes_are_those_of_the_conventions() {
        let (mut span, usage) = (span(), record().usage.unwrap());
        span.record.api_key = Some("sk-hunter2".into());
        span.served_model = Some("served".into());
        span.record.retry_count = 1;
        let (backend, reason) = ("first".into(), TryFailure::Status(503));
        let (at, picked_by) = (Duration::ZERO, PickedBy::default());
        span.tries.push(SpanTry { began: at, picked_by, at, backend, reason });
        let sent = sent(&span);
        let model = span.record.model.clone().unwrap();
        assert_eq!(sent["name"], format!("chat {model}"));
        for (key, value) in [
            ("gen_ai.operation.name", json!("chat")),
            ("gen_ai.provider.name", json!("vllm")),
            ("gen_ai.system", json!("vllm")),
            ("gen_ai.request.model", json!(model)),
            ("gen_ai.response.model", json!("served")),
            ("gen_ai.usage.input_tokens", json!(usage.prompt_tokens.to_string())),
            ("gen_ai.usage.output_tokens", json!(usage.completion_tokens.to_string())),
            ("http.response.status_code", json!("200")),
            ("http.request.method", json!("POST")),
            ("http.request.resend_count", json!("1")),
            ("llmproxy.request_id", json!(span.record.request_id.as_str())),
            ("llmproxy.outcome", json!("complete")),
        ] {
            assert_eq!(attribute(&sent, key), Some(value), "{key}: {sent:#}");
        }
        assert!(!sent.to_string().contains("hunter2"));
        let retry = &sent["events"][0];
        assert_eq!(
            (&retry["name"], &retry["attributes"][1]),
            (&json!("llmproxy.retry"), &text("error.type", "503"))
        );
    }

    /// Catches: an error that is none of ours, one that is told as none, and as many names of spans
    /// as clients think of.
    #[test]
    fn what_failed_says_whose_fault_it_is() {
        let mut span = span();
        let mut with = |outcome, status_code, error: &'static str| {
            span.record.outcome = outcome;
            span.record.status_code = status_code;
            span.record.error = Some(error.into());
            let sent = sent(&span);
            assert_eq!(attribute(&sent, "error.type"), Some(json!(error)));
            assert_eq!(attribute(&sent, "gen_ai.response.model").is_some(), status_code == 200);
            (sent["name"] == "chat", sent["status"]["code"] == ERROR)
        };
        assert_eq!(with(Outcome::Refused, 401, "invalid_api_key"), (true, false));
        assert_eq!(with(Outcome::ClientLeft, 499, "client_closed"), (true, false));
        assert_eq!(with(Outcome::Refused, 503, "no_backend"), (true, true));
        assert_eq!(with(Outcome::TimedOut, 504, "first_byte_timeout"), (true, true));
        assert_eq!(with(Outcome::BackendError, 200, "error_in_stream"), (false, true));
        span.route = "other";
        assert_eq!(sent(&span)["name"], "POST");
        span.route = "/v1/models";
        assert_eq!(sent(&span)["name"], "POST /v1/models");
    }

    /// Catches: texts without end, or cut within a letter.
    #[test]
    fn texts_have_an_end() {
        let long = "ä".repeat(SPAN_TEXT_BYTES_MAX);
        assert_eq!(cut(&long).len(), SPAN_TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("a{long}")).len(), SPAN_TEXT_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn the_server_is_the_engine() {
        for (url, server) in [
            ("http://gpu-1:8000", ("gpu-1", Some(8000))),
            ("https://llm.example/base", ("llm.example", Some(443))),
            ("HTTP://[::1]", ("::1", Some(80))),
            ("http://[::1]:9/v1", ("::1", Some(9))),
            ("unix:/run/e.sock:/base", ("/run/e.sock", None)),
        ] {
            assert_eq!(server_of(url), Some(server), "{url}");
        }
    }

    /// Catches: spans that count as taken although the receiver says that it did not.
    #[test]
    fn what_a_receiver_refused_is_heard() {
        for (answer, count) in [
            ("{}", 0),
            ("", 0),
            ("ok", 0),
            (r#"{"partialSuccess":{}}"#, 0),
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"old"}}"#, 3),
            (r#"{"partialSuccess":{"rejectedSpans":2}}"#, 2),
        ] {
            assert_eq!(refused(answer.as_bytes()), count, "{answer}");
        }
    }
}
