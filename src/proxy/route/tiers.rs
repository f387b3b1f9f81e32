//! Who is asked before whom: backends of our own region, those of other regions, standbys. A tier
//! is those between whom the strategy decides, and there is one row of tiers for each group of
//! backends that serve the same models.
//!
//! The rules, the first that finds one decides. In each of them the tiers are gone through in
//! order, and who was tried, or has as many requests as it may, is left out.
//!
//! 1. Whoever is well and did not ask to be spared. Beside them: an ejected backend whose time is
//!    over, as the one request that sees whether it is back; and all that are ejected, where they
//!    are most of their tier and nobody is well in another: the few that are left would drown.
//! 2. Whoever is well: it said that it is full, but others do not do any better.
//! 3. All that probes leave, if most of these are ejected: that so many fail at once says more
//!    about us, or about the way there, than about them.
//! 4. All, if probes leave none: a probe can be wrong, and an answer beats a 503.

use super::affinity::{Hints, Sessions};
use super::strategy::{Balancer, Candidates, Fit};
use super::{NotPicked, TriedMembers};
use crate::state::latency::Latency;
use crate::state::member::{self, Member};
use crate::state::repute::Tenths;
use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

/// Backends that are asked before all others of their group that are in later tiers.
pub struct Tier {
    /// Their places among the members of the view.
    pub places: Box<[u32]>,
    /// Which of them is next.
    pub balancer: RefCell<Balancer>,
    /// Which of them is for which session, if there are sessions.
    pub sessions: Option<Sessions>,
}

/// Which tier of all each backend is in, by its region and whether it is a standby. Those of `home`
/// come first, then the other regions in the order in which the configuration names them, then the
/// standbys, again by region. Where `home` is empty regions are just labels.
pub fn ranks<'a>(
    home: &'a str,
    backends: impl Iterator<Item = (&'a str, bool)> + Clone,
) -> Vec<usize> {
    let mut regions = vec![home];
    if !home.is_empty() {
        for (region, _) in backends.clone() {
            if !regions.contains(&region) {
                regions.push(region);
            }
        }
    }
    let rank = |(region, is_backup): (&str, bool)| {
        let near = regions.iter().position(|known| *known == region).unwrap_or_default();
        near + if is_backup { regions.len() } else { 0 }
    };
    backends.map(rank).collect()
}

/// The places of a group, by tier.
pub fn split(places: &[u32], ranks: &[usize]) -> Vec<Box<[u32]>> {
    let rank = |place: &u32| ranks.get(*place as usize).copied().unwrap_or_default();
    let mut ordered = places.to_vec();
    ordered.sort_by_key(rank);
    ordered.chunk_by(|a, b| rank(a) == rank(b)).map(Into::into).collect()
}

/// A backend that was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked {
    /// Its place among the members of the view.
    pub place: usize,
    /// It is not in the first tier.
    pub is_spilled: bool,
    /// The request is of a session that is at home at another backend, which cannot take it.
    pub is_stray: bool,
}

/// One of the rules above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Best,
    Spared,
    Ejected,
    All,
}

/// Picks the backend of the next try, out of a group's tiers.
pub fn pick(
    tiers: &[Tier],
    members: &[Arc<Member>],
    (tried, hints): (&TriedMembers, &Hints),
) -> Result<Picked, NotPicked> {
    let by = |rule| by_rule(rule, tiers, members, (tried, hints));
    if let Some(picked) = by(Rule::Best) {
        return Ok(picked);
    }
    let group = || tiers.iter().map(|tier| Standing { members, places: &tier.places });
    let counts = group().map(Standing::counts);
    let last = match counts.fold((0, 0), |sum, tier| (sum.0 + tier.0, sum.1 + tier.1)) {
        (0, _) => Some(Rule::All),
        (passing, well) => (2 * well < passing).then_some(Rule::Ejected),
    };
    let picked = by(Rule::Spared).or_else(|| last.and_then(by));
    picked.ok_or_else(|| {
        let left = group().flat_map(Standing::all);
        let full = left.filter(|member| member.is_full() && !tried.contains(member.id()));
        full.map(|member| member.stay()).min().map_or(NotPicked::Nobody, NotPicked::full)
    })
}

