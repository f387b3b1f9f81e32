//! An authority of a test's own, and servers that it vouches for.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use std::sync::{Arc, OnceLock};

use super::scratch::Scratch;

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

/// Set: every proxy of the tests serves its clients over TLS.
const EVERYWHERE: &str = "LLMPROXY_TEST_TLS";

/// What all proxies use where every one of them is to serve over TLS.
pub fn everywhere() -> Option<&'static Pki> {
    static OURS: OnceLock<Option<Pki>> = OnceLock::new();
    OURS.get_or_init(|| std::env::var_os(EVERYWHERE).map(|_| Pki::new())).as_ref()
}

/// The files of a proxy that serves over TLS, and those who trust it.
pub struct Pki {
    scratch: Scratch,
    authority: Authority,
}

impl Pki {
    /// A new authority, and a certificate of its for `localhost`.
    pub fn new() -> Pki {
        let pki = Pki { scratch: Scratch::new(), authority: Authority::new() };
        pki.scratch.write("ca.pem", pki.authority.pem());
        pki.renew();
        pki
    }

    /// Puts another certificate with another key in the place of the one that is there.
    pub fn renew(&self) {
        let (certificate, key) = self.pair("localhost");
        self.scratch.write("cert.pem", certificate);
        self.scratch.write("key.pem", key);
    }

    /// Puts the key of another certificate in the place of the right one.
    pub fn spoil(&self) {
        self.scratch.write("key.pem", self.pair("localhost").1);
    }

    /// Writes `NAME.pem` and `NAME-key.pem`, a certificate for these names, and gives its place in
    /// `server.tls.certificates`.
    pub fn more(&self, file: &str, names: &[&str]) -> String {
        let (certificate, key) = self.pair_for(names);
        let (cert, secret) = (format!("{file}.pem"), format!("{file}-key.pem"));
        self.scratch.write(&cert, certificate);
        self.scratch.write(&secret, key);
        let (cert, secret) = (self.path(&cert), self.path(&secret));
        format!("{{cert_file: \"{cert}\", key_file: \"{secret}\"}}")
    }

    fn pair(&self, name: &str) -> (String, String) {
        self.pair_for(&[name])
    }

    fn pair_for(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        // With the name of its authority, OpenSSL takes it for one that signed itself.
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, names.first().map_or("", String::as_str));
        let certificate = params.signed_by(&key, &self.authority.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The path of one of its files.
    pub fn path(&self, name: &str) -> String {
        self.scratch.file(name).display().to_string()
    }

    /// A line for the section `server`, with further properties in flow form.
    pub fn server_line(&self, more: &str) -> String {
        let (cert, key) = (self.path("cert.pem"), self.path("key.pem"));
        format!("tls: {{enabled: true, cert_file: \"{cert}\", key_file: \"{key}\"{more}}}")
    }

    /// Clients that trust it and have no certificate.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client_of(&[&TLS12, &TLS13])
    }

    /// The same, of certain versions.
    pub fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap();
        Arc::new(builder.with_root_certificates(self.roots()).with_no_client_auth())
    }

    /// Clients that show a certificate of this authority's.
    pub fn client_known_by(&self, authority: &Authority) -> Arc<ClientConfig> {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        Arc::new(builder.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap())
    }

    /// The authority that signed its certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.issuer.der().clone()).unwrap();
        roots
    }
}
