//! `log` (events) and `logging` (requests).

use super::storage::{self, Stores};
use crate::base::limits::FLIGHT_STORIES_MAX;
use crate::config::plan::{AccessLog, Log, LogFormat, LogOutput, RequestLog};
use crate::config::section::Section;

/// Stories of requests that a worker keeps unless it is told.
const FLIGHT_STORIES: u32 = 1024;
const FORMATS: [(&str, LogFormat); 3] =
    [("json", LogFormat::Json), ("text", LogFormat::Text), ("console", LogFormat::Text)];
const LEVELS: [(&str, &str); 6] = [
    ("error", "error"),
    ("warn", "warn"),
    ("warning", "warn"),
    ("info", "info"),
    ("debug", "debug"),
    ("trace", "trace"),
];

/// Reads both sections.
pub fn log(root: &mut Section, stores: &Stores) -> Log {
    let mut log = Log {
        level: "info".into(),
        format: LogFormat::Json,
        output: LogOutput::Stdout,
        flight_recorder: FLIGHT_STORIES as usize,
        access: None,
        request: None,
    };
    if let Some(mut s) = root.section("log") {
        log.level = s.choice("level", &LEVELS, "info").to_owned();
        log.format = s.choice("format", &FORMATS, LogFormat::Json);
        log.output = output(&mut s);
        let kept = s.int("flight_recorder", 0..=FLIGHT_STORIES_MAX, FLIGHT_STORIES);
        log.flight_recorder = kept as usize;
    }
    let parts = root.when_present("logging", |s| {
        if !s.has("access") && !s.has("request") {
            s.desk
                .warn(s.node(), "is on, but has neither `access` nor `request`: nothing is logged");
        }
        let access = s.when_present("access", access);
        (access, s.when_enabled("request", |s| request(s, stores)).flatten())
    });
    (log.access, log.request) = parts.unwrap_or_default();
    log
}

/// `output: stdout | stderr | file`, the latter with `file.path`.
fn output(s: &mut Section) -> LogOutput {
    let places = [("stdout", 0), ("stderr", 1), ("file", 2)];
    let place = s.choice("output", &places, 0);
    let path = s.section("file").map(|mut file| {
        file.unsupported(&[
            ("rotate", ROTATION),
            ("max_size", ROTATION),
            ("max_age", ROTATION),
            ("max_backups", ROTATION),
            ("compress", ROTATION),
        ]);
        file.required("path")
    });
    match (place, path) {
        (2, Some(path)) => LogOutput::File(path.into()),
        (2, None) => {
            s.error("file", "is required when output is file: give `file: {path: …}`");
            LogOutput::Stdout
        }
        (place, path) => {
            if path.is_some() {
                s.warn("file", "not used, since output is not file");
            }
            if place == 1 {
                LogOutput::Stderr
            } else {
                LogOutput::Stdout
            }
        }
    }
}

const ROTATION: &str = "the file is reopened on SIGUSR1, so logrotate can do this";

fn access(s: &mut Section) -> AccessLog {
    s.unsupported(&[("script", "an access log is not scripted")]);
    let formats = [("json", LogFormat::Json), ("combined", LogFormat::Text)];
    AccessLog { format: s.choice("format", &formats, LogFormat::Json), output: output(s) }
}

fn request(s: &mut Section, stores: &Stores) -> Option<RequestLog> {
    s.unsupported(&[
        ("script", "a request log is not scripted"),
        ("file", "requests are kept in a database; the access log writes files"),
    ]);
    let include_body = s.boolean("include_body", false);
    let table = storage::identifier(s, "table", "request_logs");
    let sql = storage::sql(s, stores)?;
    Some(RequestLog { sql, table, include_body })
}
