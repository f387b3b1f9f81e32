//! The end of every request: what was reserved is freed, what happened is counted, recorded and
//! logged. Settling cannot fail and happens exactly once.

mod charge;
mod event;

use super::client::Client;
use super::flight::{self, FlightNotes};
use super::pass::Pass;
use super::receive::Request;
use super::relay::tap::Tap;
use super::relay::Relayed;
use super::repute;
use super::takings::Takings;
use super::trace::TraceNotes;
use super::upstream::pool::{InFlight, LocalMember};
use crate::base::fault::{Fault, Side};
use crate::base::id::RequestId;
use crate::base::panic_point;
use crate::base::refusal::Refusal;
use crate::config::plan::{Engine, UsagePlan};
use crate::http::request::Method;
use crate::keys::together;
use crate::llm::dialect::Dialect;
use crate::llm::error;
use crate::state::engine_cache::{CacheOf, ExpectedPrefix};
use crate::state::member::{self, Member};
use crate::state::meters::{Series, TokenSeries, Tokens, Whose};
use crate::state::repute::BodyForm;
use crate::state::token_sizes::UseSeries;
use crate::usage::access::AccessLine;
use crate::usage::outbox::Opening;
use crate::usage::record;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::spans::RequestSpan;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// nginx's number for a client that left before it got an answer. Never sent.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// How a request ended.
#[derive(Debug, Clone, Copy, Default)]
pub enum Ending {
    /// Nobody has said yet how it ended.
    #[default]
    Underway,
    /// Its whole answer reached the client.
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
    pub backend: Option<Rc<LocalMember>>,
    /// Counts the request there, until it has a connection, which takes this over.
    pub inflight: Option<InFlight>,
    /// Tries after the first.
    pub retries: u32,
    /// Another backend than the first answered.
    pub fallback: bool,
    /// Status that the client got; 0 when none.
    pub status: u16,
    /// The answer was an event stream.
    pub event_stream: bool,
    /// The client had the head of a stream from us, before an engine's came.
    pub head_is_out: bool,
    /// The head of the answer says how long it is.
    pub has_length: bool,
    /// The try that was answered asked for usage, and the client had not.
    pub asked_usage: bool,
    /// What of the prompt its engine should have in its cache.
    pub expected: ExpectedPrefix,
    /// How it ended.
    pub ending: Ending,
    /// What the relay saw, when it came to that.
    pub outcome: Option<Relayed>,
    /// An engine had all of it.
    pub is_sent: bool,
    /// The error in its answer was heard before the client had any of it.
    pub is_heard: bool,
    /// It was for one of our own pages: logged, but not traffic that anyone wants in a rate.
    own_page: bool,
    /// It is over for its client, and only its record waits for something: for what its client did
    /// not take, which is read for the engine's sake, or for what is in a packed answer. That is no
    /// time of the request's.
    pub is_past: bool,
    /// Its record was made before the last bytes went to the client.
    is_closed: bool,
    /// What its record ends.
    opening: Opening,
    // Boxed twice: it is rare, and what is kept here is kept for each stream.
    request_body: Option<Box<Box<[u8]>>>,
}

impl Story {
    /// The next try is at the backend where the request is in flight.
    pub fn goes_to(&mut self, inflight: InFlight) -> Rc<LocalMember> {
        let backend = Rc::clone(inflight.backend());
        (self.backend, self.inflight) = (Some(Rc::clone(&backend)), Some(inflight));
        backend
    }

    /// The story of a request that we refused.
    pub fn refused(refusal: &Refusal) -> Story {
        Story { status: refusal.status, ending: Ending::Refused(refusal.code), ..Story::default() }
    }

    /// The story of a request for one of our own pages.
    pub fn own(status: u16) -> Story {
        Story { own_page: true, ..Story::answered(status) }
    }

    /// The story of a request of a client's that needed no backend.
    pub fn answered(status: u16) -> Story {
        Story { status, ending: Ending::Complete, ..Story::default() }
    }

    /// The story of a request whose client left before it was complete.
    pub fn client_left() -> Story {
        Story { ending: Ending::Fault(Fault::ClientLeft), ..Story::default() }
    }

