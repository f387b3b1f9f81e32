//! Why a TLS handshake failed, as one of a few names that say what to do.

use rustls::{CertificateError, Error};
use std::io;

/// The reason of a failed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate's time is over.
    Expired,
    /// The certificate's time has not begun: a clock is wrong.
    NotYetValid,
    /// No authority that we trust signed it.
    UnknownIssuer,
    /// Another key signed it than that of the authority it names, as when an authority was made
    /// anew under its old name; or the server does not hold the key of its certificate.
    BadSignature,
    /// It is for another name.
    WrongName,
    /// It, or its use of its key, is not valid in another way.
    BadCertificate,
    /// The other side does not speak TLS at all.
    NotTls,
    /// The other side refused us: it wants a certificate, another version, another name.
    Alert,
    /// The connection was closed, or anything else.
    Other,
}

impl TlsFault {
    /// The reason in an error of a connection.
    pub fn of(error: &io::Error) -> TlsFault {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        inner.map_or(TlsFault::Other, TlsFault::of_tls)
    }

    /// The reason in an error of the library.
    pub fn of_tls(error: &Error) -> TlsFault {
        match error {
            Error::InvalidCertificate(error) => match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    TlsFault::Expired
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    TlsFault::NotYetValid
                }
                CertificateError::BadSignature => TlsFault::BadSignature,
                CertificateError::UnknownIssuer => TlsFault::UnknownIssuer,
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => TlsFault::WrongName,
                _ => TlsFault::BadCertificate,
            },
            Error::InvalidMessage(_) => TlsFault::NotTls,
            Error::AlertReceived(_) => TlsFault::Alert,
            _ => TlsFault::Other,
        }
    }

    /// The name in answers, logs, records and metrics.
    pub fn code(self) -> &'static str {
        match self {
            TlsFault::Expired => "tls_certificate_expired",
            TlsFault::NotYetValid => "tls_certificate_not_yet_valid",
            TlsFault::UnknownIssuer => "tls_unknown_issuer",
            TlsFault::BadSignature => "tls_bad_signature",
            TlsFault::WrongName => "tls_wrong_name",
            TlsFault::BadCertificate => "tls_bad_certificate",
            TlsFault::NotTls => "tls_not_spoken",
            TlsFault::Alert => "tls_alert_received",
            TlsFault::Other => "tls_failed",
        }
    }

    /// The reason in words, of the other side.
    pub fn words(self) -> &'static str {
        match self {
            TlsFault::Expired => "its certificate has expired",
            TlsFault::NotYetValid => "its certificate is not valid yet",
            TlsFault::UnknownIssuer => "no authority that is trusted here signed its certificate",
            TlsFault::BadSignature => {
                "its certificate is signed by another key than that of the authority it names"
            }
            TlsFault::WrongName => "its certificate is for another name",
            TlsFault::BadCertificate => "its certificate is not valid",
            TlsFault::NotTls => "it does not speak TLS",
            TlsFault::Alert => "it refused the TLS handshake",
            TlsFault::Other => "the TLS handshake failed",
        }
    }
}
