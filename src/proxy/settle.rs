//! The end of every request: what was reserved is freed, what happened is counted, recorded and
//! logged. Settling cannot fail and happens exactly once.

use super::client::Client;
use super::receive::Request;
use super::relay::tap::Tap;
use super::relay::Outcome;
use super::worker::Worker;
use crate::base::fault::{Fault, Side};
use crate::base::refusal::Refusal;
use crate::state::meters::{BackendIndex, Series};
use crate::usage::access::AccessLine;
use crate::usage::outbox::Outbox;
use crate::usage::record::{self, UsageRecord};
use std::time::Duration;

/// nginx's number for a client that left before it got an answer. Never sent.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How a request ended.
#[derive(Debug, Clone, Copy, Default)]
pub enum Ending {
    /// Its whole answer reached the client.
    #[default]
    Complete,
    /// We said no.
    Refused(&'static str),
    /// It broke.
    Fault(Fault),
}

/// What happened to a request on its way.
#[derive(Default)]
pub struct Story {
    /// The last backend that was tried.
    pub backend: BackendIndex,
    /// Tries after the first.
    pub retries: u32,
    /// Another backend than the first answered.
    pub fallback: bool,
    /// Status that the client got; 0 when none.
    pub status: u16,
    /// The answer was an event stream.
    pub event_stream: bool,
    /// How it ended.
    pub ending: Ending,
    /// What the relay saw, when it came to that.
    pub outcome: Option<Outcome>,
    /// It was for one of our own pages: logged, but not traffic that anyone wants in a rate.
    own_page: bool,
    request_body: Option<Vec<u8>>,
}

impl Story {
    /// The story of a request that we refused.
    pub fn refused(refusal: &Refusal) -> Story {
        Story { status: refusal.status, ending: Ending::Refused(refusal.code), ..Story::default() }
    }

    /// The story of a request for one of our own pages.
    pub fn own(status: u16) -> Story {
        Story { status, own_page: true, ..Story::default() }
    }

    /// The story of a request whose client left before it was complete.
    pub fn client_left() -> Story {
        Story { ending: Ending::Fault(Fault::ClientLeft), ..Story::default() }
    }

    /// Keeps the request body for the record, if the plan wants it there and it is not too large.
    pub fn keep_body(&mut self, w: &Worker, request: &Request, client: &Client) {
        if let (Some(max), Some(_)) = (w.plan.usage.request_body_max, &w.usage) {
            let body = request.body(client.bytes());
            self.request_body = (body.len() <= max).then(|| body.to_vec());
        }
    }

