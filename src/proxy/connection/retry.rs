//! What follows a try that brought no answer, or one that may be withheld from the client: what it
//! says of its backend is taken in, and the request goes to another one, or comes back later, or
//! its client gets what there is.

use super::facts;
use super::preamble::{self, Held};
use super::tries::{pick, Trying};
use crate::base::clock::unix_ms;
use crate::base::fault::{Fault, Side};
use crate::base::fnv;
use crate::base::panic_point;
use crate::config::plan::{Fallback, OnClientAbort};
use crate::http::response::ResponseHead;
use crate::proxy::asking;
use crate::proxy::client::Client;
use crate::proxy::flight;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::proxy::repute;
use crate::proxy::route::tries::{is_harmless, Attempt, Further, TryEnd};
use crate::proxy::route::{tiers, TriedMembers};
use crate::proxy::shared::Shared;
use crate::proxy::upstream::exchange::Exchange;
use crate::proxy::upstream::peek::{self, Unavailable};
use crate::proxy::upstream::pool::InFlight;
use crate::proxy::view::WorkerView;
use crate::rt::patrol::Alarm;
use crate::state::member::Member;
use crate::state::meters::RetryReason;
use crate::state::repute::BodyForm;
use crate::usage::flight::picked::PickedBy;
use std::future::pending;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Whether an answer of this status may be withheld from the client, if somebody else can be asked.
pub(super) fn is_doubtful(trying: &Trying, status: u16) -> bool {
    let has_rules = !trying.view.plan.routing.fallback.is_empty();
    matches!(status, 503 | 508) || trying.policy().names(status, has_rules)
}

/// Whether an answer is to be looked into before the client gets any of it.
pub(super) fn is_held(trying: &Trying, request: &Request, response: &ResponseHead) -> bool {
    let (plan, routing) = (&trying.backend.plan, &trying.view.plan.routing);
    // First of all: each answer comes by here.
    if routing.hold_preamble.is_zero() {
        return false;
    }
    let is_plain_stream = response.event_stream && !response.encoded && response.status == 200;
    // Where nothing can be retried, or the answer must be read to its end, it need not wait.
    let is_of_use = (routing.retry.is_some() || !routing.fallback.is_empty())
        && plan.on_client_abort == OnClientAbort::Close
        && preamble::is_for(request.dialect_at(&plan.base_path));
    is_plain_stream && is_of_use && request.is_in_hand()
}

/// Whether a try ended so that its backend has not read the prompt: it refused it, failed over it,
/// or did not get all of it (`has_part`). One whose client left, or whose time for all tries was
/// over, was most likely reading, and keeps what it has read.
pub(super) fn is_unread(asked: &Result<Exchange, Fault>, status: u16, has_part: bool) -> bool {
    match asked {
        Ok(_) => status >= 400,
        Err(fault) => has_part || (fault.side() == Side::Backend && *fault != Fault::RetryTimeout),
    }
}

/// Takes back what was noted of the backend that has the try. The prompt is read once more for
/// that, if others were read meanwhile.
pub(super) fn unlearn(w: &Shared, (client, request): (&Client, &Request), trying: &mut Trying<'_>) {
    let taught = std::mem::take(&mut trying.taught);
    if taught.is_nothing() {
        return;
    }
    let view = w.view();
    facts::once_more(w, &view, client, request);
    view.unlearn(request, taught, &trying.backend, client.post.since(trying.tries.began()));
}

