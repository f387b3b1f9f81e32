//! Why a TLS handshake failed, as one of a few names that say what to do.

use rustls::{CertificateError, Error, OtherError};
use std::error::Error as StdError;
use std::io;

/// So many names of a certificate are told, and so much of each.
const NAMES_TOLD_MAX: usize = 5;
const NAME_CHARS_MAX: usize = 100;

/// The reason of a failed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsFault {
    /// The certificate's time is over.
    Expired,
    /// The certificate's time has not begun: a clock is wrong.
    NotYetValid,
    /// No authority that we trust signed it.
    UnknownIssuer,
    /// It is an authority's, and no server's, and does not stand in our files: so looks what
    /// `openssl req -x509` makes, which signs itself.
    SelfSigned,
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
        library_error(error).map_or(TlsFault::Other, TlsFault::of_tls)
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
                CertificateError::Other(other) if is_authority(other) => TlsFault::SelfSigned,
                _ => TlsFault::BadCertificate,
            },
            Error::NoCertificatesPresented => TlsFault::BadCertificate,
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
            TlsFault::SelfSigned => "tls_self_signed",
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
            TlsFault::SelfSigned => {
                "its certificate is self-signed: to trust it, put it into a `ca_file`"
            }
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

/// Why a handshake failed, in words for an operator: those of [`TlsFault::words`], and for which
/// names a certificate is that is not for ours. `None` when nothing of TLS is in the error.
pub fn told(error: &(dyn StdError + 'static)) -> Option<String> {
    let error = library_error(error)?;
    let Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) =
        error
    else {
        return Some(TlsFault::of_tls(error).words().to_owned());
    };
    if presented.is_empty() {
        return Some("its certificate is for no name: it has no subjectAltName".to_owned());
    }
    let more = if presented.len() > NAMES_TOLD_MAX { ", ..." } else { "" };
    let names = presented.iter().take(NAMES_TOLD_MAX).map(|name| plain(name));
    let names = names.collect::<Vec<String>>().join(", ");
    Some(format!("its certificate is for other names: {names}{more}"))
}

/// The library's error, whatever is wrapped around it.
fn library_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // Its `source` is that of the error inside it, which would be passed over.
        let inside = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inside {
            Some(inside) => Some(inside),
            None => error.source(),
        };
    }
    None
}

fn is_authority(error: &OtherError) -> bool {
    matches!(error.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// A name as the library shows it, `DnsName("gpu-1")` or `IpAddress(::1)`, without what is around
/// it. The other side wrote it: nothing in it may steer a terminal.
fn plain(shown: &str) -> String {
    let inner = shown.split_once('(').map_or(shown, |(_, inner)| inner.trim_end_matches(')'));
    let inner = inner.trim_matches('"').chars().take(NAME_CHARS_MAX);
    inner.map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::ServerName;
    use std::sync::Arc;

    fn for_others(names: &[&str]) -> Error {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("gpu").unwrap(),
            presented: names.iter().map(|name| (*name).to_owned()).collect(),
        })
    }

    /// Catches: a debug string in place of words, a reason that is lost in its wrapping, and a
    /// stranger's certificate that writes to a terminal.
    #[test]
    fn a_reason_is_told_in_words_however_it_is_wrapped() {
        let authority = OtherError(Arc::new(webpki::Error::CaUsedAsEndEntity));
        let self_signed = Error::InvalidCertificate(CertificateError::Other(authority));
        assert_eq!(TlsFault::of_tls(&self_signed), TlsFault::SelfSigned);
        let wrapped = io::Error::other(io::Error::other(self_signed));
        assert_eq!(TlsFault::of(&wrapped), TlsFault::SelfSigned);
        assert_eq!(told(&wrapped).unwrap(), TlsFault::SelfSigned.words());
        assert_eq!(told(&io::Error::other("refused")), None);
        let long = "x".repeat(500);
        for (names, words) in [
            (vec![], "is for no name"),
            (vec!["DnsName(\"a.b\")", "IpAddress(::1)"], ": a.b, ::1"),
            (vec!["DnsName(\"a\x1b[2J\n\")"], ": a?[2J?"),
            (vec![long.as_str(); 9], "x, ..."),
        ] {
            let said = told(&for_others(&names)).unwrap();
            assert!(said.ends_with(words) || said.contains(words), "{said}");
            assert!(said.len() < 600, "{said}");
        }
    }
}
