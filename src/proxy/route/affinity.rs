//! Requests that are better off where others were before them: those of one session, by its name;
//! and those whose prompt begins as one that an engine has read.
//!
//! Both go past a backend that cannot take them, or that has much more to do than the others: a
//! session that all requests name, or a prefix that half of them begin with, would make one engine
//! work and the others wait. A session goes to whoever is next by its own order of the backends
//! (rendezvous hashing, Thaler and Ravishankar 1998): when a backend goes, only its sessions move,
//! each to another one; when it is back, so are they. Where a prompt goes instead is noted in turn,
//! so that such a prefix comes to be in as many caches as it takes.

use super::dice::Dice;
use super::load::{Burden, Least};
use super::strategy::Candidates;
use crate::base::fnv;
use crate::base::limits::PREFIX_HELD_MAX;
use crate::llm::request::prompt::{Milestone, Milestones};
use crate::state::board::View;
use crate::state::engine_cache::{CacheOf, ExpectedPrefix};
use crate::state::member::Member;
use crate::state::prefixes::{FoundPrefix, Holder};
use crate::state::repute::Tenths;
use std::num::NonZeroU8;
use std::time::Duration;

/// A backend keeps requests for their session, or for what it has read, while its requests, for its
/// weight, are no more than this many hundredths of the mean: the bound of consistent hashing with
/// bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016), as KubeAI and the prefix hash of SGLang's
/// router set it.
const LOAD_PERCENT: u64 = 125;
/// Requests beside that: where few are under way the mean says little, and an engine decodes a
/// handful of streams together in hardly more time than one.
const SLACK: u64 = 2;
/// And one more for so many bytes that another engine would have to read, some 4000 tokens: that
/// takes it about as long as the others that are waiting there.
const SLACK_BYTES: u64 = 16 * 1024;
/// Where less than this of a prompt was read, that decides only between backends that have equally
/// little to do (`cache_threshold` of SGLang's router).
const SHARE_PERCENT_MIN: u64 = 30;
/// Where so much of a prompt was read, hardly anything is left to be read, wherever it is from (the
/// affinity filter of llm-d).
const SHARE_PERCENT_ALL: u64 = 80;
/// What an engine may have had to read beyond its share before what many prompts begin with no
/// longer leads there: some 4000 tokens.
const FRESH_SLACK_BYTES: u64 = 16 * 1024;

/// What is known of a request beside what all have in common.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints {
    /// The session that it belongs to, by the hash of its name.
    pub session: Option<u64>,
    /// Bytes of its prompt.
    pub bytes: u32,
    held: [HeldPrefix; PREFIX_HELD_MAX],
    count: u8,
}

/// A backend that has read the beginning of the prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeldPrefix {
    /// Its place among the members of the view.
    pub place: u32,
    /// Bytes of the longest beginning that it has read.
    pub bytes: u32,
    /// The time since that was last used.
    pub age: Duration,
    /// Another prompt ended there, which this one goes on from.
    pub is_end: bool,
}

impl Hints {
    /// Nothing is known.
    pub const NONE: Hints = Hints {
        session: None,
        bytes: 0,
        held: [HeldPrefix { place: 0, bytes: 0, age: Duration::ZERO, is_end: false };
            PREFIX_HELD_MAX],
        count: 0,
    };

    /// Who has read how much of a prompt, as far as a view's table knows, and has it still in the
    /// cache of its model.
    pub fn find((milestones, cache): (&Milestones, CacheOf), view: &View, now: Tenths) -> Hints {
        let mut hints = Hints { bytes: milestones.bytes(), ..Hints::NONE };
        let Some(table) = &view.prefixes else { return hints };
        for milestone in milestones.all().iter().rev() {
            for found in table.holders(milestone.hash, now) {
                let Some(place) = view.place_of(found, cache, now) else { continue };
                let FoundPrefix { age, is_end, .. } = found;
                let held = HeldPrefix { place, bytes: milestone.bytes, age, is_end };
                if !hints.add(held) {
                    return hints;
                }
            }
        }
        hints
    }

    /// Who has read how much of it, longest first.
    pub fn held(&self) -> &[HeldPrefix] {
        self.held.get(..self.count.into()).unwrap_or_default()
    }

    /// Whether what a backend has read of the prompt is too little to go there for it.
    pub fn is_weak(&self, held: &HeldPrefix) -> bool {
        u64::from(held.bytes) * 100 < u64::from(self.bytes) * SHARE_PERCENT_MIN
    }

    /// Whether the request goes on with what a backend has read, rather than beginning as others
    /// do.
    fn is_own(&self, held: &HeldPrefix) -> bool {
        held.is_end || u64::from(held.bytes) * 100 >= u64::from(self.bytes) * SHARE_PERCENT_ALL
    }