/// What is done after a try: the client gets this answer, or hears of this fault; `None`: there is
/// another try, which is prepared and in flight.
pub(super) async fn after(
    pass: &Pass,
    client: &Client,
    ((request, response), (trying, inflight)): (
        (&Request, &ResponseHead),
        (&mut Trying<'_>, &mut Option<InFlight>),
    ),
    doubtful: Result<Box<Exchange>, Fault>,
) -> Result<Option<Box<Exchange>>, Fault> {
    let w = &*pass.w;
    let (end, mut got) = match doubtful {
        Err(fault) => (hear_fault(w, trying, fault), None),
        Ok(mut got) => match hear(w, client, (request, response), (trying, &mut got)).await {
            None => {
                hear_withheld(w, trying, true);
                return Ok(Some(got));
            }
            Some(end) => (end, Some(got)),
        },
    };
    // Backends that were taken out a moment ago get no more requests.
    w.upstreams.look_at_the_board();
    set_rule(trying, request);
    let (rule, policy) = (trying.rule, trying.policy());
    let attempt = Attempt {
        end,
        is_in_hand: request.is_in_hand(),
        other: |tried: &TriedMembers| other(w, (client, request), (rule, tried), end),
        has_budget: w.retries.has_one(Instant::now()),
        elapsed: client.post.since(trying.tries.began()),
        spread: spread(request.unique_id.as_bytes(), trying.tries.waits()),
    };
    let further = trying.tries.next(attempt, &policy);
    let Some(further) = further else {
        hear_withheld(w, trying, true);
        return match (got, end) {
            (None, TryEnd::Failed(fault)) => Err(fault),
            // An answer is better than our word for it.
            (got, _) => Ok(got),
        };
    };
    hear_withheld(w, trying, false);
    let reason = reason(end);
    flight::note_try(pass, request, &trying.backend, reason);
    if !matches!(further, Further::Again) && !is_harmless(end) {
        w.retries.take();
    }
    // The engine's connection closes: what it has to say is not read.
    drop(got.take());
    let next = match further {
        Further::Again => again(w, (client, request), trying, end)?,
        Further::Other(other) => {
            trying.move_to(other.backend(), request);
            other
        }
        Further::Wait(time) => {
            wait(client, time).await?;
            panic_point::pass("waiting");
            let next = come_back(w, client, request, trying)?;
            trying.move_to(next.backend(), request);
            next
        }
    };
    flight::note_pick(pass, request);
    *inflight = Some(next);
    *w.shelf.meters.borrow_mut().retries.entry(reason).or_default() += 1;
    Ok(None)
}

/// Why there is another try after one that ended so.
fn reason(end: TryEnd) -> RetryReason {
    match end {
        TryEnd::WishRefused => RetryReason::Named("stream_usage_refused"),
        TryEnd::Failed(fault) => RetryReason::Named(fault.code()),
        TryEnd::Status(status, _) => RetryReason::Status(status),
    }
}

/// The same backend is asked once more, or another one, where that is full.
fn again(
    w: &Shared,
    (client, request): (&Client, &Request),
    trying: &mut Trying<'_>,
    end: TryEnd,
) -> Result<InFlight, Fault> {
    let by = (&request.unique_id, PickedBy::Again);
    if let Some(again) = w.view().enter(by, &trying.backend) {
        trying.taught = trying.view.taught();
        return Ok(again);
    }
    // Others have filled the backend by now.
    let known = (trying.rule, trying.tries.tried());
    let other = other(w, (client, request), known, end).ok_or(Fault::BackendFull)?;
    trying.move_to(other.backend(), request);
    Ok(other)
}

/// After a wait: somebody else than the last one if there is anybody, else that one, if it is still
/// there.
fn come_back(
    w: &Shared,
    client: &Client,
    request: &Request,
    trying: &mut Trying<'_>,
) -> Result<InFlight, Fault> {
    w.upstreams.look_at_the_board();
    let (view, last) = (w.view(), trying.backend.id());
    facts::once_more(w, &view, client, request);
    let group = view.shared.models.choose(request.served_model()).group;
    // Somebody has become well meanwhile, or has room again, who was not asked yet.
    if has_other(w, request, trying.tries.tried()) {
        if let Ok(untried) = pick((&view, group), request, trying.tries.tried()) {
            trying.tries.note_wait();
            return Ok(untried);
        }
    }
    trying.tries.begin_anew();
    let next = pick((&view, group), request, &TriedMembers::only(last));
    next.or_else(|why| match view.member(last) {
        Some(same) => {
            let again = (&request.unique_id, PickedBy::Again);
            view.enter(again, same).ok_or(Fault::BackendFull)
        }
        None => Err(why.fault()),
    })
}

/// Between 0 and 1: as good as random, and another one for each wait of each request.
fn spread(id: &[u8], waits: u8) -> f64 {
    let hash = fnv::hash(id.iter().copied().chain([waits]));
    let hash = (hash ^ (hash >> 32)) as u32;
    // Ids are counted up: their last digits must reach all bits (as MurmurHash3 ends).
    let hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    f64::from(hash ^ (hash >> 16)) / f64::from(u32::MAX)
}

/// Takes in what a fault says of its backend.
fn hear_fault(w: &Shared, trying: &mut Trying<'_>, fault: Fault) -> TryEnd {
    let backend = &trying.backend;
    asking::hear_failure(backend, fault);
    w.shelf.count_fault(Some(backend), fault);
    // Nobody knows now how this try would have ended; of an answer that has begun it is known.
    if fault.side() != Side::Backend || fault == Fault::RetryTimeout {
        backend.untried();
    }
    if fault == Fault::BackendEjected {
        trying.tries.call_off(backend.id());
    }
    TryEnd::Failed(fault)
}

/// Takes in what an answer says of its backend. `None`: it is for the client. It is not when it
/// refuses a wish of ours; when its status is to be retried; and when the engine is still loading
/// its model, or the backend leads back to us, and another one is well: then it is as if nobody had
/// seen the request.
async fn hear(
    w: &Shared,
    client: &Client,
    (request, response): (&Request, &ResponseHead),
    (trying, got): (&mut Trying<'_>, &mut Exchange),
) -> Option<TryEnd> {
    let (status, backend) = (response.status, Rc::clone(&trying.backend));
    let is_named =
        trying.asking.may_be_refused(status) && peek::names_wish(client, response, got).await;
    let learnt =
        trying.asking.learn(&w.shelf, (&backend, request.served_model()), status, is_named);
    if let Some(next) = learnt.filter(|_| request.is_in_hand()) {
        trying.asking = next;
        return Some(TryEnd::WishRefused);
    }
    if is_held(trying, request, response) {
        return hear_preamble(w, client, (request, response), (trying, got)).await;
    }
    let is_read = repute::may_say_full(response);
    let told = match is_read {
        true => peek::unavailable(client, response, got).await,
        false => Unavailable::Other,
    };
    let is_full = told == Unavailable::Full;
    repute::hear_answer(&backend, response, (is_full, || got.lease.age()));
    // One that must not be cut off has its answer read to the end.
    if !request.is_in_hand() || backend.plan.on_client_abort == OnClientAbort::Drain {
        return None;
    }
    set_rule(trying, request);
    let wished = response.retry_after.map(|retry_after| retry_after.wait(unix_ms()));
    let end = TryEnd::Status(status, wished);
    let is_covered = trying.policy().covers(end);
    // What is retried anyhow need not be read.
    if is_covered && w.retries.has_one(Instant::now()) {
        return Some(end);
    }
    if has_other(w, request, trying.tries.tried()) {
        let told = if is_read { told } else { peek::unavailable(client, response, got).await };
        if told == Unavailable::Loading {
            return Some(hear_fault(w, trying, Fault::BackendLoading));
        }
        if peek::is_loop(client, response, got).await {
            return Some(hear_fault(w, trying, Fault::BackendLoops));
        }
    }
    is_covered.then_some(end)
}

/// Takes in what a stream begins with.
async fn hear_preamble(
    w: &Shared,
    client: &Client,
    (request, response): (&Request, &ResponseHead),
    (trying, got): (&mut Trying<'_>, &mut Exchange),
) -> Option<TryEnd> {
    let dialect = request.dialect_at(&trying.backend.plan.base_path);
    // Within the time that its backend has for the first byte.
    let left = trying.backend.plan.first_byte_timeout;
    let left = left.saturating_sub(client.post.since(got.asked));
    let time = trying.view.plan.routing.hold_preamble.min(left);
    let held = preamble::hold(client, (response, dialect), got, time).await;
    if let Some(count) = w.shelf.meters.borrow_mut().held.get_mut(held.index()) {
        *count += 1;
    }
    panic_point::pass("holding");
    let end = match held {
        Held::Spoke | Held::Late => {
            repute::hear_answer(&trying.backend, response, (false, || got.lease.age()));
            return None;
        }
        Held::Error(status, _) => TryEnd::Status(status, None),
        Held::Broke => TryEnd::Failed(Fault::BackendClosed),
    };
    unlearn(w, (client, request), trying);
    set_rule(trying, request);
    trying.withheld = Some(held);
    trying.policy().covers(end).then_some(end)
}

/// Takes in what a stream began with that was held back. Where the client gets it all the same, its
/// error is not heard again when the request is settled, and that it broke is heard only then.
fn hear_withheld(w: &Shared, trying: &mut Trying<'_>, is_for_the_client: bool) {
    match trying.withheld {
        Some(Held::Error(status, is_full)) => {
            repute::hear_inside(&trying.backend, BodyForm::Stream, status, is_full);
        }
        Some(Held::Broke) if !is_for_the_client => {
            let _ = hear_fault(w, trying, Fault::BackendClosed);
        }
        _ => {}
    }
    if !is_for_the_client {
        trying.withheld = None;
    }
}

/// The rule of the backend that was picked first is that of the request.
fn set_rule(trying: &mut Trying<'_>, request: &Request) {
    let Trying { view, rule, backend, tries, .. } = trying;
    if !tries.is_first() {
        return;
    }
    let names = [request.model.as_str(), request.served_model()];
    *rule = rule.or_else(|| {
        view.plan.routing.fallback.iter().find(|rule| {
            let is_for = |name| rule.models.iter().any(|pattern| pattern.matches(name));
            rule.primary == *backend.name
                && (rule.models.is_empty() || names.into_iter().any(is_for))
        })
    });
}

/// Whether another backend is well that may have the request.
fn has_other(w: &Shared, request: &Request, tried: &TriedMembers) -> bool {
    let view = w.view();
    let group = view.shared.models.choose(request.served_model()).group;
    tiers::has_other(view.shared.group(group), tried)
}

/// Who is asked next: whoever the rule names, in its order, if they are well; then whoever has the
/// next turn. An answer is given up only for one who is well.
fn other(
    w: &Shared,
    (client, request): (&Client, &Request),
    (rule, tried): (Option<&Fallback>, &TriedMembers),
    end: TryEnd,
) -> Option<InFlight> {
    // By the view of now: those that left meanwhile get no more requests.
    let view = w.view();
    let named = rule.and_then(|rule| {
        facts::once_more(w, &view, client, request);
        named_by_rule(&view, request, (rule, tried))
    });
    if named.is_some() {
        return named;
    }
    let is_wanted = match end {
        TryEnd::WishRefused => false,
        TryEnd::Failed(_) => true,
        TryEnd::Status(..) => has_other(w, request, tried),
    };
    if !is_wanted {
        return None;
    }
    facts::once_more(w, &view, client, request);
    let group = view.shared.models.choose(request.served_model()).group;
    pick((&view, group), request, tried).ok()
}

fn named_by_rule(
    view: &WorkerView,
    request: &Request,
    (rule, tried): (&Fallback, &TriedMembers),
) -> Option<InFlight> {
    let group = view.shared.models.choose(request.served_model()).group;
    let serving = view.shared.models.members_of(group);
    // None is asked again sooner than it wished.
    let is_free = |member: &Member| {
        let is_well = member.is_healthy() && !member.is_spared() && !member.is_drained();
        is_well && !tried.contains(member.id())
    };
    let named = |name: &String| {
        let members = serving.iter().filter_map(|place| view.members.get(*place as usize));
        let mut free = members.filter(|member| *member.name == **name && is_free(member));
        free.find_map(|member| view.enter((&request.unique_id, PickedBy::Rule), member))
    };
    rule.fallback.iter().find_map(named)
}

/// Waits, unless the client leaves.
async fn wait(client: &Client, time: Duration) -> Result<(), Fault> {
    client.post.arm(time);
    match client.post.attended(pending::<()>()).await {
        Ok(()) | Err(Alarm::Expired | Alarm::CalledOff) => Ok(()),
        Err(Alarm::Gone) => Err(Fault::ClientLeft),
        Err(Alarm::Ended) => Err(Fault::ShuttingDown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: requests that failed together and come back together.
    #[test]
    fn neighbouring_ids_wait_for_different_times() {
        let mut bins = [0; 10];
        for n in 0..1000 {
            for waits in 0..2 {
                let spread = spread(format!("791ab6e2bf8b7a35{n:016x}").as_bytes(), waits);
                bins[((spread * 10.0) as usize).min(9)] += 1;
            }
        }
        assert!(bins.iter().all(|n| (120..280).contains(n)), "{bins:?}");
    }
}