fn by_rule(
    rule: Rule,
    tiers: &[Tier],
    members: &[Arc<Member>],
    (tried, hints): (&TriedMembers, &Hints),
) -> Option<Picked> {
    for (at, Tier { places, balancer, sessions }) in tiers.iter().enumerate() {
        let round = Round {
            tier: Standing { members, places },
            others: (tiers, at),
            rule,
            tried,
            hints,
            now: OnceCell::new(),
            is_panic: OnceCell::new(),
        };
        let turn = match sessions.as_ref().zip(hints.session) {
            Some((sessions, session)) => sessions.pick(session, &round),
            None => {
                let turn = balancer.borrow_mut().pick(&round, tried.is_empty());
                turn.map(|turn| (turn, false))
            }
        };
        let picked =
            turn.and_then(|(turn, is_stray)| Some((*places.get(turn as usize)?, is_stray)));
        if let Some((place, is_stray)) = picked {
            let (is_spilled, is_stray) = (at > 0, is_stray || at > 0);
            return Some(Picked { place: place as usize, is_spilled, is_stray });
        }
    }
    None
}

/// How the members of a tier, or of a group, are.
#[derive(Clone, Copy)]
struct Standing<'a> {
    members: &'a [Arc<Member>],
    places: &'a [u32],
}

impl<'a> Standing<'a> {
    /// All that may be asked: one that is drained is as good as not there.
    fn all(self) -> impl Iterator<Item = &'a Arc<Member>> {
        let Standing { members, places } = self;
        let all = places.iter().filter_map(move |place| members.get(*place as usize));
        all.filter(|member| !member.is_drained())
    }

    /// Those that probes leave, and those of them that are not ejected.
    fn counts(self) -> (usize, usize) {
        let passing = self.all().filter(|member| member.passes_probes()).count();
        (passing, self.all().filter(|member| member.is_healthy()).count())
    }
}

/// One tier, as its strategy sees it for one pick by one rule.
struct Round<'a> {
    tier: Standing<'a>,
    /// All tiers, and which of them this is.
    others: (&'a [Tier], usize),
    rule: Rule,
    tried: &'a TriedMembers,
    hints: &'a Hints,
    // The rest is looked at only when somebody wants to know: there may be many backends.
    now: OnceCell<Tenths>,
    is_panic: OnceCell<bool>,
}

impl Round<'_> {
    fn member(&self, place: u32) -> Option<&Arc<Member>> {
        self.tier.members.get(*self.tier.places.get(place as usize)? as usize)
    }

    /// Most of the tier are ejected, and nobody is well in another.
    fn is_panic(&self) -> bool {
        *self.is_panic.get_or_init(|| {
            let (passing, well) = self.tier.counts();
            let (tiers, at) = self.others;
            let mut others = tiers.iter().enumerate().filter(|(other, _)| *other != at);
            let is_well = |(_, other): (usize, &Tier)| {
                Standing { places: &other.places, ..self.tier }.counts().1 > 0
            };
            2 * well < passing && !others.any(is_well)
        })
    }
}

impl Candidates for Round<'_> {
    fn count(&self) -> u32 {
        self.tier.places.len() as u32
    }

    fn fit(&self, place: u32) -> Option<Fit> {
        let member = self.member(place)?;
        if self.tried.contains(member.id()) || member.is_full() || member.is_drained() {
            return None;
        }
        let mut is_scout = false;
        let may = match self.rule {
            Rule::Best if member.is_healthy() => !member.is_spared(),
            Rule::Best | Rule::Ejected if !member.passes_probes() => false,
            Rule::Best => {
                self.is_panic() || {
                    // Whoever has failed elsewhere already is not asked to try.
                    is_scout = self.tried.is_empty() && member.admit();
                    is_scout
                }
            }
            Rule::Spared => member.is_healthy(),
            Rule::Ejected | Rule::All => true,
        };
        may.then(|| Fit { weight: member.weight_at(|| self.now()), is_scout })
    }

    fn inflight(&self, place: u32) -> u32 {
        self.member(place).map_or(0, |member| member.load_at(|| self.now()))
    }

    fn latency(&self, place: u32) -> Latency {
        self.member(place).map(|member| member.latency()).unwrap_or_default()
    }

    fn now(&self) -> Tenths {
        *self.now.get_or_init(member::now)
    }

    fn fresh(&self, place: u32) -> u32 {
        self.member(place).map_or(0, |member| member.fresh(self.now()))
    }

    fn hints(&self) -> &Hints {
        self.hints
    }

    fn place_of(&self, member: u32) -> Option<u32> {
        // In the order of the plan, as all places of a tier are.
        self.tier.places.binary_search(&member).ok().map(|place| place as u32)
    }
}

/// True when a backend of a group can take a request that was not tried.
pub fn has_other<'a>(
    mut group: impl Iterator<Item = &'a Arc<Member>>,
    tried: &TriedMembers,
) -> bool {
    group.any(|member| member.can_take() && !tried.contains(member.id()))
}

#[cfg(test)]
mod tests;
