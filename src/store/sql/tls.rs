//! TLS towards databases: what counts as a certificate that will do, and the stream for PostgreSQL.

use crate::base::certificate::{self, Verifier, Wanted};
use crate::config::plan::sql_options::Tls;
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// What a client of this kind checks, with the roots of a file or of the system.
///
/// # Errors
/// A line for a person.
pub(super) fn config(tls: &Tls, roots: Option<&Path>) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut pinned = Vec::new();
    let mut by_authority = || {
        let (roots, certificates) = read_roots(roots)?;
        pinned = certificates;
        let roots = Arc::new(roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        verifier.build().map_err(|error| error.to_string())
    };
    let wanted = match tls {
        Tls::Off | Tls::IfOffered | Tls::Unchecked => Wanted::Any,
        Tls::Authority => Wanted::Authority(by_authority()?),
        Tls::Full => Wanted::Name(by_authority()?),
    };
    let verifier = Arc::new(Verifier::new(provider, wanted).pinning(pinned));
    let config = builder.dangerous().with_custom_certificate_verifier(verifier);
    Ok(config.with_no_client_auth())
}

/// The authorities, and the certificates of the file as they stand there.
fn read_roots(
    file: Option<&Path>,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    if let Some(file) = file {
        return certificate::read(file).map_err(|error| format!("sslrootcert {error}"));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    match roots.is_empty() {
        true => Err("the system has no trusted roots".to_owned()),
        false => Ok((roots, Vec::new())),
    }
}

/// Makes TLS for a PostgreSQL connection.
#[derive(Clone)]
pub(super) struct Connector(pub Arc<ClientConfig>);

/// The same for one host.
pub(super) struct ForHost {
    config: Arc<ClientConfig>,
    /// `None` = a Unix socket, which is never encrypted.
    name: Option<ServerName<'static>>,
}

/// An encrypted connection.
pub(super) struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Encrypted<S>;
    type TlsConnect = ForHost;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<ForHost> {
        let name = match host {
            "" => None,
            host => Some(ServerName::try_from(host.to_owned()).map_err(io::Error::other)?),
        };
        Ok(ForHost { config: Arc::clone(&self.0), name })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for ForHost {
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connector = tokio_rustls::TlsConnector::from(self.config);
        let nameless = || io::Error::other("no name to check the certificate for");
        Box::pin(async move {
            let name = self.name.ok_or_else(nameless)?;
            connector.connect(name, stream).await.map(Encrypted)
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