    /// What is known of one backend.
    pub fn of(&self, place: u32) -> Option<&HeldPrefix> {
        self.held().iter().find(|held| held.place == place)
    }

    /// Notes a backend. Those that have read more come first; of one the first counts. False: there
    /// is no room for another.
    pub fn add(&mut self, held: HeldPrefix) -> bool {
        if self.of(held.place).is_none() {
            if let Some(slot) = self.held.get_mut(usize::from(self.count)) {
                *slot = held;
                self.count += 1;
            }
        }
        usize::from(self.count) < PREFIX_HELD_MAX
    }
}

/// Notes that a backend is sent a prompt, all of which it has read from now on; so many bytes it
/// had read before.
pub fn learn(
    milestones: &Milestones,
    known: u32,
    (view, member): (&View, &Member),
    now: Tenths,
) -> Taught {
    let Some(table) = &view.prefixes else { return Taught::default() };
    let (holder, all) = (Holder::of(member), milestones.bytes());
    let is_end = milestones.ends_a_turn();
    let of = |one: &Milestone| (one.hash, is_end && one.bytes == all);
    milestones.all().iter().for_each(|one| table.learn(of(one), holder, now));
    member.note_fresh(all.saturating_sub(known), now);
    Taught::of(milestones, known)
}

/// What was noted of a backend with one try: which of the prompt's milestones are new there. One
/// byte, since it is kept while a request waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taught(Option<NonZeroU8>);

impl Taught {
    fn of(milestones: &Milestones, known: u32) -> Taught {
        let before = milestones.all().iter().take_while(|one| one.bytes <= known).count();
        Taught(u8::try_from(before + 1).ok().and_then(NonZeroU8::new))
    }

    /// True when nothing was noted.
    pub fn is_nothing(self) -> bool {
        self.0.is_none()
    }

    /// Takes it back: the try brought no answer, so the backend has not read the prompt. What was
    /// noted of it before that try stays. The try began so long ago.
    pub fn unlearn(
        self,
        milestones: &Milestones,
        (view, member): (&View, &Member),
        age: Duration,
        now: Tenths,
    ) {
        let (Some(table), Some(first)) = (&view.prefixes, self.0) else { return };
        let (before, new) =
            milestones.all().split_at_checked(usize::from(first.get()) - 1).unwrap_or_default();
        let holder = Holder::of(member);
        new.iter().for_each(|one| table.unlearn(one.hash, holder));
        let known = before.last().map_or(0, |one| one.bytes);
        member.take_back_fresh(milestones.bytes().saturating_sub(known), age, now);
    }
}

/// What a backend that has read some of a prompt is expected to find in its cache. Nothing that can
/// be held against it where more of the prompt may follow than anybody looked at: it is not known
/// how much of it all that is.
pub fn expected(milestones: &Milestones, held: &HeldPrefix) -> ExpectedPrefix {
    let read = milestones.all().iter().find(|one| one.bytes == held.bytes);
    match read.filter(|_| milestones.is_whole()) {
        Some(read) => ExpectedPrefix::new((read.bytes, milestones.bytes()), read.hash, held.age),
        None => ExpectedPrefix::default(),
    }
}

/// The order in which a session goes through the backends of a tier.
///
/// It goes by the names of the backends, so that it is the same in each process, and after a
/// restart.
pub struct Sessions(Box<[(u64, u32)]>);

impl Sessions {
    /// Of backends with these names and weights.
    pub fn new<'a>(backends: impl Iterator<Item = (&'a str, u32)>) -> Sessions {
        Sessions(backends.map(|(name, weight)| (fnv::hash(name.bytes()), weight)).collect())
    }

    /// The first in the order of the session that fits and has no more to do than its share, and
    /// whether others would have been before it that do not, or have; heavier ones are sooner.
    pub fn pick(&self, session: u64, field: &impl Candidates) -> Option<(u32, bool)> {
        let each = |name| 1.0 / -unit(session, name).ln();
        let mut load = Load::default();
        let mut first: Option<(f64, Burden)> = None;
        let mut passed_over = 0.0;
        for ((name, weight), place) in self.0.iter().zip(0..) {
            let Some(fit) = field.fit(place) else {
                passed_over = f64::max(passed_over, each(*name) * f64::from(*weight) * 100.0);
                continue;
            };
            if fit.is_scout {
                return Some((place, true));
            }
            let one = Burden::of(place, fit, field);
            load.see(one);
            let score = each(*name) * fit.weight as f64;
            if first.is_none_or(|(best, _)| score > best) {
                first = Some((score, one));
            }
        }
        let (best, home) = first?;
        if load.has_room(home, 0) {
            return Some((home.place, passed_over > best));
        }
        // It has more than its share, so somebody has less: of those the first.
        let mut next: Option<(f64, u32)> = None;
        for ((name, _), place) in self.0.iter().zip(0..) {
            let Some(fit) = field.fit(place) else { continue };
            if fit.is_scout {
                return Some((place, true));
            }
            let score = each(*name) * fit.weight as f64;
            let has_room = load.has_room(Burden::of(place, fit, field), 0);
            if has_room && next.is_none_or(|(best, _)| score > best) {
                next = Some((score, place));
            }
        }
        // Of nobody any more, if others have changed that meanwhile.
        Some(next.map_or((home.place, passed_over > best), |(_, place)| (place, true)))
    }
}

