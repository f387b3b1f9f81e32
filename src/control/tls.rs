//! TLS settings towards backends and clients, made at the start and with each reload.

use crate::base::certificate::{self, Verifier, Wanted};
use crate::config::plan::{Backend, BackendTls, ClientAuth, Plan, ServerTls};
use crate::state::member::MemberTls;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{ring, CryptoProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

/// The settings of each backend that speaks TLS, in the order of the plan. An error
/// names the backend and the file.
pub fn client_configs(plan: &Plan) -> Result<Vec<Option<MemberTls>>, String> {
    let mut system_roots = None;
    plan.backends
        .iter()
        .map(|backend| match &backend.tls {
            None => Ok(None),
            Some(tls) => settings_of(backend, tls, &mut system_roots)
                .map(Some)
                .map_err(|error| format!("backend {}: {error}", backend.name)),
        })
        .collect()
}

/// The same for one of them; an error names the file only. `system_roots` are read once, by the
/// first that needs them.
pub(super) fn settings_of(
    backend: &Backend,
    tls: &BackendTls,
    system_roots: &mut Option<Arc<RootCertStore>>,
) -> Result<MemberTls, String> {
    let name = ServerName::try_from(tls.server_name.clone())
        .map_err(|error| format!("server_name {:?}: {error}", tls.server_name))?;
    Ok(MemberTls { config: client_config(backend, tls, system_roots)?, name })
}

fn client_config(
    backend: &Backend,
    tls: &BackendTls,
    system_roots: &mut Option<Arc<RootCertStore>>,
) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    if tls.insecure_skip_verify {
        tracing::warn!(backend = %backend.name, "certificates of this backend are NOT verified");
        let verifier = Arc::new(Verifier::new(provider, Wanted::Any));
        let config = builder.dangerous().with_custom_certificate_verifier(verifier);
        return Ok(Arc::new(config.with_no_client_auth()));
    }
    if let Some(file) = &tls.ca_file {
        let (roots, certificates) =
            certificate::read(file).map_err(|error| format!("ca_file {error}"))?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let authority = verifier.build().map_err(|e| format!("ca_file: {e}"))?;
        let verifier = Verifier::new(provider, Wanted::Name(authority)).pinning(certificates);
        let config = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        return Ok(Arc::new(config.with_no_client_auth()));
    }
    let roots = match system_roots.as_ref() {
        Some(roots) => Arc::clone(roots),
        None => {
            let roots = Arc::new(roots_of_the_system()?);
            Arc::clone(system_roots.insert(roots))
        }
    };
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// How clients are served over TLS, if they are. Reads the files. An error names the file.
pub fn server_config(plan: &Plan) -> Result<Option<Arc<ServerConfig>>, String> {
    let Some(tls) = &plan.server.tls else { return Ok(None) };
    let told = |error| format!("server.tls: {error}");
    of_server(tls).map(|config| Some(Arc::new(config))).map_err(told)
}

fn of_server(tls: &ServerTls) -> Result<ServerConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match client_verifier(tls, provider)? {
        Some(verifier) => versions.with_client_cert_verifier(verifier),
        None => versions.with_no_client_auth(),
    };
    let (cert, key) = (tls.cert_file.display(), tls.key_file.display());
    let chain: Vec<_> = CertificateDer::pem_file_iter(&tls.cert_file)
        .and_then(Iterator::collect)
        .map_err(|error| format!("cert_file {cert}: {error}"))?;
    if chain.is_empty() {
        return Err(format!("cert_file {cert} holds no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_file(&tls.key_file)
        .map_err(|error| format!("key_file {key}: {error}"))?;
    let mut config = builder
        .with_single_cert(chain, secret)
        .map_err(|error| format!("cert_file {cert} and key_file {key}: {error}"))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Sessions are resumed by tickets, which the client keeps: no table here, and no lock on it.
    config.ticketer = ring::Ticketer::new().map_err(|e| e.to_string())?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}

fn client_verifier(
    tls: &ServerTls,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
    let Some(file) = tls.client_ca_file.as_ref().filter(|_| tls.client_auth != ClientAuth::None)
    else {
        return Ok(None);
    };
    let told = |error: &dyn std::fmt::Display| format!("client_ca_file {}", error);
    let (roots, _) = certificate::read(file).map_err(|error| told(&error))?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if tls.client_auth == ClientAuth::Request {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map(Some).map_err(|error| told(&error))
}

fn roots_of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err("the system has no trusted roots; install ca-certificates or set ca_file".into()),
        _ => Ok(roots),
    }
}
