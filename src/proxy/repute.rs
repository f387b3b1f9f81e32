//! What requests find out about their backends goes to the fleet; and when a backend goes out of
//! service, the requests that still wait there for a first byte hear of it.

use super::worker::Worker;
use crate::base::fault::{Fault, Side};
use crate::http::field::Known;
use crate::http::response::ResponseHead;
use crate::state::fleet::Fleet;
use crate::state::meters::BackendIndex;
use crate::state::repute::{Change, Evidence};
use std::cell::RefCell;

/// Takes in what a fault says about a backend.
pub fn hear_fault(w: &Worker, backend: BackendIndex, fault: Fault) {
    let Some(backend) = backend else { return };
    match Evidence::of_fault(fault) {
        Some(evidence) => hear(w, backend, evidence),
        None if fault.side() != Side::Backend => {
            w.fleet.get(backend as usize).into_iter().for_each(|member| member.untried());
        }
        None => {}
    }
}

/// Takes in what the head of an answer says about a backend.
pub fn hear_answer(w: &Worker, backend: u32, response: &ResponseHead) {
    let has_retry_after = response.fields.iter().any(|f| f.known == Known::RetryAfter);
    hear(w, backend, Evidence::of_status(response.status, has_retry_after));
}

fn hear(w: &Worker, backend: u32, evidence: Evidence) {
    let Some(member) = w.fleet.get(backend as usize) else { return };
    let Some(change) = member.hear(evidence) else { return };
    let backend = w.backend(backend).map_or("", |plan| plan.name.as_str());
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

/// What a worker has seen of backends that went out of service.
pub struct Departures {
    seen: RefCell<Vec<u32>>,
}

impl Departures {
    /// Nothing that happens from now on was seen.
    pub fn new(fleet: &Fleet) -> Departures {
        Departures { seen: RefCell::new(fleet.iter().map(|m| m.departures()).collect()) }
    }

    /// Passes over what happened while nobody waited here.
    pub fn forget(&self, fleet: &Fleet) {
        self.see(fleet, |_| {});
    }

    /// Calls the backends that went since the last time and are not back, if there is another one
    /// that is well.
    pub fn see(&self, fleet: &Fleet, call_off: impl Fn(u32)) {
        for (backend, seen) in self.seen.borrow_mut().iter_mut().enumerate() {
            let Some(member) = fleet.get(backend) else { continue };
            let now = member.departures();
            if std::mem::replace(seen, now) == now || member.is_healthy() {
                continue;
            }
            let is_other = |(index, _): &(usize, _)| *index != backend;
            if fleet.iter().enumerate().filter(is_other).any(|(_, member)| member.is_healthy()) {
                call_off(backend as u32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: requests that are called off again and again, or from a backend when there is
    /// nobody else to ask.
    #[test]
    fn each_departure_is_seen_once_and_only_where_another_is_well() {
        let fleet = Fleet::new(vec![None, None]);
        let departures = Departures::new(&fleet);
        let seen = || {
            let called = RefCell::new(Vec::new());
            departures.see(&fleet, |backend| called.borrow_mut().push(backend));
            called.into_inner()
        };
        assert!(seen().is_empty());
        fleet.get(1).unwrap().set_passes_probes(false);
        assert_eq!((seen(), seen()), (vec![1], vec![]));
        fleet.get(0).unwrap().set_passes_probes(false);
        assert!(seen().is_empty());
        fleet.get(1).unwrap().set_passes_probes(true);
        assert!(seen().is_empty());
        fleet.get(1).unwrap().set_passes_probes(false);
        fleet.get(0).unwrap().set_passes_probes(true);
        assert_eq!(seen(), [1]);
        fleet.get(1).unwrap().set_passes_probes(true);
        fleet.get(1).unwrap().set_passes_probes(false);
        departures.forget(&fleet);
        assert!(seen().is_empty(), "nobody waited there then");
        fleet.get(1).unwrap().set_passes_probes(true);
        fleet.get(1).unwrap().set_passes_probes(false);
        fleet.get(1).unwrap().set_passes_probes(true);
        assert!(seen().is_empty(), "it is back");
    }
}
