//! Which certificate of a TLS server will do. What rustls checks unasked is the strictest; this is
//! for those whose configuration asks for less, towards engines and towards databases.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_name, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

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
        let by_date = matches!(
            refused,
            Error::InvalidCertificate(
                CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. }
                    | CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. }
            )
        );
        !by_date && self.pinned.iter().any(|pinned| pinned.as_ref() == certificate.as_ref())
    }
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
                    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
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
