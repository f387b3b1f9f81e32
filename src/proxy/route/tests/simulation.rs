//! The strategies before simulated engines: requests that come at random moments (an open loop),
//! several workers of which each has a state of its own, engines that read one prompt at a time and
//! decode all their streams together. The same seed gives the same run on every machine. The
//! figures of `docs/routing.md` are printed by
//! `cargo test --lib route::tests::simulation -- --nocapture`.

use crate::config::plan::LoadBalance::{self, LatencyBased, LeastConnections, Random, RoundRobin};
use crate::proxy::route::dice::Dice;
use crate::proxy::route::strategy::{Balancer, Candidates, Fit};
use crate::state::latency::Latency;
use crate::state::repute::Tenths;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// Microseconds.
type Us = u64;

const SECOND: Us = 1_000_000;
/// Prompt tokens that an engine reads in a second.
const PREFILL_PER_S: u64 = 8_000;
/// One step of decoding, and what each stream in it adds.
const STEP: (Us, Us) = (20_000, 500);

struct Stream {
    came: Us,
    prompt: u64,
    tokens: u64,
}

/// An engine that is so many times slower than it might be, in percent.
struct Engine {
    slowness: u64,
    waiting: VecDeque<Stream>,
    running: Vec<u64>,
    /// What it does until then, if it does anything.
    busy: bool,
    reads: Option<Us>,
    inflight: u32,
    latency: Latency,
    served: usize,
}

/// What a run is made of.
#[derive(Clone)]
struct Run {
    strategy: LoadBalance,
    weights: Vec<u32>,
    slowness: Vec<u64>,
    /// At this second all engines are as quick as the first.
    cured_at: Option<u64>,
    per_second: f64,
    seconds: u64,
}

/// What came of it.
struct Came {
    mean_ttft: f64,
    p99_ttft: f64,
    /// Shares of the requests in percent, and those of the last quarter of the time.
    shares: Vec<f64>,
    last_shares: Vec<f64>,
    /// The most loaded engine against the mean, by load for its weight, in the mean of all
    /// arrivals.
    crowding: f64,
}

struct Seen<'a> {
    engines: &'a [Engine],
    weights: &'a [u32],
    now: Us,
}

impl Candidates for Seen<'_> {
    fn count(&self) -> u32 {
        self.engines.len() as u32
    }

    fn fit(&self, place: u32) -> Option<Fit> {
        Some(Fit { weight: u64::from(self.weights[place as usize]) * 100, is_scout: false })
    }

    fn inflight(&self, place: u32) -> u32 {
        self.engines[place as usize].inflight
    }

    fn latency(&self, place: u32) -> Latency {
        self.engines[place as usize].latency
    }

    fn now(&self) -> Tenths {
        tenths(self.now)
    }
}

fn tenths(now: Us) -> Tenths {
    Tenths((now / 100_000) as u32)
}

/// From 0 to below 1.
fn unit(dice: &mut Dice) -> f64 {
    dice.below(1 << 53) as f64 / (1u64 << 53) as f64
}

impl Engine {
    fn new(slowness: u64) -> Engine {
        Engine {
            slowness,
            waiting: VecDeque::new(),
            running: Vec::new(),
            busy: false,
            reads: None,
            inflight: 0,
            latency: Latency::default(),
            served: 0,
        }
    }

    /// Begins what it does next; gives when that is done.
    fn go_on(&mut self, now: Us) -> Option<Us> {
        let time = if let Some(stream) = self.waiting.front() {
            self.reads = Some(stream.came);
            stream.prompt * SECOND / PREFILL_PER_S
        } else if self.running.is_empty() {
            self.busy = false;
            return None;
        } else {
            STEP.0 + STEP.1 * self.running.len() as u64
        };
        self.busy = true;
        Some(now + (time * self.slowness / 100).max(1))
    }

    /// What it did is done. `Some`: a first token, after so long.
    fn done(&mut self, now: Us) -> Option<Us> {
        if let Some(came) = self.reads.take() {
            let stream = self.waiting.pop_front()?;
            self.running.push(stream.tokens);
            let ttft = now - came;
            self.latency = self.latency.hear(Duration::from_micros(ttft), tenths(now));
            return Some(ttft);
        }
        self.running.iter_mut().for_each(|left| *left -= 1);
        let before = self.running.len();
        self.running.retain(|left| *left > 0);
        self.inflight -= (before - self.running.len()) as u32;
        None
    }
}

