//! How one of several backends is chosen. Each way is a function of what it may know of them
//! ([`Candidates`]) and of a state that belongs to one worker. Nothing here knows members, views or
//! a clock.

use super::affinity::{by_prefix, Hints};
use super::dice::Dice;
use super::load::{Burden, Least};
use super::round_robin::RoundRobin;
use crate::config::plan::LoadBalance;
use crate::state::latency::Latency;
use crate::state::repute::Tenths;

/// Backends drawn at random before all are looked at, because those that came up do not fit.
const DRAWS_MAX: usize = 4;
/// Waits of which the longer one is at most so many times the other say nothing of who is quicker.
const ALIKE: f64 = 1.25;
/// Nor do those that differ by so few milliseconds.
const ALIKE_MS: f64 = 5.0;
/// A latency that was looked at counts for so much in the mean of all: one of so many.
const MEAN_OF: f64 = 16.0;

/// What a strategy may know of the backends of a tier, by their places in it.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> u32;
    /// Whether this one may be picked. To be asked once for each pick: who learns that it is a
    /// scout's has to pick it.
    fn fit(&self, place: u32) -> Option<Fit>;
    /// Requests that are there: those of all workers, and those of others that its engine tells of.
    fn inflight(&self, place: u32) -> u32;
    /// What is known of how long its streams wait for their first token.
    fn latency(&self, place: u32) -> Latency;
    /// The time.
    fn now(&self) -> Tenths;
    /// Bytes of prompts that its engine had to read lately because it did not have them.
    fn fresh(&self, _place: u32) -> u32 {
        0
    }
    /// What is known of the request.
    fn hints(&self) -> &Hints {
        &Hints::NONE
    }
    /// Where a member of the view stands in the tier, if it is of this one.
    fn place_of(&self, member: u32) -> Option<u32> {
        (member < self.count()).then_some(member)
    }
}

/// A backend that may be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fit {
    /// Its share of the traffic, in hundredths of a weight: one that has just come back has less
    /// than its weight. At least 1.
    pub weight: u64,
    /// It waits for one request that sees whether it is back: this one.
    pub is_scout: bool,
}

/// The strategy of one tier of backends, with its state.
pub struct Balancer {
    dice: Dice,
    way: Way,
}

enum Way {
    /// `round_robin`.
    InTurn(RoundRobin),
    /// `random`.
    Any(Draw),
    /// `least_connections`.
    Least,
    /// `latency_based`.
    Soonest(Soonest),
    /// `prefix_affinity`.
    Prefix,
}

impl Balancer {
    /// One that begins, of worker number `worker`, for backends of these weights.
    pub fn new(strategy: LoadBalance, weights: &[u32], (worker, seed): (usize, u64)) -> Balancer {
        let way = match strategy {
            LoadBalance::RoundRobin => Way::InTurn(RoundRobin::new(weights, worker)),
            LoadBalance::LeastConnections => Way::Least,
            LoadBalance::LatencyBased => {
                Way::Soonest(Soonest { draw: Draw::new(weights), mean: None })
            }
            LoadBalance::Random => Way::Any(Draw::new(weights)),
            LoadBalance::PrefixAffinity => Way::Prefix,
        };
        Balancer { dice: Dice::new(seed), way }
    }

    /// Whose turn it is goes on after a change of the configuration: for each backend its weight,
    /// and where it stood, if it was there.
    pub fn in_turn_again(backends: &[(u32, Option<u64>)], seed: u64) -> Balancer {
        let way = Way::InTurn(RoundRobin::going_on(backends));
        Balancer { dice: Dice::new(seed), way }
    }

    /// Where each of so many backends stands, if they have turns.
    pub fn turns(&self, backends: usize) -> Option<Vec<u64>> {
        match &self.way {
            Way::InTurn(round_robin) => Some(round_robin.passes(backends)),
            _ => None,
        }
    }

