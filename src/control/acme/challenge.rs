//! The answers to an authority that wants to see that a name is ours: a file that `acme-http` gives
//! away (HTTP-01), or a certificate that the TLS listener shows to it alone (TLS-ALPN-01).

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use std::sync::Arc;

/// The certificate of TLS-ALPN-01 (RFC 8737) for a name: it signed itself, and holds the digest of
/// what the authority asked for.
///
/// # Errors
/// It cannot be made.
pub fn alpn_certificate(name: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, String> {
    // The library takes digests of this length alone, and panics at any other.
    const DIGEST_BYTES: usize = 32;
    if digest.len() != DIGEST_BYTES {
        return Err("the digest of a challenge has 32 bytes".to_owned());
    }
    let told = |error: rcgen::Error| format!("the answer to a challenge cannot be made: {error}");
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(told)?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(told)?;
    let certificate = params.self_signed(&key).map_err(told)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
    let key = any_supported_type(&key).map_err(|error| error.to_string())?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}

/// A key for a certificate, and the request for it: the key's PEM, and the request's DER.
///
/// # Errors
/// They cannot be made.
pub fn request(name: &str) -> Result<(zeroize::Zeroizing<String>, Vec<u8>), String> {
    let told = |error: rcgen::Error| format!("a request cannot be made: {error}");
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(told)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    let key = KeyPair::generate().map_err(told)?;
    let request = params.serialize_request(&key).map_err(told)?;
    Ok((key.serialize_pem().into(), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a challenge that cannot be answered, and a panic of the library.
    #[test]
    fn a_challenge_has_a_certificate_of_its_own() {
        let pair = alpn_certificate("a.example", &[7; 32]).unwrap();
        // id-pe-acmeIdentifier, critical, then the digest in two octet strings.
        let mut wanted = vec![0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 1, 0x1f, 0x01, 0x01, 0xff];
        wanted.extend([0x04, 0x22, 0x04, 0x20]);
        wanted.extend([7; 32]);
        let der: &[u8] = &pair.cert[0];
        assert!(der.windows(wanted.len()).any(|part| part == wanted));
        assert!(alpn_certificate("a.example", b"short").is_err());
    }
}