fn simulate(run: &Run) -> Came {
    const WORKERS: u64 = 4;
    let mut dice = Dice::new(42);
    let balancer = |n| Balancer::new(run.strategy, &run.weights, (n as usize, 1000 + n));
    let mut workers: Vec<_> = (0..WORKERS).map(balancer).collect();
    let mut engines: Vec<_> = run.slowness.iter().map(|slow| Engine::new(*slow)).collect();
    // The moment, and the engine that is done, or an arrival.
    let mut due = BinaryHeap::from([Reverse((0, usize::MAX))]);
    let (mut ttfts, mut last) = (Vec::new(), vec![0; engines.len()]);
    let (mut crowding, mut arrivals) = (0.0, 0);
    while let Some(Reverse((now, whose))) = due.pop() {
        if run.cured_at.is_some_and(|at| now >= at * SECOND) {
            engines.iter_mut().for_each(|engine| engine.slowness = run.slowness[0]);
        }
        if let Some(engine) = engines.get_mut(whose) {
            ttfts.extend(engine.done(now));
            due.extend(engine.go_on(now).map(|then| Reverse((then, whose))));
            continue;
        }
        let worker = dice.below(WORKERS) as usize;
        let seen = Seen { engines: &engines, weights: &run.weights, now };
        let place = workers[worker].pick(&seen, true).unwrap() as usize;
        let engine = &mut engines[place];
        let (prompt, tokens) = (200 + dice.below(1800), 20 + dice.below(80));
        engine.waiting.push_back(Stream { came: now, prompt, tokens });
        (engine.inflight, engine.served) = (engine.inflight + 1, engine.served + 1);
        last[place] += usize::from(now > run.seconds * SECOND * 3 / 4);
        if !engine.busy {
            due.extend(engine.go_on(now).map(|then| Reverse((then, place))));
        }
        let loads = engines.iter().zip(&run.weights);
        let loads = loads.map(|(engine, weight)| f64::from(engine.inflight) / f64::from(*weight));
        let (most, sum) = loads.fold((0.0, 0.0), |(most, sum), load| (load.max(most), sum + load));
        crowding += most * engines.len() as f64 / sum;
        arrivals += 1;
        let pause = -(1.0 - unit(&mut dice)).ln() / run.per_second;
        let then = now + (pause * SECOND as f64) as Us;
        if then < run.seconds * SECOND {
            due.push(Reverse((then, usize::MAX)));
        }
    }
    ttfts.sort_unstable();
    let percent = |counts: Vec<usize>| {
        let sum = counts.iter().sum::<usize>() as f64;
        counts.into_iter().map(|n| n as f64 * 100.0 / sum).collect()
    };
    Came {
        mean_ttft: ttfts.iter().sum::<Us>() as f64 / ttfts.len() as f64 / 1000.0,
        p99_ttft: ttfts[ttfts.len() * 99 / 100] as f64 / 1000.0,
        shares: percent(engines.iter().map(|engine| engine.served).collect()),
        last_shares: percent(last),
        crowding: crowding / f64::from(arrivals),
    }
}

const ALL: [LoadBalance; 4] = [RoundRobin, Random, LeastConnections, LatencyBased];

/// Engines so slow, with these weights, at this load.
fn came(strategy: LoadBalance, weights: [u32; 4], slowness: [u64; 4], per_second: f64) -> Came {
    let (weights, slowness) = (weights.to_vec(), slowness.to_vec());
    let run = Run { strategy, weights, slowness, cured_at: None, per_second, seconds: 120 };
    let came = simulate(&run);
    println!(
        "{strategy:?}: TTFT mean {:.0} ms, p99 {:.0} ms, shares {:.0?} %, most against mean {:.2}",
        came.mean_ttft, came.p99_ttft, came.shares, came.crowding
    );
    came
}

/// Catches: weights that do not decide where engines are as strong as their weights say.
#[test]
fn shares_follow_the_weights_of_engines_that_are_as_strong_as_these_say() {
    for strategy in ALL {
        let came = came(strategy, [4, 2, 1, 1], [100, 200, 400, 400], 9.0);
        // The heavy one is also the quick one, for which it gets more where that is looked at.
        let off = if strategy == LatencyBased { 0.4 } else { 0.25 };
        for (share, due) in came.shares.iter().zip([50.0, 25.0, 12.5, 12.5]) {
            assert!((share / due - 1.0).abs() < off, "{strategy:?}: {:?}", came.shares);
        }
    }
}

/// Catches: workers that all send to the same engine because each finds it the best.
#[test]
fn four_workers_do_not_herd() {
    let [_, random, least, soonest] = ALL.map(|s| came(s, [1; 4], [100; 4], 16.0));
    assert!(least.crowding < 1.35, "{}", least.crowding);
    assert!(soonest.crowding < 1.6, "{}", soonest.crowding);
    assert!(soonest.crowding < random.crowding, "{} {}", soonest.crowding, random.crowding);
}

/// Catches: a slow engine that gets its full share, so that each fourth client waits there.
#[test]
fn an_engine_that_is_three_times_slower_gets_less() {
    let [turns, _, least, soonest] = ALL.map(|s| came(s, [1; 4], [100, 100, 100, 300], 12.0));
    for better in [&least, &soonest] {
        assert!(better.mean_ttft < turns.mean_ttft / 2.0, "{}", better.mean_ttft);
        assert!(better.p99_ttft < turns.p99_ttft / 2.0, "{}", better.p99_ttft);
        assert!(better.shares[3] < 18.0, "{:?}", better.shares);
    }
}

/// Catches: an engine that was slow, and gets nothing for ever because nobody looks again.
#[test]
fn an_engine_that_is_quick_again_gets_its_share_again() {
    let (weights, slowness) = (vec![1; 4], vec![100, 100, 100, 1000]);
    for strategy in [LeastConnections, LatencyBased] {
        for cured_at in [None, Some(60)] {
            let (weights, slowness) = (weights.clone(), slowness.clone());
            let run = Run { strategy, weights, slowness, cured_at, per_second: 8.0, seconds: 120 };
            let came = simulate(&run);
            let share = came.last_shares[3];
            println!("{strategy:?}, quick again at {cured_at:?}: {share:.0} % in the last 30 s");
            let is_back = cured_at.is_some();
            assert!(if is_back { share > 15.0 } else { share < 12.0 }, "{strategy:?}: {share}");
        }
    }
}
