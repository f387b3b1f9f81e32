//! How long a lane leaves its receiver alone.
//!
//! A receiver that cannot be reached gets nothing for a while, then one batch at a time until one
//! is answered; the wait doubles with each that is not.
//!
//! A receiver that answers and does not take a record is alive, and the record may be at fault. So
//! others are sent at once, one at a time, for another opinion. Only when there is nothing left to
//! ask with, or [`LANE_OPINIONS_MAX`] in a row were not taken, is it held to be down; then the
//! waits grow no further than [`LANE_REFUSED_WAITS_MAX`] of them do.

use crate::base::limits::{LANE_OPINIONS_MAX, LANE_REFUSED_WAITS_MAX};
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
    /// Another opinion than that of the last failure is being asked for.
    doubted: bool,
    /// Answers in a row that took nothing. Zero when the last failure was no answer.
    refusals: u32,
    /// There is something new to ask with: the wait after a refusal is over.
    is_called: bool,
}

impl Backoff {
    /// A receiver of which nothing is known. The seed should differ between processes: many that
    /// wait for one receiver must not come back at the same instant.
    pub fn new(waits: Waits, seed: u64) -> Self {
        Backoff {
            waits,
            random: seed,
            round: 0,
            fails: 0,
            until: None,
            doubted: false,
            refusals: 0,
            is_called: false,
        }
    }

    /// What may be sent at this time.
    pub fn leave(&self, now: Instant) -> Leave {
        match self.until {
            None => Leave::All,
            Some(until) if until > now && !self.is_called => Leave::NotBefore(until),
            Some(_) => Leave::One,
        }
    }

    /// True when nothing is known against the receiver.
    pub fn is_well(&self) -> bool {
        self.until.is_none()
    }

    /// The round in which something is sent now.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// True while the lane waits for its receiver, or asks it with one batch.
    pub fn is_down(&self) -> bool {
        self.fails > 0
    }

    /// Waits in a row.
    pub fn waits(&self) -> u32 {
        self.fails
    }

    /// True while another record than the one that failed is wanted.
    pub fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// True while the last that is known of it is an answer that took nothing.
    pub fn is_refusing(&self) -> bool {
        self.refusals > 0
    }

    /// The receiver took what was sent in this round.
    pub fn answered(&mut self, round: u64) {
        if round == self.round {
            (self.fails, self.until, self.doubted) = (0, None, false);
            (self.refusals, self.is_called) = (0, false);
        }
    }

    /// What was sent in this round failed. The receiver may have named a wait; it counts when it
    /// is the longer one, and no further than ours may grow.
    pub fn failed(&mut self, round: u64, named: Option<Duration>, now: Instant) {
        if round == self.round {
            self.refusals = 0;
            self.pause(self.fails.saturating_add(1), named, now);
        }
    }

    /// What was sent in this round was answered, and not taken. `has_other`: there is a record
    /// that can give another opinion.
    pub fn refused(&mut self, round: u64, has_other: bool, now: Instant) {
        if round != self.round {
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        if has_other && self.refusals < LANE_OPINIONS_MAX {
            return self.ask(now);
        }
        self.pause(self.fails.saturating_add(1).min(LANE_REFUSED_WAITS_MAX), None, now);
    }

    /// A record came with which a receiver that refuses was not asked yet.
    pub fn call(&mut self) {
        self.is_called |= self.is_refusing() && self.refusals < LANE_OPINIONS_MAX;
    }

    fn pause(&mut self, fails: u32, named: Option<Duration>, now: Instant) {
        self.round += 1;
        (self.doubted, self.is_called) = (false, false);
        self.fails = fails;
        let wait = self.wait(fails).max(named.unwrap_or_default().min(self.waits.most));
        self.until = Some(now + wait);
    }

    fn ask(&mut self, now: Instant) {
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
        self.ask(now);
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
        let share = (self.random() >> 48) as u32;
        all / 2 + (all / 2).saturating_mul(share) / u32::from(u16::MAX)
    }

    /// Any number (SplitMix64).
    pub fn random(&mut self) -> u64 {
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

    /// Catches: one bad record that holds up all, a receiver that refuses everything and is asked
    /// without end, and one that is left alone for minutes although it answers.
    #[test]
    fn a_refusal_gets_other_opinions_up_to_a_limit() {
        let now = Instant::now();
        let mut backoff = Backoff::new(WAITS, 7);
        for _ in 1..LANE_OPINIONS_MAX {
            backoff.refused(backoff.round(), true, now);
            assert_eq!((backoff.leave(now), backoff.is_down()), (Leave::One, false));
        }
        for tries in 1..20 {
            backoff.refused(backoff.round(), true, now);
            let Leave::NotBefore(until) = backoff.leave(now) else { panic!("no wait") };
            let most = WAITS.least * (1 << (tries.min(LANE_REFUSED_WAITS_MAX) - 1));
            assert!(backoff.is_down() && until - now >= most / 2 && until - now <= most);
        }
    }

    /// Catches: what comes new and waits for a receiver that only refused what is old; and new
    /// records that end the wait for one that cannot be reached.
    #[test]
    fn a_new_record_is_another_opinion_of_a_receiver_that_refuses() {
        let now = Instant::now();
        let mut backoff = Backoff::new(WAITS, 7);
        backoff.refused(0, false, now);
        assert!(matches!(backoff.leave(now), Leave::NotBefore(_)) && backoff.is_down());
        backoff.call();
        assert_eq!(backoff.leave(now), Leave::One);
        backoff.failed(backoff.round(), None, now);
        backoff.call();
        assert!(matches!(backoff.leave(now), Leave::NotBefore(_)));
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