/// Between 0 and 1, neither of them, and as good as random for each pair.
fn unit(session: u64, name: u64) -> f64 {
    // As MurmurHash3 ends: a session or a name more changes half of all bits.
    let mixed = session ^ name.rotate_left(32);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let mixed = mixed ^ (mixed >> 33);
    ((mixed >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// What all that fit have to do.
#[derive(Default)]
struct Load {
    inflight: u64,
    weight: u64,
}

impl Load {
    fn see(&mut self, one: Burden) {
        self.inflight += one.inflight;
        self.weight += one.weight;
    }

    /// Whether one may have another request because it is better off there: of the prompt so many
    /// bytes have been read.
    fn has_room(&self, one: Burden, bytes: u32) -> bool {
        // Its requests, this one among them, less the slack, against the mean for its weight.
        let slack = SLACK + u64::from(bytes) / SLACK_BYTES;
        let ours = (one.inflight + 1).saturating_sub(slack);
        self.is_share((ours, self.inflight + 1), one)
    }

    /// Whether so much of all is no more for one than the bound, by its weight.
    fn is_share(&self, (ours, all): (u64, u64), one: Burden) -> bool {
        // In so many bits that no weight is too large.
        let wide = |a: u64, b: u64, c: u64| u128::from(a) * u128::from(b) * u128::from(c);
        wide(ours, self.weight, 100) <= wide(all, one.weight, LOAD_PERCENT)
    }
}

/// All that fit.
#[derive(Default)]
struct Survey {
    load: Load,
    fresh: u64,
    least: Least,
}

impl Survey {
    fn see(&mut self, one: Burden, dice: &mut Dice) {
        self.load.see(one);
        self.fresh += one.fresh;
        self.least.see(one, dice);
    }

    /// Whether it may be picked for what it has read.
    fn takes(&self, one: Burden, hints: &Hints, held: &HeldPrefix) -> bool {
        if hints.is_weak(held) {
            return self.least.found().is_none_or(|least| !least.is_below(one));
        }
        self.load.has_room(one, held.bytes) && (hints.is_own(held) || self.has_cache(one))
    }

    /// Whether one may have a request that begins as many do: it has not had to read more than its
    /// share. Where few are under way at a time, all that begins so would else be read by the one
    /// engine that was first, and fill its cache, while the others have nothing in theirs.
    fn has_cache(&self, one: Burden) -> bool {
        let ours = one.fresh.saturating_sub(FRESH_SLACK_BYTES);
        self.load.is_share((ours, self.fresh), one)
    }
}

/// The backend that has read the longest beginning of the prompt, and of several that have read as
/// much, the one with the fewest requests; within what each can take. Where there is none: the one
/// with the fewest requests for its weight.
pub fn by_prefix(dice: &mut Dice, field: &impl Candidates) -> Option<u32> {
    let hints = field.hints();
    // Where in this tier those stand that have read something.
    let mut holders = [None; PREFIX_HELD_MAX];
    for (slot, held) in holders.iter_mut().zip(hints.held()) {
        *slot = field.place_of(held.place);
    }
    let mut survey = Survey::default();
    let mut fitting = [None; PREFIX_HELD_MAX];
    for place in 0..field.count() {
        let Some(fit) = field.fit(place) else { continue };
        if fit.is_scout {
            return Some(place);
        }
        let one = Burden { fresh: field.fresh(place).into(), ..Burden::of(place, fit, field) };
        survey.see(one, dice);
        let known = holders.iter().position(|held| *held == Some(place));
        if let Some(slot) = known.and_then(|known| fitting.get_mut(known)) {
            *slot = Some(one);
        }
    }
    let mut best: Option<(Burden, u32)> = None;
    for (one, held) in fitting.into_iter().zip(hints.held()) {
        let Some(one) = one else { continue };
        let is_better = match best {
            None => true,
            Some((other, most)) => held.bytes == most && one.is_below(other),
        };
        if is_better && survey.takes(one, hints, held) {
            best = Some((one, held.bytes));
        }
    }
    best.map(|(one, _)| one).or(survey.least.found()).map(|one| one.place)
}

#[cfg(test)]
mod tests;
