//! Sources that are HTTP services with a list of backends in JSON.

use super::finder::Inquiry;
use crate::base::limits::DISCOVERY_ANSWER_BYTES_MAX;
use crate::base::secret::Secret;
use crate::config::found::FoundRows;
use crate::config::plan::HttpSource;
use crate::store::http::{HttpService, Request};
use std::time::Duration;

/// Asks a service.
pub struct HttpInquiry {
    service: HttpService,
    method: String,
    headers: Vec<(String, Secret)>,
    timeout: Duration,
}

impl HttpInquiry {
    /// Connects to nothing yet.
    pub fn new(source: &HttpSource) -> HttpInquiry {
        HttpInquiry {
            service: HttpService::new(&source.url),
            method: source.method.clone(),
            headers: source.headers.clone(),
            timeout: source.timeout,
        }
    }
}

impl Inquiry for HttpInquiry {
    fn look(&mut self) -> Result<FoundRows, String> {
        let mut request = Request::builder().method(&*self.method).header("Accept", JSON);
        for (name, value) in &self.headers {
            request = request.header(name, value.reveal());
        }
        let place = |why| format!("{}: {why}", self.service.place());
        let answer = self.service.ask(request, self.timeout, DISCOVERY_ANSWER_BYTES_MAX);
        let answer = answer.map_err(|trouble| place(trouble.into_words()))?;
        FoundRows::of_json(&answer).map_err(|why| place(format!("its answer {why}")))
    }
}

const JSON: &str = "application/json";
