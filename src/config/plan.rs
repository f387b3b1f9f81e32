//! The plan: what a configuration means, complete and valid. Immutable; everyone reads it.

use crate::base::secret::Secret;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A validated configuration.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Listener, workers, limits and timeouts of the client side.
    pub server: Server,
    /// Events and the access log.
    pub log: Log,
    /// The engines, in the order of the file. The index is a backend's identity at run time.
    pub backends: Vec<Backend>,
    /// Active probes; `None` when off.
    pub health_check: Option<HealthCheck>,
    /// Usage reporters; empty when off.
    pub usage: Usage,
    /// The metrics endpoint; `None` when off.
    pub metrics: Option<Metrics>,
    /// Sections that are active in the file and that this version cannot serve yet, each with
    /// the line to print. Starting with any refuses; checking lists them.
    pub unbuilt: Vec<String>,
}

/// The client side.
#[derive(Debug, Clone)]
pub struct Server {
    /// Addresses to listen on (`:8000` is `0.0.0.0:8000`). One listener per worker each.
    pub listen: SocketAddr,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// CPU of each worker, used in turn; empty = leave the threads where they are.
    pub cpu_affinity: Vec<usize>,
    /// Most client connections at one time; `None` = (fd limit - 64) / 2 at start.
    pub max_connections: Option<usize>,
    /// Bytes of a request head. Beyond: 431.
    pub max_header_bytes: usize,
    /// Decoded bytes of a request body. Beyond: 413.
    pub max_body_size: u64,
    /// From the first byte of a head to its last. Beyond: 408.
    pub header_timeout: Duration,
    /// Between two bytes of a request body. Beyond: 408.
    pub body_timeout: Duration,
    /// A client that accepts no byte for so long is aborted.
    pub write_timeout: Duration,
    /// Between two requests of a kept connection.
    pub idle_timeout: Duration,
    /// Streams may finish for so long after SIGTERM; `None` = unlimited.
    pub drain_timeout: Option<Duration>,
    /// The client's `Authorization` and `X-API-Key` go on to the backends. Off: what looks like a
    /// key of the gateway is not for engines (`backends[].api_key` is).
    pub forward_credentials: bool,
    /// Paths that are forwarded: exact, or a prefix when they end in `*`.
    pub paths: Vec<String>,
}

/// Where events and requests are logged.
#[derive(Debug, Clone)]
pub struct Log {
    /// Least severe level that is written: `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// JSON lines, or text for a terminal.
    pub format: LogFormat,
    /// Where to.
    pub output: LogOutput,
    /// One line a request, to this place; `None` = no access log.
    pub access: Option<AccessLog>,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// JSON or the combined-like text line.
    pub format: LogFormat,
    /// Where to.
    pub output: LogOutput,
}

/// One engine.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Label in metrics, logs and rules: given, or host:port of the URL.
    pub name: String,
    /// The URL as written, without credentials.
    pub url: String,
    /// Where to connect.
    pub endpoint: Endpoint,
    /// TLS towards the engine; `None` for `http://` and `unix:`.
    pub tls: Option<BackendTls>,
    /// Put before the client's path; empty or `/base` without a final slash.
    pub base_path: String,
    /// Value of the `Host` field sent to the engine.
    pub host: String,
    /// Share of the traffic; at least 1.
    pub weight: u32,
    /// To an established connection (TLS included).
    pub connect_timeout: Duration,
    /// From the request sent to the head of the answer. 504 `first_byte_timeout`.
    pub first_byte_timeout: Duration,
    /// Between two reads of the body of an answer.
    pub idle_timeout: Duration,
    /// A pooled connection is not used after so long without traffic (below the engine's own).
    pub keepalive_timeout: Duration,
    /// Idle connections kept per worker.
    pub max_idle_conns: usize,
    /// Fields set on every forwarded request, over the client's. `api_key` becomes one of them.
    pub headers: Vec<(String, Secret)>,
    /// Path of active probes when not that of `health_check`.
    pub health_path: Option<String>,
    /// What the engine's connection does when the client leaves.
    pub on_client_abort: OnClientAbort,
}

/// An address of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A name or an address, and a port.
    Tcp {
        /// DNS name or IP literal (without brackets).
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix(PathBuf),
}

/// TLS towards an engine.
#[derive(Debug, Clone)]
pub struct BackendTls {
    /// Name that the certificate must be valid for.
    pub server_name: String,
    /// PEM file of trusted roots; `None` = the system's.
    pub ca_file: Option<PathBuf>,
    /// True to accept any certificate (loudly warned).
    pub insecure_skip_verify: bool,
}

/// Some engines crash when a connection is cut: they are drained instead (llama-swap#980).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnClientAbort {
    /// Close the engine's connection, which cancels the generation.
    Close,
    /// Read the answer to its end and throw it away.
    Drain,
}

/// Active probes.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// Between two probes of one backend (jittered by ±10 %).
    pub interval: Duration,
    /// Of one probe.
    pub timeout: Duration,
    /// Request path, unless the backend has its own.
    pub path: String,
    /// `GET` or `HEAD` or `POST`.
    pub method: String,
    /// Accepted statuses; empty = any 2xx.
    pub expected_status: Vec<u16>,
    /// Failed probes in a row that take a backend out.
    pub unhealthy_threshold: u32,
    /// Good probes in a row that bring it back.
    pub healthy_threshold: u32,
}

/// Metering.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// Where records go. Empty = no records are made.
    pub reporters: Vec<Reporter>,
    /// The request body travels in the record, up to so many bytes; `None` = not at all.
    pub request_body_max: Option<usize>,
}

/// One destination of usage records.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// Label in metrics and logs.
    pub name: String,
    /// What it is.
    pub kind: ReporterKind,
}

/// Kinds of reporters that this version delivers to.
#[derive(Debug, Clone)]
pub enum ReporterKind {
    /// One POST of JSON per record.
    Webhook(Webhook),
}

/// A webhook.
#[derive(Debug, Clone)]
pub struct Webhook {
    /// http or https URL. May carry a secret in its query: never logged whole.
    pub url: Secret,
    /// `POST` or `PUT`.
    pub method: String,
    /// Of one try, connect to last byte.
    pub timeout: Duration,
    /// Tries after the first.
    pub retry: u32,
    /// Extra fields (values may be secrets).
    pub headers: Vec<(String, Secret)>,
    /// Which of the seeds' two JSON forms.
    pub format: RecordFormat,
}

/// JSON form of a record (behaviour page 2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFormat {
    /// Union of both forms of the seeds: top-level token fields and `usage{}`.
    Full,
    /// Token fields at the top level only.
    Flat,
    /// `usage{}` only.
    Nested,
}

/// The metrics endpoint.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Own listener; `None` = on the server's own address.
    pub listen: Option<SocketAddr>,
    /// Path, `/metrics` unless set.
    pub path: String,
    /// Upper bounds of the latency histograms, milliseconds, rising.
    pub latency_buckets_ms: Vec<u64>,
}
