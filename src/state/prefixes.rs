//! Which backend has read which beginning of a prompt, as far as anybody remembers: one table for
//! all workers, of a fixed size, that is read and written without a lock. Whatever it says is a
//! hint: what two workers write at the same moment may get lost, and what an engine has thrown out
//! of its cache may still stand here.
//!
//! A set is one line of the processor's cache with eight entries, and a hash may only stand in its
//! own set; the oldest entry of a set makes room. An entry is one word: bits of the hash, whether a
//! prompt ended there, the number of a backend, how often that was out of service, and when the
//! entry was last used. So a backend that is gone is never found again (numbers are not given
//! twice), and one that was out of service is not found by what it had read before: most likely its
//! engine was started anew.

use super::member::{Member, MemberId};
use super::repute::Tenths;
use crate::base::fold::FoldKey;
use crate::base::limits::{PREFIX_HOLDERS_MAX, PREFIX_KEPT_MAX, PREFIX_TABLE_BYTES};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Entries of a set.
const WAYS: usize = 8;
const SETS: usize = PREFIX_TABLE_BYTES / size_of::<Set>();
/// Bits of the hash that stand in the entry, beside those that choose the set.
const TAG_BITS: u32 = 23;
/// The bit that says that a prompt ended here.
const END_BIT: u32 = TAG_BITS + 1;
const MEMBER_BITS: u32 = 20;
const DEPARTURE_BITS: u32 = 4;
/// The unit of ages: 8 s, in tenths of a second. 16 bits of it last for six days, after which an
/// entry that nobody has used looks young once more.
const AGE_UNIT: u32 = 80;
const KEPT_MAX_UNITS: u16 = (PREFIX_KEPT_MAX.as_secs() * 10 / AGE_UNIT as u64) as u16;

const _: () = assert!(END_BIT + MEMBER_BITS + DEPARTURE_BITS + u16::BITS == u64::BITS);
const _: () = assert!(SETS.is_power_of_two() && SETS.trailing_zeros() + TAG_BITS <= u64::BITS);

/// A line of the processor's cache.
#[repr(align(64))]
#[derive(Default)]
struct Set([AtomicU64; WAYS]);

/// The table.
pub struct PrefixTable {
    sets: Box<[Set]>,
    key: FoldKey,
    evicted: AtomicU64,
}

/// A backend as entries name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder(u32);

impl Holder {
    /// A backend, as often out of service as it was.
    pub fn of(member: &Member) -> Holder {
        Holder::new(member.id(), member.departures())
    }

    /// The number of the backend, or what of it stands in an entry.
    pub fn number(self) -> u32 {
        self.0 >> DEPARTURE_BITS
    }

    fn new(id: MemberId, departures: u32) -> Holder {
        let (number, departures) =
            (bits(id.number(), MEMBER_BITS), bits(departures, DEPARTURE_BITS));
        Holder(number << DEPARTURE_BITS | departures)
    }
}

fn bits(word: u32, count: u32) -> u32 {
    word & ((1 << count) - 1)
}

/// One word of the table; zero is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u32,
    is_end: bool,
    holder: Holder,
    used: u16,
}

impl Entry {
    fn pack(self) -> u64 {
        u64::from(self.tag) << (u64::BITS - TAG_BITS)
            | u64::from(self.is_end) << (u64::BITS - END_BIT)
            | u64::from(self.holder.0) << u16::BITS
            | u64::from(self.used)
    }

    fn unpack(word: u64) -> Option<Entry> {
        let tag = (word >> (u64::BITS - TAG_BITS)) as u32;
        let holder = Holder(bits((word >> u16::BITS) as u32, MEMBER_BITS + DEPARTURE_BITS));
        let is_end = word >> (u64::BITS - END_BIT) & 1 != 0;
        (word != 0).then_some(Entry { tag, is_end, holder, used: word as u16 })
    }

    /// Units of time since it was used.
    fn age(self, now: u16) -> u16 {
        now.wrapping_sub(self.used)
    }
}

/// Who has read a beginning of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundPrefix {
    /// The backend.
    pub holder: Holder,
    /// The time since it was last sent a request that begins so; rounded down to 8 s.
    pub age: Duration,
    /// A prompt ended there: who goes on from it goes on with a conversation. Where none did, it is
    /// something that several prompts begin with.
    pub is_end: bool,
}

