//! A request is held to limits that several gateways hold together: what is at hand it takes, and
//! for the rest it waits for the server of these limits.

use super::ours::Instead;
use crate::base::fault::Fault;
use crate::base::refusal::Refusal;
use crate::config::plan::LimitOnError;
use crate::proxy::admit::rate;
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::takings::Takings;
use crate::proxy::view::{WorkerView, NO_COUNTERS};
use crate::rt::patrol::Alarm;
use crate::state::loans::{LoanAnswer, LoanItem, SharedLimits};
use std::rc::Rc;
use std::time::Duration;

/// Beyond what a call of the server may take: whoever calls it should end first.
const SLACK: Duration = Duration::from_millis(250);
/// Seconds after which a client may try again while the server is not there.
const UNAVAILABLE_S: u32 = 1;

/// Borrows what the request has taken here, as far as it is at hand.
///
/// # Errors
/// The server is not there, and nobody is served without; nothing is held any more.
pub(super) fn at_hand(view: &WorkerView, takings: &mut Takings) -> Result<(), Refusal> {
    let Some(SharedLimits { book, .. }) = &view.shared.shared_limits else { return Ok(()) };
    match takings.is_any() && !book.is_up() {
        true => without(view, takings),
        false => {
            takings.borrow(book);
            Ok(())
        }
    }
}

/// Asks for what was not at hand.
///
/// # Errors
/// It is not lent, or the client has left.
pub(super) async fn ask(pass: &mut Pass, client: &Client) -> Result<(), Instead> {
    let view = Rc::clone(&pass.view);
    let Some(shared) = &view.shared.shared_limits else { return Ok(()) };
    let wanted = pass.limits()?.map(|limits| limits.takings.take_wanted()).unwrap_or_default();
    let answer = answer(shared, client, &wanted).await;
    let Some(limits) = pass.limits()? else { return Ok(()) };
    let takings = limits.takings;
    // Whoever has left was never here.
    match answer.inspect_err(|_| takings.undo())? {
        LoanAnswer::Granted(loaned) => takings.accept(loaned),
        LoanAnswer::Refused(which, wait) => {
            let limited = takings.refuse(wanted.get(which), wait);
            return Err(limited.map_or(NO_COUNTERS, rate::refusal).into());
        }
        LoanAnswer::Failed => without(&view, takings)?,
    }
    Ok(())
}

async fn answer(
    shared: &SharedLimits,
    client: &Client,
    wanted: &[LoanItem],
) -> Result<LoanAnswer, Instead> {
    let Some(reply) = shared.ask.ask(wanted.to_vec()) else { return Ok(LoanAnswer::Failed) };
    client.post.arm(shared.patience.saturating_add(SLACK));
    match client.post.attended(reply).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Ok(LoanAnswer::Failed),
        Err(Alarm::Expired) => {
            // Whoever was asked may yet answer, and counts that as another thing.
            shared.book.numbers.note(&LoanAnswer::Failed);
            Ok(LoanAnswer::Failed)
        }
        Err(Alarm::Gone) => Err(Instead::Nothing),
        Err(Alarm::Ended | Alarm::CalledOff) => Err(Fault::ShuttingDown.refusal().into()),
    }
}

/// The server is not there.
fn without(view: &WorkerView, takings: &mut Takings) -> Result<(), Refusal> {
    let on_error = view.plan.rate_limit.as_ref().map(|limits| limits.on_error);
    match on_error {
        Some(LimitOnError::Deny) => {
            takings.undo();
            Err(NO_COUNTERS.with_retry_after(UNAVAILABLE_S))
        }
        Some(LimitOnError::Local) | None => Ok(()),
    }
}
