//! A client for many URLs of one owner, where the answers' fields matter too. What one is asked for
//! is said by whoever asks; where it may go is not: `https` only.

use super::http::{cause, settings};
use super::Trouble;
use std::path::Path;
use std::time::Duration;
use ureq::http::response::Parts;
use ureq::http::Request;
use ureq::tls::Certificate;
use ureq::{Agent, Error};

/// An answer.
pub struct WebAnswer {
    /// Its status and its fields.
    pub parts: Parts,
    /// All of its body.
    pub body: Vec<u8>,
}

/// See above.
pub struct WebClient {
    agent: Agent,
    limit: Duration,
    bytes_max: u64,
}

impl WebClient {
    /// A client that connects to nothing yet. Blocks for at most `limit` with each call, and takes
    /// answers of at most `bytes_max` bytes. `ca_file`: only these authorities are believed.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate.
    pub fn new(
        ca_file: Option<&Path>,
        limit: Duration,
        bytes_max: usize,
    ) -> Result<WebClient, String> {
        let roots = match ca_file {
            Some(file) => {
                let (_, certificates) = crate::base::certificate::read(file)?;
                certificates.iter().map(|der| Certificate::from_der(der).to_owned()).into()
            }
            None => super::http::system_roots(),
        };
        let agent = Agent::new_with_config(settings(roots, true));
        Ok(WebClient { agent, limit, bytes_max: bytes_max as u64 })
    }

    /// Sends a request, and gives its answer, whatever it says.
    ///
    /// # Errors
    /// There is none, or it is too long.
    pub fn exchange(&self, request: Request<impl AsRef<[u8]>>) -> Result<WebAnswer, Trouble> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, body.as_ref());
        let request = self.agent.configure_request(request).timeout_global(Some(self.limit));
        let answer = self.agent.run(request.build());
        let answer = answer.map_err(|error| Trouble::Later(cause(&error)))?;
        let (parts, body) = answer.into_parts();
        let body = body.into_with_config().limit(self.bytes_max).read_to_vec();
        let body = body.map_err(|error| match error {
            Error::BodyExceedsLimit(_) => {
                Trouble::Data(format!("its answer has more than {} bytes", self.bytes_max))
            }
            error => Trouble::Later(cause(&error)),
        })?;
        Ok(WebAnswer { parts, body })
    }
}
