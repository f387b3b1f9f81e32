//! Ten teams at three engines with room for eight each, of which one floods them: what the others
//! notice. Time is simulated, chance is seeded.

use crate::proxy::queue::*;
use std::collections::BinaryHeap;

const ROOM: u32 = 24;
const WORKERS: usize = 2;
/// Of one request, in milliseconds: least, most.
const SERVICE: (u64, u64) = (400, 1600);

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mix = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mix ^ (mix >> 31)) % limit
    }
}

/// Requests of each team in a second, in the mean.
type Rates = [u64; 10];

/// How long requests of one team took, from the first to the last millisecond.
fn times(rates: Rates, team: u64, is_fair: bool) -> Vec<u64> {
    let mut chance = Chance(7);
    let mut arrivals = Vec::new();
    for (rate, team) in rates.iter().zip(0..) {
        for _ in 0..rate * 120 {
            arrivals.push((chance.below(120_000), team));
        }
    }
    arrivals.sort_unstable();
    let queues = Arc::new(Queues::default());
    let shared = Arc::new(FairQueue::new(Vec::new(), WORKERS));
    let local = |worker| Rc::new(LocalQueue::new(&shared, &queues, worker));
    let workers: Vec<_> = (0..WORKERS).map(local).collect();
    let (room, mut ends, mut took) = (Cell::new(ROOM), BinaryHeap::new(), Vec::new());
    let mut waiting: Vec<(u64, u64, Waiter)> = Vec::new();
    let mut arrivals = arrivals.into_iter().peekable();
    loop {
        let end = ends.peek().map(|std::cmp::Reverse(end)| *end);
        let now = match (arrivals.peek(), end) {
            (Some((at, _)), end) if end.is_none_or(|end| *at < end) => {
                let (at, of) = (*at, arrivals.next().unwrap().1);
                // Without fairness all are one key.
                let worker = &workers[chance.below(WORKERS as u64) as usize];
                let claim = worker.claim(if is_fair { of } else { 0 }, 300);
                waiting.push((at, of, worker.enter(claim, u32::MAX).unwrap()));
                at
            }
            (_, Some(end)) => {
                ends.pop();
                room.set(room.get() + 1);
                end
            }
            _ => return took,
        };
        // All look, as if all had been called: the order is not that of the calls.
        while let Some(place) = waiting.iter().position(|(_, _, waiter)| {
            let take = |_: &[MemberId]| (room.get() > 0).then(|| room.set(room.get() - 1));
            waiter.poll(&mut Context::from_waker(Waker::noop()), take)
                == Poll::Ready(Called::Served(()))
        }) {
            let (came, of, _) = waiting.swap_remove(place);
            let end = now + SERVICE.0 + chance.below(SERVICE.1 - SERVICE.0);
            ends.push(std::cmp::Reverse(end));
            if of == team {
                took.push(end - came);
            }
        }
    }
}

fn p99(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Catches: a team that floods the engines and makes all others wait as long as itself; a queue
/// that serves fewer because it is fair.
#[test]
fn a_team_that_floods_is_noticed_by_itself_alone() {
    let quiet = [2; 10];
    let mut flooded = quiet;
    flooded[0] = 40;
    let before = p99(times(quiet, 5, true));
    let fair = p99(times(flooded, 5, true));
    let unfair = p99(times(flooded, 5, false));
    println!("p99 of a team, ms: quiet {before}, flooded {fair}; in one line {unfair}");
    assert!(fair <= 2 * before, "{fair} ms, {before} without the flood");
    assert!(unfair > 10 * before, "the flood is none: {unfair} ms");
    let hog = [true, false].map(|is_fair| times(flooded, 0, is_fair).len());
    assert_eq!(hog, [40 * 120; 2]);
}
