//! Weighted round robin by stride scheduling: each backend has a pass value, the smallest goes
//! next and moves on by `STRIDE / weight`. Equal weights give plain rotation; a pick costs O(log n)
//! (Waldspurger and Weihl, "Stride Scheduling", 1995; Envoy's EDF scheduler is the same idea).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Weights up to a million keep a step of their own, and 2^44 picks fit before a pass overflows.
const STRIDE: u64 = 1 << 20;

/// The order of one worker.
pub struct RoundRobin {
    queue: BinaryHeap<Reverse<Turn>>,
    skipped: Vec<Turn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    pass: u64,
    backend: u32,
}

impl RoundRobin {
    /// `weights` of the backends, each at least 1. `phase` rotates the start, so that the workers
    /// of a process do not all begin with the first backend.
    pub fn new(weights: &[u32], phase: usize) -> RoundRobin {
        let n = weights.len().max(1);
        let turn = |(i, weight): (usize, &u32)| {
            // Starts are spread over one step, else equal weights would run in pairs.
            let pass = step_of(hundredths(*weight)) / n as u64 * ((i + phase) % n) as u64;
            Reverse(Turn { pass, backend: i as u32 })
        };
        RoundRobin { queue: weights.iter().enumerate().map(turn).collect(), skipped: Vec::new() }
    }

    /// The order that goes on after a change of the configuration: for each backend its weight, and
    /// the pass value that it had, if it was there. A new one is in line with whoever is next.
    pub fn going_on(backends: &[(u32, Option<u64>)]) -> RoundRobin {
        let next = backends.iter().filter_map(|(_, pass)| *pass).min().unwrap_or_default();
        let turn = |(i, (weight, pass)): (usize, &(u32, Option<u64>))| {
            let step = step_of(hundredths(*weight));
            let pass = pass.unwrap_or(next.saturating_add(step / 2));
            Reverse(Turn { pass, backend: i as u32 })
        };
        RoundRobin { queue: backends.iter().enumerate().map(turn).collect(), skipped: Vec::new() }
    }

    /// The pass values of so many backends, by their places.
    pub fn passes(&self, backends: usize) -> Vec<u64> {
        let mut passes = vec![0; backends];
        for Reverse(turn) in &self.queue {
            if let Some(pass) = passes.get_mut(turn.backend as usize) {
                *pass = turn.pass;
            }
        }
        passes
    }

    /// The next backend that has a weight now, in hundredths: that in the configuration, or less
    /// for one that has just come back. One that is passed over, because it has none, keeps pace
    /// with the others, so that it does not get a burst when it comes back.
    pub fn pick(&mut self, weight: impl Fn(u32) -> Option<u64>) -> Option<u32> {
        self.take(weight, true)
    }

    /// Who would be next, for a request that has had its turn. A retry is not charged as one:
    /// otherwise the backend that stands in for a dead one would lose its own next turn.
    pub fn stand_in(&mut self, weight: impl Fn(u32) -> Option<u64>) -> Option<u32> {
        self.take(weight, false)
    }

    fn take(&mut self, weight: impl Fn(u32) -> Option<u64>, charge: bool) -> Option<u32> {
        let mut picked = None;
        while let Some(Reverse(turn)) = self.queue.pop() {
            if let Some(weight) = weight(turn.backend) {
                let step = if charge { step_of(weight) } else { 0 };
                self.queue.push(Reverse(Turn { pass: turn.pass.saturating_add(step), ..turn }));
                picked = Some(turn);
                break;
            }
            self.skipped.push(turn);
        }
        for turn in self.skipped.drain(..) {
            // It waits at the front of the line, but with no credit saved up.
            let pass = match picked {
                Some(picked) if charge => picked.pass.max(turn.pass) + 1,
                _ => turn.pass,
            };
            self.queue.push(Reverse(Turn { pass, ..turn }));
        }
        picked.map(|turn| turn.backend)
    }
}

