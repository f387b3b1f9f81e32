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
use crate::base::limits::{
    PREFIX_BYTES_MIN, PREFIX_HOLDERS_MAX, PREFIX_KEPT_MAX, PREFIX_TABLE_BYTES,
};
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
/// Reports on prefixes that were used a shorter time ago are not heard: the engine may not have
/// come to read the request before this one.
const HEARD_AGE: Duration = Duration::from_secs(10);
/// Reports on prompts of which a token has more bytes are not heard: those are no text but images,
/// or what the template of the model leaves out, and of such bytes no share of the tokens can be
/// told. English has some 4 to 5, with the JSON around it, and source code up to 7.
const TOKEN_BYTES_MAX: u64 = 8;
/// An engine that has less than one of so many parts of a prefix has lost it. Not less than half:
/// tokens differ in length, so a share of a prompt's bytes is only about that of its tokens.
const LOST_BELOW: u64 = 8;
/// Prompts of fewer bytes are of this size.
const SIZE_BYTES_MIN: u32 = PREFIX_BYTES_MIN as u32;
/// A cache is not taken to forget sooner than this.
const KEPT_MIN_S: u16 = 16;
/// The time in which half of what an engine had to read is forgotten.
const FRESH_HALVED: Duration = Duration::from_secs(60);
/// The time after which one is believed to remember for twice as long again.
const DOUBLING: Duration = Duration::from_secs(60);

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

/// What a pick went by: so much of the prompt was last used there so long ago. Two bytes, since it
/// is kept with each stream; four bits for each of four things, and zero for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExpectedPrefix(u16);

impl ExpectedPrefix {
    /// So many bytes of a prompt of so many, and their hash.
    pub fn new((bytes, of): (u32, u32), hash: u64, age: Duration) -> ExpectedPrefix {
        let share = (u64::from(bytes) * 15 / u64::from(of.max(1))).min(15) as u16;
        let size = (of.max(SIZE_BYTES_MIN).ilog2() - SIZE_BYTES_MIN.ilog2()).min(15) as u16;
        let age = (1..=15).rev().find(|step| age_of(*step) <= age).unwrap_or(0);
        ExpectedPrefix(share << 12 | size << 8 | age << 4 | hash as u16 & 15)
    }

    /// Fifteenths of the prompt.
    fn share(self) -> u64 {
        u64::from(self.0 >> 12)
    }

    /// Bytes of the prompt: so many, or up to twice as many.
    fn bytes(self) -> u64 {
        u64::from(SIZE_BYTES_MIN) << (self.0 >> 8 & 15)
    }

    fn age(self) -> Duration {
        age_of(self.0 >> 4 & 15)
    }

    /// Bits of the hash of what was read, which tell most prefixes from each other.
    fn tag(self) -> u8 {
        (self.0 & 15) as u8
    }

    /// Whether an engine that found so many of the prompt's tokens in its cache had lost what it
    /// was picked for: nearly nothing of it was there. `None`: that cannot be told.
    pub fn is_lost(self, cached: u64, prompt: u64) -> Option<bool> {
        let due = self.share().saturating_mul(prompt);
        let is_text = self.bytes() <= prompt.saturating_mul(TOKEN_BYTES_MAX);
        let is_heard = due > 0 && is_text && self.age() >= HEARD_AGE;
        is_heard.then_some(cached.saturating_mul(15 * LOST_BELOW) < due)
    }
}

/// Ages are told in steps of a half or a third: less than 16 s, 16, 24, 32, 48, ..., 2048 s.
fn age_of(step: u16) -> Duration {
    let Some(step) = step.checked_sub(1) else { return Duration::ZERO };
    let whole = 16 << (step / 2);
    Duration::from_secs(whole + if step % 2 == 1 { whole / 2 } else { 0 })
}

/// For how long an engine keeps the prefixes that it has read, as far as its own reports tell. One
/// that had lost two prefixes in a row after some time is believed to keep none for longer than
/// half of that, and then again for longer: twice as long after each minute without such a report.
/// Two different ones: what it says of one prompt may be misread, and so it is each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// 0: nothing speaks against it.
    kept_s: u16,
    since: Tenths,
    /// The last report was of a loss: that of the prefix with this tag.
    suspect: Option<u8>,
}

