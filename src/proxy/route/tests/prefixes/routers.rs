//! The product's strategies, and what other routers choose: their rules as their sources and papers
//! have them, with the constants that they come with. What they know of the load is exact here, as
//! ours is.

use super::engine::{mix, Engine, Lru, Stream, BLOCK_BYTES, TOKEN_BYTES};
use super::{Us, ENGINES, SECOND};
use crate::config::plan::LoadBalance;
use crate::llm::request::prompt::{Milestones, Trail};
use crate::proxy::route::affinity::{expected, learn, Hints};
use crate::proxy::route::dice::Dice;
use crate::proxy::route::strategy::{Balancer, Candidates, Fit};
use crate::state::board::{Board, View};
use crate::state::engine_cache::CacheOf;
use crate::state::latency::Latency;
use crate::state::repute::Tenths;
use std::collections::HashMap;
use std::sync::Arc;

pub trait Router {
    /// Where it goes.
    fn pick(&mut self, stream: Stream, engines: &[Engine], dice: &mut Dice) -> (usize, Stream);
    /// An engine has read it, and says how many tokens it had.
    fn hear(&mut self, _: &Stream, _: u64, _: Us) {}
    /// It is over.
    fn ended(&mut self, _: &Stream) {}
}

pub const OURS: &str = "prefix_affinity";

type Make = fn() -> Box<dyn Router>;

pub const ALL: [(&str, Make); 8] = [
    ("round_robin", || Box::new(Ours::new(LoadBalance::RoundRobin))),
    ("least_connections", || Box::new(Ours::new(LoadBalance::LeastConnections))),
    ("SGLang router cache_aware", || Box::new(CacheAware::default())),
    ("SGLang router prefix_hash", || Box::new(By(prefix_hash))),
    ("production-stack prefixaware", || Box::new(DeepestAnywhere::default())),
    ("llm-d prefix and queue", || Box::new(Scores::default())),
    ("Dynamo KV router", || Box::new(By(least_cost))),
    (OURS, || Box::new(Ours::new(LoadBalance::PrefixAffinity))),
];

/// The product's: four workers with a balancer each, and a table of all.
struct Ours {
    view: Arc<View>,
    workers: Vec<Balancer>,
}

impl Ours {
    fn new(strategy: LoadBalance) -> Ours {
        let urls: Vec<_> = (0..ENGINES).map(|n| format!("{{url: 'http://192.0.2.{n}'}}")).collect();
        let backends = urls.join(", ");
        let text =
            format!("{{backends: [{backends}], routing: {{load_balance: prefix_affinity}}}}");
        let balancer = |n: u64| Balancer::new(strategy, &[1; ENGINES], (n as usize, 1000 + n));
        Ours { view: Board::of(&text).view(), workers: (0..4).map(balancer).collect() }
    }
}

struct Seen<'a> {
    engines: &'a [Engine],
    hints: Hints,
    view: &'a View,
    now: Tenths,
}

impl Candidates for Seen<'_> {
    fn count(&self) -> u32 {
        self.engines.len() as u32
    }

    fn fit(&self, _: u32) -> Option<Fit> {
        Some(Fit { weight: 100, is_scout: false })
    }

    fn inflight(&self, place: u32) -> u32 {
        self.engines[place as usize].inflight()
    }

    fn latency(&self, _: u32) -> Latency {
        Latency::default()
    }

    fn now(&self) -> Tenths {
        self.now
    }

    fn fresh(&self, place: u32) -> u32 {
        self.view.members()[place as usize].fresh(self.now)
    }

    fn hints(&self) -> &Hints {
        &self.hints
    }
}

fn milestones(stream: &Stream) -> Milestones {
    let mut trail = Trail::new(0);
    for (id, bytes) in &stream.task.pieces {
        let hash_at = |before, len: usize| mix(before, *id, (0, len as u32));
        if !trail.part(*bytes as usize, std::iter::empty(), hash_at) {
            break;
        }
    }
    trail.finish(stream.task.pieces.len())
}

fn tenths(now: Us) -> Tenths {
    Tenths((now * 10 / SECOND) as u32)
}

impl Router for Ours {
    fn pick(&mut self, mut stream: Stream, engines: &[Engine], dice: &mut Dice) -> (usize, Stream) {
        let (milestones, now) = (milestones(&stream), tenths(stream.came));
        let hints = Hints::find((&milestones, CacheOf::default()), &self.view, now);
        let worker = dice.below(self.workers.len() as u64) as usize;
        let seen = Seen { engines, hints, view: &self.view, now };
        let at = self.workers[worker].pick(&seen, true).unwrap();
        let held = hints.of(at);
        let expected = held.map(|held| expected(&milestones, held)).unwrap_or_default();
        let at = at as usize;
        let known = held.map_or(0, |held| held.bytes);
        learn(&milestones, known, (&self.view, &self.view.members()[at]), now);
        (stream.at, stream.expected) = (at, expected);
        (at, stream)
    }

    fn hear(&mut self, stream: &Stream, found: u64, now: Us) {
        let member = &self.view.members()[stream.at];
        let expected = (stream.expected, CacheOf::default);
        member.hear_cached(expected, (found, stream.tokens()), || tenths(now));
    }
}

/// One of the engines for which this is least; of several, any.
fn least<T: PartialOrd>(dice: &mut Dice, cost: impl Fn(usize) -> T) -> usize {
    let (mut best, mut tied) = (0, 0);
    for at in 0..ENGINES {
        let (is_less, is_same) = (cost(at) < cost(best), cost(at) == cost(best));
        tied = if is_less { 1 } else { tied + u64::from(is_same) };
        if is_less || is_same && dice.below(tied) == 0 {
            best = at;
        }
    }
    best
}