    /// Keeps the request body for the record, if the plan wants it there and it is not too large.
    pub fn keep_body(&mut self, pass: &Pass, request: &Request, client: &Client) {
        if let (Some(max), Some(_)) = (pass.view.plan.usage.request_body_max, &pass.w.usage) {
            let body = request.body(client.bytes());
            self.request_body = (body.len() <= max).then(|| Box::new(body.into()));
        }
    }

    /// The last backend that was tried, as all threads know it.
    pub fn member(&self) -> Option<&Member> {
        self.backend.as_deref().map(|backend| &**backend)
    }

    /// Whose numbers it counts among.
    fn whose(&self) -> Whose {
        self.backend.as_ref().map(|backend| backend.id())
    }

    fn status(&self) -> u16 {
        match (self.status, self.ending) {
            // What the client would have got, had there been time to tell it.
            (0, Ending::Fault(fault)) if fault.side() != Side::Client => fault.refusal().status,
            (0, _) => CLIENT_CLOSED_REQUEST,
            (status, _) => status,
        }
    }
}

/// A request is about to go to its first backend: whatever becomes of it, there will be a record.
/// False: that cannot be kept, and nobody is to be served without.
pub fn open(pass: &Pass, request: &Request, story: &mut Story) -> bool {
    let (Some(outbox), Some(_)) = (&pass.w.usage, &story.backend) else { return true };
    let opening = outbox.open(&begun(pass, request, story));
    story.opening = opening.unwrap_or_default();
    opening.is_some() || !outbox.is_strict()
}

/// An answer goes on, so many bytes of it went to the client: should we be killed, this is what
/// its record will say.
pub fn note(pass: &Pass, (request, tap): (&Request, &Tap), story: &Story, sent: u64) {
    let so_far = || charge::so_far((request, tap), story);
    pass.takings().into_iter().for_each(|held| held.debit(so_far()));
    // A request that never reached a backend is not billed.
    let (Some(outbox), Some(_)) = (&pass.w.usage, &story.backend) else { return };
    let times = Times::of(request, tap, tap.last_byte());
    outbox.note(&record_of(pass, (request, tap, story), times, sent));
}

/// All of an answer is here, and its last bytes are about to go out; so many will have gone then.
pub fn complete(pass: &Pass, told: (&Request, &Tap), story: &mut Story, sent: u64) {
    story.ending = Ending::Complete;
    close(pass, told, story, sent);
}

/// The last bytes of what a client gets are about to go out, and its story says how it ended; so
/// many bytes of an engine's answer will have gone then. A client that has seen the end of its
/// answer was billed for it, whatever happens to us after that.
pub fn close(pass: &Pass, (request, tap): (&Request, &Tap), story: &mut Story, sent: u64) {
    let times = Times::of(request, tap, tap.last_byte());
    story.is_closed = true;
    if let Some(held) = pass.takings() {
        held.debit(charge::of_the_end((request, tap), story, held.estimate(), sent));
        held.leave();
    }
    keep(pass, (request, tap, story), times, sent);
    panic_point::pass("closing");
}

/// Makes the record of a request that is over.
fn keep(pass: &Pass, (request, tap, story): (&Request, &Tap, &mut Story), times: Times, sent: u64) {
    let body = story.request_body.take();
    let (Some(outbox), Some(_)) = (&pass.w.usage, &story.backend) else { return };
    let mut record = record_of(pass, (request, tap, story), times, sent);
    record.request_body = body.as_deref().map(|body| &**body);
    outbox.close(&record, story.opening);
}

/// Settles a request: nothing more is known of it, or done for it, after that.
pub fn settle(mut pass: Pass, (request, tap): (&Request, &Tap), story: &mut Story) {
    let times = Times::of(request, tap, ended(tap, story));
    let sent = story.outcome.map_or(0, |outcome| outcome.bytes);
    let mut charged = 0;
    if let Some(held) = pass.takings() {
        charged = charge::of_the_end((request, tap), story, held.estimate(), sent);
        // What the record says already stays, whatever was found out since.
        match held.debited().filter(|_| story.is_closed) {
            Some(debited) => charged = debited,
            None => held.debit(charged),
        }
    }
    // First of all: whatever becomes of the rest, there is a record.
    if !story.is_closed {
        keep(&pass, (request, tap, story), times, sent);
    }
    tell(&pass, (request, tap, &*story), times, sent);
    let mut takings = pass.take_takings();
    if takings.is_any() {
        takings.settle(Instant::now(), charged);
    }
}