impl PrefixTable {
    /// An empty one.
    pub fn new() -> PrefixTable {
        PrefixTable {
            sets: (0..SETS).map(|_| Set::default()).collect(),
            key: FoldKey::random(),
            evicted: AtomicU64::new(0),
        }
    }

    /// The key of the hashes that stand here. Another one in each process: nobody can choose
    /// prompts that push those of others out.
    pub fn key(&self) -> &FoldKey {
        &self.key
    }

    /// Entries that made room for others before their time.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn set(&self, hash: u64) -> (&[AtomicU64], u32) {
        let place = hash as usize & (self.sets.len() - 1);
        let set = self.sets.get(place).map_or(&[][..], |set| &set.0);
        (set, (hash >> (u64::BITS - TAG_BITS)) as u32)
    }

    /// Who has read the beginning that has this hash.
    pub fn holders(&self, hash: u64, now: Tenths) -> impl Iterator<Item = FoundPrefix> + '_ {
        let ((set, tag), now) = (self.set(hash), unit(now));
        let entries = set.iter().filter_map(|word| Entry::unpack(word.load(Ordering::Relaxed)));
        let fits = move |entry: &Entry| entry.tag == tag && entry.age(now) <= KEPT_MAX_UNITS;
        entries.filter(fits).map(move |entry| {
            let tenths = u64::from(entry.age(now)) * u64::from(AGE_UNIT);
            let (holder, is_end) = (entry.holder, entry.is_end);
            FoundPrefix { holder, age: Duration::from_millis(tenths * 100), is_end }
        })
    }

    /// A backend is sent a prompt that begins so, or is all of it.
    pub fn learn(&self, (hash, is_end): (u64, bool), holder: Holder, now: Tenths) {
        let ((set, tag), now) = (self.set(hash), unit(now));
        let new = Entry { tag, is_end, holder, used: now };
        let (mut same, mut oldest_same, mut oldest) = (0, None, None);
        for word in set {
            let known = word.load(Ordering::Relaxed);
            // One that is free, or over, is older than any other.
            let entry = Entry::unpack(known).filter(|entry| entry.age(now) <= KEPT_MAX_UNITS);
            let age = entry.map_or(u16::MAX, |entry| entry.age(now));
            if let Some(entry) = entry.filter(|entry| entry.tag == tag) {
                // The same backend before it was out of service, too: that is over.
                if entry.holder.number() == holder.number() {
                    let new = Entry { is_end: is_end || entry.is_end, ..new }.pack();
                    // Most of a prompt was used a moment ago: then no memory is written.
                    if known != new {
                        word.store(new, Ordering::Relaxed);
                    }
                    return;
                }
                same += 1;
                keep_oldest(&mut oldest_same, (age, word));
            }
            keep_oldest(&mut oldest, (age, word));
        }
        let place = if same < PREFIX_HOLDERS_MAX { oldest } else { oldest_same };
        if let Some((age, word)) = place {
            if age < u16::MAX {
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
            word.store(new.pack(), Ordering::Relaxed);
        }
    }

    /// A backend has not read what begins so after all.
    pub fn unlearn(&self, hash: u64, holder: Holder) {
        let (set, tag) = self.set(hash);
        for word in set {
            let known = word.load(Ordering::Relaxed);
            if Entry::unpack(known).is_some_and(|it| it.tag == tag && it.holder == holder) {
                // What another worker has put there meanwhile stays.
                let _ = word.compare_exchange(known, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }
}

impl Default for PrefixTable {
    fn default() -> PrefixTable {
        PrefixTable::new()
    }
}

fn keep_oldest<'a>(oldest: &mut Option<(u16, &'a AtomicU64)>, new: (u16, &'a AtomicU64)) {
    if oldest.is_none_or(|(age, _)| age < new.0) {
        *oldest = Some(new);
    }
}

fn unit(now: Tenths) -> u16 {
    (now.0 / AGE_UNIT) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::plan::Backend;
    use proptest::prelude::*;

    const NOW: Tenths = Tenths(100_000);

    fn any() -> Holder {
        Holder::of(&Member::new(Backend::sample("engine"), None))
    }

    fn learn(table: &PrefixTable, hash: u64, holder: Holder, now: Tenths) {
        table.learn((hash, false), holder, now);
    }

    fn found(table: &PrefixTable, hash: u64, now: Tenths) -> Vec<Holder> {
        table.holders(hash, now).map(|found| found.holder).collect()
    }

    fn later(seconds: u32) -> Tenths {
        Tenths(NOW.0 + seconds * 10)
    }

    #[test]
    fn what_was_learnt_is_found_until_its_time_is_over() {
        let (table, a, b) = (PrefixTable::new(), any(), any());
        learn(&table, 7, a, NOW);
        learn(&table, 7, b, later(80));
        learn(&table, 8, b, NOW);
        assert_eq!(found(&table, 7, later(80)), [a, b]);
        let ages: Vec<_> = table.holders(7, later(160)).map(|found| found.age.as_secs()).collect();
        assert_eq!(ages, [160, 80]);
        assert_eq!(found(&table, 8, NOW), [b]);
        assert_eq!(found(&table, 7 + (1 << 41), NOW), [], "the rest of the hash counts");
        let over = later(PREFIX_KEPT_MAX.as_secs() as u32 + 16);
        assert_eq!(found(&table, 7, over), [b], "it was used later");
        learn(&table, 7, a, over);
        assert_eq!(found(&table, 7, over), [a, b]);
        assert_eq!(table.evicted(), 0);
    }

    /// Catches: a table that grows, or in which a new prefix finds no place; one backend that is
    /// noted twice; a prefix that everybody has and that fills its set.
    #[test]
    fn the_oldest_make_room() {
        let table = PrefixTable::new();
        let hash = |n: u64| n << 50;
        let holder = any();
        (0..20).for_each(|n| learn(&table, hash(n), holder, later(8 * n as u32)));
        let known = |n: u64| !found(&table, hash(n), later(160)).is_empty();
        assert_eq!((0..20).filter(|n| known(*n)).collect::<Vec<_>>(), (12..20).collect::<Vec<_>>());
        assert_eq!(table.evicted(), 12);
        let table = PrefixTable::new();
        learn(&table, hash(1), holder, NOW);
        (0..20).for_each(|n| learn(&table, hash(2), any(), later(8 * n)));
        assert_eq!(found(&table, hash(2), later(160)).len(), PREFIX_HOLDERS_MAX);
        assert_eq!(found(&table, hash(1), later(160)), [holder], "others have their place");
        (0..20).for_each(|n| learn(&table, hash(1), holder, later(8 * n)));
        assert_eq!(found(&table, hash(1), later(160)), [holder]);
    }

    /// Catches: a backend that was restarted, or that is gone, and is taken to have what it had.
    #[test]
    fn a_backend_that_was_out_of_service_has_read_nothing() {
        let (table, member) = (PrefixTable::new(), Member::new(Backend::sample("engine"), None));
        let before = Holder::of(&member);
        learn(&table, 7, before, NOW);
        member.set_passes_probes(false);
        member.set_passes_probes(true);
        let now = Holder::of(&member);
        assert_ne!(before, now);
        assert_eq!(found(&table, 7, NOW), [before]);
        learn(&table, 7, now, NOW);
        assert_eq!(found(&table, 7, NOW), [now], "in the place of what is over");
    }

    /// Catches: what one backend has not read, forgotten of another one, or of another prompt.
    #[test]
    fn what_was_not_read_is_unlearnt_of_one_backend_alone() {
        let (table, a, b) = (PrefixTable::new(), any(), any());
        for (hash, holder) in [(7, a), (7, b), (8, a)] {
            learn(&table, hash, holder, NOW);
        }
        table.unlearn(7, a);
        table.unlearn(9, a);
        assert_eq!((found(&table, 7, NOW), found(&table, 8, NOW)), (vec![b], vec![a]));
        assert_eq!(table.evicted(), 0, "its place is free");
    }

    /// Catches: the end of one turn that is forgotten when the next turn goes past it.
    #[test]
    fn where_a_prompt_ended_it_ended() {
        let (table, a) = (PrefixTable::new(), any());
        let ends = || table.holders(7, NOW).map(|found| found.is_end).collect::<Vec<_>>();
        table.learn((7, false), a, NOW);
        assert_eq!(ends(), [false]);
        table.learn((7, true), a, NOW);
        table.learn((7, false), a, NOW);
        assert_eq!(ends(), [true]);
    }

    proptest! {
        #[test]
        fn a_word_holds_all_of_an_entry(
            tag in 0..1u32 << TAG_BITS,
            is_end: bool,
            holder in 1..1u32 << 24,
            used: u16,
        ) {
            let entry = Entry { tag, is_end, holder: Holder(holder), used };
            prop_assert_eq!(Entry::unpack(entry.pack()), Some(entry));
        }
    }
}
