//! Metering in the plan: what becomes of usage records.

use super::print;
use super::storage::{Redis, Sql};
use crate::base::limits::RING_BYTES_DEFAULT;
use crate::base::secret::Secret;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Metering.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct UsagePlan {
    /// Where records go. Empty = no records are made.
    pub reporters: Vec<Reporter>,
    /// The request body travels in the record, up to so many bytes; `None` = not at all.
    #[serde(rename = "include_request_body", serialize_with = "print::or_false")]
    pub request_body_max: Option<usize>,
    /// How the key appears in the records of reporters that do not say otherwise.
    pub api_key: KeyForm,
    /// Ask engines for usage on streams whose client did not ask.
    pub inject_stream_usage: bool,
    /// Count content events of a stream that ended before its engine told its tokens, or without.
    pub estimate_on_abort: bool,
    /// Where records wait until they are delivered.
    pub spool: Spool,
}

impl UsagePlan {
    /// The form in which records keep the client's key until they are delivered: what all
    /// reporters that want one agree on, or the key itself, from which each form can be made.
    pub fn kept_key_form(&self) -> KeyForm {
        let mut forms = self.reporters.iter().map(|r| r.api_key).filter(|f| *f != KeyForm::None);
        match forms.next() {
            None => KeyForm::None,
            Some(first) if forms.all(|form| form == first) => first,
            Some(_) => KeyForm::Plain,
        }
    }

    /// True when engines are to be asked for usage that clients did not ask for: somebody wants
    /// records, and they would lack it.
    pub fn wants_stream_usage(&self) -> bool {
        self.inject_stream_usage && !self.reporters.is_empty()
    }
}

/// One destination of usage records.
#[derive(Debug, Clone, PartialEq)]
pub struct Reporter {
    /// Label in metrics and logs.
    pub name: String,
    /// How the key appears in its records.
    pub api_key: KeyForm,
    /// What it is.
    pub kind: ReporterKind,
}

/// Kinds of reporters.
#[derive(Debug, Clone, PartialEq)]
pub enum ReporterKind {
    /// A POST of JSON per record, or per batch.
    Webhook(Webhook),
    /// An entry of a Redis stream per record.
    Redis(RedisReporter),
    /// One row of a SQL table per record.
    Database(DatabaseReporter),
    /// Lines of JSON.
    File(FileReporter),
    /// The store inside the gateway, which `llmproxy usage` reads.
    Builtin(BuiltinReporter),
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
    /// Tries after the first, of a record that is refused (4xx) while others are taken; then it
    /// goes to the dead letters. Two at least. All else is tried for as long as the spool holds it.
    pub retry: u32,
    /// Extra fields (values may be secrets).
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
    /// Key of the HMAC-SHA256 over the body, sent as `X-LLMProxy-Signature: sha256=<hex>`. Empty =
    /// not signed.
    #[serde(skip_serializing_if = "Secret::is_empty", serialize_with = "print::secret")]
    pub hmac_secret: Secret,
    /// Whether a request carries one record or many.
    pub batch: WebhookBatch,
    /// Records of one request at most, where it carries many.
    pub batch_size: u32,
    /// Requests at one time.
    pub concurrency: u32,
    /// Which of the seeds' two JSON forms.
    #[serde(skip)]
    pub format: RecordFormat,
}

/// What one request of a webhook carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WebhookBatch {
    /// One record, a JSON object.
    #[default]
    Single,
    /// A JSON array of records.
    Array,
    /// A record a line (`application/x-ndjson`).
    Ndjson,
}

/// A Redis stream, and counters beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RedisReporter {
    /// The server.
    #[serde(flatten)]
    pub redis: Redis,
    /// Key of the stream.
    pub stream: String,
    /// `MAXLEN ~` of the stream; 0 = it grows for ever.
    pub max_len: u64,
    /// Prefix of hashes `<prefix>:<day>:<key>` that count requests and tokens per key and day;
    /// empty = no counters.
    pub counters: String,
}

/// Lines of JSON in a file that is rotated.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileReporter {
    /// The file that is written; rotated ones lie beside it with the time of their end.
    pub path: PathBuf,
    /// Bytes after which it is rotated.
    pub max_size: u64,
    /// Age after which it is rotated; `None` = never.
    #[serde(serialize_with = "print::or_unlimited")]
    pub max_age: Option<Duration>,
    /// Rotated files that are kept; 0 = all.
    pub max_files: u32,
    /// Which JSON form.
    #[serde(skip)]
    pub format: RecordFormat,
}

/// The store inside the gateway.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuiltinReporter {
    /// The SQLite file.
    pub path: PathBuf,
    /// Days that records are kept; 0 = for ever.
    pub retention_days: u32,
}

impl Default for BuiltinReporter {
    fn default() -> Self {
        BuiltinReporter { path: "./data/usage.db".into(), retention_days: 0 }
    }
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
    /// As the client sent it.
    Plain,
    /// Its first and last letters.
    #[default]
    Masked,
    /// Its SHA-256 in hexadecimal.
    Sha256,
    /// Not at all.
    None,
}

/// The disk log between the gateway and its reporters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spool {
    /// Records are kept on disk; off = in memory, and an end of the process loses what waits.
    pub enabled: bool,
    /// Folder of its files.
    pub dir: PathBuf,
    /// Bytes that wait at most. Beyond, and whenever the disk fails: see `on_failure`.
    pub max_bytes: u64,
    /// When what was written is forced to the disk.
    #[serde(serialize_with = "print::fsync")]
    pub fsync: Fsync,
    /// What becomes of requests while records cannot be kept.
    #[serde(rename = "on_spool_failure")]
    pub on_failure: OnSpoolFailure,
    /// Bytes of each worker's journal ring; a power of two.
    pub ring_size: u64,
    /// Folder of the rings; `None` = `/run/llmproxy` if it is ours alone, else the spool's.
    #[serde(serialize_with = "print::or_auto")]
    pub ring_dir: Option<PathBuf>,
}

impl Default for Spool {
    fn default() -> Self {
        Spool {
            enabled: true,
            dir: "./data/spool".into(),
            max_bytes: 1 << 30,
            fsync: Fsync::Every(Duration::from_millis(100)),
            on_failure: OnSpoolFailure::default(),
            ring_size: RING_BYTES_DEFAULT,
            ring_dir: None,
        }
    }
}

/// When the spool is forced to the disk. A killed process loses nothing either way; a power cut
/// loses what was written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// With each write of the journal.
    Always,
    /// So often.
    Every(Duration),
    /// When the kernel likes.
    Off,
}

/// What becomes of requests while usage records cannot be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnSpoolFailure {
    /// They are served; records wait in memory as long as there is room, then are lost, counted.
    #[default]
    Serve,
    /// They are answered 503: no billing, no service.
    Refuse,
}