fn load(engines: &[Engine], at: usize) -> u32 {
    engines[at].inflight()
}

/// A router that keeps nothing of its own.
struct By(fn(&Stream, &[Engine], &mut Dice) -> usize);

impl Router for By {
    fn pick(&mut self, stream: Stream, engines: &[Engine], dice: &mut Dice) -> (usize, Stream) {
        (self.0(&stream, engines, dice), stream)
    }
}

/// The hash of the first 256 tokens leads to an engine, unless that has more than 1.25 times the
/// mean load: then to the least loaded.
fn prefix_hash(stream: &Stream, engines: &[Engine], dice: &mut Dice) -> usize {
    let first = stream.blocks.get((256 * TOKEN_BYTES / BLOCK_BYTES) as usize - 1);
    let own = stream.task.pieces.first().map_or(0, |(id, _)| *id);
    let at = mix(*first.unwrap_or(&own), 1, (0, 0)) as usize % ENGINES;
    let mean = engines.iter().map(|e| f64::from(e.inflight())).sum::<f64>() / ENGINES as f64;
    match f64::from(load(engines, at)) > 1.25 * mean {
        true => least(dice, |at| load(engines, at)),
        false => at,
    }
}

/// The fewest blocks to be read and in use, by what is in the caches (which it is told).
fn least_cost(stream: &Stream, engines: &[Engine], dice: &mut Dice) -> usize {
    least(dice, |at| {
        let engine = &engines[at];
        let new = stream.blocks.len() - engine.cache.matched(&stream.blocks);
        new as u64 + engine.active_tokens() * u64::from(TOKEN_BYTES) / u64::from(BLOCK_BYTES)
    })
}

/// `cache_aware`: the shortest queue where one is 64 longer than another and 1.5 times as long;
/// else whoever has read more than 0.3 of the prompt, the last one to do so; else whoever has read
/// least in all. (Its tree has room for more than comes here.)
#[derive(Default)]
struct CacheAware {
    tree: HashMap<u64, usize>,
    sizes: [usize; ENGINES],
}

impl Router for CacheAware {
    fn pick(&mut self, stream: Stream, engines: &[Engine], dice: &mut Dice) -> (usize, Stream) {
        let (most, fewest) = (0..ENGINES)
            .map(|at| load(engines, at))
            .fold((0, u32::MAX), |(most, fewest), n| (most.max(n), fewest.min(n)));
        let known = stream.blocks.iter().take_while(|block| self.tree.contains_key(*block));
        let matched: Vec<_> = known.collect();
        let share = matched.len() as f64 / stream.blocks.len().max(1) as f64;
        let at = match matched.last() {
            _ if most - fewest > 64 && f64::from(most) > 1.5 * f64::from(fewest) => {
                least(dice, |at| load(engines, at))
            }
            Some(last) if share > 0.3 => self.tree[*last],
            _ => least(dice, |at| self.sizes[at]),
        };
        for block in stream.blocks.iter() {
            if self.tree.insert(*block, at) != Some(at) {
                self.sizes[at] += 1;
            }
        }
        (at, stream)
    }
}

/// Any of those that have read the longest beginning, whatever they have to do.
#[derive(Default)]
struct DeepestAnywhere(HashMap<u64, [bool; ENGINES]>);

impl Router for DeepestAnywhere {
    fn pick(&mut self, stream: Stream, _: &[Engine], dice: &mut Dice) -> (usize, Stream) {
        let mut among = [true; ENGINES];
        for block in stream.blocks.iter() {
            let Some(known) = self.0.get(block) else { break };
            among = *known;
        }
        let at = least(dice, |at| !among[at]);
        stream.blocks.iter().for_each(|block| self.0.entry(*block).or_default()[at] = true);
        (at, stream)
    }
}

/// The share of the prompt's first 16 KiB that an engine has read, of the last 2 MB that it was
/// sent, three times; and how short its queue is, twice (the weights of the gateway's default
/// configuration, of which the third scorer, free KV memory, says the same of all here). An engine
/// in whose queue more than 5 wait is left out while there are others.
struct Scores(Vec<Lru>);

impl Default for Scores {
    fn default() -> Scores {
        // 31 250 blocks of 64 bytes.
        let room = 31_250 * 64 / BLOCK_BYTES as usize;
        Scores((0..ENGINES).map(|_| Lru::new(room)).collect())
    }
}

impl Router for Scores {
    fn pick(&mut self, stream: Stream, engines: &[Engine], dice: &mut Dice) -> (usize, Stream) {
        let first = (256 * 64 / BLOCK_BYTES) as usize;
        let blocks = stream.blocks.get(..first).unwrap_or(&stream.blocks);
        let queue = |at: usize| engines[at].waiting.len() as f64;
        let queues: Vec<_> = (0..ENGINES).map(queue).collect();
        let most = queues.iter().copied().fold(0.0, f64::max);
        let fewest = queues.iter().copied().fold(f64::MAX, f64::min);
        let at = least(dice, |at| {
            let share = self.0[at].matched(blocks) as f64 / blocks.len().max(1) as f64;
            let free = if most > fewest { (most - queues[at]) / (most - fewest) } else { 1.0 };
            (queues[at] > 5.0 && fewest <= 5.0, -(3.0 * share + 2.0 * free))
        });
        self.0[at].touch(blocks);
        (at, stream)
    }
}
