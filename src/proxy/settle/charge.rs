//! What a request is charged: so many tokens are debited from its key's quota, stand in its record
//! as `quota_tokens`, and stay taken from its token limits. One number for all three, so that the
//! sum of the records is what is used of a quota.
//!
//! An engine that counted is believed. One that did not has worked all the same: whoever got the
//! whole answer, left before its end, or had it cut, is charged with the estimate of its prompt and
//! with what was seen of the answer. What an engine lost, or we did, costs what the client has.

use super::{Ending, Story};
use crate::base::fault::{Fault, Side};
use crate::http::request::Method;
use crate::llm::dialect::Dialect;
use crate::proxy::admit::rate::BYTES_PER_TOKEN;
use crate::proxy::receive::Request;
use crate::proxy::relay::tap::{Reading, Tap};
use crate::proxy::takings::Estimate;

/// What a request that is over is charged, of whose answer so many bytes went to the client.
pub fn of_the_end(
    (request, tap): (&Request, &Tap),
    story: &Story,
    estimate: Estimate,
    sent: u64,
) -> u64 {
    if let Some(usage) = tap.usage() {
        return usage.prompt_tokens.saturating_add(usage.completion_tokens);
    }
    let Some(dialect) = dialect(request, tap, story).filter(|_| story.is_sent) else { return 0 };
    let seen = match (tap.events.is_some(), dialect) {
        (true, _) => tap.body_usage.facts().content_events(),
        // Numbers, of which a prompt makes as many as its model has dimensions.
        (false, Dialect::Embeddings) => 0,
        (false, Dialect::Ollama) if is_embedding(&request.path) => 0,
        (false, _) => sent.div_ceil(BYTES_PER_TOKEN),
    };
    let whole = estimate.prompt.saturating_add(seen);
    let has_error = tap.body_usage.facts().error();
    // A client can have a stream end without its mark, and so make it cheap.
    let is_lost = |code| code != "stream_unfinished";
    let is_failed = has_error || super::broken_inside(request, tap, story).is_some_and(is_lost);
    match story.ending {
        // What goes on in the background when the answer is over is told by nobody.
        Ending::Complete if !is_failed && !request.stream && dialect == Dialect::Responses => {
            whole.max(estimate.tokens)
        }
        Ending::Complete if !is_failed => whole,
        Ending::Fault(Fault::QuotaExhausted) => whole,
        // Clients leave as soon as they have read an error.
        Ending::Fault(fault) if fault.side() == Side::Client && !has_error => whole,
        _ => so_far((request, tap), story),
    }
}

/// What is debited while an answer goes on: never more than in the end.
pub fn so_far((request, tap): (&Request, &Tap), story: &Story) -> u64 {
    match tap.usage() {
        Some(usage) => usage.prompt_tokens.saturating_add(usage.completion_tokens),
        None if tap.events.is_some() && dialect(request, tap, story).is_some() => {
            tap.body_usage.facts().content_events()
        }
        None => 0,
    }
}

/// The form of the answer; `None`: nothing is charged for it, since it is an error, was counted
/// when it was made, is measured in seconds, or nobody knows what tokens would be in it.
fn dialect(request: &Request, tap: &Tap, story: &Story) -> Option<Dialect> {
    let backend = story.backend.as_ref()?;
    // 0: the client left before the head of the answer.
    let is_good = story.status == 0 || (200..300).contains(&story.status);
    // One that is not read at all was made all the same.
    let is_made = request.method == Some(Method::Post) && tap.reading() != Reading::Facts;
    let dialect = request.dialect_at(&backend.plan.base_path);
    let has_tokens = dialect != Dialect::Other && tap.audio_seconds().is_none();
    (is_good && is_made && has_tokens).then_some(dialect)
}

/// Ollama's paths for embeddings share their form with its other ones.
fn is_embedding(path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    ["api/embed", "api/embeddings"].iter().any(|ours| path.ends_with(ours))
}
