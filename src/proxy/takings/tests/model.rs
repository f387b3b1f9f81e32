//! What a request takes from several scopes at once, against a reference that only counts.

use super::*;
use crate::config::plan::Limits;
use crate::state::counters::table::TablePart;
use proptest::prelude::*;
use std::time::Duration;

/// Each scope with its requests, its tokens, and its slots.
const SCOPES: [(Scope, u32, u64, u32); 3] =
    [(Scope::Global, 12, 300, 4), (Scope::User, 6, 120, 3), (Scope::Key, 4, 200, 2)];
/// After so long each bucket is full, whatever it owes.
const LONG: Duration = Duration::from_secs(1800);

fn buckets((_, requests, tokens, concurrent): (Scope, u32, u64, u32)) -> Buckets {
    Buckets::from(&Limits {
        requests_per_minute: Some(requests),
        tokens_per_minute: Some(tokens),
        max_concurrent: Some(concurrent),
        ..Limits::default()
    })
}

#[derive(Debug, Clone, Copy)]
enum Act {
    /// A request of some of the scopes, by the bits of a number.
    Come(usize),
    Tokens(usize, u64),
    Settle(usize, u64),
    Leave(usize),
    Undo(usize),
    /// Dropped without a word.
    Lose(usize),
    Wait,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1_usize..8).prop_map(Act::Come),
        4 => (any::<usize>(), 1_u64..150).prop_map(|(one, tokens)| Act::Tokens(one, tokens)),
        3 => (any::<usize>(), 0_u64..250).prop_map(|(one, tokens)| Act::Settle(one, tokens)),
        1 => any::<usize>().prop_map(Act::Leave),
        1 => any::<usize>().prop_map(Act::Undo),
        1 => any::<usize>().prop_map(Act::Lose),
        1 => Just(Act::Wait),
    ]
}

/// What a scope has: units that are there, below zero if it owes some, and requests in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Has {
    requests: i64,
    tokens: i64,
    inside: u32,
}

/// A request, as the reference has it.
struct Asker {
    takings: Takings,
    scopes: usize,
    tokens: Option<u64>,
    is_inside: bool,
}

struct Model {
    counters: Arc<Counters>,
    now: Instant,
    has: [Has; 3],
    askers: Vec<Asker>,
}

fn id_of(scope: Scope) -> u128 {
    7 << 70 | (scope as u128) << 90
}

impl Model {
    fn new() -> Model {
        let full = |(_, requests, tokens, _): (Scope, u32, u64, u32)| Has {
            requests: requests.into(),
            tokens: tokens as i64,
            inside: 0,
        };
        Model {
            counters: Arc::new(Counters::anonymous(16, 16, 1).unwrap()),
            now: Instant::now(),
            has: SCOPES.map(full),
            askers: Vec::new(),
        }
    }

    fn takings(&self, scopes: usize) -> Takings {
        let mut takings = Takings::default();
        takings.begin(&self.counters);
        for (_, limits) in SCOPES.into_iter().enumerate().filter(|(at, _)| scopes >> at & 1 == 1) {
            let id = id_of(limits.0);
            let (place, _) = self.counters.find(id, TablePart::Known, self.counters.at(self.now));
            takings.add(limits.0, Counted::new(id, TablePart::Known, place), buckets(limits));
        }
        takings
    }

    /// For each scope of some: what it has, and its limits.
    fn each(&mut self, scopes: usize, mut change: impl FnMut(&mut Has, (Scope, u32, u64, u32))) {
        for (at, (has, limits)) in self.has.iter_mut().zip(SCOPES).enumerate() {
            if scopes >> at & 1 == 1 {
                change(has, limits);
            }
        }
    }

    /// What a scope has never exceeds its size.
    fn give(&mut self, scopes: usize, requests: i64, tokens: impl Fn(u64) -> i64, left: bool) {
        self.each(scopes, |has, (_, most_requests, most_tokens, _)| {
            has.requests = (has.requests + requests).min(most_requests.into());
            has.tokens = (has.tokens + tokens(most_tokens)).min(most_tokens as i64);
            has.inside -= u32::from(left);
        });
    }