    /// The next backend. `is_first`: the request was nowhere yet.
    pub fn pick(&mut self, field: &impl Candidates, is_first: bool) -> Option<u32> {
        let Balancer { dice, way } = self;
        match way {
            Way::InTurn(round_robin) => {
                let weight = |place| field.fit(place).map(|fit| fit.weight);
                match is_first {
                    true => round_robin.pick(weight),
                    false => round_robin.stand_in(weight),
                }
            }
            Way::Any(draw) => draw.one(dice, field, None).map(|(place, _)| place),
            Way::Least => least_connections(dice, field),
            Way::Soonest(soonest) => soonest.pick(dice, field),
            Way::Prefix => by_prefix(dice, field),
        }
    }
}

/// The one with the fewest requests for its weight.
fn least_connections(dice: &mut Dice, field: &impl Candidates) -> Option<u32> {
    let mut least = Least::default();
    for place in 0..field.count() {
        let Some(fit) = field.fit(place) else { continue };
        if fit.is_scout {
            return Some(place);
        }
        least.see(Burden::of(place, fit, field), dice);
    }
    least.found().map(|least| least.place)
}

/// Draws by weight.
struct Draw {
    /// The sum of the weights up to each backend, in hundredths.
    sums: Box<[u64]>,
    /// The most that one was seen to have for each hundredth of the weight by which it is drawn: an
    /// administrator can raise it. The others are taken so much more rarely.
    most: u64,
}

impl Draw {
    fn new(weights: &[u32]) -> Draw {
        let sum = |sum: &mut u64, weight: &u32| {
            *sum += u64::from(*weight) * 100;
            Some(*sum)
        };
        Draw { sums: weights.iter().scan(0, sum).collect(), most: 1 }
    }

    /// One of those that fit, by weight, but not this one.
    fn one(
        &mut self,
        dice: &mut Dice,
        field: &impl Candidates,
        but: Option<u32>,
    ) -> Option<(u32, Fit)> {
        let total = *self.sums.last()?;
        for _ in 0..DRAWS_MAX {
            let point = dice.below(total);
            let place = self.sums.partition_point(|sum| *sum <= point);
            let before = place.checked_sub(1).and_then(|before| self.sums.get(before));
            let whole = self.sums.get(place)? - before.copied().unwrap_or_default();
            let place = place as u32;
            let Some(fit) = (but != Some(place)).then(|| field.fit(place)).flatten() else {
                continue;
            };
            self.most = self.most.max(fit.weight.div_ceil(whole.max(1)));
            // One that has less than its weight is taken so much more rarely.
            if fit.is_scout || dice.below(whole.saturating_mul(self.most)) < fit.weight {
                return Some((place, fit));
            }
        }
        one_of_all(dice, field, but)
    }
}

/// The same by looking at all of them.
fn one_of_all(dice: &mut Dice, field: &impl Candidates, but: Option<u32>) -> Option<(u32, Fit)> {
    let (mut drawn, mut sum) = (None, 0);
    for place in (0..field.count()).filter(|place| but != Some(*place)) {
        let Some(fit) = field.fit(place) else { continue };
        if fit.is_scout {
            return Some((place, fit));
        }
        sum += fit.weight;
        if dice.below(sum) < fit.weight {
            drawn = Some((place, fit));
        }
    }
    drawn
}

/// Of two that are drawn by weight, the one where a request is likely to wait less: the time to the
/// first token, for each request that is there and this one, by weight. Of two, and not the best of
/// all: what is known of them is always a little old, and all workers would go where it was best.
struct Soonest {
    draw: Draw,
    /// That of the latencies that were looked at: drawn at random, they stand for all. In
    /// milliseconds.
    mean: Option<f64>,
}