/// Counts a request that is over, logs it, and passes its span on.
fn tell(pass: &Pass, (request, tap, story): (&Request, &Tap, &Story), times: Times, sent: u64) {
    let w = &*pass.w;
    panic_point::pass("counting");
    if !story.own_page {
        count(pass, (request, tap), story, times);
    }
    if !matches!(story.ending, Ending::Complete) {
        event::log(pass, request, story);
    }
    if let (Some(lane), false) = (&w.flight, story.own_page) {
        let record = record_of(pass, (request, tap, story), times, sent);
        flight::keep(lane, pass, request, record);
    }
    if let Some(access) = &w.access {
        let record = record_of(pass, (request, tap, story), times, sent).to_record();
        let said = request.presented.as_ref().and_then(|presented| presented.said.clone());
        let trace_id = request.trace().map(|notes| notes.ours.trace_id);
        let (client, tls) = (request.from.client_text().into(), request.from.seal());
        access.offer(AccessLine { record, client, tls, trace_id, said });
    }
    if let (Some(spans), Some(notes), false) = (&w.spans, request.trace(), story.own_page) {
        let record = record_of(pass, (request, tap, story), times, sent);
        spans.offer(Box::new(span_of(pass, (request, notes, story), times, record)));
    }
}

/// The span of a request that is traced.
fn span_of(
    pass: &Pass,
    (request, notes, story): (&Request, &TraceNotes, &Story),
    times: Times,
    record: RecordRef<'_>,
) -> RequestSpan {
    let served = request.served_model();
    RequestSpan {
        trace_id: notes.ours.trace_id,
        span_id: notes.ours.span_id,
        parent_id: notes.parent.map(|parent| parent.span_id),
        start_ns: pass.w.shelf.unix_ns(request.started),
        latency: times.latency,
        first_token: times.ttft,
        tries: pass.notes().map(FlightNotes::take_failed).unwrap_or_default(),
        route: request.path_label,
        engine: story.member().map(Member::engine).and_then(Engine::known_name),
        served_model: (served != request.model).then(|| served.to_owned()),
        // What is exported is read by many: no key, in whatever form.
        record: RecordRef { api_key: None, request_body: None, ..record }.to_record(),
    }
}

/// When the last byte of the answer was sent, as the tap saw it; `None`: now. Of an answer that
/// has a length, or was recorded before its last bytes went out, the clock is not asked again; and
/// what was read of one after its client left is no time of its own.
fn ended(tap: &Tap, story: &Story) -> Option<Instant> {
    let whole = story.outcome.is_some_and(|outcome| outcome.fault.is_none());
    let is_past = story.is_closed || story.is_past || (story.has_length && whole);
    tap.last_byte().filter(|_| is_past)
}

#[derive(Clone, Copy, Default)]
struct Times {
    latency: Duration,
    first_byte: Option<Duration>,
    ttft: Option<Duration>,
}

impl Times {
    /// Of a request that ended then, or now.
    fn of(request: &Request, tap: &Tap, ended: Option<Instant>) -> Times {
        let ended = ended.unwrap_or_else(Instant::now);
        let since = |when: Instant| when.saturating_duration_since(request.started);
        Times {
            latency: since(ended),
            first_byte: tap.first_byte.map(since),
            ttft: tap.first_token().map(since),
        }
    }
}

