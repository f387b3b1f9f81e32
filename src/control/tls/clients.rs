//! How clients are served over TLS: the files of `server.tls`, read and made into what a handshake
//! goes by.

use crate::base::certificate::{self, CertificateFacts, CHALLENGE_PROTOCOL};
use crate::config::plan::{CertificateFiles, ClientAuth, Plan, ServerTls, TlsFloor};
use crate::state::certificates::{
    CertificateChoice, CertificateTable, ClientTls, GivenCertificates, ServedCertificate,
};
use ::ring::digest::{Context, SHA256};
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::ServerConfig;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How clients are served over TLS, if they are. Reads the files; those of `given` are beside them.
///
/// # Errors
/// A file cannot be used; a line that names it.
pub fn client_tls(
    plan: &Plan,
    given: &Arc<GivenCertificates>,
) -> Result<Option<ClientTls>, String> {
    let Some(tls) = &plan.server.tls else { return Ok(None) };
    let told = |error| format!("server.tls: {error}");
    of_server(tls, given).map(Some).map_err(told)
}

/// The files that it is made of.
pub fn files_of(tls: &ServerTls) -> Vec<PathBuf> {
    let pairs = tls.all_certificates();
    let pairs = pairs.flat_map(|pair| [pair.cert_file.clone(), pair.key_file.clone()]);
    pairs.chain(tls.client_ca_file.clone()).collect()
}

fn of_server(tls: &ServerTls, given: &Arc<GivenCertificates>) -> Result<ClientTls, String> {
    let provider = Arc::new(ring::default_provider());
    let mut seen = Context::new(&SHA256);
    let pairs = tls.all_certificates();
    let all = pairs.map(|pair| certificate_of(pair, &provider, &mut seen));
    let files = Arc::new(CertificateTable::new(all.collect::<Result<_, _>>()?));
    let versions = match tls.min_version {
        TlsFloor::Tls12 => &[&TLS13, &TLS12][..],
        TlsFloor::Tls13 => &[&TLS13],
    };
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(|e| e.to_string())?;
    let builder = match client_verifier(tls, provider, &mut seen)? {
        Some(verifier) => versions.with_client_cert_verifier(verifier),
        None => versions.with_no_client_auth(),
    };
    let choice = CertificateChoice { files: Arc::clone(&files), given: Arc::clone(given) };
    let mut config = builder.with_cert_resolver(Arc::new(choice));
    config.alpn_protocols = vec![b"http/1.1".to_vec(), CHALLENGE_PROTOCOL.to_vec()];
    // Sessions are resumed by tickets, which the client keeps: no table here, and no lock on it.
    config.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(seen.finish().as_ref());
    Ok(ClientTls { config: Arc::new(config), files, sha256 })
}

fn certificate_of(
    pair: &CertificateFiles,
    provider: &CryptoProvider,
    seen: &mut Context,
) -> Result<Arc<ServedCertificate>, String> {
    let (cert, key) = (pair.cert_file.display(), pair.key_file.display());
    let chain = read(&pair.cert_file, seen).map_err(|e| format!("cert_file {cert}: {e}"))?;
    let secret = read(&pair.key_file, seen).map_err(|e| format!("key_file {key}: {e}"))?;
    served(cert.to_string(), &chain, &secret, provider).map_err(|wrong| match wrong {
        WrongPair::Certificate(why) => format!("cert_file {cert} {why}"),
        WrongPair::Key(why) => format!("key_file {key}: {why}"),
        WrongPair::Both(why) => format!("cert_file {cert} and key_file {key}: {why}"),
    })
}

/// What is wrong with a certificate and its key.
#[derive(Debug)]
pub enum WrongPair {
    /// The certificate, or one of its chain.
    Certificate(String),
    /// The key.
    Key(String),
    /// They do not go together.
    Both(String),
}

/// A certificate with its chain and its key, both in PEM, as it is shown to clients. The key must
/// be that of the certificate.
///
/// # Errors
/// They cannot be used.
pub fn served(
    label: String,
    chain: &[u8],
    secret: &[u8],
    provider: &CryptoProvider,
) -> Result<Arc<ServedCertificate>, WrongPair> {
    let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| WrongPair::Certificate(format!("is no PEM: {error}")))?;
    let Some(first) = chain.first() else {
        return Err(WrongPair::Certificate("holds no certificate".into()));
    };
    let facts = CertificateFacts::of(first)
        .ok_or_else(|| WrongPair::Certificate("holds no certificate that can be read".into()))?;
    let secret = PrivateKeyDer::from_pem_slice(secret);
    let secret = secret.map_err(|error| WrongPair::Key(error.to_string()))?;
    let key = CertifiedKey::from_der(chain, secret, provider);
    let key = key.map_err(|error| WrongPair::Both(error.to_string()))?;
    Ok(Arc::new(ServedCertificate { label, facts, key: Arc::new(key) }))
}

fn read(file: &Path, seen: &mut Context) -> std::io::Result<Vec<u8>> {
    let bytes = fs::read(file)?;
    // With their lengths, so that what moves from one file to the next makes a difference.
    seen.update(&bytes.len().to_be_bytes());
    seen.update(&bytes);
    Ok(bytes)
}

fn client_verifier(
    tls: &ServerTls,
    provider: Arc<CryptoProvider>,
    seen: &mut Context,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let Some(file) = tls.client_ca_file.as_ref().filter(|_| tls.client_auth != ClientAuth::None)
    else {
        return Ok(None);
    };
    let told = |error: &dyn std::fmt::Display| format!("client_ca_file {}", error);
    read(file, seen).map_err(|error| told(&format!("{}: {error}", file.display())))?;
    let (roots, _) = certificate::read(file).map_err(|error| told(&error))?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if tls.client_auth == ClientAuth::Request {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|error| told(&error))
}
