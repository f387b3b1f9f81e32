//! How long streams wait at a backend for their first token, as far as that is known: a mean that
//! forgets, and what failures add to it. Pure: the caller brings the time. `state::member` keeps
//! one [`Latency`] for each backend in an atomic that all workers share.
//!
//! The model is the peak-sensitive mean of Finagle and linkerd: what gets worse is believed sooner
//! than what gets better. They believe one bad sample at once; here it counts for a quarter, since
//! the time to a first token depends on the prompt as much as on the engine, and one long prompt
//! would else keep requests from a good engine.

use super::repute::Tenths;
use std::time::Duration;

/// A sample that comes so long after the one before it counts for 63 %.
const MEMORY: Duration = Duration::from_secs(10);
/// After so long, 63 % of what was heard has faded towards the mean of the others: the backend gets
/// requests again.
const STALE: Duration = Duration::from_secs(10);
/// A sample counts for no less, however many come: those that say that it got faster.
const FASTER_SHARE: f64 = 1.0 / 16.0;
/// The same for those that say that it got slower.
const SLOWER_SHARE: f64 = 1.0 / 4.0;
/// What a failure adds to the strikes, of which a success takes one away: a backend that fails one
/// of five requests, or more often, goes on collecting them.
const STRIKES: u8 = 4;
/// Strikes beyond this are not counted: the backend seems so many times slower than it is.
const STRIKES_MAX: u8 = 60;
/// Units of the packed time, for each millisecond. It takes 24 bits: up to 17 minutes.
const UNITS: f64 = 16.0;
const UNITS_MAX: u32 = (1 << 24) - 1;

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// The mean, in sixteenths of a millisecond; 0: nothing was heard yet.
    units: u32,
    strikes: u8,
    /// When something was last heard.
    at: Tenths,
}

impl Latency {
    /// True when no failure is held against it.
    pub fn is_spotless(self) -> bool {
        self.strikes == 0
    }

    /// A stream got its first token after so long.
    pub fn hear(self, sample: Duration, now: Tenths) -> Latency {
        let sample = (sample.as_secs_f64() * 1000.0 * UNITS).clamp(1.0, f64::from(UNITS_MAX));
        let known = f64::from(self.units);
        let share = if sample > known { SLOWER_SHARE } else { FASTER_SHARE };
        let share = share.max(1.0 - self.kept_after(MEMORY, now));
        let mean = if self.units == 0 { sample } else { known + (sample - known) * share };
        Latency { units: mean.round().max(1.0) as u32, strikes: self.strikes_at(now), at: now }
    }

    /// A request got an answer.
    pub fn hear_success(self) -> Latency {
        Latency { strikes: self.strikes.saturating_sub(1), ..self }
    }

    /// A request got none, or one that says that the backend could not serve it.
    pub fn hear_failure(self, now: Tenths) -> Latency {
        let strikes = self.strikes_at(now).saturating_add(STRIKES).min(STRIKES_MAX);
        Latency { strikes, at: now, ..self }
    }

    /// What is left of the strikes: they fade, and must not come back when something is heard.
    fn strikes_at(self, now: Tenths) -> u8 {
        (f64::from(self.strikes) * self.kept_after(STALE, now)) as u8
    }

    /// The wait for a first token that is to be expected, in milliseconds; `None`: nothing is
    /// known. What is known fades towards `mean`, which is that of all backends.
    pub fn expected(self, mean: Option<f64>, now: Tenths) -> Option<f64> {
        let known = f64::from(self.units) / UNITS;
        let mean = mean.unwrap_or(known);
        (self.units > 0).then(|| mean + (known - mean) * self.kept_after(STALE, now))
    }

    /// How many times slower it is to be taken for, because of failures.
    pub fn penalty(self, now: Tenths) -> f64 {
        match self.strikes {
            0 => 1.0,
            strikes => 1.0 + f64::from(strikes) * self.kept_after(STALE, now),
        }
    }

