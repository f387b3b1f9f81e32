//! The client side of the plan: listener, threads, limits and timeouts.

use super::ClientListener;
use super::{print, Acme};
use crate::config::value::IpRange;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The client side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Server {
    /// Addresses to listen on, at least one here or in `listeners`; `[::]` is every address, IPv4
    /// too. Each worker has a listener for each.
    #[serde(serialize_with = "print::one_or_more", skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<SocketAddr>,
    /// Further places to listen at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<ClientListener>,
    /// Where this gateway stands; backends of the same region come first. Empty = nowhere.
    pub region: String,
    /// Peers whose `X-Forwarded-For` is believed. Empty = nobody's.
    #[serde(serialize_with = "print::texts")]
    pub trusted_proxies: Vec<IpRange>,
    /// Connections from these begin with a header of the PROXY protocol, which says whose they are.
    pub proxy_protocol: bool,
    /// Where the number of the process is written while it runs; `None` = nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// The configuration is read anew whenever its file changes.
    pub watch_config: bool,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Their number was left to us.
    #[serde(skip)]
    pub workers_auto: bool,
    /// The CPUs were left to us: they follow from how many workers there are.
    #[serde(skip)]
    pub cpu_affinity_auto: bool,
    /// CPU of each worker, used in turn; empty = leave the threads where they are.
    #[serde(serialize_with = "print::cpus")]
    pub cpu_affinity: Vec<usize>,
    /// Most client connections at one time; `None` = (fd limit - 64) / 2 at start.
    #[serde(serialize_with = "print::or_auto")]
    pub max_connections: Option<usize>,
    /// Bytes of a request head. Beyond: 431.
    pub max_header_bytes: usize,
    /// Decoded bytes of a request body. Beyond: 413.
    pub max_body_size: u64,
    /// Bytes that the buffers of all workers hold together, bodies and all else; `None` = a share
    /// of the memory at start. Beyond: 503.
    #[serde(serialize_with = "print::or_auto")]
    pub max_buffered_bytes: Option<usize>,
    /// From the first byte of a head to its last. Beyond: 408.
    #[serde(serialize_with = "print::duration")]
    pub header_timeout: Duration,
    /// Between two bytes of a request body. Beyond: 408.
    #[serde(serialize_with = "print::duration")]
    pub body_timeout: Duration,
    /// A client that accepts no byte for so long is aborted.
    #[serde(serialize_with = "print::duration")]
    pub write_timeout: Duration,
    /// Between two requests of a kept connection.
    #[serde(serialize_with = "print::duration")]
    pub idle_timeout: Duration,
    /// What the end of a client's sending side means while its answer is under way.
    pub half_close: HalfClose,
    /// From SIGTERM on `/ready` answers 503 and clients are served on for so long, before new
    /// connections are refused and the drain begins. May be zero.
    #[serde(serialize_with = "print::duration")]
    pub shutdown_delay: Duration,
    /// Streams may finish for so long once the drain began; `None` = unlimited.
    #[serde(serialize_with = "print::or_unlimited")]
    pub drain_timeout: Option<Duration>,
    /// The client's `Authorization` and `X-API-Key` go on to the backends. Off: what looks like a
    /// key of the gateway is not for engines (`backends[].api_key` is).
    pub forward_credentials: bool,
    /// Paths that are forwarded: exact, or a prefix when they end in `*`.
    pub paths: Vec<String>,
    /// Cross-origin rules; `None` = none.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::enabled")]
    pub cors: Option<Cors>,
    /// TLS towards clients; `None` = plain HTTP.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::enabled")]
    pub tls: Option<ServerTls>,
}

impl Server {
    /// Whether `auto` left some of so many CPUs to others.
    pub fn leaves_cpus(&self, cpus: usize) -> bool {
        self.workers_auto && self.workers < cpus
    }
}

/// What a client's FIN means that comes behind a whole request. It looks the same whether the
/// client closed the connection or only its sending side (`shutdown(SHUT_WR)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HalfClose {
    /// It left: its generation is cancelled at once.
    Leave,
    /// It still reads: it is served until it resets the connection, which a client that left does
    /// at the first byte that is sent to it.
    Serve,
}

/// Which web pages of other origins may call (a browser asks by `Origin`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cors {
    /// Origins, or `*` for every one (never together with credentials).
    pub allowed_origins: Vec<String>,
    /// Methods a page may use.
    pub allowed_methods: Vec<String>,
    /// Request fields a page may set.
    pub allowed_headers: Vec<String>,
    /// Response fields a page may read.
    pub expose_headers: Vec<String>,
    /// Whether a browser may send its credentials.
    pub allow_credentials: bool,
    /// How long a browser may remember the answer to a preflight request.
    #[serde(serialize_with = "print::maybe_duration")]
    pub max_age: Option<Duration>,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerTls {
    /// The certificate for who asks for no name, or for none that another one is for.
    #[serde(flatten)]
    pub pair: Option<CertificateFiles>,
    /// Others, which are chosen by the names that they are for. Without `pair`, the first of them
    /// is for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateFiles>,
    /// Nothing older is spoken.
    pub min_version: TlsFloor,
    /// PEM file of the authorities of client certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Certificates are fetched from an authority; `None` = those of the files are all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
}

impl ServerTls {
    /// All certificates; the first is for who asks for no name.
    pub fn all_certificates(&self) -> impl Iterator<Item = &CertificateFiles> {
        self.pair.iter().chain(&self.certificates)
    }
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CertificateFiles {
    /// PEM file: the certificate, then its chain.
    pub cert_file: PathBuf,
    /// PEM file of the private key.
    pub key_file: PathBuf,
}

/// The oldest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TlsFloor {
    /// TLS 1.2, and 1.3 where the client knows it.
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// What is asked of a client during the TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    /// No certificate.
    None,
    /// A certificate if it has one; a bad one is refused.
    Request,
    /// A valid certificate.
    Require,
}