impl Retention {
    /// What was expected was there, or was lost. `None`: that changes nothing.
    pub fn hear(self, expected: ExpectedPrefix, is_lost: bool, now: Tenths) -> Option<Retention> {
        match self.suspect {
            None if !is_lost => None,
            Some(tag) if is_lost && tag == expected.tag() => None,
            Some(_) if !is_lost => Some(Retention { suspect: None, ..self }),
            None => Some(Retention { suspect: Some(expected.tag()), ..self }),
            Some(_) => {
                let kept_s = (expected.age().as_secs() / 2) as u16;
                let kept_s = kept_s.max(KEPT_MIN_S).min(self.kept_s_at(now));
                Some(Retention { kept_s, since: now, suspect: Some(expected.tag()) })
            }
        }
    }

    /// Whether what was last used so long ago is likely to be there.
    pub fn keeps(self, age: Duration, now: Tenths) -> bool {
        age.as_secs() <= self.kept_s_at(now).into()
    }

    fn kept_s_at(self, now: Tenths) -> u16 {
        let most = PREFIX_KEPT_MAX.as_secs() as u16;
        if self.kept_s == 0 {
            return most;
        }
        let doublings = now.0.saturating_sub(self.since.0) / Tenths::of(DOUBLING).0;
        self.kept_s.saturating_mul(1 << doublings.min(15)).min(most)
    }

    /// In one word for an atomic.
    pub fn pack(self) -> u64 {
        let suspect = self.suspect.map_or(0, |tag| u64::from(tag) | 1 << u8::BITS);
        u64::from(self.kept_s) << 48 | suspect << 32 | u64::from(self.since.0)
    }

    /// From such a word.
    pub fn unpack(word: u64) -> Retention {
        let suspect = (word >> 40 & 1 != 0).then_some((word >> 32) as u8);
        Retention { kept_s: (word >> 48) as u16, since: Tenths(word as u32), suspect }
    }
}

/// How much an engine had to read lately that it did not have: half of it is forgotten after a
/// minute. It stands for what fills its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fresh {
    bytes: u32,
    at: Tenths,
}

impl Fresh {
    /// It is to read so many bytes more.
    pub fn add(self, bytes: u32, now: Tenths) -> Fresh {
        Fresh { bytes: self.bytes_at(now).saturating_add(bytes), at: now }
    }

    /// What is left of it.
    pub fn bytes_at(self, now: Tenths) -> u32 {
        let half = Tenths::of(FRESH_HALVED).0;
        let age = now.0.saturating_sub(self.at.0);
        let halved = self.bytes.checked_shr(age / half).unwrap_or_default();
        // Between two halvings evenly less.
        let less = u64::from(halved) * u64::from(age % half) / u64::from(2 * half);
        halved - less as u32
    }

    /// In one word for an atomic.
    pub fn pack(self) -> u64 {
        u64::from(self.bytes) << u32::BITS | u64::from(self.at.0)
    }

    /// From such a word.
    pub fn unpack(word: u64) -> Fresh {
        Fresh { bytes: (word >> u32::BITS) as u32, at: Tenths(word as u32) }
    }
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

    #[test]
    fn an_engine_that_has_nearly_nothing_of_it_has_lost_it() {
        let secs = Duration::from_secs;
        let of = |bytes, of, age| ExpectedPrefix::new((bytes, of), 0x107, secs(age));
        let expected = of(8_000, 10_000, 100);
        assert_eq!([0, 199].map(|cached| expected.is_lost(cached, 2_000)), [Some(true); 2]);
        assert_eq!([200, 2_000].map(|cached| expected.is_lost(cached, 2_000)), [Some(false); 2]);
        assert_eq!(expected.is_lost(0, 0), None);
        assert_eq!(ExpectedPrefix::default().is_lost(0, 2_000), None, "nothing was expected");
        assert_eq!(expected.is_lost(u64::MAX, u64::MAX), Some(false));
        assert_eq!(expected.is_lost(0, u64::MAX), Some(true));
        let just_now = of(8_000, 10_000, 8);
        assert_eq!(just_now.is_lost(0, 2_000), None, "it may not have been read yet");
        let all = of(u32::MAX, 1, 1 << 30);
        assert_eq!((all.share(), all.bytes(), all.tag()), (15, 512, 7));
        assert_eq!(all.age(), secs(2_048));
        assert_eq!(of(1, u32::MAX, 8).bytes(), 512 << 15);
        let ages = [15, 16, 31, 47, 400, 1_800].map(|age| of(1, 1, age).age().as_secs());
        assert_eq!(ages, [0, 16, 24, 32, 384, 1_536]);
    }