fn count(pass: &Pass, (request, tap): (&Request, &Tap), story: &Story, times: Times) {
    let whose = story.whose();
    let mut meters = pass.w.shelf.meters.borrow_mut();
    let stream = request.stream || story.event_stream;
    let series = Series { path: request.path_label, stream, backend: whose };
    let requests = meters.requests.entry(series).or_default();
    requests.count(story.status(), 1);
    if whose.is_some() {
        requests.latency.record(times.latency);
    }
    if let Ending::Refused(code) = story.ending {
        *meters.rejected.entry(code).or_default() += 1;
    }
    // An error that is no stream has no token.
    if let (true, Some(ttft)) = (story.event_stream, times.ttft) {
        let model = pass.view.model_label(&request.model);
        let series = TokenSeries { model, backend: whose };
        meters.ttft.entry(series).or_default().record(ttft);
    }
    if story.fallback {
        meters.fallbacks += 1;
    }
    let broken_inside = broken_inside(request, tap, story);
    if let (Ending::Complete, Some(code)) = (story.ending, broken_inside) {
        *meters.faults.entry((whose, code)).or_default() += 1;
    }
    if let Some(backend) = story.member() {
        hear_inside(backend, tap, story, broken_inside.is_some());
    }
    match tap.usage() {
        Some(usage) => {
            let model = pass.view.model_label(&request.model);
            let series = TokenSeries { model, backend: whose };
            if let (Some(member), Some(cached)) = (story.member(), usage.cached_tokens) {
                let counted = (cached, usage.prompt_tokens);
                let cache = || CacheOf::model(request.served_model());
                let is_lost = member.hear_cached((story.expected, cache), counted, member::now);
                meters.prefixes_lost += u64::from(is_lost);
            }
            let (prompt, completion) = (usage.prompt_tokens, usage.completion_tokens);
            let whose = UseSeries { path: request.path_label, tokens: series };
            meters.token_use.entry(whose).or_default().record(prompt, completion);
            meters.tokens.entry(series).or_default().add(Tokens {
                prompt,
                completion,
                cached: usage.cached_tokens.unwrap_or(0),
                reasoning: usage.reasoning_tokens.unwrap_or(0),
            });
        }
        None => {
            meters.usage_missing += u64::from(is_metered(request, tap, story));
            if let Some(odd) = tap.odd_usage() {
                *meters.odd_counts.entry(odd.as_str()).or_default() += 1;
            }
        }
    }
    if let Some(result) = tap.unpacked_as() {
        *meters.unpacked.entry(result).or_default() += 1;
    }
    for odd in tap.oddities().names() {
        *meters.odd_counts.entry(odd).or_default() += 1;
    }
}

/// What an answer of status 200 says of its backend beyond its head, which was heard as that of a
/// good one.
fn hear_inside(backend: &Member, tap: &Tap, story: &Story, is_broken: bool) {
    let facts = tap.body_usage.facts();
    let form = if story.event_stream { BodyForm::Stream } else { BodyForm::Whole };
    // Of what is not asked of a model nobody knows whether it is good.
    let is_read = story.event_stream || tap.dialect() != Dialect::Other;
    match story.ending {
        _ if story.is_heard => {}
        // A client may leave as soon as it has read the error.
        Ending::Complete | Ending::Fault(Fault::ClientLeft) if is_broken && facts.error() => {
            let status = error::status_inside(facts.error_code());
            // The words are gone, and the engines that are full say 503.
            repute::hear_inside(backend, form, status, status == 503);
        }
        Ending::Complete if is_broken => backend.hear_served(false),
        Ending::Complete if is_read && story.status == 200 => repute::hear_body(backend, form),
        // That its client left says nothing of the tokens that came before.
        Ending::Fault(Fault::ClientLeft) if tap.first_token().is_some() && !facts.error() => {
            repute::hear_body(backend, form);
        }
        _ => {}
    }
}

/// Whether an answer without tokens is worth a counter: wherever a dialect has usage, unless it is
/// told in seconds.
fn is_metered(request: &Request, tap: &Tap, story: &Story) -> bool {
    let is_made = request.method == Some(Method::Post) && (200..300).contains(&story.status);
    is_made && tap.dialect() != Dialect::Other && tap.audio_seconds().is_none()
}

/// What is to be said of a request of which no engine has a byte: it stands in the record of one
/// that was open when we were killed.
fn begun<'a>(pass: &'a Pass, request: &'a Request, story: &'a Story) -> RecordRef<'a> {
    let who = pass.who();
    let key = request.presented.as_ref().map(|presented| presented.key.as_str());
    RecordRef {
        request_id: request.unique_id.as_str(),
        client_request_id: request.client_id().map(RequestId::as_str),
        timestamp_ms: pass.w.shelf.unix_ms(request.started),
        user_id: together::user_id(who),
        key_name: together::name(who),
        key_metadata: together::recorded_metadata(who),
        key_id: who.first().map(|key| key.digest.label()),
        api_key: key.filter(|key| !key.is_empty()),
        key_form: pass.view.key_form,
        model: Some(request.model.as_str()).filter(|model| !model.is_empty()),
        method: request.method.map_or("", Method::as_str),
        path: &request.path,
        backend: story.backend.as_ref().map(|backend| &*backend.name),
        backend_url: story.backend.as_ref().map(|backend| &*backend.url),
        is_stream: request.stream || story.event_stream,
        retry_count: story.retries,
        fallback_used: story.fallback,
        request_bytes: request.body_len,
        quota_tokens: pass.takings().and_then(Takings::debited),
        ..RecordRef::default()
    }
}