    /// What is left of something that fades by 63 % in such a time.
    fn kept_after(self, time: Duration, now: Tenths) -> f64 {
        let age = f64::from(now.0.saturating_sub(self.at.0));
        if age == 0.0 {
            1.0
        } else {
            (-age / f64::from(Tenths::of(time).0)).exp()
        }
    }

    /// In one word for an atomic.
    pub fn pack(self) -> u64 {
        u64::from(self.at.0) << 32
            | u64::from(self.units.min(UNITS_MAX)) << 8
            | u64::from(self.strikes)
    }

    /// From such a word.
    pub fn unpack(word: u64) -> Latency {
        Latency {
            units: (word >> 8) as u32 & UNITS_MAX,
            strikes: word as u8,
            at: Tenths((word >> 32) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn known(samples: &[u64]) -> Latency {
        samples.iter().fold(Latency::default(), |known, n| known.hear(ms(*n), Tenths(10)))
    }

    fn expected(latency: Latency, at: u32) -> f64 {
        latency.expected(Some(500.0), Tenths(at)).unwrap()
    }

    #[test]
    fn what_gets_worse_is_believed_sooner_than_what_gets_better() {
        assert_eq!(Latency::default().expected(Some(500.0), Tenths(1)), None);
        assert_eq!(expected(known(&[100]), 10), 100.0);
        assert_eq!(expected(known(&[100, 500]), 10), 200.0);
        assert_eq!(expected(known(&[500, 100]), 10), 475.0);
        let later = known(&[500]).hear(ms(100), Tenths(10 + 400));
        assert!((100.0..108.0).contains(&expected(later, 410)), "the old is forgotten");
        assert!(expected(known(&[u64::MAX]), 10) > 1_000_000.0, "it is cut");
        assert!(expected(known(&[0]), 10) > 0.0, "it is known");
    }

    /// Catches: a backend that failed once, and whose old failures come back with each answer, so
    /// that it gets hardly any requests for minutes.
    #[test]
    fn what_has_faded_does_not_come_back_when_something_is_heard() {
        let failed = (0..20).fold(known(&[100]), |known, _| known.hear_failure(Tenths(10)));
        let minute = Tenths(10 + 600);
        assert!(failed.penalty(minute) < 1.2);
        assert!(failed.hear(ms(100), minute).penalty(minute) < 1.2);
    }

    /// Catches: a backend that was slow once and never gets a request again; one that was quick
    /// long ago and gets all of them.
    #[test]
    fn what_is_not_heard_of_is_taken_to_be_as_the_others_are() {
        for was in [100, 5000] {
            let known = known(&[was]);
            let distance = |at| (expected(known, at) - 500.0).abs();
            assert!(distance(110) < 0.4 * distance(10), "{}", distance(110));
            assert!(distance(1000) < 1.0, "{}", distance(1000));
            assert_eq!(known.expected(None, Tenths(1000)), Some(was as f64), "there are no others");
        }
    }

    /// Catches: a backend that fails at once, and is the quickest of all for it; one that is
    /// punished for ever.
    #[test]
    fn failures_count_until_they_are_long_ago_or_outweighed() {
        let failing = known(&[10]).hear_failure(Tenths(10));
        assert_eq!(failing.penalty(Tenths(10)), 5.0);
        assert!(failing.penalty(Tenths(310)) < 1.3);
        let healed = (0..4).fold(failing, |latency, _| latency.hear_success());
        assert_eq!(healed.penalty(Tenths(10)), 1.0);
        let dead = (0..100).fold(failing, |latency, _| latency.hear_failure(Tenths(11)));
        assert_eq!(dead.penalty(Tenths(11)), 61.0);
        assert_eq!(dead.hear_failure(Tenths(9000)).penalty(Tenths(9000)), 5.0);
    }

    #[test]
    fn a_word_holds_all_of_it() {
        for latency in
            [Latency::default(), known(&[1, 70_000]), known(&[9]).hear_failure(Tenths(77))]
        {
            assert_eq!(Latency::unpack(latency.pack()), latency);
        }
        let most = Latency { units: UNITS_MAX, strikes: u8::MAX, at: Tenths(u32::MAX) };
        assert_eq!(Latency::unpack(most.pack()), most);
    }
}
