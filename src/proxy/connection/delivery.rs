//! An engine's answer goes to the client, with the tap looking on.

use super::{Notes, Underway};
use crate::base::fault::Fault;
use crate::base::limits::UNPACKED_WAIT;
use crate::http::field::Known;
use crate::http::framing::ResponseFraming;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::http::write::{self, ForwardResponse, OutFraming};
use crate::llm::dialect::Dialect;
use crate::proxy::client::Client;
use crate::proxy::location;
use crate::proxy::pass::Pass;
use crate::proxy::rate_fields::RateFields;
use crate::proxy::receive::Request;
use crate::proxy::relay::copy::{Relay, RelayStep};
use crate::proxy::relay::framing::{outbound, Inbound};
use crate::proxy::relay::last::LastBytes;
use crate::proxy::relay::strip;
use crate::proxy::relay::tap::{Expected, Reading, Tap};
use crate::proxy::relay::Relayed;
use crate::proxy::settle::{self, Ending, Story};
use crate::proxy::shared::Shared;
use crate::proxy::told;
use crate::proxy::upstream::exchange::Exchange;
use crate::rt;
use crate::rt::buffer::Buffer;
use crate::state::member::Member;
use std::rc::Rc;
use std::time::Instant;

/// What became of an answer, and whether the client's connection ends with it.
pub(super) struct Delivered {
    pub outcome: Relayed,
    pub closes: bool,
}

/// Sends the answer on to the client. An error: it is broken, and nothing of it was sent.
pub(super) async fn deliver(
    w: &Shared,
    client: &mut Client,
    underway: &mut Underway<'_>,
    got: &mut Exchange,
) -> Result<Delivered, Fault> {
    let Underway { pass, notes: Notes { request, response, story, inbound, tap } } = underway;
    let backend = Rc::clone(got.lease.backend());
    let mut outbound = outbound(response, request.head.version);
    let strips = story.asked_usage && strip::is_readable(response);
    if strips || story.head_is_out {
        outbound = strip::of_any_length(outbound, request.head.version);
    }
    let closes = closes(w, request, outbound);
    *inbound = Inbound::new(response.framing);
    expect(tap, (request, response), got, request.dialect_at(&backend.plan.base_path));
    tell(story, response, client);
    request.release_body(client);
    let known = (got.asked, pass.takings());
    let mut relay = Relay::new((&w.shelf.meters, client, &backend), inbound, outbound, tap, known);
    if strips {
        relay.strip(request.wants_counts);
    }
    if response.event_stream && !response.encoded && !matches!(outbound, OutFraming::Length(_)) {
        relay.keep_alive(pass.view.plan.routing.sse_keepalive);
    }
    // In a scope of their own: behind it the stream holds a buffer only while bytes move.
    let begun = {
        let mut bytes = got.bytes.take();
        let read = bytes.as_ref().map_or(&[][..], |bytes| bytes);
        let told = (&*request, &*response, &*story);
        let mut head = client_head((pass, &backend), told, read, (outbound, closes));
        relay.begin(&mut head, &mut bytes, got.head_len).await
    };
    if response.event_stream {
        // It may run for minutes, and nothing of the heads is needed any more.
        request.release_head();
        response.fields = Vec::new();
    }
    if let RelayStep::Broken(fault @ Fault::BadResponse(_)) = begun {
        return Err(fault);
    }
    let mut is_heard = hear_first_token(&relay, got);
    if let RelayStep::NoteDue = begun {
        settle::note(pass, (request, relay.tap), story, relay.sent());
    }
    let last = match begun {
        RelayStep::LastBytes(last) => Ok(last),
        RelayStep::Broken(fault) => Err(fault),
        RelayStep::Goes | RelayStep::NoteDue => loop {
            let step = relay.advance(got.lease.link()).await;
            is_heard = is_heard || hear_first_token(&relay, got);
            match step {
                RelayStep::LastBytes(last) => break Ok(last),
                RelayStep::Broken(fault) => break Err(fault),
                RelayStep::NoteDue => {
                    backend.note_alive();
                    settle::note(pass, (request, relay.tap), story, relay.sent());
                }
                RelayStep::Goes => {}
            }
        },
    };
    let outcome = match last {
        Ok(last) if relay.tap.is_packed() => {
            // Boxed: few answers are packed.
            Box::pin(end_packed((w, pass), request, story, (&mut relay, last))).await
        }
        Ok(last) => {
            let sent = relay.sent() + last.data_len();
            settle::complete(pass, (request, relay.tap), story, sent);
            relay.end(last).await
        }
        // Boxed: it is rare.
        Err(Fault::QuotaExhausted) => Box::pin(cut(pass, request, story, &mut relay)).await,
        Err(fault) => relay.break_off(fault).await,
    };
    Ok(Delivered { outcome, closes })
}

/// What the head of an answer tells of it.
fn tell(story: &mut Story, response: &ResponseHead, client: &Client) {
    // 0: it left before an answer began, which only an engine that is drained did not notice.
    story.status = if client.post.is_gone() { 0 } else { response.status };
    story.event_stream = response.event_stream || response.ndjson;
    story.has_length = matches!(response.framing, ResponseFraming::Length(_));
}

