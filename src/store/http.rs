//! An HTTP service: one URL, and the connections to its host.

mod gather;

use super::{names, Trouble};
use crate::base::secret::Secret;
use crate::base::tls_fault;
use gather::{Gather, BUFFER_BYTES};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::request::Builder;
pub use ureq::http::Request;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Connector, DefaultConnector, NextTimeout};
use ureq::{Agent, Body, Error};

/// Servers close idle connections, uvicorn after 5 s; a pooled one must be younger.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// The addresses of a host are asked for again after so long, and after a failure.
const ADDRESSES_AGE_MAX: Duration = Duration::from_secs(30);

const INVALID: &str = "the URL or a field is not valid";

/// A service, and the connections to it.
pub struct HttpService {
    /// `None` = it cannot be asked.
    url: Option<Uri>,
    place: String,
    agent: Agent,
    names: Names,
}

impl HttpService {
    /// Makes the client; connects to nothing yet.
    pub fn new(url: &Secret) -> HttpService {
        let place = place(url.reveal());
        let url: Option<Uri> = url.reveal().parse().ok();
        let config = settings(roots(url.as_ref()), false);
        let names = Names::default();
        let connector = DefaultConnector::new().chain(Gather);
        let agent = Agent::with_parts(config, connector, names.clone());
        HttpService { url, place, agent, names }
    }

    /// Scheme, host and port of the URL, for a log: the rest may hold a token.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Connects to the host, and says nothing to it.
    ///
    /// # Errors
    /// What is in the way.
    pub fn probe(&self, until: Instant) -> Result<(), Trouble> {
        let url = self.url.as_ref();
        let host = url.and_then(Uri::host).ok_or_else(|| Trouble::Data(INVALID.to_owned()))?;
        let is_plain = url.is_some_and(is_plain);
        let port = url.and_then(Uri::port_u16).unwrap_or(if is_plain { 80 } else { 443 });
        let left = || until.saturating_duration_since(Instant::now());
        let addresses = names::addresses(host.trim_matches(['[', ']']), port, left())?;
        let mut failed = "its host has no address".to_owned();
        for address in addresses {
            match TcpStream::connect_timeout(&address, left().max(Duration::from_millis(1))) {
                Ok(_) => return Ok(()),
                Err(error) => failed = format!("no connection to {address}: {error}"),
            }
        }
        Err(Trouble::Later(failed))
    }

    /// Sends a request, which brings its method and its fields, to the URL. Blocks for at most
    /// `limit`, from the look-up of the name to the end of the answer, which the caller reads.
    ///
    /// # Errors
    /// There is no answer, or the request is not valid.
    pub fn send(
        &self,
        request: Builder,
        body: &[u8],
        limit: Duration,
    ) -> Result<Response<Body>, Trouble> {
        let invalid = || Trouble::Data(INVALID.to_owned());
        let url = self.url.clone().ok_or_else(invalid)?;
        let request = request.uri(url).body(body).map_err(|_| invalid())?;
        let request = self.agent.configure_request(request).timeout_global(Some(limit));
        self.agent.run(request.build()).map_err(|error| {
            self.names.forget();
            Trouble::Later(cause(&error))
        })
    }

    /// Sends a request without a body, and gives the body of an answer whose status is 2xx. Blocks
    /// for at most `limit`.
    ///
    /// # Errors
    /// There is no such answer, or it has more than `bytes_max` bytes.
    pub fn ask(
        &self,
        request: Builder,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Trouble> {
        match self.exchange(request, &[], limit, bytes_max)? {
            (200..=299, body) => Ok(body),
            (status, _) => Err(Trouble::Later(format!("it answered {status}"))),
        }
    }

    /// Sends a request, and gives the status and the body of its answer, whatever they say. Blocks
    /// for at most `limit`.
    ///
    /// # Errors
    /// There is no answer, the request is not valid, or the answer has more than `bytes_max` bytes.
    pub fn exchange(
        &self,
        request: Builder,
        body: &[u8],
        limit: Duration,
        bytes_max: usize,
    ) -> Result<(u16, Vec<u8>), Trouble> {
        let answer = self.send(request, body, limit)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().into_with_config().limit(bytes_max as u64);
        let read = body.read_to_vec().map_err(|error| match error {
            Error::BodyExceedsLimit(_) => {
                Trouble::Data(format!("its answer has more than {bytes_max} bytes"))
            }
            error => Trouble::Later(cause(&error)),
        });
        Ok((status, read?))
    }
}

/// How we ask: as configured, and nowhere else.
pub(super) fn settings(roots: RootCerts, https_only: bool) -> Config {
    Agent::config_builder()
        // The environment is no part of the configuration, and a redirect would carry what we send
        // (and the fields that authorise us) to a place nobody configured.
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .max_idle_age(IDLE_MAX)
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .https_only(https_only)
        .user_agent(concat!("llmproxy/", env!("CARGO_PKG_VERSION")))
        .build()
}

fn place(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}")
}

fn is_plain(url: &Uri) -> bool {
    url.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("http"))
}

/// Remembers the addresses of the one host that a service has. The library looks names up for
/// each request, and with a time limit it starts a thread for each look-up.
#[derive(Debug, Clone, Default)]
struct Names {
    known: Arc<Mutex<Option<(Instant, ResolvedSocketAddrs)>>>,
    system: Arc<DefaultResolver>,
}

impl Names {
    fn forget(&self) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((since, addresses)) if since.elapsed() < ADDRESSES_AGE_MAX => {
                Ok(addresses.clone())
            }
            _ => {
                let addresses = self.system.resolve(uri, config, timeout)?;
                *known = Some((Instant::now(), addresses.clone()));
                Ok(addresses)
            }
        }
    }
}

/// The kind of an error, in our words: the library's may hold the URL.
pub(super) fn cause(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "timed out".to_owned(),
        Error::Io(error) => tls_fault::told(error).unwrap_or_else(|| error.to_string()),
        Error::HostNotFound => "its host is not known".to_owned(),
        Error::ConnectionFailed => "no connection".to_owned(),
        Error::Tls(reason) => format!("TLS failed: {reason}"),
        Error::Rustls(error) => tls_fault::told(error).unwrap_or_default(),
        Error::Protocol(_) => "its answer is not HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

/// The system's roots, where a company puts its own; the built-in ones when there are none. They
/// take a quarter of a megabyte for each connection: a service without TLS needs none.
fn roots(url: Option<&Uri>) -> RootCerts {
    if url.is_none_or(is_plain) {
        return RootCerts::WebPki;
    }
    system_roots()
}

/// The system's roots, or the built-in ones.
pub(super) fn system_roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    found.iter().map(|der| Certificate::from_der(der).to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn probe(url: &str) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(10);
        HttpService::new(&Secret::new(url)).probe(until).map_err(Trouble::into_words)
    }

    /// Catches: a destination that is not there and of which nothing is said, and words that
    /// nobody understands.
    #[test]
    fn what_is_in_the_way_is_said_in_words() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(probe(&format!("http://u:hunter2@127.0.0.1:{port}/x?hunter2")), Ok(()));
        drop(listener);
        let refused = probe(&format!("http://u:hunter2@127.0.0.1:{port}/hunter2"));
        let refused = refused.unwrap_err();
        assert!(
            refused.contains("Connection refused") && !refused.contains("hunter2"),
            "{refused}"
        );
        let unknown = probe("https://no-such-host.invalid/").unwrap_err();
        assert!(unknown.contains("no-such-host.invalid"), "{unknown}");
    }
}