impl Soonest {
    fn pick(&mut self, dice: &mut Dice, field: &impl Candidates) -> Option<u32> {
        let (first, fit) = self.draw.one(dice, field, None)?;
        if fit.is_scout || field.count() == 1 {
            return Some(first);
        }
        let Some((second, other)) = self.draw.one(dice, field, Some(first)) else {
            return Some(first);
        };
        let waits = [self.wait(field, first), self.wait(field, second)];
        // By weight, but for the first request: that waits for nobody, and whoever is drawn more
        // often for its weight gets more of these.
        let weight = (fit.weight + other.weight) as f64 / 2.0;
        let queue =
            |place, fit: Fit| f64::from(field.inflight(place)) * weight / fit.weight as f64 + 1.0;
        let (queue, other_queue) = (queue(first, fit), queue(second, other));
        let (longer, shorter) = (waits[0].max(waits[1]), waits[0].min(waits[1]));
        let is_alike = longer <= (shorter * ALIKE).max(shorter + ALIKE_MS);
        let is_sooner = match is_alike {
            true => other_queue < queue,
            false => waits[1] * other_queue < waits[0] * queue,
        };
        Some(if other.is_scout || is_sooner { second } else { first })
    }

    /// How long a request is likely to wait there with nobody before it.
    fn wait(&mut self, field: &impl Candidates, place: u32) -> f64 {
        let (latency, now) = (field.latency(place), field.now());
        let known = latency.expected(self.mean, now);
        if let Some(known) = known {
            let mean = self.mean.unwrap_or(known);
            self.mean = Some(mean + (known - mean) / MEAN_OF);
        }
        // One that nobody knows is as the others are.
        known.or(self.mean).unwrap_or(1.0) * latency.penalty(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Of each backend: weight in hundredths (0: it does not fit), in flight, milliseconds.
    struct Said<'a>(&'a [(u64, u32, u64)]);

    impl Candidates for Said<'_> {
        fn count(&self) -> u32 {
            self.0.len() as u32
        }

        fn fit(&self, place: u32) -> Option<Fit> {
            let weight = self.0[place as usize].0;
            // A scout's has the odd weight 7.
            (weight > 0).then_some(Fit { weight, is_scout: weight == 7 })
        }

        fn inflight(&self, place: u32) -> u32 {
            self.0[place as usize].1
        }

        fn latency(&self, place: u32) -> Latency {
            let millis = self.0[place as usize].2;
            let known = Latency::default().hear(Duration::from_millis(millis), Tenths(1));
            if millis > 0 {
                known
            } else {
                Latency::default()
            }
        }

        fn now(&self) -> Tenths {
            Tenths(1)
        }
    }

