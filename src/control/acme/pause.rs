//! When a certificate is renewed, and how long nobody asks after a failure.

use super::pair::CertificateLife;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// After a failed order it is not tried again for so long, doubled with each failure in a row.
/// Let's Encrypt allows five failed validations of a name within an hour.
const REFUSED_PAUSE_MIN: Duration = Duration::from_secs(2 * 60);
const REFUSED_PAUSE_MAX: Duration = Duration::from_secs(6 * 3600);
/// The same where the authority was not reached, which costs it nothing.
const UNREACHED_PAUSE_MIN: Duration = Duration::from_secs(5);
const UNREACHED_PAUSE_MAX: Duration = Duration::from_secs(3600);
/// What an authority asks for (`Retry-After`) is heeded up to so long.
const ASKED_PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);
/// A certificate in use that lives very shortly is asked for so many times within its life at
/// least.
const TRIES_PER_LIFE: u64 = 20;

/// One random byte as a share of something: instances and certificates do not all ask at the same
/// moment.
#[derive(Debug, Clone, Copy)]
pub struct Jitter(pub u8);

impl Jitter {
    /// A new one.
    pub fn random() -> Jitter {
        let mut byte = [0];
        // Without randomness there is no spreading, and nothing worse.
        let _ = getrandom::fill(&mut byte);
        Jitter(byte[0])
    }

    /// A share of so much, and all of it at most.
    pub fn of(self, most: u64) -> u64 {
        most / 255 * u64::from(self.0) + most % 255 * u64::from(self.0) / 255
    }
}

/// When a certificate is to be renewed, in milliseconds since 1970: at two thirds of its life, and
/// up to a thirtieth later.
pub fn renewal_ms(lifetime: CertificateLife, jitter: Jitter) -> u64 {
    let life_ms = lifetime.seconds() * 1000;
    lifetime.from_s * 1000 + life_ms / 3 * 2 + jitter.of(life_ms / 30)
}

/// How an order failed, as far as the next one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setback {
    /// The authority was not reached.
    Unreached,
    /// It said no, or never said yes.
    Refused {
        /// So long it wants to hear nothing.
        retry_after: Option<Duration>,
    },
}

/// Orders for a name that failed in a row. Lies beside the certificates, so that neither a restart
/// nor another instance tries at once what has just failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// None before this moment, in milliseconds since 1970.
    pub until_ms: u64,
    /// Why the last one failed, for a person.
    pub why: String,
}

impl Failures {
    /// One more, now. `in_use`: how long the certificate that is there lives.
    pub fn add(
        &mut self,
        setback: Setback,
        in_use: Option<CertificateLife>,
        (now_ms, jitter): (u64, Jitter),
    ) -> Duration {
        let doubled = |min: Duration, max: Duration| {
            let times = 1u32.checked_shl(self.count.min(20)).unwrap_or(u32::MAX);
            min.saturating_mul(times).min(max)
        };
        let mut pause = match setback {
            Setback::Unreached => doubled(UNREACHED_PAUSE_MIN, UNREACHED_PAUSE_MAX),
            // A time that is over, or was when our clock said so, is none.
            Setback::Refused { retry_after: Some(asked) } if !asked.is_zero() => {
                asked.min(ASKED_PAUSE_MAX)
            }
            Setback::Refused { .. } => doubled(REFUSED_PAUSE_MIN, REFUSED_PAUSE_MAX),
        };
        let is_asked = matches!(setback, Setback::Refused { retry_after: Some(_) });
        if let Some(lifetime) = in_use.filter(|_| !is_asked) {
            pause = pause.min(Duration::from_secs((lifetime.seconds() / TRIES_PER_LIFE).max(1)));
        }
        let ms = pause.as_millis() as u64;
        self.until_ms = now_ms + ms + jitter.of(ms / 10);
        self.count = self.count.saturating_add(1);
        pause
    }

    /// Whether it may be tried now. A moment that is further away than any pause was written by a
    /// clock that stood wrong.
    pub fn allow(&self, now_ms: u64) -> bool {
        let longest = ASKED_PAUSE_MAX.as_millis() as u64 * 11 / 10;
        self.until_ms <= now_ms || self.until_ms > now_ms + longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;
    const QUARTER: CertificateLife =
        CertificateLife { from_s: 1_000_000, until_s: 1_000_000 + 90 * DAY };

    /// Catches: a renewal that is too early (limits of the authority) or too late to be repeated.
    #[test]
    fn two_thirds_of_the_life_are_used() {
        let at = |jitter| (renewal_ms(QUARTER, Jitter(jitter)) / 1000 - QUARTER.from_s) / DAY;
        assert_eq!((at(0), at(255)), (60, 63));
        let none = CertificateLife { from_s: 7, until_s: 3 };
        assert_eq!(renewal_ms(none, Jitter(255)), 7000);
    }

    /// Catches: more failed validations within an hour than Let's Encrypt allows, pauses that do
    /// not end, one that another kind of failure shortens.
    #[test]
    fn pauses_grow_and_end() {
        let mut failures = Failures::default();
        let refused = Setback::Refused { retry_after: None };
        let mut now = 0;
        let mut tried = vec![0];
        for _ in 0..40 {
            failures.add(refused, None, (now, Jitter(0)));
            assert!(!failures.allow(failures.until_ms - 1));
            now = failures.until_ms;
            assert!(failures.allow(now));
            tried.push(now / 1000);
        }
        assert_eq!(tried.iter().filter(|s| **s < 3600).count(), 5, "{tried:?}");
        let last = tried.windows(2).last().unwrap();
        assert_eq!(last[1] - last[0], 6 * 3600);
        let unreached = failures.add(Setback::Unreached, None, (now, Jitter(0)));
        assert_eq!(unreached, UNREACHED_PAUSE_MAX);
    }

    /// Catches: an authority that says when it wants to be asked, and is asked before; one that
    /// says never, and is never asked; a short life that ends between two tries.
    #[test]
    fn what_the_authority_asks_for_goes_first() {
        let asked = |seconds| Setback::Refused { retry_after: Some(Duration::from_secs(seconds)) };
        let short = CertificateLife { from_s: 0, until_s: 60 };
        let pause =
            |setback, in_use| Failures::default().add(setback, in_use, (0, Jitter(0))).as_secs();
        assert_eq!(pause(asked(7200), Some(short)), 7200);
        assert_eq!(pause(asked(u64::MAX), None), DAY);
        let refused = Setback::Refused { retry_after: None };
        assert_eq!(pause(refused, Some(short)), 3);
        assert_eq!(pause(refused, Some(QUARTER)), 120);
        assert_eq!(pause(Setback::Unreached, Some(CertificateLife { from_s: 0, until_s: 5 })), 1);
    }

    /// Catches: a clock that was a year ahead when an order failed, and no order for a year.
    #[test]
    fn a_moment_too_far_away_is_no_moment() {
        let mut failures = Failures::default();
        failures.add(Setback::Unreached, None, (400 * DAY * 1000, Jitter(255)));
        assert!(failures.allow(35 * DAY * 1000));
    }
}
