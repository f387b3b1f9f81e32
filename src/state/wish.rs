//! What is known of an engine's answer to the wish for usage. It is known for a while only: engines
//! are restarted, with another version or other options, and nobody tells us.

use crate::base::limits::{USAGE_WISH_KNOWN, USAGE_WISH_MODELS_MAX};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What an engine did when it was asked for the usage of a stream by us, and not by the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageWish {
    /// It was never asked, or has not answered in a way that tells, or that was long ago.
    Unknown = 0,
    /// It took the wish.
    Taken = 1,
    /// It refused a request for it, and took the same without.
    Refused = 2,
    /// It tells as much without being asked.
    Needless = 3,
}

const ALL: [UsageWish; 4] =
    [UsageWish::Unknown, UsageWish::Taken, UsageWish::Refused, UsageWish::Needless];

/// What is known of one model: two bits that say what, thirty that say since when, in seconds, and
/// 32 that tell its model from others. Zero is a cell that was never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell(u64);

impl Cell {
    const SECONDS_MAX: u64 = (1 << 30) - 1;

    fn new(tag: u32, wish: UsageWish, seconds: u64) -> Cell {
        Cell(u64::from(tag) << 32 | seconds.min(Self::SECONDS_MAX) << 2 | wish as u64)
    }

    fn is_of(self, tag: u32) -> bool {
        self.0 >> 32 == u64::from(tag)
    }

    fn since(self) -> u64 {
        (self.0 >> 2) & Self::SECONDS_MAX
    }

    fn wish_at(self, seconds: u64) -> UsageWish {
        let is_known = seconds.saturating_sub(self.since()) < USAGE_WISH_KNOWN.as_secs();
        let kind = (self.0 & 0b11) as usize;
        ALL.get(kind).copied().filter(|_| is_known).unwrap_or(UsageWish::Unknown)
    }
}

/// What is known of a backend, for each model: behind one URL, which may be another gateway, models
/// may be served by different engines. Shared by all workers; nobody waits, nothing is allocated.
///
/// Of a model there is only a hash, whose key nobody knows outside: no client can choose a name
/// that is taken for another. Should two names be taken for one by chance (once in 67 million pairs
/// of a full table), the engine is asked, or not asked, like that of the other model.
#[derive(Debug)]
pub struct KnownWishes {
    born: Instant,
    hasher: RandomState,
    // Boxed: the backends that a worker looks through lie close together.
    cells: Box<[AtomicU64; USAGE_WISH_MODELS_MAX]>,
    displaced: AtomicU64,
}

impl KnownWishes {
    /// Of a backend that was never asked.
    pub fn new(born: Instant) -> KnownWishes {
        KnownWishes {
            born,
            hasher: RandomState::new(),
            cells: Box::new([const { AtomicU64::new(0) }; USAGE_WISH_MODELS_MAX]),
            displaced: AtomicU64::new(0),
        }
    }

    /// What is known of a model now.
    pub fn at(&self, model: &str, now: Instant) -> UsageWish {
        let found = self.find(self.tag(model));
        found.map_or(UsageWish::Unknown, |(_, cell)| cell.wish_at(self.seconds(now)))
    }

    /// Learns it of a model. True when that is news. What the engine refused, or tells by itself,
    /// it is not asked for, so that nothing which comes late can say otherwise; that it takes the
    /// wish is held until something else shows.
    pub fn learn(&self, model: &str, wish: UsageWish, now: Instant) -> bool {
        let (tag, seconds) = (self.tag(model), self.seconds(now));
        // Read first: the line is shared, and nearly always there is nothing to be learnt.
        let found = self.find(tag);
        let is_news = match found.map_or(UsageWish::Unknown, |(_, cell)| cell.wish_at(seconds)) {
            UsageWish::Unknown => true,
            UsageWish::Taken => wish != UsageWish::Taken,
            UsageWish::Refused | UsageWish::Needless => false,
        };
        if !is_news {
            return false;
        }
        let Some((place, old)) = found.or_else(|| self.room(seconds)) else { return false };
        let next = Cell::new(tag, wish, seconds).0;
        // Somebody else may have been quicker: then the next request learns it.
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        let is_learnt = place.compare_exchange(old.0, next, set, read).is_ok();
        if is_learnt && !old.is_of(tag) && old.wish_at(seconds) != UsageWish::Unknown {
            self.displaced.fetch_add(1, Ordering::Relaxed);
        }
        is_learnt
    }

    /// All models may be served by other engines now.
    pub fn forget(&self) {
        for cell in self.cells.iter() {
            if cell.load(Ordering::Relaxed) != 0 {
                cell.store(0, Ordering::Relaxed);
            }
        }
    }

    /// What was known of a model has turned out wrong.
    pub fn forget_model(&self, model: &str) {
        let tag = self.tag(model);
        if let Some((place, _)) = self.find(tag) {
            place.store(Cell::new(tag, UsageWish::Unknown, 0).0, Ordering::Relaxed);
        }
    }

    /// True when the engine of some model is known to refuse the wish.
    pub fn any_refuses(&self, now: Instant) -> bool {
        let seconds = self.seconds(now);
        self.used().any(|(_, cell)| cell.wish_at(seconds) == UsageWish::Refused)
    }

    /// Models that were forgotten before their time, for lack of room.
    pub fn displaced(&self) -> u64 {
        self.displaced.load(Ordering::Relaxed)
    }

    fn find(&self, tag: u32) -> Option<(&AtomicU64, Cell)> {
        self.used().find(|(_, cell)| cell.is_of(tag))
    }