    fn status(&self) -> u16 {
        match (self.status, self.ending) {
            (0, _) => CLIENT_CLOSED_REQUEST,
            (status, _) => status,
        }
    }
}

/// Settles a request.
pub fn settle(w: &Worker, request: &Request, tap: &Tap, story: Story) {
    let times = Times {
        latency: request.started.elapsed(),
        ttft: tap.first_byte.map(|first| first.saturating_duration_since(request.started)),
    };
    if !story.own_page {
        count(w, request, tap, &story, times);
    }
    tell(w, request, &story);
    if w.usage.is_none() && w.access.is_none() {
        return;
    }
    let record = make_record(w, request, tap, story, times);
    match (&w.access, &w.usage) {
        (Some(access), Some(usage)) => {
            // The log needs no prompt.
            let line = UsageRecord { request_body: None, ..record.clone() };
            access.offer(AccessLine { record: line, client: request.peer.as_str().into() });
            offer_usage(usage, record);
        }
        (Some(access), None) => {
            access.offer(AccessLine { record, client: request.peer.as_str().into() });
        }
        (None, Some(usage)) => offer_usage(usage, record),
        (None, None) => {}
    }
}

/// What no backend ever had is nobody's bill.
fn offer_usage(usage: &Outbox, record: UsageRecord) {
    if record.backend_url.is_some() {
        // When it is full the outbox counts what it drops.
        let _ = usage.offer(record);
    }
}

/// What failed stands in the log, by the name that the client, the record and the metrics give it.
fn tell(w: &Worker, request: &Request, story: &Story) {
    let request_id = request.unique_id.as_str();
    match story.ending {
        Ending::Complete => {}
        // A deadline that passed is news, what a client got wrong is not.
        Ending::Refused(code) if story.status == 408 => {
            tracing::info!(code, request_id, "request timed out");
        }
        Ending::Refused(code) => tracing::debug!(code, request_id, "request refused"),
        Ending::Fault(fault) => {
            let code = fault.code();
            let backend = story.backend.and_then(|b| w.backend(b)).map(|b| b.name.as_str());
            match fault.side() {
                Side::Client if fault.is_timeout() => {
                    tracing::info!(code, backend, request_id, "request timed out");
                }
                Side::Client => tracing::debug!(code, backend, request_id, "request ended early"),
                _ => tracing::warn!(code, backend, request_id, "request failed"),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Times {
    latency: Duration,
    ttft: Option<Duration>,
}

fn count(w: &Worker, request: &Request, tap: &Tap, story: &Story, times: Times) {
    let mut meters = w.meters.borrow_mut();
    let stream = request.stream || story.event_stream;
    let series = Series { path: request.path_label, stream, backend: story.backend };
    let requests = meters.requests.entry(series).or_default();
    requests.count(story.status(), 1);
    if story.backend.is_some() {
        requests.latency.record(times.latency);
    }
    if let Ending::Refused(code) = story.ending {
        *meters.rejected.entry(code).or_default() += 1;
    }
    if let (true, Some(ttft)) = (stream, times.ttft) {
        meters.ttft.entry(story.backend).or_default().record(ttft);
    }
    if story.fallback {
        meters.fallbacks += 1;
    }
    match tap.usage.usage() {
        Some(usage) => {
            meters.tokens[0] += usage.prompt_tokens;
            meters.tokens[1] += usage.completion_tokens;
        }
        None if is_metered(request) && story.status == 200 => meters.usage_missing += 1,
        None => {}
    }
}

/// Paths of which an answer without usage is worth a counter.
fn is_metered(request: &Request) -> bool {
    matches!(request.path_label, "/v1/chat/completions" | "/v1/completions" | "/v1/embeddings")
}

fn make_record(
    w: &Worker,
    request: &Request,
    tap: &Tap,
    story: Story,
    times: Times,
) -> UsageRecord {
    let status_code = story.status();
    let (outcome, error) = match story.ending {
        Ending::Complete => (record::Outcome::Complete, None),
        Ending::Refused(code) => (record::Outcome::Refused, Some(code)),
        Ending::Fault(fault) => (outcome_of(fault), Some(fault.code())),
    };
    UsageRecord {
        request_id: request.unique_id,
        client_request_id: (request.id != request.unique_id).then_some(request.id),
        timestamp_ms: request.started_unix_ms,
        user_id: None,
        api_key: None,
        model: (!request.model.is_empty()).then(|| request.model.as_str().into()),
        method: request.method.into(),
        path: request.path.as_str().into(),
        backend_url: story.backend.and_then(|b| w.backend_url(b)),
        status_code,
        is_stream: request.stream || story.event_stream,
        usage: tap.usage.usage(),
        latency_ms: times.latency.as_millis() as u64,
        ttft_ms: times.ttft.map(|t| t.as_millis() as u64),
        retry_count: story.retries,
        fallback_used: story.fallback,
        outcome,
        error,
        upstream_id: tap.usage.upstream_id().map(Into::into),
        request_bytes: request.body_len,
        response_bytes: story.outcome.map_or(0, |o| o.bytes),
        events: tap.events.as_ref().map_or(0, |e| e.events()),
        request_body: story.request_body,
    }
}

fn outcome_of(fault: Fault) -> record::Outcome {
    match fault.side() {
        Side::Client => record::Outcome::ClientLeft,
        _ if fault.is_timeout() => record::Outcome::TimedOut,
        Side::Backend | Side::Us => record::Outcome::BackendError,
    }
}
