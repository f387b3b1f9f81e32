//! TLS settings towards backends, made at the start and with each reload; those towards clients are
//! in `clients`.

use crate::base::certificate::{self, Verifier, Wanted};
use crate::config::plan::{Backend, BackendTls, Plan};
use crate::state::member::MemberTls;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;

mod clients;
pub use clients::{client_tls, files_of, served, WrongPair};

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

fn roots_of_the_system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err("the system has no trusted roots; install ca-certificates or set ca_file".into()),
        _ => Ok(roots),
    }
}
