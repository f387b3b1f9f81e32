//! `prefix_affinity` before simulated engines that keep what they have read: against the other
//! strategies, and against the choices of other routers with the constants that they come with. The
//! same seed gives the same run on every machine. The figures of `docs/routing.md` are printed by
//! `cargo test --lib route::tests::prefixes -- --nocapture`.

mod engine;
mod routers;
mod work;

use crate::proxy::route::dice::Dice;
use engine::{Engine, Stream};
use routers::{Router, ALL, OURS};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use work::{Task, Work};

/// Microseconds.
type Us = u64;

const SECOND: Us = 1_000_000;
const ENGINES: usize = 4;
/// The time in which the caches fill is not counted.
const WARM_UP: Us = 30 * SECOND;
const END: Us = 130 * SECOND;
/// Runs of which a figure is the mean.
const SEEDS: [u64; 2] = [42, 142];

/// What came of a run.
#[derive(Debug, Clone, Copy)]
struct Came {
    /// Milliseconds.
    mean_ttft: f64,
    p99_ttft: f64,
    /// Of the tokens of all prompts, in percent.
    cached: f64,
    /// The engine with the most in flight against the mean of all, in the mean of all requests.
    crowding: f64,
    /// Requests that came to their first token.
    served: f64,
}

impl Came {
    /// The mean of some runs.
    fn mean(runs: &[Came]) -> Came {
        let of =
            |figure: fn(&Came) -> f64| runs.iter().map(figure).sum::<f64>() / runs.len() as f64;
        Came {
            mean_ttft: of(|came| came.mean_ttft),
            p99_ttft: of(|came| came.p99_ttft),
            cached: of(|came| came.cached),
            crowding: of(|came| came.crowding),
            served: of(|came| came.served),
        }
    }
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// An engine is done with what it did.
    Engine(usize),
    /// A client asks.
    Client(usize),
}

fn simulate(router: &mut dyn Router, work: &mut dyn Work, seed: u64) -> Came {
    // The work is the same whatever the router draws.
    let (mut dice, mut draws) = (Dice::new(seed), Dice::new(seed + 1));
    let mut engines: Vec<Engine> = (0..ENGINES).map(|_| Engine::new(work.cache())).collect();
    let mut due: BinaryHeap<Reverse<(Us, Due)>> = BinaryHeap::new();
    let begins = (0..work.clients()).map(|client| (work.begins(client, &mut dice), client));
    let begins: Vec<_> = begins.collect();
    due.extend(begins.into_iter().map(|(at, client)| Reverse((at, Due::Client(client)))));
    let (mut ttfts, mut crowding) = (Vec::new(), Vec::new());
    let (mut cached, mut tokens) = (0, 0);
    while let Some(Reverse((now, next))) = due.pop() {
        if now >= END {
            break;
        }
        let at = match next {
            Due::Engine(at) => {
                let did = engines[at].done(now);
                if let Some((stream, found)) = did.read {
                    router.hear(&stream, found, now);
                    if stream.came >= WARM_UP {
                        ttfts.push(now - stream.came);
                        (cached, tokens) = (cached + found, tokens + stream.tokens());
                    }
                }
                for stream in did.ended {
                    router.ended(&stream);
                    if let Some(pause) = work.answered(stream.client, &stream.task, &mut dice) {
                        due.push(Reverse((now + pause, Due::Client(stream.client))));
                    }
                }
                at
            }
            Due::Client(client) => {
                let task = work.ask(client, &mut dice);
                if let Some(pause) = work.also(client, &mut dice) {
                    due.push(Reverse((now + pause, Due::Client(client))));
                }
                let loads = engines.iter().map(|engine| engine.inflight());
                let (most, all) = loads.fold((0, 0), |(m, all), n| (n.max(m), all + n));
                if now >= WARM_UP && all > 0 {
                    crowding.push(f64::from(most) * ENGINES as f64 / f64::from(all));
                }
                let stream = Stream::new(client, task, now);
                let (at, stream) = router.pick(stream, &engines, &mut draws);
                engines[at].take(stream);
                at
            }
        };
        due.extend(engines[at].go_on(now).map(|then| Reverse((then, Due::Engine(at)))));
    }
    ttfts.sort_unstable();
    let served = ttfts.len();
    Came {
        mean_ttft: ttfts.iter().sum::<Us>() as f64 / served as f64 / 1000.0,
        p99_ttft: ttfts[served * 99 / 100] as f64 / 1000.0,
        cached: cached as f64 * 100.0 / tokens as f64,
        crowding: crowding.iter().sum::<f64>() / crowding.len() as f64,
        served: served as f64,
    }
}