/// What is to be said of a request by now.
fn record_of<'a>(
    pass: &'a Pass,
    (request, tap, story): (&'a Request, &'a Tap, &'a Story),
    times: Times,
    sent: u64,
) -> RecordRef<'a> {
    let (outcome, error) = match story.ending {
        Ending::Complete => match broken_inside(request, tap, story) {
            Some(code) => (record::Outcome::BackendError, Some(code)),
            None => (record::Outcome::Complete, None),
        },
        // What a kill leaves of it says the same, for whichever reason.
        Ending::Underway => (record::Outcome::Aborted, Some(Fault::Panicked.code())),
        Ending::Refused(code) => (record::Outcome::Refused, Some(code)),
        Ending::Fault(fault) => (outcome_of(fault), Some(fault.code())),
    };
    let usage = tap.usage();
    let (counted, usage_missing_reason) = match usage {
        Some(_) => (None, None),
        None => (
            counted(&pass.view.plan.usage, tap, outcome),
            tap.why_missing().or_else(|| untold(tap, outcome)),
        ),
    };
    RecordRef {
        status_code: story.status(),
        usage,
        latency_ms: millis(times.latency),
        ttft_ms: times.ttft.map(millis),
        first_byte_ms: times.first_byte.map(millis),
        outcome,
        error,
        engine_error: tap.body_usage.facts().error_code(),
        audio_seconds: tap.audio_seconds(),
        oddities: tap.oddities(),
        counted,
        usage_missing_reason,
        upstream_id: tap.body_usage.upstream_id(),
        response_bytes: sent,
        events: tap.events.as_ref().map_or(0, |e| e.events()),
        ..begun(pass, request, story)
    }
}

/// What is wrong with an answer of status 200 whose bytes all came.
fn broken_inside(request: &Request, tap: &Tap, story: &Story) -> Option<&'static str> {
    // What is not asked of a model has no form that could be missed.
    let is_answer = story.status == 200 && request.method == Some(Method::Post);
    is_answer.then(|| tap.broken_inside()).flatten()
}

/// Why there is no usage of an answer that is whole, and could have been read: the engine did not
/// tell it. Some do so when the client leaves it out (`response_fields` of llama.cpp), or does not
/// ask (`details` of TGI), and of what goes on in the background nothing is known yet.
fn untold(tap: &Tap, outcome: record::Outcome) -> Option<&'static str> {
    let is_nothing = tap.audio_seconds().is_none();
    (is_nothing && outcome == record::Outcome::Complete && tap.may_tell()).then_some("not_told")
}

/// Content events of a stream whose engine did not tell its tokens, if they are to stand for them.
/// Most engines send one token in each.
fn counted(usage: &UsagePlan, tap: &Tap, outcome: record::Outcome) -> Option<u64> {
    let is_over = outcome == record::Outcome::Complete;
    let is_wanted = usage.estimate_on_abort && (!is_over || tap.may_tell());
    (is_wanted && tap.events.is_some()).then(|| tap.body_usage.facts().content_events())
}

/// Not `as_millis`: its 128 bits are not needed.
fn millis(time: Duration) -> u64 {
    time.as_secs().saturating_mul(1000).saturating_add(time.subsec_millis().into())
}

fn outcome_of(fault: Fault) -> record::Outcome {
    match fault.side() {
        // Its client has an answer that says that it is cut.
        _ if fault == Fault::QuotaExhausted => record::Outcome::Complete,
        Side::Client => record::Outcome::ClientLeft,
        Side::Us => record::Outcome::Aborted,
        _ if fault.is_timeout() => record::Outcome::TimedOut,
        Side::Backend => record::Outcome::BackendError,
    }
}
