//! How long a lane leaves its receiver alone.
//!
//! A receiver that cannot be reached gets nothing for a while, then one batch at a time until one
//! is answered; the wait doubles with each that is not. A single record that fails may be at fault
//! itself: then one other is sent at once for a second opinion, and only when that fails too is the
//! receiver held to be down.

use std::time::{Duration, Instant};

/// The first wait and the longest one.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Before the first repeated try; doubled for each further one.
    pub least: Duration,
    /// Between two tries at most.
    pub most: Duration,
}

/// What may be sent now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// As much as there are senders.
    All,
    /// One batch, whose fate tells how the receiver is.
    One,
    /// Nothing before that time.
    NotBefore(Instant),
}

/// The receiver as the lane sees it.
pub struct Backoff {
    waits: Waits,
    random: u64,
    /// Rises with each change for the worse. What was sent in an earlier one is old news: four
    /// sends that fail together are one failure.
    round: u64,
    /// Waits in a row.
    fails: u32,
    /// `None` while the receiver is well.
    until: Option<Instant>,
    /// The second opinion of this failure is being asked for.
    doubted: bool,
}

impl Backoff {
    /// A receiver of which nothing is known. The seed should differ between processes: many that
    /// wait for one receiver must not come back at the same instant.
    pub fn new(waits: Waits, seed: u64) -> Self {
        Backoff { waits, random: seed, round: 0, fails: 0, until: None, doubted: false }
    }

    /// What may be sent at this time.
    pub fn leave(&self, now: Instant) -> Leave {
        match self.until {
            None => Leave::All,
            Some(until) if until > now => Leave::NotBefore(until),
            Some(_) => Leave::One,
        }
    }

    /// The round in which something is sent now.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// True while the lane waits for its receiver, or asks it with one batch.
    pub fn is_down(&self) -> bool {
        self.fails > 0
    }

    /// True when it did not come back after the first wait.
    pub fn is_down_again(&self) -> bool {
        self.fails > 1
    }

    /// True while another record than the one that failed is wanted.
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// The receiver answered what was sent in this round.
    pub fn answered(&mut self, round: u64) {
        if round == self.round {
            (self.fails, self.until, self.doubted) = (0, None, false);
        }
    }

    /// What was sent in this round failed. The receiver may have named a wait; it counts when it
    /// is the longer one, and no further than ours may grow.
    pub fn failed(&mut self, round: u64, named: Option<Duration>, now: Instant) {
        if round != self.round {
            return;
        }
        self.round += 1;
        self.doubted = false;
        self.fails = self.fails.saturating_add(1);
        let wait = self.wait(self.fails).max(named.unwrap_or_default().min(self.waits.most));
        self.until = Some(now + wait);
    }

    /// What was sent in this round failed, and may be at fault itself.
    pub fn doubt(&mut self, round: u64, now: Instant) {
        if round != self.round {
            return;
        }
        if self.doubted {
            return self.failed(round, None, now);
        }
        self.round += 1;
        self.doubted = true;
        self.until = Some(now);
    }

    /// What was lost in this round may be at fault itself, whether that is news or not: another is
    /// sent at once. False when the receiver is known to be away, or that other is this one.
    pub fn question(&mut self, round: u64, now: Instant) -> bool {
        let is_open = round == self.round || self.until.is_none();
        if !is_open || self.doubted {
            return false;
        }
        self.doubt(self.round, now);
        true
    }

    /// Ends a wait: there will be no other time.
    pub fn hurry(&mut self, now: Instant) {
        self.until = self.until.map(|until| until.min(now));
    }

    /// The wait before the n-th repeated try (from 1): doubling, and anywhere between half and all
    /// of it.
    pub fn wait(&mut self, tries: u32) -> Duration {
        let doublings = tries.saturating_sub(1).min(31);
        let all = self.waits.least.saturating_mul(1 << doublings).min(self.waits.most);
        // Sixteen random bits are spread enough.
        let share = (self.next_random() >> 48) as u32;
        all / 2 + (all / 2).saturating_mul(share) / u32::from(u16::MAX)
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITS: Waits = Waits { least: Duration::from_secs(1), most: Duration::from_secs(300) };

    /// Catches: a wait that grows without end, is not jittered, or is none.
    #[test]
    fn waits_double_up_to_a_limit_and_differ() {
        let mut backoff = Backoff::new(WAITS, 7);
        for (tries, most) in [(0, 1), (1, 1), (2, 2), (9, 256), (10, 300), (u32::MAX, 300)] {
            let wait = backoff.wait(tries).as_millis();
            assert!((most * 500..=most * 1000).contains(&wait), "{wait} ms after {tries}");
        }
        let waits: std::collections::HashSet<_> = (0..32).map(|_| backoff.wait(10)).collect();
        assert!(waits.len() > 16);
    }

    /// Catches: concurrent failures that each double the wait, and old successes that end it.
    #[test]
    fn sends_of_one_round_are_one_failure() {
        let now = Instant::now();
        let mut backoff = Backoff::new(WAITS, 7);
        (0..4).for_each(|_| backoff.failed(0, None, now));
        backoff.answered(0);
        assert!(backoff.is_down());
        assert_eq!(backoff.leave(now + WAITS.least), Leave::One);
        backoff.answered(backoff.round());
        assert_eq!(backoff.leave(now), Leave::All);
    }

    /// Catches: a wait that the receiver asked for and does not get, or that is longer than ours.
    #[test]
    fn a_named_wait_counts_within_bounds() {
        let now = Instant::now();
        for (named, least, most) in [(40, 40, 40), (0, 0, 1), (100_000, 300, 300)] {
            let mut backoff = Backoff::new(WAITS, 7);
            backoff.failed(0, Some(Duration::from_secs(named)), now);
            let Leave::NotBefore(until) = backoff.leave(now) else { panic!("no wait") };
            let wait = until - now;
            assert!(wait >= Duration::from_secs(least) && wait <= Duration::from_secs(most));
        }
    }

    /// Catches: one bad record that holds up all, or a dead receiver that is asked twice as often.
    #[test]
    fn a_doubtful_failure_gets_one_second_opinion() {
        let now = Instant::now();
        let mut backoff = Backoff::new(WAITS, 7);
        backoff.doubt(backoff.round(), now);
        assert_eq!((backoff.leave(now), backoff.is_down()), (Leave::One, false));
        backoff.doubt(backoff.round(), now);
        assert!(matches!(backoff.leave(now), Leave::NotBefore(_)) && backoff.is_down());
    }

    /// Catches: a wait that ends because a late loss comes in, and a question without end.
    #[test]
    fn a_question_is_asked_of_a_receiver_that_may_be_well() {
        let now = Instant::now();
        let mut backoff = Backoff::new(WAITS, 7);
        backoff.failed(0, None, now);
        let old = backoff.round() - 1;
        assert!(!backoff.question(old, now), "it waits");
        assert!(matches!(backoff.leave(now), Leave::NotBefore(_)));
        backoff.answered(backoff.round());
        assert!(backoff.question(old, now), "it is well");
        assert_eq!((backoff.leave(now), backoff.is_doubted()), (Leave::One, true));
        assert!(!backoff.question(backoff.round(), now), "it was asked");
        backoff.failed(backoff.round(), None, now);
        assert!(backoff.question(backoff.round(), now), "it is tried whether it is back");
    }
}
