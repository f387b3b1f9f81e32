//! `usage`: the reporters and what a record holds.

use super::storage::{self, Stores};
use super::{headers, required_url};
use crate::base::limits::{
    RECORD_BODY_BYTES_DEFAULT, RECORD_BODY_BYTES_MAX, RETRIES_MAX, RING_BYTES_MAX, RING_BYTES_MIN,
    RING_ENTRY_SHARE, WEBHOOK_BATCH_RECORDS_MAX, WEBHOOK_CONCURRENCY_MAX,
};
use crate::base::secret::Secret;
use crate::config::plan::{
    BuiltinReporter, DatabaseReporter, FileReporter, Fsync, KeyForm, OnSpoolFailure, RecordFormat,
    RedisReporter, Reporter, ReporterKind, Spool, UsagePlan, Webhook, WebhookBatch,
};
use crate::config::section::Section;
use crate::config::value;
use std::time::Duration;

/// Reads the section.
pub fn usage(s: &mut Section, stores: &Stores) -> UsagePlan {
    let api_key = key_form(s, KeyForm::Masked);
    let mut reporters: Vec<Reporter> = Vec::new();
    for item in s.sections("reporters") {
        let node = item.node();
        let read = |s: &mut Section| reporter(s, stores, api_key);
        let Some(Some(reporter)) = item.switched(true, read) else { continue };
        if reporters.iter().any(|r| r.name == reporter.name) {
            s.desk.error(
                node,
                format!("{} is also the name of another reporter", value::quoted(&reporter.name)),
            );
        }
        reporters.push(reporter);
    }
    // An empty list, or one in which each is switched off, says so itself.
    if !s.given("reporters") {
        s.desk.warn(s.node(), "is on, but no reporter is: no usage records are made");
    }
    let spool = s.section("spool").map(|mut s| spool(&mut s)).unwrap_or_default();
    let request_body_max = s.parsed("include_request_body", request_body).flatten();
    let fits = spool.ring_size / RING_ENTRY_SHARE;
    if request_body_max.is_some_and(|max| max as u64 >= fits) {
        let message = "longer ones than a quarter of usage.spool.ring_size are left out";
        s.warn("include_request_body", message);
    }
    UsagePlan {
        reporters,
        request_body_max,
        api_key,
        inject_stream_usage: s.boolean("inject_stream_usage", true),
        estimate_on_abort: s.boolean("estimate_on_abort", false),
        spool,
    }
}

fn key_form(s: &mut Section, default: KeyForm) -> KeyForm {
    let forms = [
        ("plain", KeyForm::Plain),
        ("masked", KeyForm::Masked),
        ("sha256", KeyForm::Sha256),
        ("none", KeyForm::None),
    ];
    s.choice("api_key", &forms, default)
}

fn reporter(s: &mut Section, stores: &Stores, api_key: KeyForm) -> Option<Reporter> {
    s.unsupported(&[("script", "reporters are not scripted")]);
    let kinds = ["webhook", "redis", "database", "file", "builtin"];
    let kind = s.kind("type", &kinds, false)?;
    let name = s.parsed("name", reporter_name).unwrap_or_else(|| kind.into());
    let api_key = key_form(s, api_key);
    let mut inner = match s.section(kind) {
        Some(inner) => inner,
        // All that it has to say has a default.
        None if kind == "builtin" => {
            let kind = ReporterKind::Builtin(BuiltinReporter::default());
            return Some(Reporter { name, api_key, kind });
        }
        None => {
            s.error(kind, required(kind));
            return None;
        }
    };
    let kind = match kind {
        "webhook" => ReporterKind::Webhook(webhook(&mut inner, format(s))),
        "redis" => ReporterKind::Redis(redis(&mut inner, stores)),
        "database" => ReporterKind::Database(database(&mut inner, stores)?),
        "file" => ReporterKind::File(file(&mut inner, format(s))),
        _ => ReporterKind::Builtin(builtin(&mut inner)),
    };
    Some(Reporter { name, api_key, kind })
}

fn required(kind: &str) -> &'static str {
    match kind {
        "webhook" => "is required: give `webhook: {url: …}`",
        "redis" => "is required: give `redis: {addr: …}`",
        "database" => "is required: give `database: {driver: …, dsn: …}`",
        _ => "is required: give `file: {path: …}`",
    }
}

/// The name is a part of file names in the spool.
fn reporter_name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.chars().all(fine) {
        let quoted = value::quoted(text);
        return Err(format!("{quoted} must be 1 to 64 letters, digits, `-`, `_` and `.`"));
    }
    Ok(text.to_owned())
}

