//! Where to: which backend gets the next try.
//!
//! *Takes:* the fleet's health and what was tried already. *Gives:* a backend's index. *Runs on:*
//! workers, each with a state of its own. *May:* read atomics. *Never:* waits, allocates per pick.

pub mod round_robin;

use crate::base::limits::CONNECT_TRIES_MAX;
use crate::state::fleet::Fleet;
use round_robin::RoundRobin;

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

    fn contains(&self, backend: u32) -> bool {
        self.backends.iter().take(self.count).any(|tried| *tried == backend)
    }
}

/// The next backend: by weight among the healthy ones not tried yet. When no backend at all is
/// healthy, by weight among all of them: a probe can be wrong, and an answer beats a 503. `None`
/// when all that could be picked were tried.
pub fn pick(balancer: &mut RoundRobin, fleet: &Fleet, tried: &Tried) -> Option<u32> {
    let any_healthy = fleet.any_healthy();
    let eligible = |backend: u32| {
        let healthy = fleet.get(backend as usize).is_some_and(|m| m.is_healthy());
        (healthy || !any_healthy) && !tried.contains(backend)
    };
    match tried.is_empty() {
        true => balancer.pick(eligible),
        false => balancer.stand_in(eligible),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sick_are_left_out_unless_all_are_sick() {
        let mut balancer = RoundRobin::new(&[1, 1], 0);
        let fleet = Fleet::new(vec![None, None]);
        let member = |i: usize| fleet.get(i).unwrap();
        member(0).set_healthy(false);
        for _ in 0..4 {
            assert_eq!(pick(&mut balancer, &fleet, &Tried::default()), Some(1));
        }
        member(1).set_healthy(false);
        let picks: Vec<_> =
            (0..4).map(|_| pick(&mut balancer, &fleet, &Tried::default())).collect();
        assert!(picks.contains(&Some(0)) && picks.contains(&Some(1)), "{picks:?}");
        let mut tried = Tried::default();
        tried.add(0);
        tried.add(1);
        assert_eq!(pick(&mut balancer, &fleet, &tried), None);
    }
}
