//! Metering in the plan: what becomes of usage records.

use super::print;
use super::storage::Sql;
use crate::base::secret::Secret;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Metering.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Usage {
    /// Where records go. Empty = no records are made.
    pub reporters: Vec<Reporter>,
    /// The request body travels in the record, up to so many bytes; `None` = not at all.
    #[serde(rename = "include_request_body", serialize_with = "print::or_false")]
    pub request_body_max: Option<usize>,
    /// How the key appears in a record.
    pub api_key: KeyForm,
    /// Ask engines for usage on streams whose client did not ask.
    pub inject_stream_usage: bool,
    /// Records wait on disk until they are delivered; `None` = in memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<Spool>,
}

/// One destination of usage records.
#[derive(Debug, Clone, PartialEq)]
pub struct Reporter {
    /// Label in metrics and logs.
    pub name: String,
    /// What it is.
    pub kind: ReporterKind,
}

/// Kinds of reporters. All but the webhook are not delivered to yet and make a plan unbuilt.
#[derive(Debug, Clone, PartialEq)]
pub enum ReporterKind {
    /// One POST of JSON per record.
    Webhook(Webhook),
    /// One row of a SQL table per record.
    Database(DatabaseReporter),
    /// The store inside the gateway.
    Builtin {
        /// Days that records are kept; `None` = for ever.
        retention_days: Option<u32>,
    },
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Webhook {
    /// http or https URL. May carry a secret in its query: never logged whole.
    #[serde(serialize_with = "print::url")]
    pub url: Secret,
    /// `POST` or `PUT`.
    pub method: String,
    /// Of one try, connect to last byte.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Tries after the first.
    pub retry: u32,
    /// Extra fields (values may be secrets).
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
    /// Which of the seeds' two JSON forms.
    #[serde(skip)]
    pub format: RecordFormat,
}

/// JSON form of a record (behaviour page 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordFormat {
    /// Union of both forms of the seeds: top-level token fields and `usage{}`.
    Full,
    /// Token fields at the top level only.
    Flat,
    /// `usage{}` only.
    Nested,
}

/// Rows of usage records.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatabaseReporter {
    /// Where the table is.
    #[serde(flatten)]
    pub sql: Sql,
    /// Its name.
    pub table: String,
}

/// How a key appears in a usage record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyForm {
    /// As the client sent it: billing needs to know whose it is.
    #[default]
    Plain,
    /// Its first and last letters.
    Masked,
    /// Its SHA-256 in hexadecimal.
    Sha256,
}

/// The disk log between the gateway and its reporters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spool {
    /// Folder of its files.
    pub dir: PathBuf,
    /// Bytes on disk. Beyond: the oldest records are dropped and counted.
    pub max_bytes: u64,
    /// Wait for the disk after each batch.
    pub fsync: bool,
}
