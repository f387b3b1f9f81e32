//! `usage`: the reporters and what a record holds.

use super::storage::{self, Stores};
use super::{headers, required_url};
use crate::base::limits::{RECORD_BODY_BYTES_DEFAULT, RECORD_BODY_BYTES_MAX, RETRIES_MAX};
use crate::config::plan::{
    DatabaseReporter, KeyForm, RecordFormat, Reporter, ReporterKind, Spool, Usage, Webhook,
};
use crate::config::section::Section;
use crate::config::value;
use std::time::Duration;

/// Reads the section.
pub fn usage(s: &mut Section, stores: &Stores) -> Usage {
    let mut reporters: Vec<Reporter> = Vec::new();
    for item in s.sections("reporters") {
        let node = item.node();
        let Some(Some(reporter)) = item.switched(true, |s| reporter(s, stores)) else { continue };
        if reporters.iter().any(|r| r.name == reporter.name) {
            s.desk.error(
                node,
                format!("{} is also the name of another reporter", value::quoted(&reporter.name)),
            );
        }
        reporters.push(reporter);
    }
    if reporters.is_empty() {
        s.desk.warn(s.node(), "is on, but no reporter is: no usage records are made");
    }
    Usage {
        reporters,
        request_body_max: s.parsed("include_request_body", request_body).flatten(),
        api_key: api_key(s),
        inject_stream_usage: s.boolean("inject_stream_usage", false),
        spool: s.when_present("spool", spool),
    }
}

fn api_key(s: &mut Section) -> KeyForm {
    let forms =
        [("plain", KeyForm::Plain), ("masked", KeyForm::Masked), ("sha256", KeyForm::Sha256)];
    let form = s.choice("api_key", &forms, KeyForm::Plain);
    // The other forms do not start; this one does, and would be taken for a key in each record.
    if form == KeyForm::Plain && s.given("api_key") {
        s.warn("api_key", "has no effect yet: records have no key until keys are checked");
    }
    form
}

fn reporter(s: &mut Section, stores: &Stores) -> Option<Reporter> {
    s.unsupported(&[("script", "reporters are not scripted")]);
    let kind = s.kind("type", &["webhook", "database", "builtin"], false)?;
    let name = s.text("name").filter(|n| !n.is_empty()).unwrap_or_else(|| kind.into());
    let formats = [
        ("full", RecordFormat::Full),
        ("flat", RecordFormat::Flat),
        ("nested", RecordFormat::Nested),
    ];
    let format = s.choice("format", &formats, RecordFormat::Full);
    let kind = match kind {
        "webhook" => {
            let Some(mut inner) = s.section("webhook") else {
                s.error("webhook", "is required: give `webhook: {url: …}`");
                return None;
            };
            ReporterKind::Webhook(webhook(&mut inner, format))
        }
        "database" => {
            let Some(mut inner) = s.section("database") else {
                s.error("database", "is required: give `database: {driver: …, dsn: …}`");
                return None;
            };
            let table = storage::identifier(&mut inner, "table", "usage_records");
            // Naming a store that is not there leaves this reporter out, with a warning.
            ReporterKind::Database(DatabaseReporter {
                sql: storage::sql(&mut inner, stores)?,
                table,
            })
        }
        _ => {
            let days = s.section("builtin").map(|mut b| b.int("retention_days", 0..=36_500u32, 0));
            ReporterKind::Builtin { retention_days: days.filter(|d| *d > 0) }
        }
    };
    Some(Reporter { name, kind })
}

fn webhook(s: &mut Section, format: RecordFormat) -> Webhook {
    Webhook {
        url: required_url(s, "url"),
        method: s.choice("method", &[("POST", "POST"), ("PUT", "PUT")], "POST").into(),
        timeout: s.duration("timeout", Duration::from_secs(3)),
        retry: s.int("retry", 0..=RETRIES_MAX, 2),
        headers: headers(s),
        format,
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
    Spool {
        dir: s
            .text("dir")
            .filter(|d| !d.is_empty())
            .unwrap_or_else(|| "./data/spool".into())
            .into(),
        max_bytes: s.parsed("max_bytes", |t| value::size(t, 1 << 20..=1 << 50)).unwrap_or(1 << 30),
        fsync: s.boolean("fsync", true),
    }
}