/// All routers before the same work, by their names.
fn all(title: &str, work: impl Fn() -> Box<dyn Work>) -> impl Fn(&str) -> Came {
    println!("{title}:");
    let run = |(name, router): &(&'static str, fn() -> Box<dyn Router>)| {
        let runs = SEEDS.map(|seed| simulate(&mut *router(), &mut *work(), seed));
        let came = Came::mean(&runs);
        println!(
            "| {name} | {:.0} ms | {:.0} ms | {:.0} % | {:.2} | {:.0} |",
            came.mean_ttft, came.p99_ttft, came.cached, came.crowding, came.served
        );
        (*name, came)
    };
    let came: Vec<_> = ALL.iter().map(run).collect();
    move |name| came.iter().find(|(known, _)| *known == name).unwrap().1
}

/// Catches: a conversation that does not find its engine again.
#[test]
fn chats_find_what_their_engine_has_read() {
    let came = all("chats of several turns", || Box::new(work::Chats::of_people()));
    let (ours, turns, least) = (came(OURS), came("round_robin"), came("least_connections"));
    assert!(ours.mean_ttft < turns.mean_ttft / 2.0, "{ours:?} {turns:?}");
    assert!(ours.mean_ttft < least.mean_ttft / 2.0, "{ours:?} {least:?}");
    assert!(ours.p99_ttft < turns.p99_ttft && ours.p99_ttft < least.p99_ttft, "{ours:?}");
    assert!(ours.cached > turns.cached + 20.0, "{ours:?} {turns:?}");
}

/// Catches: agents with the same long tools that all go to one engine, or are spread so that each
/// engine reads all.
#[test]
fn agents_share_their_tools_and_keep_their_own_words() {
    let came = all("agents with long tools", || Box::new(work::Chats::of_agents()));
    let (ours, turns, least) = (came(OURS), came("round_robin"), came("least_connections"));
    assert!(ours.mean_ttft < turns.mean_ttft / 2.0, "{ours:?} {turns:?}");
    assert!(ours.mean_ttft < least.mean_ttft / 2.0, "{ours:?} {least:?}");
    assert!(ours.crowding < 2.0, "{ours:?}");
}

/// Catches: a strategy that costs something where no prompt is like another.
#[test]
fn where_no_prompt_is_like_another_it_is_as_good_as_least_connections() {
    let came = all("no two prompts alike", || Box::new(work::Singles::unique()));
    let (ours, turns, least) = (came(OURS), came("round_robin"), came("least_connections"));
    assert!(ours.mean_ttft < least.mean_ttft * 1.1, "{ours:?} {least:?}");
    assert!(ours.crowding < turns.crowding, "{ours:?} {turns:?}");
}

/// Catches: a prefix that is in most prompts and makes one engine work for all.
#[test]
fn a_prefix_that_most_prompts_have_is_read_by_all_engines() {
    let came = all("one prefix in most prompts", || Box::new(work::Singles::hot()));
    let (ours, least) = (came(OURS), came("least_connections"));
    let unbounded = came("production-stack prefixaware");
    assert!(ours.mean_ttft < least.mean_ttft * 1.25, "{ours:?} {least:?}");
    assert!(ours.mean_ttft < unbounded.mean_ttft, "{ours:?} {unbounded:?}");
    assert!(ours.crowding < 1.6, "{ours:?}");
}

/// Which prompt a task has, and how long the answer will be.
fn task(pieces: Vec<(u64, u32)>, answer: u32) -> Task {
    Task { pieces, answer }
}