    /// How often each was picked, in percent.
    fn shares(strategy: LoadBalance, weights: &[u32], said: &[(u64, u32, u64)]) -> Vec<u32> {
        let mut balancer = Balancer::new(strategy, weights, (0, 1));
        let mut counts = vec![0; said.len()];
        for _ in 0..20_000 {
            counts[balancer.pick(&Said(said), true).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|n: u32| (n + 100) / 200).collect()
    }

    fn near(shares: &[u32], wanted: &[u32]) {
        let fits = shares.iter().zip(wanted).all(|(is, due)| is.abs_diff(*due) <= 1);
        assert!(fits, "{shares:?} for {wanted:?}");
    }

    use LoadBalance::{LatencyBased, LeastConnections, Random, RoundRobin};

    /// Catches: weights that hold for one strategy only, at some load only, or not for one that has
    /// a part of its weight.
    #[test]
    fn idle_backends_get_their_share_by_weight() {
        let idle = |weights: &[u64]| weights.iter().map(|w| (*w, 0, 0)).collect::<Vec<_>>();
        for strategy in [RoundRobin, LeastConnections, Random] {
            near(&shares(strategy, &[5, 3, 2], &idle(&[500, 300, 200])), &[50, 30, 20]);
            near(&shares(strategy, &[1, 1, 1], &idle(&[100, 10, 100])), &[48, 5, 48]);
            near(&shares(strategy, &[4, 4, 2], &idle(&[400, 0, 200])), &[67, 0, 33]);
        }
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_picked_and_ties_are_broken_by_weight() {
        let least = |said| shares(LeastConnections, &[1; 3], said);
        near(&least(&[(100, 3, 0), (100, 2, 0), (100, 3, 0)]), &[0, 100, 0]);
        near(&least(&[(100, 3, 0), (400, 11, 0), (100, 3, 0)]), &[0, 100, 0]);
        near(&least(&[(100, 3, 0), (300, 9, 0), (100, 4, 0)]), &[25, 75, 0]);
        near(&least(&[(0, 0, 0), (100, 9, 0), (0, 0, 0)]), &[0, 100, 0]);
    }

    /// Catches: herding to the best, which gets all; an unknown backend that gets nothing.
    #[test]
    fn of_two_the_one_that_is_likely_to_answer_sooner() {
        let soonest = |said| shares(LatencyBased, &[1; 3], said);
        near(&soonest(&[(100, 4, 100), (100, 4, 200), (100, 4, 300)]), &[67, 33, 0]);
        near(&soonest(&[(100, 5, 100), (100, 0, 200), (100, 1, 200)]), &[0, 67, 33]);
        let unknown = soonest(&[(100, 0, 0), (100, 0, 100), (100, 0, 300)]);
        assert!(unknown[0] > 20 && unknown[1] > 60, "{unknown:?}");
        near(&soonest(&[(0, 0, 1), (100, 9, 900), (0, 0, 1)]), &[0, 100, 0]);
    }

    /// Catches: a light backend that is never looked at while there is little to do; one that is
    /// quicker by a hair and gets all; weights that hold only there.
    #[test]
    fn of_two_that_are_about_as_quick_each_gets_its_share() {
        let soonest = |said: &[(u64, u32, u64)]| shares(LatencyBased, &[3, 1], said);
        for millis in [[0, 0], [100, 100], [100, 120], [120, 100], [1, 5], [5, 1]] {
            near(&soonest(&[(300, 0, millis[0]), (100, 0, millis[1])]), &[75, 25]);
        }
        near(&soonest(&[(300, 0, 200), (100, 0, 100)]), &[0, 100]);
        near(&soonest(&[(300, 6, 100), (100, 2, 100)]), &[75, 25]);
        near(&soonest(&[(300, 5, 100), (100, 2, 100)]), &[100, 0]);
        near(&soonest(&[(300, 7, 100), (100, 2, 100)]), &[0, 100]);
    }

    /// Catches: a weight that an administrator raises above that of the configuration, and that
    /// changes nothing.
    #[test]
    fn a_weight_that_is_raised_counts() {
        for strategy in [RoundRobin, LeastConnections, Random, LatencyBased] {
            near(&shares(strategy, &[1, 1], &[(900, 0, 0), (100, 0, 0)]), &[90, 10]);
            near(&shares(strategy, &[1, 3], &[(400, 0, 0), (400, 0, 0)]), &[50, 50]);
        }
    }

    #[test]
    fn who_waits_for_a_scout_gets_it() {
        for strategy in [LeastConnections, Random, LatencyBased] {
            let mut balancer = Balancer::new(strategy, &[1, 1], (0, 1));
            let said = [(7, 99, 900), (100, 0, 1)];
            let found = (0..20).any(|_| balancer.pick(&Said(&said), true) == Some(0));
            assert!(found, "{strategy:?}");
        }
    }

    #[test]
    fn nobody_to_pick() {
        for strategy in [RoundRobin, LeastConnections, Random, LatencyBased] {
            let nobody = Balancer::new(strategy, &[], (0, 1)).pick(&Said(&[]), true);
            assert_eq!(nobody, None, "{strategy:?}");
            let mut balancer = Balancer::new(strategy, &[1, 1], (0, 1));
            assert_eq!(balancer.pick(&Said(&[(0, 0, 0), (0, 0, 0)]), false), None, "{strategy:?}");
        }
    }
}
