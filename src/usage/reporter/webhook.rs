//! A webhook: one request with a JSON body per record. Only 2xx is success.

use super::{Reporter, Shape, Tried};
use crate::base::limits::WEBHOOK_ANSWER_BYTES_MAX;
use crate::config::plan;
use crate::usage::record::UsageRecord;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ureq::config::Config;
use ureq::http::{Request, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

/// Receivers close idle connections, uvicorn after 5 s; a pooled one must be younger.
const IDLE_MAX: Duration = Duration::from_secs(3);

/// Addresses of the webhook are asked for again after so long, and after a failure.
const ADDRESSES_AGE_MAX: Duration = Duration::from_secs(30);

/// A webhook and its connections.
pub struct Webhook {
    plan: plan::Webhook,
    agent: Agent,
    names: Names,
}

impl Webhook {
    /// Makes the client; connects to nothing yet.
    pub fn new(plan: plan::Webhook) -> Self {
        let config = Agent::config_builder()
            // The environment is no part of the configuration, and a redirect would carry records
            // (and the fields that authorise us) to a place nobody configured.
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .max_idle_age(IDLE_MAX)
            .tls_config(TlsConfig::builder().root_certs(roots()).build())
            .user_agent(concat!("llmproxy/", env!("CARGO_PKG_VERSION")));
        let names = Names::default();
        let agent = Agent::with_parts(config.build(), DefaultConnector::new(), names.clone());
        Webhook { plan, agent, names }
    }
}

/// How a webhook wants to be called.
pub fn shape(plan: &plan::Webhook) -> Shape {
    Shape { batch: 1, concurrency: 1, retries: plan.retry, timeout: plan.timeout }
}

impl Reporter for Webhook {
    /// Scheme, host and port of the URL: the rest may hold a token.
    fn place(&self) -> String {
        let url = self.plan.url.reveal();
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        format!("{scheme}://{host}")
    }

    /// One request. Blocks for at most `limit`, from the name's lookup to the answer's end.
    fn send(&mut self, records: &[&UsageRecord], limit: Duration) -> Tried {
        let [record] = records else {
            return Tried::Refused("more than one record".to_owned());
        };
        let body = record.to_json(self.plan.format);
        let mut request = Request::builder()
            .method(self.plan.method.as_str())
            .uri(self.plan.url.reveal())
            .header("content-type", "application/json")
            .header("idempotency-key", record.request_id.as_str());
        for (name, value) in &self.plan.headers {
            request = request.header(name, value.reveal());
        }
        let request = match request.body(body.as_slice()) {
            Ok(request) => self.agent.configure_request(request).timeout_global(Some(limit)),
            Err(_) => return Tried::Refused("the URL or a field is not valid".to_owned()),
        };
        match self.agent.run(request.build()) {
            Ok(mut answer) => {
                // Read to its end so that the connection can be used again. What it says, and
                // whether all of it came, changes nothing: the status has decided.
                let rest = answer.body_mut().with_config().limit(WEBHOOK_ANSWER_BYTES_MAX);
                let _ = rest.read_to_vec();
                judge(answer.status().as_u16())
            }
            Err(error) => {
                self.names.forget();
                Tried::Again(cause(&error))
            }
        }
    }
}

/// Remembers the addresses of the one host that a webhook has. The library looks names up for
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

/// A receiver that says 4xx has read the record and will say it again; the two that mean "later"
/// are 408 and 429.
fn judge(status: u16) -> Tried {
    let said = || format!("it answered {status}");
    match status {
        200..=299 => Tried::Delivered,
        408 | 429 => Tried::Again(said()),
        400..=499 => Tried::Refused(said()),
        _ => Tried::Again(said()),
    }
}

/// The kind of an error, in our words: the library's may hold the URL.
fn cause(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "timed out".to_owned(),
        Error::Io(error) => error.kind().to_string(),
        Error::HostNotFound => "its host is not known".to_owned(),
        Error::ConnectionFailed => "no connection".to_owned(),
        Error::Tls(_) | Error::Rustls(_) => "TLS failed".to_owned(),
        Error::Protocol(_) => "its answer is not HTTP".to_owned(),
        _ => "the request failed".to_owned(),
    }
}

/// The system's roots, where a company puts its own; the built-in ones when there are none.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    found.iter().map(|der| Certificate::from_der(der).to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::config::plan::RecordFormat;

    #[test]
    fn a_log_shows_neither_credentials_nor_path() {
        for (url, place) in [
            ("https://user:pw@hooks.example:8443/T0/s3cret?token=x", "https://hooks.example:8443"),
            ("http://h?token=x", "http://h"),
            ("http://h", "http://h"),
            ("https://a@b@h/x@y", "https://h"),
        ] {
            let webhook = Webhook::new(plan::Webhook {
                url: Secret::new(url),
                method: "POST".into(),
                timeout: Duration::from_secs(1),
                retry: 0,
                headers: Vec::new(),
                hmac_secret: Secret::default(),
                batch: plan::WebhookBatch::Single,
                batch_size: 1,
                concurrency: 1,
                format: RecordFormat::Full,
            });
            assert_eq!(webhook.place(), place);
        }
    }

    #[test]
    fn only_2xx_is_success_and_only_some_4xx_are_repeated() {
        assert_eq!(judge(204), Tried::Delivered);
        for status in [302, 408, 429, 500, 503, 101] {
            assert!(matches!(judge(status), Tried::Again(_)), "{status}");
        }
        for status in [400, 401, 404, 409, 422] {
            assert!(matches!(judge(status), Tried::Refused(_)), "{status}");
        }
    }
}