fn hundredths(weight: u32) -> u64 {
    u64::from(weight) * 100
}

/// What a pick adds to the pass value of a backend, by its weight in hundredths.
fn step_of(weight: u64) -> u64 {
    (100 * STRIDE / weight.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(weights: &[u32], picks: usize) -> Vec<usize> {
        let mut balancer = RoundRobin::new(weights, 0);
        let mut counts = vec![0; weights.len()];
        for _ in 0..picks {
            let weight = |backend: u32| Some(hundredths(weights[backend as usize]));
            counts[balancer.pick(weight).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn equal_weights_rotate() {
        let mut balancer = RoundRobin::new(&[1, 1, 1], 1);
        let picks: Vec<_> = (0..6).map(|_| balancer.pick(|_| Some(100)).unwrap()).collect();
        assert_eq!(picks[..3], picks[3..]);
        let mut once = picks[..3].to_vec();
        once.sort_unstable();
        assert_eq!(once, [0, 1, 2]);
        assert_eq!(picks[0], 2, "the phase decides who begins");
    }

    #[test]
    fn a_backend_that_comes_back_gets_no_burst() {
        let mut balancer = RoundRobin::new(&[1, 1], 0);
        for _ in 0..1000 {
            assert_eq!(balancer.pick(|b| (b == 0).then_some(100)), Some(0));
        }
        let next: Vec<_> = (0..10).map(|_| balancer.pick(|_| Some(100)).unwrap()).collect();
        assert_eq!(next.iter().filter(|b| **b == 1).count(), 5, "{next:?}");
    }

    #[test]
    fn a_dead_backend_costs_its_own_turns_only() {
        let mut balancer = RoundRobin::new(&[1, 1], 0);
        let mut first = [0, 0];
        for _ in 0..100 {
            let picked = balancer.pick(|_| Some(100)).unwrap();
            first[picked as usize] += 1;
            if picked == 0 {
                assert_eq!(balancer.stand_in(|b| (b != 0).then_some(100)), Some(1));
            }
        }
        assert_eq!(first, [50, 50]);
    }

    /// Catches: a worker that is reloaded between any two requests, and sends all to one backend; a
    /// new backend that gets a burst, or nothing for a long time.
    #[test]
    fn a_change_of_the_configuration_begins_no_new_round() {
        let mut balancer = RoundRobin::new(&[1; 4], 0);
        let mut counts = [0; 5];
        for _ in 0..40 {
            let known = balancer.passes(4).into_iter().map(|pass| (1, Some(pass)));
            balancer = RoundRobin::going_on(&known.collect::<Vec<_>>());
            counts[balancer.pick(|_| Some(100)).unwrap() as usize] += 1;
        }
        assert_eq!(counts, [10, 10, 10, 10, 0]);
        let known = balancer.passes(4).into_iter().map(|pass| (1, Some(pass)));
        let more: Vec<_> = known.chain([(1, None)]).collect();
        let mut balancer = RoundRobin::going_on(&more);
        (0..50).for_each(|_| counts[balancer.pick(|_| Some(100)).unwrap() as usize] += 1);
        assert_eq!(counts[4], 10, "{counts:?}");
    }

    #[test]
    fn nobody_to_pick() {
        assert_eq!(RoundRobin::new(&[], 0).pick(|_| Some(100)), None);
        assert_eq!(RoundRobin::new(&[1], 0).pick(|_| None), None);
    }

    proptest! {
        #[test]
        fn shares_follow_the_weights(weights in prop::collection::vec(1u32..20, 1..12)) {
            let total: u32 = weights.iter().sum();
            let rounds = 50;
            let counts = shares(&weights, (total * rounds) as usize);
            for (count, weight) in counts.iter().zip(&weights) {
                let due = (weight * rounds) as i64;
                prop_assert!((*count as i64 - due).abs() <= 2, "{counts:?} for {weights:?}");
            }
        }
    }
}
