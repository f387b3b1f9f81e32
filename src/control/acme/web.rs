//! The HTTP client of the ACME library: ours, which blocks, on the thread that orders.

use super::pause::Setback;
use crate::store::web::{WebAnswer, WebClient};
use crate::store::Trouble;
use bytes::Bytes;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use ureq::http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use ureq::http::{HeaderMap, Request, Response};

/// Characters of what an authority says that are told.
const TOLD_CHARS_MAX: usize = 500;
/// The problem of one who asks for too much.
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";
/// The problem of one whose account is not known (any more).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// The client, and what the last answer asked for.
#[derive(Clone)]
pub struct AcmeWeb {
    client: Arc<WebClient>,
    retry_after: Arc<Mutex<Option<Duration>>>,
}

/// Why an order came to nothing.
#[derive(Debug)]
pub enum OrderFault {
    /// The authority was not reached, or does not speak ACME.
    Unreached(String),
    /// It says that it wants fewer orders.
    RateLimited(String),
    /// It does not know the account.
    NoAccount(String),
    /// It said no.
    Refused(String),
    /// Something of ours.
    Internal(String),
}

impl OrderFault {
    /// Why, for a person: one line of what may be a stranger's text.
    pub fn told(&self) -> String {
        let (OrderFault::Unreached(why)
        | OrderFault::RateLimited(why)
        | OrderFault::NoAccount(why)
        | OrderFault::Refused(why)
        | OrderFault::Internal(why)) = self;
        told(why)
    }

    /// What the next order has to wait for.
    pub fn setback(&self, web: &AcmeWeb) -> Setback {
        match self {
            OrderFault::Unreached(_) | OrderFault::Internal(_) => Setback::Unreached,
            OrderFault::RateLimited(_) => Setback::Refused { retry_after: web.retry_after() },
            _ => Setback::Refused { retry_after: None },
        }
    }
}

impl From<Error> for OrderFault {
    fn from(error: Error) -> OrderFault {
        match error {
            Error::Api(problem) => {
                let kind = problem.r#type.clone().unwrap_or_default();
                let words = problem.to_string();
                let words = words.strip_prefix("API error: ").unwrap_or(&words).to_owned();
                match kind.as_str() {
                    RATE_LIMITED => OrderFault::RateLimited(words),
                    NO_ACCOUNT => OrderFault::NoAccount(words),
                    _ => OrderFault::Refused(words),
                }
            }
            Error::Other(other) => match other.downcast::<NotReached>() {
                Ok(not_reached) => OrderFault::Unreached(not_reached.0),
                Err(other) => OrderFault::Refused(other.to_string()),
            },
            other => OrderFault::Refused(other.to_string()),
        }
    }
}

/// A stranger's text as one line of a bounded length.
pub fn told(text: &str) -> String {
    let shown = crate::base::line::for_terminal(text);
    match shown.char_indices().nth(TOLD_CHARS_MAX) {
        Some((at, _)) => format!("{}...", shown.get(..at).unwrap_or_default()),
        None => shown,
    }
}

impl AcmeWeb {
    /// A client that connects to nothing yet.
    pub fn new(client: WebClient) -> AcmeWeb {
        AcmeWeb { client: Arc::new(client), retry_after: Arc::default() }
    }

    /// How long the last answer asked to wait, if it did.
    pub fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be had at a place that wants no account.
    ///
    /// # Errors
    /// It was not reached, or has nothing: why.
    pub fn get(&self, place: &str) -> Result<Vec<u8>, String> {
        let request = Request::get(place).header(USER_AGENT, "llmproxy").body(Bytes::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = self.client.exchange(request).map_err(Trouble::into_words)?;
        self.note_wait(&answer.parts.headers);
        match answer.parts.status.as_u16() {
            200 => Ok(answer.body),
            status => Err(format!("it answered {status}")),
        }
    }

    fn note_wait(&self, fields: &HeaderMap) {
        let asked = fields.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let asked = asked.and_then(|text| wait_of(text, crate::base::clock::unix_ms()));
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    fn ask(&self, request: Request<Bytes>) -> Result<BytesResponse, Error> {
        let answer = self.client.exchange(request);
        let WebAnswer { parts, body } = answer.map_err(|why| not_reached(why.into_words()))?;
        self.note_wait(&parts.headers);
        let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let is_json = kind.is_some_and(|kind| kind.contains("json"));
        if parts.status.as_u16() >= 400 && !is_json {
            // A proxy's page of HTML, say, of which the library would say that it is no JSON.
            return Err(not_reached(format!("it answered {}", parts.status.as_u16())));
        }
        Ok(Response::from_parts(parts, BodyWrapper::from(body)).into())
    }
}

impl HttpClient for AcmeWeb {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let own = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // Only its answers give their bytes away.
            let mut body = BytesResponse::from(Response::new(body)).body;
            let body = body.into_bytes().await.map_err(Error::Other)?;
            // Blocks: this runs on a thread that does nothing else.
            own.ask(Request::from_parts(parts, body))
        })
    }
}

/// There was no answer that counts.
#[derive(Debug)]
struct NotReached(String);

impl fmt::Display for NotReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for NotReached {}

fn not_reached(why: String) -> Error {
    Error::Other(Box::new(NotReached(why)))
}

/// A value of `Retry-After`: seconds, or a moment.
fn wait_of(text: &str, now_ms: u64) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp().as_millisecond();
    let wait = u64::try_from(moment).ok()?.saturating_sub(now_ms);
    Some(Duration::from_millis(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: an authority that names a moment and is asked again at once.
    #[test]
    fn a_wait_is_seconds_or_a_moment() {
        let now_ms = 784_111_777_000; // Sun, 06 Nov 1994 08:49:37 GMT
        let wait = |text: &str| wait_of(text, now_ms).map(|wait| wait.as_secs());
        assert_eq!(wait(" 120 "), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
    }

    /// Catches: a log that an authority, or whoever stands in its place, fills or writes lines of.
    #[test]
    fn what_an_authority_says_is_one_short_line() {
        let fault = OrderFault::Refused(format!("a\nb\u{1b}[31m{}", "\u{e9}".repeat(9000)));
        let told = fault.told();
        assert!(!told.contains(['\n', '\u{1b}']));
        assert_eq!(told.chars().count(), TOLD_CHARS_MAX + 3);
        assert_eq!(super::told("short"), "short");
    }
}
