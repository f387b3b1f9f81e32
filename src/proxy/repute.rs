//! What requests find out about their backends goes to the members; and when a backend goes out of
//! service, the requests that still wait there for a first byte hear of it.

use super::upstream::pool::LocalMember;
use crate::base::fault::{Fault, Side};
use crate::http::field::Known;
use crate::http::response::ResponseHead;
use crate::state::member::{Member, MemberId};
use crate::state::repute::{Change, Evidence};
use std::rc::Rc;

/// Takes in what a fault says about a backend.
pub fn hear_fault(backend: &Member, fault: Fault) {
    match Evidence::of_fault(fault) {
        Some(evidence) => hear(backend, evidence),
        None if fault.side() != Side::Backend => backend.untried(),
        None => {}
    }
}

/// Takes in what the head of an answer says about a backend.
pub fn hear_answer(backend: &Member, response: &ResponseHead) {
    let has_retry_after = response.fields.iter().any(|f| f.known == Known::RetryAfter);
    hear(backend, Evidence::of_status(response.status, has_retry_after));
}

fn hear(member: &Member, evidence: Evidence) {
    let Some(change) = member.hear(evidence) else { return };
    let backend = &*member.name;
    match change {
        Change::Ejected(time) => {
            let why = match evidence {
                Evidence::NoConnection(_) => "too many connections in a row failed",
                _ => "too many answers in a row failed",
            };
            let (last, pause_s) = (evidence.words(), time.as_secs());
            tracing::warn!(backend, why, last, pause_s, "backend is ejected");
        }
        Change::Back => tracing::info!(backend, "backend is back: it answered a request"),
        // It was told when it went.
        Change::StaysOut(_) => {}
    }
}

/// Calls the backends that went out of service since the last time and are not back, if there is
/// another one that is well. `leaving` have requests and get no more.
pub fn see_departures(
    members: &[Rc<LocalMember>],
    leaving: &[Rc<LocalMember>],
    call_off: impl Fn(MemberId),
) {
    for backend in members.iter().chain(leaving) {
        if !backend.has_departed() || backend.is_healthy() {
            continue;
        }
        let mut others = members.iter().filter(|other| other.id() != backend.id());
        if others.any(|other| other.is_healthy()) {
            call_off(backend.id());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::view::WorkerView;
    use std::cell::RefCell;

    /// Catches: requests that are called off again and again, or from a backend when there is
    /// nobody else to ask.
    #[test]
    fn each_departure_is_seen_once_and_only_where_another_is_well() {
        let view = WorkerView::sample(2);
        let set_passes = |index: usize, passes| view.members[index].set_passes_probes(passes);
        let seen = || {
            let called = RefCell::new(Vec::new());
            see_departures(&view.members, &[], |backend| called.borrow_mut().push(backend));
            let place = |id| view.members.iter().position(|member| member.id() == id).unwrap();
            called.into_inner().into_iter().map(place).collect::<Vec<_>>()
        };
        assert!(seen().is_empty());
        set_passes(1, false);
        assert_eq!((seen(), seen()), (vec![1], vec![]));
        set_passes(0, false);
        assert!(seen().is_empty());
        set_passes(1, true);
        assert!(seen().is_empty());
        set_passes(1, false);
        set_passes(0, true);
        assert_eq!(seen(), [1]);
        set_passes(1, true);
        set_passes(1, false);
        see_departures(&view.members, &[], |_| {});
        assert!(seen().is_empty(), "nobody waited there then");
        set_passes(1, true);
        set_passes(1, false);
        set_passes(1, true);
        assert!(seen().is_empty(), "it is back");
    }

    /// Catches: a request that waits out its whole timeout at a hung backend because that was taken
    /// out of the configuration, which is what people do with one.
    #[test]
    fn who_waits_at_a_backend_that_is_leaving_is_called_off_too() {
        let (view, old) = (WorkerView::sample(1), WorkerView::sample(1));
        let called = RefCell::new(Vec::new());
        let see = || see_departures(&view.members, &old.members, |id| called.borrow_mut().push(id));
        see();
        old.members[0].set_passes_probes(false);
        see();
        assert_eq!(called.take(), [old.members[0].id()]);
        old.members[0].set_passes_probes(true);
        view.members[0].set_passes_probes(false);
        see();
        assert!(called.take().is_empty(), "nobody goes to one that is leaving");
    }
}
