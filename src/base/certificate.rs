//! Which certificate of a TLS server will do. What rustls checks unasked is the strictest; this is
//! for those whose configuration asks for less, towards engines and towards databases.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature, CryptoProvider};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
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
}

impl Verifier {
    /// A verifier that checks signatures with the algorithms of `provider`.
    pub fn new(provider: Arc<CryptoProvider>, wanted: Wanted) -> Verifier {
        Verifier { provider, wanted }
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
