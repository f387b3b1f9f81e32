//! Certificates that are fetched from an authority.

use super::print;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The authority, what is asked of it, and where the answers are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Acme {
    /// Names, in lower case; each gets a certificate of its own.
    pub domains: Vec<String>,
    /// Whom the authority writes to; `None` = nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The URL at which the authority says where everything is.
    pub directory: String,
    /// The folder of accounts, certificates and keys.
    pub storage: PathBuf,
    /// How names are proved.
    pub challenge: AcmeChallenge,
    /// Where those come who come without TLS: the authority, for HTTP-01, and browsers. `None` =
    /// nowhere.
    #[serde(serialize_with = "print::address_or_off")]
    pub http_listen: Option<SocketAddr>,
    /// PEM file of the authorities whose word counts for `directory` itself; `None` = the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// How a name is proved to be ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum AcmeChallenge {
    /// By whichever is offered and possible; the other one next time, after a failure.
    #[serde(rename = "auto")]
    Auto,
    /// By a file at port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// By a certificate at port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}
