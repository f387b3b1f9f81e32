//! Events, the access log and the request log of the plan.

use super::print;
use super::storage::Sql;
use serde::Serialize;
use std::path::PathBuf;

/// Where events and requests are logged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Log {
    /// Least severe level that is written: `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// JSON lines, or text for a terminal.
    pub format: LogFormat,
    /// Where to.
    #[serde(flatten)]
    pub output: LogOutput,
    /// Stories of requests that each worker keeps in memory; 0 = none.
    pub flight_recorder: usize,
    /// One line a request, to this place; `None` = no access log.
    #[serde(skip)]
    pub access: Option<AccessLog>,
    /// Requests kept for later study; `None` = not kept.
    #[serde(skip)]
    pub request: Option<RequestLog>,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` text.
    Text,
}

/// Destination of log lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Appended to this file (reopened on SIGUSR1).
    File(PathBuf),
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccessLog {
    /// JSON or the combined-like text line.
    #[serde(serialize_with = "print::access_format")]
    pub format: LogFormat,
    /// Where to.
    #[serde(flatten)]
    pub output: LogOutput,
}

/// The request log: one row of a SQL table per request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestLog {
    /// Where the table is.
    #[serde(flatten)]
    pub sql: Sql,
    /// Its name.
    pub table: String,
    /// True to keep bodies, which hold what people asked.
    pub include_body: bool,
}