    fn pick(&mut self, one: usize) -> Option<Asker> {
        let count = self.askers.len();
        (count > 0).then(|| self.askers.swap_remove(one % count))
    }

    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Come(scopes) => self.come(scopes)?,
            Act::Tokens(one, tokens) => self.take_tokens(one, tokens)?,
            Act::Wait => {
                self.now += LONG;
                self.each(7, |has, (_, requests, tokens, _)| {
                    (has.requests, has.tokens) = (requests.into(), tokens as i64);
                });
            }
            Act::Settle(one, used) => {
                if let Some(mut asker) = self.pick(one) {
                    asker.takings.settle(self.now, used);
                    self.end(&asker, used);
                }
            }
            Act::Lose(one) => {
                if let Some(mut asker) = self.pick(one) {
                    drop(std::mem::take(&mut asker.takings));
                    self.end(&asker, 0);
                }
            }
            Act::Leave(one) => {
                if let Some(mut asker) = self.pick(one) {
                    asker.takings.leave();
                    self.give(asker.scopes, 0, |_| 0, std::mem::take(&mut asker.is_inside));
                    self.askers.push(asker);
                }
            }
            Act::Undo(one) => {
                if let Some(mut asker) = self.pick(one) {
                    asker.takings.undo();
                    self.undo(&asker);
                }
            }
        }
        Ok(())
    }

    fn come(&mut self, scopes: usize) -> Result<(), TestCaseError> {
        let mut takings = self.takings(scopes);
        let mut fits = true;
        self.each(scopes, |has, (.., most)| fits &= has.requests >= 1 && has.inside < most);
        prop_assert_eq!(takings.take_request(self.now).is_ok(), fits);
        if fits {
            self.each(scopes, |has, _| {
                has.requests -= 1;
                has.inside += 1;
            });
            self.askers.push(Asker { takings, scopes, tokens: None, is_inside: true });
        }
        Ok(())
    }

    fn take_tokens(&mut self, one: usize, tokens: u64) -> Result<(), TestCaseError> {
        let Some(mut asker) = self.pick(one) else { return Ok(()) };
        if asker.tokens.is_some() {
            self.askers.push(asker);
            return Ok(());
        }
        let mut fits = true;
        let cost = |most: u64| tokens.min(most) as i64;
        self.each(asker.scopes, |has, (_, _, most, _)| fits &= has.tokens >= cost(most));
        prop_assert_eq!(asker.takings.take_tokens(self.now, tokens).is_ok(), fits);
        if fits {
            self.give(asker.scopes, 0, |most| -cost(most), false);
            asker.tokens = Some(tokens);
            self.askers.push(asker);
        } else {
            self.undo(&asker);
        }
        Ok(())
    }

    /// As if it had never been here.
    fn undo(&mut self, asker: &Asker) {
        let tokens = asker.tokens.unwrap_or(0);
        self.give(asker.scopes, 1, |most| tokens.min(most) as i64, asker.is_inside);
    }

    /// It is over, and has used so much of what was taken for it.
    fn end(&mut self, asker: &Asker, used: u64) {
        let back = |most: u64| asker.tokens.map_or(0, |took| took.min(most) as i64 - used as i64);
        self.give(asker.scopes, 0, back, asker.is_inside);
    }

    /// What each scope has by what clients are told, and by its slots.
    fn found(&self) -> [Has; 3] {
        std::array::from_fn(|at| {
            let [requests, tokens] = self.takings(1 << at).levels(self.now);
            let id = id_of(SCOPES[at].0);
            let (place, _) = self.counters.find(id, TablePart::Known, self.counters.at(self.now));
            Has {
                requests: requests.unwrap().left as i64,
                tokens: tokens.unwrap().left as i64,
                inside: self.counters.in_flight(place) as u32,
            }
        })
    }
}

/// Cases of the property below: more where all tests are run; `PROPTEST_CASES` asks for others.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let is_whole_run = std::env::var_os("LLMPROXY_TEST_CLIENTS").is_some();
    // So many take a dozen seconds.
    asked.unwrap_or(if is_whole_run { 30_000 } else { 2_000 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Catches: a request that gets in though one of its scopes has no room, or is refused though
    /// all have; one that is refused and keeps something of any scope; a slot that is freed twice
    /// or never; tokens that are settled twice, in a wrong scope, or for more than a bucket holds.
    #[test]
    fn all_scopes_of_a_request_go_together(acts in proptest::collection::vec(act(), 1..24)) {
        let mut model = Model::new();
        for act in acts {
            model.act(act)?;
            let shown = model.has.map(|has| Has { tokens: has.tokens.max(0), ..has });
            prop_assert_eq!(model.found(), shown, "after {:?}", act);
        }
    }
}
