//! Certificates that are fetched from an authority.

use super::print;
use crate::base::secret::Secret;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::Engine;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The authority, what is asked of it, and where the answers are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Acme {
    /// Names, in lower case; each gets a certificate of its own.
    pub domains: Vec<String>,
    /// Whom the authority writes to; `None` = nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// The customer's account there to which ours is bound; `None` = to none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eab: Option<AccountBinding>,
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

/// An account that a customer has with an authority by other ways (RFC 8555 section 7.3.4).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AccountBinding {
    /// What the authority calls it.
    pub kid: String,
    /// The key that proves it, as the authority shows it: base64url.
    #[serde(serialize_with = "print::secret")]
    pub hmac_key: Secret,
}

impl AccountBinding {
    /// The bytes of a key as authorities show it; `None`: it is none.
    pub fn decoded(shown: &Secret) -> Option<Zeroizing<Vec<u8>>> {
        let bytes = URL_SAFE_NO_PAD.decode(shown.reveal().trim_end_matches('=')).ok()?;
        (!bytes.is_empty()).then(|| Zeroizing::new(bytes))
    }
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
