//! An authority of a test's own, and servers that it vouches for.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::ServerConfig;
use std::sync::Arc;

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        Authority { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    /// Its certificate, for `ca_file`.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// A server's configuration with a certificate for these names or addresses.
    pub fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        showing(certificate.der().clone(), key)
    }
}

/// A certificate that OpenSSL made, and its key: for `CN=localhost` and no other name, as
/// `openssl req -x509 -subj /CN=localhost` makes it. Only its dates are chosen (2020 to 2120).
const BY_OPENSSL: &str = include_str!("../fixtures/openssl_selfsigned.pem");

/// That certificate in PEM, and a server that shows it.
pub fn by_openssl() -> (String, Arc<ServerConfig>) {
    let (_, pem) = BY_OPENSSL.split_once("-----END PRIVATE KEY-----\n").unwrap();
    let certificate = CertificateDer::from_pem_slice(BY_OPENSSL.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(BY_OPENSSL.as_bytes()).unwrap();
    (pem.to_owned(), showing(certificate, key))
}

/// A certificate that signed itself and calls itself an authority, with this alternative name, in
/// PEM, and a server that shows it.
pub fn self_signed(name: &str) -> (String, Arc<ServerConfig>) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    (certificate.pem(), showing(certificate.der().clone(), key))
}

/// A server that shows this certificate.
fn showing(certificate: CertificateDer<'static>, key: PrivateKeyDer<'static>) -> Arc<ServerConfig> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}
