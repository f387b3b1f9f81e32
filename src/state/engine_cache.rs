//! What is known of an engine's cache of prompts: what a request may expect to find there, for how
//! long it keeps what it has read, and how much it had to read lately.

use super::repute::Tenths;
use crate::base::fnv;
use crate::base::limits::{CACHES_MAX, PREFIX_BYTES_MIN, PREFIX_KEPT_MAX};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// Which of a backend's caches a model has. A backend may serve several models (Ollama, a router of
/// llama.cpp), each with a cache of its own: that one model's is small, or that it was unloaded,
/// says nothing of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheOf(u8);

impl CacheOf {
    /// That of the model which engines know by this name. Of many models some share one.
    pub fn model(served: &str) -> CacheOf {
        CacheOf((fnv::hash(served.bytes()) % CACHES_MAX as u64) as u8)
    }
}

/// The [`Retention`] of each of a backend's caches. Readers never wait.
#[derive(Default)]
pub struct Retentions([AtomicU64; CACHES_MAX]);

impl Retentions {
    /// That of one of them.
    pub fn of(&self, cache: CacheOf) -> Retention {
        let word = self.0.get(usize::from(cache.0));
        word.map(|word| Retention::unpack(word.load(Ordering::Relaxed))).unwrap_or_default()
    }

    /// What was expected there was found, or was lost.
    pub fn hear(&self, cache: CacheOf, expected: ExpectedPrefix, is_lost: bool, now: Tenths) {
        let Some(word) = self.0.get(usize::from(cache.0)) else { return };
        let next = |word| Some(Retention::unpack(word).hear(expected, is_lost, now)?.pack());
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
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

    /// So many bytes that were added so long ago are not read after all.
    pub fn take_back(self, bytes: u32, age: Duration, now: Tenths) -> Fresh {
        // Some of them may be forgotten by now.
        let left = Fresh { bytes, at: Tenths(0) }.bytes_at(Tenths::of(age));
        Fresh { bytes: self.bytes_at(now).saturating_sub(left), at: now }
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

    const NOW: Tenths = Tenths(100_000);

    fn later(seconds: u32) -> Tenths {
        Tenths(NOW.0 + seconds * 10)
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

    #[test]
    fn what_was_read_is_forgotten_little_by_little() {
        let fresh = Fresh::default().add(1_000, NOW).add(1_000, NOW);
        assert_eq!(fresh.bytes_at(NOW), 2_000);
        assert_eq!([30, 60, 90, 120].map(|s| fresh.bytes_at(later(s))), [1_500, 1_000, 750, 500]);
        assert_eq!(fresh.add(500, later(60)).bytes_at(later(120)), 750);
        assert_eq!(fresh.bytes_at(Tenths(u32::MAX)), 0);
        assert_eq!(Fresh::unpack(fresh.pack()), fresh);
    }

    /// Catches: bytes of a try that failed, held against its backend; or, where it failed late,
    /// more taken back than is left of them.
    #[test]
    fn what_was_not_read_is_taken_back() {
        let secs = Duration::from_secs;
        let fresh = Fresh::default().add(1_000, NOW).add(2_000, NOW);
        assert_eq!(fresh.take_back(2_000, secs(0), NOW).bytes_at(NOW), 1_000);
        assert_eq!(fresh.take_back(2_000, secs(60), later(60)).bytes_at(later(60)), 500);
        assert_eq!(fresh.take_back(u32::MAX, secs(1), NOW).bytes_at(NOW), 0);
    }

    /// Catches: a small model that forgets, for which the prompts of a large one go elsewhere.
    #[test]
    fn each_model_of_a_backend_has_a_cache_of_its_own() {
        let retentions = Retentions::default();
        let (small, large) = (CacheOf::model("llama-3-8b"), CacheOf::model("qwen3-235b"));
        assert_ne!(small, large, "of this many models some share one; not these");
        for tag in 1..=2 {
            let expected = ExpectedPrefix::new((1, 1), tag, Duration::from_secs(60));
            retentions.hear(small, expected, true, NOW);
        }
        let keeps = |cache| retentions.of(cache).keeps(Duration::from_secs(60), NOW);
        assert_eq!([small, large].map(keeps), [false, true]);
        let all: Vec<_> = (0..1_000).map(|n| CacheOf::model(&format!("model-{n}"))).collect();
        assert!(all.iter().all(|cache| usize::from(cache.0) < CACHES_MAX));
    }
}
