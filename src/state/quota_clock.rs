//! Which period of a quota is running: looked up in the calendar when one ends, and else known.

use crate::config::plan::{Auth, ResetPeriod};
use crate::keys::facts::KeyFacts;
use crate::keys::window::{period, Period};
use crate::state::counters::quota::{QuotaTerms, QuotaWindow};
use jiff::tz::TimeZone;
use std::cell::Cell;

/// The calendar of one view of one worker.
pub struct QuotaClock {
    zone: TimeZone,
    /// The day, the week and the month that were looked up last.
    known: [Cell<Option<Period>>; 3],
    /// What a request may cost is reserved before it goes to an engine.
    pub reserves: bool,
}

impl QuotaClock {
    /// Of a configuration.
    pub fn of(auth: Option<&Auth>) -> QuotaClock {
        let zone = auth.and_then(|auth| TimeZone::get(&auth.quota_timezone).ok());
        QuotaClock {
            zone: zone.unwrap_or(TimeZone::UTC),
            known: Default::default(),
            reserves: auth.is_none_or(|auth| auth.quota_reserve),
        }
    }

    /// What counts for a key at a moment; `None`: it has no quota.
    pub fn terms(&self, key: &KeyFacts, unix_ms: u64) -> Option<QuotaTerms> {
        if key.total_quota == 0 {
            return None;
        }
        let unix_ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
        let (kind, now) = self.period(key.quota_reset_period, unix_ms);
        // What was used in a period that is over is nothing in this one.
        let is_of_now = |begin: jiff::Timestamp| {
            kind == 0 || now.has(begin.as_millisecond()) || begin.as_millisecond() >= now.end_ms
        };
        let is_running = key.last_reset_at.is_none_or(is_of_now);
        Some(QuotaTerms {
            window: QuotaWindow::new(kind, now.number),
            total: key.total_quota,
            first: if is_running { key.used_quota } else { 0 },
        })
    }

    fn period(&self, kind: ResetPeriod, unix_ms: i64) -> (u16, Period) {
        let place = match kind {
            ResetPeriod::Never => return (0, Period::ALWAYS),
            ResetPeriod::Daily => 0,
            ResetPeriod::Weekly => 1,
            ResetPeriod::Monthly => 2,
        };
        let known = self.known.get(place);
        let found = match known.and_then(Cell::get).filter(|known| known.has(unix_ms)) {
            Some(known) => known,
            None => {
                let found = period(kind, &self.zone, unix_ms);
                known.into_iter().for_each(|known| known.set(Some(found)));
                found
            }
        };
        (place as u16 + 1, found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::digest::KeyDigest;

    fn key(kind: ResetPeriod, last_reset_at: Option<&str>) -> KeyFacts {
        KeyFacts {
            total_quota: 100,
            used_quota: 40,
            quota_reset_period: kind,
            last_reset_at: last_reset_at.map(|at| at.parse().unwrap()),
            ..KeyFacts::new(KeyDigest::of(b"a"))
        }
    }

    fn ms(text: &str) -> u64 {
        text.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64
    }

    /// Catches: a period that goes on when it is over, or begins anew within itself; tokens of an
    /// earlier one that count in this one.
    #[test]
    fn terms_change_with_the_period() {
        let clock = QuotaClock::of(None);
        let at = |key: &KeyFacts, text: &str| clock.terms(key, ms(text)).unwrap();
        let daily = key(ResetPeriod::Daily, None);
        let first = at(&daily, "2026-03-01T00:00:00Z");
        assert_eq!(at(&daily, "2026-03-01T23:59:59Z"), first);
        assert!(at(&daily, "2026-03-02T00:00:00Z").window > first.window);
        assert_eq!(at(&daily, "2026-03-01T12:00:00Z"), first, "the clock was put back");
        assert_eq!((first.total, first.first), (100, 40));
        let old = key(ResetPeriod::Monthly, Some("2026-02-27T00:00:00Z"));
        assert_eq!(at(&old, "2026-02-28T00:00:00Z").first, 40);
        assert_eq!(at(&old, "2026-03-01T00:00:00Z").first, 0);
        let never = key(ResetPeriod::Never, Some("2020-01-01T00:00:00Z"));
        assert_eq!(at(&never, "2026-03-01T00:00:00Z").first, 40);
        let unlimited = KeyFacts { total_quota: 0, ..never };
        assert_eq!(clock.terms(&unlimited, 0), None);
    }
}