fn format(s: &mut Section) -> RecordFormat {
    let formats = [
        ("full", RecordFormat::Full),
        ("flat", RecordFormat::Flat),
        ("nested", RecordFormat::Nested),
    ];
    s.choice("format", &formats, RecordFormat::Full)
}

fn webhook(s: &mut Section, format: RecordFormat) -> Webhook {
    let batches = [
        ("single", WebhookBatch::Single),
        ("array", WebhookBatch::Array),
        ("ndjson", WebhookBatch::Ndjson),
    ];
    Webhook {
        url: required_url(s, "url"),
        method: s.choice("method", &[("POST", "POST"), ("PUT", "PUT")], "POST").into(),
        timeout: s.duration("timeout", Duration::from_secs(3)),
        retry: s.int("retry", 0..=RETRIES_MAX, 4),
        headers: headers(s),
        hmac_secret: Secret::new(s.protecting("hmac_secret").unwrap_or_default()),
        batch: s.choice("batch", &batches, WebhookBatch::Single),
        batch_size: s.int("batch_size", 1..=WEBHOOK_BATCH_RECORDS_MAX, 500),
        concurrency: s.int("concurrency", 1..=WEBHOOK_CONCURRENCY_MAX, 4),
        format,
    }
}

fn redis(s: &mut Section, stores: &Stores) -> RedisReporter {
    RedisReporter {
        redis: storage::redis_of_reporter(s, stores),
        stream: s.text("stream").filter(|k| !k.is_empty()).unwrap_or("llmproxy:usage".into()),
        max_len: s.int("max_len", 0..=u64::MAX >> 1, 1_000_000),
        counters: s.text("counters").unwrap_or_default(),
    }
}

fn database(s: &mut Section, stores: &Stores) -> Option<DatabaseReporter> {
    let table = storage::identifier(s, "table", "usage_records");
    let sql = storage::sql_of_reporter(s, stores)?;
    Some(DatabaseReporter { sql, table })
}

fn file(s: &mut Section, format: RecordFormat) -> FileReporter {
    FileReporter {
        path: s.required("path").into(),
        max_size: s.parsed("max_size", |t| value::size(t, 4096..=1 << 50)).unwrap_or(100 << 20),
        max_age: s.duration_opt("max_age"),
        max_files: s.int("max_files", 0..=100_000, 0),
        format,
    }
}

fn builtin(s: &mut Section) -> BuiltinReporter {
    let default = BuiltinReporter::default();
    BuiltinReporter {
        path: s.text("path").filter(|p| !p.is_empty()).map_or(default.path, Into::into),
        retention_days: s.int("retention_days", 0..=36_500, 0),
    }
}

/// `true`, `false`, or the most bytes that travel.
fn request_body(text: &str) -> Result<Option<usize>, String> {
    match text {
        "false" => Ok(None),
        "true" => Ok(Some(RECORD_BODY_BYTES_DEFAULT)),
        _ => value::size(text, 1..=RECORD_BODY_BYTES_MAX as u64)
            .map(|bytes| Some(bytes as usize))
            .map_err(|message| format!("{message}, or true, or false")),
    }
}

fn spool(s: &mut Section) -> Spool {
    let default = Spool::default();
    let policies = [("serve", OnSpoolFailure::Serve), ("refuse", OnSpoolFailure::Refuse)];
    Spool {
        enabled: s.boolean("enabled", true),
        dir: s.text("dir").filter(|d| !d.is_empty()).map_or(default.dir, Into::into),
        max_bytes: s
            .parsed("max_bytes", |t| value::size(t, 1 << 20..=1 << 50))
            .unwrap_or(default.max_bytes),
        fsync: s.parsed("fsync", fsync).unwrap_or(default.fsync),
        on_failure: s.choice("on_spool_failure", &policies, OnSpoolFailure::Serve),
        ring_size: s.parsed("ring_size", ring_size).unwrap_or(default.ring_size),
        ring_dir: s.text("ring_dir").filter(|d| !d.is_empty() && d != "auto").map(Into::into),
    }
}

/// Made a power of two: a position in the ring is found by its lower bits.
fn ring_size(text: &str) -> Result<u64, String> {
    value::size(text, RING_BYTES_MIN..=RING_BYTES_MAX).map(u64::next_power_of_two)
}

/// `always`, `off`, or how often.
fn fsync(text: &str) -> Result<Fsync, String> {
    match text {
        "always" | "true" => Ok(Fsync::Always),
        "off" | "false" => Ok(Fsync::Off),
        _ => value::duration(text)
            .map(Fsync::Every)
            .map_err(|message| format!("{message}, or always, or off")),
    }
}