/// How long a stream waited for its first token says how its backend is doing. Of other answers
/// even the head comes when all of it was generated. True when it is known.
fn hear_first_token(relay: &Relay<'_>, got: &Exchange) -> bool {
    let is_known = relay.tap.has_just_begun();
    if is_known {
        got.lease.backend().hear_first_token(got.lease.age());
    }
    is_known
}

/// Ends a whole answer that is packed. Its record waits for what is in it, and its last bytes wait
/// for that too, but only for a moment.
async fn end_packed(
    (w, pass): (&Shared, &Pass),
    request: &Request,
    story: &mut Story,
    (relay, last): (&mut Relay<'_>, Box<LastBytes>),
) -> Relayed {
    relay.tap.hand_copy_over(&w.unpacker);
    let _ = rt::timeout(UNPACKED_WAIT, relay.tap.see_copy()).await;
    if !relay.tap.awaits_copy() {
        let sent = relay.sent() + last.data_len();
        settle::complete(pass, (request, relay.tap), story, sent);
    }
    relay.end(last).await
}

/// Ends a stream whose key has no more of its quota. Its record goes ahead, as that of a whole one.
async fn cut(pass: &Pass, request: &Request, story: &mut Story, relay: &mut Relay<'_>) -> Relayed {
    story.ending = Ending::Fault(Fault::QuotaExhausted);
    settle::close(pass, (request, relay.tap), story, relay.sent());
    relay.cut(&request.path, &request.model).await
}

/// Whether the client's connection ends with the answer.
fn closes(w: &Shared, request: &Request, outbound: OutFraming) -> bool {
    let is_wished = !request.head.keep_alive || w.is_crowded() || w.patrol.is_parting();
    is_wished || outbound == OutFraming::UntilClose
}

/// Tells the tap what the head says of the body.
fn expect(
    tap: &mut Tap,
    (request, response): (&Request, &ResponseHead),
    got: &Exchange,
    dialect: Dialect,
) {
    let head = got.bytes.as_ref().map_or(&[][..], |bytes| bytes);
    let encoding = response.fields.iter().find(|f| f.known == Known::ContentEncoding);
    let reading = reading(request, response);
    tap.expect(&Expected {
        dialect,
        reading,
        event_stream: response.event_stream,
        ndjson: response.ndjson,
        encoding: encoding.filter(|_| response.encoded).map(|field| field.value.of(head)),
    });
    // The engines that count in fields do so where nothing streams.
    let streams = matches!(dialect, Dialect::OpenAi | Dialect::Responses | Dialect::Messages);
    if !streams && is_counted(request, response.status) {
        tap.see_head(response.fields.iter().map(|f| (f.name.of(head), f.value.of(head))));
    }
    tap.usage_at_ends = EMBEDDINGS.contains(&request.path_label);
}

/// What the body of an answer is read for.
fn reading(request: &Request, response: &ResponseHead) -> Reading {
    let is_typed = response.fields.iter().any(|field| field.known == Known::ContentType);
    match response.json || response.ndjson || response.event_stream || !is_typed {
        false => Reading::Nothing,
        true if is_counted(request, response.status) => Reading::Usage,
        true => Reading::Facts,
    }
}

/// Whether an answer is one that was just made, and made well: what is fetched again (`GET
/// /v1/responses/{id}`) or cancelled was counted when it was made, and an error costs nothing.
fn is_counted(request: &Request, status: u16) -> bool {
    const MADE_BEFORE: &[u8] = b"/responses/";
    let is_good = (200..300).contains(&status);
    let mut below = request.path.as_bytes().windows(MADE_BEFORE.len());
    is_good && request.method == Some(Method::Post) && !below.any(|part| part == MADE_BEFORE)
}

/// Vectors, with usage behind them, or before them (llama.cpp).
const EMBEDDINGS: [&str; 2] = ["/v1/embeddings", "/embeddings"];

/// The head for the client; `None`: it has one.
fn client_head(
    (pass, backend): (&Pass, &Member),
    (request, response, story): (&Request, &ResponseHead, &Story),
    bytes: &[u8],
    (framing, close): (OutFraming, bool),
) -> Option<Buffer> {
    if story.head_is_out {
        return None;
    }
    let mut head = Buffer::take();
    let view = &pass.view;
    let wanted = &view.plan.routing.response_headers;
    let told = told::fields(wanted, (request, backend, story.retries));
    let mut told: Vec<_> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
    if let Some(cors) = &view.cors {
        told.extend(cors.over_engine(request.from.origin()));
    }
    let limits = pass.takings().map(|takings| RateFields::new(takings.levels(Instant::now())));
    let (limits, count) = limits.as_ref().map(RateFields::list).unwrap_or_default();
    let mut fields = limits.get(..count).unwrap_or_default();
    if !told.is_empty() {
        told.extend_from_slice(fields);
        fields = &told;
    }
    let how = ForwardResponse {
        client: request.head.version,
        framing,
        close,
        request_id: request.id().as_str(),
        fields,
        at_ours: &|value| location::at_ours(view.shared.members(), &backend.plan, value),
    };
    write::response(&mut head, response, bytes, &how);
    Some(head)
}