    /// Catches: an image at the beginning of a prompt, most of its bytes and few of its tokens, of
    /// which the engine has all, taken for one that it has lost.
    #[test]
    fn bytes_that_are_no_text_say_nothing() {
        let image = ExpectedPrefix::new((200_000, 202_000), 7, Duration::from_secs(60));
        // An image of 1 000 tokens, and 500 of text.
        assert_eq!(image.is_lost(0, 1_500), None);
        let code = ExpectedPrefix::new((190_000, 200_000), 7, Duration::from_secs(60));
        assert_eq!(code.is_lost(0, 28_000), Some(true));
    }

    /// Catches: an engine that forgets soon and is asked for what it has not for ever; one that did
    /// once and never counts again.
    #[test]
    fn who_had_lost_something_is_believed_for_less_and_then_for_longer_again() {
        let secs = Duration::from_secs;
        let expected = |tag, age| ExpectedPrefix::new((1, 1), tag, secs(age));
        let memory = Retention::default();
        assert!(memory.keeps(PREFIX_KEPT_MAX, NOW));
        // The loss of one prefix, and then that of another.
        let lose = |memory: Retention, age| {
            let one = memory.hear(expected(1, age), true, NOW).unwrap_or(memory);
            one.hear(expected(2, age), true, NOW).unwrap()
        };
        let memory = lose(memory, 384);
        assert!(memory.keeps(secs(192), NOW) && !memory.keeps(secs(193), NOW));
        assert!(lose(memory, 1_000).keeps(secs(192), NOW));
        assert!(!lose(memory, 1_000).keeps(secs(193), NOW), "it got no better");
        let worse = lose(memory, 96);
        assert!(worse.keeps(secs(48), NOW) && !worse.keeps(secs(49), NOW));
        assert!(worse.keeps(secs(96), later(60)) && !worse.keeps(secs(97), later(60)));
        assert!(worse.keeps(PREFIX_KEPT_MAX, later(3_600)));
        assert!(lose(memory, 16).keeps(secs(KEPT_MIN_S.into()), NOW));
        for memory in [Retention::default(), memory, worse] {
            assert_eq!(Retention::unpack(memory.pack()), memory);
        }
    }

    /// Catches: one prompt whose report is misread again and again, and an engine that nobody
    /// believes any more because of it.
    #[test]
    fn one_loss_alone_and_the_same_again_change_nothing() {
        let expected = |tag| ExpectedPrefix::new((1, 1), tag, Duration::from_secs(60));
        let memory = Retention::default();
        assert_eq!(memory.hear(expected(1), false, NOW), None);
        let once = memory.hear(expected(1), true, NOW).unwrap();
        assert!(once.keeps(PREFIX_KEPT_MAX, NOW));
        assert_eq!(Retention::unpack(once.pack()), once);
        assert_eq!(once.hear(expected(1), true, later(60)), None, "the same prefix");
        assert_eq!(once.hear(expected(2), false, NOW), Some(memory), "not in a row");
        let twice = once.hear(expected(2), true, NOW).unwrap();
        assert!(!twice.keeps(Duration::from_secs(31), NOW));
        assert_eq!(Retention::unpack(twice.pack()), twice);
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

    #[test]
    fn what_was_read_is_forgotten_little_by_little() {
        let fresh = Fresh::default().add(1_000, NOW).add(1_000, NOW);
        assert_eq!(fresh.bytes_at(NOW), 2_000);
        assert_eq!([30, 60, 90, 120].map(|s| fresh.bytes_at(later(s))), [1_500, 1_000, 750, 500]);
        assert_eq!(fresh.add(500, later(60)).bytes_at(later(120)), 750);
        assert_eq!(fresh.bytes_at(Tenths(u32::MAX)), 0);
        assert_eq!(Fresh::unpack(fresh.pack()), fresh);
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
