//! Which certificate of a TLS server will do. What rustls checks unasked is the strictest; this is
//! for those whose configuration asks for less, towards engines and towards databases.

use super::tls_fault::TlsFault;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::path::Path;
use std::sync::Arc;

mod facts;
pub use facts::{issuer_and_serial, CertificateFacts};

/// The protocol by which an authority looks whether a name is ours (RFC 8737). Nothing is said
/// over such a connection.
pub const CHALLENGE_PROTOCOL: &[u8] = b"acme-tls/1";

/// The authorities of a file of PEM, and its certificates as they stand there. Blocks: for the
/// start of a process, and threads that may.
///
/// # Errors
/// It cannot be read, or holds none; a line that names the file.
pub fn read(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let shown = file.display();
    let said = |error: &dyn std::fmt::Display| format!("{shown}: {error}");
    let (mut roots, mut all) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| said(&error))? {
        let certificate = certificate.map_err(|error| said(&error))?;
        all.push(certificate.clone());
        roots.add(certificate).map_err(|error| said(&error))?;
    }
    match roots.is_empty() {
        true => Err(format!("{shown} holds no certificate")),
        false => Ok((roots, all)),
    }
}

/// What is looked at in a certificate.
#[derive(Debug)]
pub enum Wanted {
    /// Nothing: any will do.
    Any,
    /// That an authority of ours signed it, for whatever name.
    Authority(Arc<WebPkiServerVerifier>),
    /// That an authority of ours signed it, for the name that is asked for.
    Name(Arc<WebPkiServerVerifier>),
}

/// Checks a certificate as far as was asked; the handshake's signatures must be those of its key.
#[derive(Debug)]
pub struct Verifier {
    provider: Arc<CryptoProvider>,
    wanted: Wanted,
    /// Certificates that will do themselves.
    pinned: Vec<CertificateDer<'static>>,
}

impl Verifier {
    /// A verifier that checks signatures with the algorithms of `provider`.
    pub fn new(provider: Arc<CryptoProvider>, wanted: Wanted) -> Verifier {
        Verifier { provider, wanted, pinned: Vec::new() }
    }

    /// The same for a file of certificates in which the server's own may stand: a self-signed one
    /// as `openssl req -x509` makes it, which calls itself an authority and so counts as no
    /// server's, or one whose authority is not there. As in curl it will do, if it is exactly that
    /// one; dates and, where asked for, the name are looked at all the same.
    pub fn pinning(self, pinned: Vec<CertificateDer<'static>>) -> Verifier {
        Verifier { pinned, ..self }
    }

    /// `refused` is what the authority said, which looks at the dates before all else.
    fn is_pinned(&self, certificate: &CertificateDer<'_>, refused: &Error) -> bool {
        let by_date =
            matches!(TlsFault::of_tls(refused), TlsFault::Expired | TlsFault::NotYetValid);
        !by_date && self.pinned.iter().any(|pinned| pinned.as_ref() == certificate.as_ref())
    }
}

/// Whether a pinned certificate is for this name. One that lists no names at all, as OpenSSL makes
/// it unless told otherwise, is for its subject's common name, as in curl.
fn is_for(name: &ServerName<'_>, certificate: &CertificateDer<'_>) -> Result<(), Error> {
    let refused = match verify_server_name(&ParsedCertificate::try_from(certificate)?, name) {
        Err(refused) => refused,
        Ok(()) => return Ok(()),
    };
    match &refused {
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) if presented.is_empty() => {
            let Some(common) = common_name(certificate) else { return Err(refused) };
            if ServerName::try_from(common.as_str()).is_ok_and(|common| common == *name) {
                return Ok(());
            }
            Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext {
                expected: expected.clone(),
                presented: vec![common],
            }))
        }
        _ => Err(refused),
    }
}

/// The last common name of a certificate's subject, which is the most special one.
fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03]; // 2.5.4.3, RFC 5280 appendix A.1
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let (mut subject, mut found) = (certificate.subject(), None);
    // A sequence of sets of pairs of a type and its value.
    while !subject.is_empty() {
        let mut set = element(&mut subject)?;
        while !set.is_empty() {
            let mut pair = element(&mut set)?;
            let (kind, value) = (element(&mut pair)?, element(&mut pair)?);
            if kind == COMMON_NAME {
                found = String::from_utf8(value.to_vec()).ok();
            }
        }
    }
    found
}

/// Takes one element of DER from the front, whatever its type, and gives what is in it. A name's
/// lengths fit into two bytes.
fn element<'a>(der: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = match *der {
        [_, len @ ..=0x7f, rest @ ..] => (usize::from(*len), rest),
        [_, 0x81, len, rest @ ..] => (usize::from(*len), rest),
        [_, 0x82, high, low, rest @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *der = rest;
    Some(content)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (authority, any_name) = match &self.wanted {
            Wanted::Any => return Ok(ServerCertVerified::assertion()),
            Wanted::Authority(authority) => (authority, true),
            Wanted::Name(authority) => (authority, false),
        };
        match authority.verify_server_cert(certificate, others, name, ocsp, now) {
            // The name is what is looked at last.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if any_name => Ok(ServerCertVerified::assertion()),
            Err(refused) if self.is_pinned(certificate, &refused) => {
                if !any_name {
                    is_for(name, certificate)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
