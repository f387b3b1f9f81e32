//! Where to: which backend gets the next try.
//!
//! *Takes:* the fleet's health and what was tried already. *Gives:* a backend's index. *Runs on:*
//! workers, each with a state of its own. *May:* read atomics. *Never:* waits, allocates per pick.

pub mod round_robin;

use crate::base::limits::CONNECT_TRIES_MAX;
use crate::state::fleet::Fleet;
use round_robin::RoundRobin;
use std::cell::OnceCell;

/// The backends that one request has tried; there are at most [`CONNECT_TRIES_MAX`].
#[derive(Debug, Default)]
pub struct Tried {
    backends: [u32; CONNECT_TRIES_MAX],
    count: usize,
}

impl Tried {
    /// Notes a try.
    pub fn add(&mut self, backend: u32) {
        if let Some(slot) = self.backends.get_mut(self.count) {
            *slot = backend;
            self.count += 1;
        }
    }

    /// Number of tries noted.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True before the first try.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The last one.
    pub fn last(&self) -> Option<u32> {
        self.count.checked_sub(1).and_then(|last| self.backends.get(last)).copied()
    }

    /// The same as if this had been the only one.
    pub fn only(backend: u32) -> Tried {
        let mut tried = Tried::default();
        tried.add(backend);
        tried
    }

    fn contains(&self, backend: u32) -> bool {
        self.backends.iter().take(self.count).any(|tried| *tried == backend)
    }
}

/// Who may be picked besides those that are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// One request at a time, to an ejected backend whose pause is over.
    Scouts,
    /// The ejected ones: they are most of those that probes leave. That so many fail at once says
    /// more about us, or about the way there, than about them; and the few that are left would
    /// drown.
    Ejected,
    /// All: probes leave none. A probe can be wrong, and an answer beats a 503.
    All,
}

impl Others {
    fn of(fleet: &Fleet) -> Others {
        let passing = fleet.iter().filter(|member| member.passes_probes()).count();
        let well = fleet.iter().filter(|member| member.is_healthy()).count();
        match passing {
            0 => Others::All,
            _ if 2 * well < passing => Others::Ejected,
            _ => Others::Scouts,
        }
    }
}

/// The next backend: by weight among the healthy ones not tried yet, or among others when these are
/// too few. `None` when all that could be picked were tried.
pub fn pick(balancer: &mut RoundRobin, fleet: &Fleet, tried: &Tried) -> Option<u32> {
    // Looked at only when somebody is not well: the fleet may be large.
    let others = OnceCell::new();
    let eligible = |backend: u32| {
        let member = fleet.get(backend as usize).filter(|_| !tried.contains(backend));
        member.is_some_and(|member| {
            member.is_healthy()
                || match others.get_or_init(|| Others::of(fleet)) {
                    Others::All => true,
                    Others::Ejected => member.passes_probes(),
                    // Whoever has failed elsewhere already is not asked to try.
                    Others::Scouts => tried.is_empty() && member.passes_probes() && member.admit(),
                }
        })
    };
    match tried.is_empty() {
        true => balancer.pick(eligible),
        false => balancer.stand_in(eligible),
    }
}

/// True when a backend is well that was not tried.
pub fn has_other(fleet: &Fleet, tried: &Tried) -> bool {
    let untried = |(backend, _): &(usize, _)| !tried.contains(*backend as u32);
    fleet.iter().enumerate().filter(untried).any(|(_, member)| member.is_healthy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fault::Fault;
    use crate::base::limits::FAILED_CONNECTS_MAX;
    use crate::state::fleet::Member;
    use crate::state::repute::{Change, Evidence};

    fn fleet(size: usize) -> (RoundRobin, Fleet) {
        (RoundRobin::new(&vec![1; size], 0), Fleet::new(vec![None; size]))
    }

    fn eject(member: &Member) {
        for _ in 0..FAILED_CONNECTS_MAX {
            member.hear(Evidence::NoConnection(Fault::ConnectFailed));
        }
        assert!(!member.is_healthy());
    }

    /// Who gets the next requests, in order of number and without repetition.
    fn picked(balancer: &mut RoundRobin, fleet: &Fleet) -> Vec<u32> {
        let pick = |_| pick(balancer, fleet, &Tried::default()).unwrap();
        let mut picked: Vec<u32> = (0..4 * fleet.iter().count()).map(pick).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    #[test]
    fn the_sick_are_left_out_unless_all_are_sick() {
        let (mut balancer, fleet) = fleet(2);
        let member = |i: usize| fleet.get(i).unwrap();
        member(0).set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &fleet), [1]);
        member(1).set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &fleet), [0, 1]);
        let mut tried = Tried::default();
        tried.add(0);
        tried.add(1);
        assert_eq!(pick(&mut balancer, &fleet, &tried), None);
    }

    /// Catches: an ejected backend that gets traffic; survivors that drown when most are ejected; a
    /// backend that probes rule out taken in because others are ejected.
    #[test]
    fn the_ejected_are_left_out_unless_they_are_most() {
        let (mut balancer, fleet) = fleet(4);
        let member = |i: usize| fleet.get(i).unwrap();
        eject(member(0));
        assert_eq!(picked(&mut balancer, &fleet), [1, 2, 3]);
        eject(member(1));
        assert_eq!(picked(&mut balancer, &fleet), [2, 3]);
        eject(member(2));
        assert_eq!(picked(&mut balancer, &fleet), [0, 1, 2, 3]);
        member(1).set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &fleet), [0, 2, 3]);
        assert_eq!(member(0).hear(Evidence::Good), Some(Change::Back));
        assert_eq!(picked(&mut balancer, &fleet), [0, 3]);
    }

    #[test]
    fn another_is_one_that_is_well_and_was_not_tried() {
        let (_, fleet) = fleet(2);
        assert!(has_other(&fleet, &Tried::only(0)));
        eject(fleet.get(1).unwrap());
        assert!(!has_other(&fleet, &Tried::only(0)));
        assert!(has_other(&fleet, &Tried::only(1)));
    }
}