    /// Those that were ever used: the others lie behind them.
    fn used(&self) -> impl Iterator<Item = (&AtomicU64, Cell)> {
        let cells = self.cells.iter().map(|place| (place, Cell(place.load(Ordering::Relaxed))));
        cells.take_while(|(_, cell)| cell.0 != 0)
    }

    /// A place for another model: one that holds nothing of value, or else the oldest.
    fn room(&self, seconds: u64) -> Option<(&AtomicU64, Cell)> {
        let all = self.cells.iter().map(|place| (place, Cell(place.load(Ordering::Relaxed))));
        all.min_by_key(|(_, cell)| match cell.wish_at(seconds) {
            UsageWish::Unknown => 0,
            _ => 1 + cell.since(),
        })
    }

    fn tag(&self, model: &str) -> u32 {
        (self.hasher.hash_one(model) >> 32) as u32
    }

    fn seconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.born).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;
    use UsageWish::{Needless, Refused, Taken, Unknown};

    /// Catches: an engine that is asked no more because one of two requests came late, and one
    /// that fails every stream because it took the wish once.
    #[test]
    fn what_was_learnt_gives_way_to_what_shows_more() {
        for (first, second, is_news) in [
            (Taken, Taken, false),
            (Taken, Refused, true),
            (Taken, Needless, true),
            (Refused, Taken, false),
            (Refused, Needless, false),
            (Needless, Taken, false),
            (Needless, Refused, false),
        ] {
            let now = Instant::now();
            let known = KnownWishes::new(now);
            assert_eq!(known.at("m", now), Unknown);
            assert!(known.learn("m", first, now));
            assert_eq!(known.learn("m", second, now), is_news, "{first:?} {second:?}");
            assert_eq!(known.at("m", now), if is_news { second } else { first });
        }
    }

    /// Catches: what is known for the life of the process.
    #[test]
    fn what_was_learnt_is_forgotten_in_time_and_on_demand() {
        let born = Instant::now();
        let later = born + Duration::from_secs(100);
        for wish in [Taken, Refused, Needless] {
            let known = KnownWishes::new(born);
            assert!(known.learn("m", wish, later) && known.learn("other", wish, later));
            let last = later + USAGE_WISH_KNOWN - Duration::from_secs(1);
            assert_eq!((known.at("m", later), known.at("m", last)), (wish, wish));
            assert_eq!(known.any_refuses(last), wish == Refused);
            let over = later + USAGE_WISH_KNOWN;
            assert_eq!((known.at("m", over), known.any_refuses(over)), (Unknown, false));
            assert!(known.learn("m", Refused, over) && known.learn("other", Refused, over));
            known.forget_model("m");
            assert_eq!((known.at("m", over), known.at("other", over)), (Unknown, Refused));
            assert!(known.learn("m", Refused, over));
            known.forget();
            assert_eq!((known.at("m", over), known.at("other", over)), (Unknown, Unknown));
            assert_eq!(known.displaced(), 0);
        }
    }

    /// Catches: a table that grows with the names that clients think of, and one in which what is
    /// over keeps what is new out.
    #[test]
    fn of_too_many_models_the_oldest_is_forgotten() {
        let born = Instant::now();
        let after = |seconds: usize| born + Duration::from_secs(seconds as u64);
        let known = KnownWishes::new(born);
        for n in 0..=USAGE_WISH_MODELS_MAX {
            assert!(known.learn(&n.to_string(), Taken, after(n)));
        }
        let now = after(USAGE_WISH_MODELS_MAX);
        assert_eq!((known.at("0", now), known.displaced()), (Unknown, 1));
        assert!((1..=USAGE_WISH_MODELS_MAX).all(|n| known.at(&n.to_string(), now) == Taken));
        let over = now + USAGE_WISH_KNOWN;
        for n in 0..USAGE_WISH_MODELS_MAX {
            assert!(known.learn(&format!("new {n}"), Taken, over));
        }
        assert!((0..USAGE_WISH_MODELS_MAX).all(|n| known.at(&format!("new {n}"), over) == Taken));
        assert_eq!(known.displaced(), 1);
    }

    proptest! {
        /// Catches: anything that one model teaches of another. As long as all have room, a table
        /// of them is as good as one for each.
        #[test]
        fn models_know_nothing_of_each_other(
            steps in proptest::collection::vec((0..8_u8, 0..5_u8, 0..400_u64), 0..60)
        ) {
            let born = Instant::now();
            let (all, mut now) = (KnownWishes::new(born), born);
            let mut alone: HashMap<u8, KnownWishes> = HashMap::new();
            for (model, step, seconds) in steps {
                now += Duration::from_secs(seconds);
                let name = format!("model-{model}");
                let one = alone.entry(model).or_insert_with(|| KnownWishes::new(born));
                match step {
                    0 => {
                        all.forget_model(&name);
                        one.forget_model(&name);
                    }
                    1 => {
                        all.forget();
                        alone.values().for_each(KnownWishes::forget);
                    }
                    kind => {
                        let wish = ALL[kind as usize - 1];
                        prop_assert_eq!(all.learn(&name, wish, now), one.learn(&name, wish, now));
                    }
                }
                for (model, one) in &alone {
                    let name = format!("model-{model}");
                    prop_assert_eq!(all.at(&name, now), one.at(&name, now));
                }
                let any = alone.values().any(|one| one.any_refuses(now));
                prop_assert_eq!(all.any_refuses(now), any);
            }
        }
    }
}
