//! Which period of a quota is running: looked up in the calendar when one ends, and else known.

use crate::config::plan::{Auth, OnExhausted, ResetPeriod};
use crate::keys::facts::KeyFacts;
use crate::keys::window::{period, Period};
use crate::state::counters::quota::{QuotaTerms, QuotaWindow};
use jiff::tz::TimeZone;
use std::cell::Cell;
use std::sync::Arc;

/// The calendar of one view of one worker.
pub struct QuotaClock {
    zone: TimeZone,
    /// The day, the week and the month that were looked up last.
    known: [Cell<Option<Period>>; 3],
    /// What a request may cost is reserved before it goes to an engine.
    pub reserves: bool,
    /// A stream that needs more than there is ends there.
    pub cuts: bool,
}

impl QuotaClock {
    /// Of a configuration.
    pub fn of(auth: Option<&Auth>) -> QuotaClock {
        let zone = auth.and_then(|auth| TimeZone::get(&auth.quota_timezone).ok());
        QuotaClock {
            zone: zone.unwrap_or(TimeZone::UTC),
            known: Default::default(),
            reserves: auth.is_none_or(|auth| auth.quota_reserve),
            cuts: auth.is_some_and(|auth| auth.quota_on_exhausted == OnExhausted::Cut),
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

    /// When a key's quota starts again, milliseconds since 1970; `None`: never, or it has none.
    pub fn resets_ms(&self, key: &KeyFacts, unix_ms: i64) -> Option<i64> {
        let (_, period) = self.period(key.quota_reset_period, unix_ms);
        Some(period.end_ms).filter(|_| key.total_quota > 0 && period != Period::ALWAYS)
    }

    /// What counts for a key that several providers know, and under whose identity of it; `None`:
    /// nobody names a quota. One count has one kind of period, that of the first who names a quota.
    /// Quotas of that kind hold together, as the strictest; those of another are what their
    /// providers say they are, and are not counted here.
    pub fn terms_of<'a>(
        &self,
        keys: &'a [Arc<KeyFacts>],
        unix_ms: u64,
    ) -> Option<(&'a KeyFacts, QuotaTerms)> {
        let mut all = keys.iter().filter_map(|key| Some((&**key, self.terms(key, unix_ms)?)));
        let (first, terms) = all.next()?;
        let strictest =
            all.fold(terms, |terms, (_, other)| terms.strictest(other).unwrap_or(terms));
        Some((first, strictest))
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
    use crate::state::counters::quota::Quota;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

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

    /// Catches: a time of reset that is not the end of the period by which is counted.
    #[test]
    fn a_quota_starts_again_when_its_period_is_over() {
        let text = "auth: {quota_timezone: Europe/Berlin, pipeline: [{type: static}]}";
        let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
        let clock = QuotaClock::of(plan.auth.as_ref());
        let at = |kind, text| {
            let resets = clock.resets_ms(&key(kind, None), ms(text) as i64)?;
            Some(jiff::Timestamp::from_millisecond(resets).unwrap().to_string())
        };
        let now = "2026-02-28T23:30:00Z";
        assert_eq!(at(ResetPeriod::Daily, now).as_deref(), Some("2026-03-01T23:00:00Z"));
        assert_eq!(at(ResetPeriod::Weekly, now).as_deref(), Some("2026-03-01T23:00:00Z"));
        assert_eq!(at(ResetPeriod::Monthly, now).as_deref(), Some("2026-03-31T22:00:00Z"));
        assert_eq!(at(ResetPeriod::Never, now), None);
        let unlimited = KeyFacts { total_quota: 0, ..key(ResetPeriod::Daily, None) };
        assert_eq!(clock.resets_ms(&unlimited, 0), None);
    }

    fn any_key() -> impl Strategy<Value = KeyFacts> {
        use ResetPeriod::{Daily, Monthly, Never};
        let kind = proptest::sample::select(vec![Never, Daily, Daily, Monthly]);
        (kind, 0_u64..60, 0_u64..60).prop_map(|(kind, total, used)| KeyFacts {
            total_quota: total,
            used_quota: used,
            quota_reset_period: kind,
            ..KeyFacts::new(KeyDigest::of(b"a"))
        })
    }

    proptest! {
        /// Catches: a count for several quotas that lets something through which one of them would
        /// not, that refuses what all would let through, or that holds a key to the quota of
        /// another kind of period.
        #[test]
        fn one_count_is_as_strict_as_all_quotas_of_its_kind(
            keys in proptest::collection::vec(any_key(), 0..4),
            steps in proptest::collection::vec((0_u64..20, 0_u64..2 * 86_400_000), 0..20),
        ) {
            let clock = QuotaClock::of(None);
            let keys: Vec<_> = keys.into_iter().map(Arc::new).collect();
            let kind = keys.iter().find(|key| key.total_quota > 0).map(|k| k.quota_reset_period);
            let held: Vec<_> = keys
                .iter()
                .filter(|key| key.total_quota > 0 && Some(key.quota_reset_period) == kind)
                .collect();
            let [word, own] = [0; 2].map(AtomicU64::new);
            let count = Quota { used: &word, own: &own, reserved: &[], column: 0 };
            // The reference: each quota with a count of its own, which begins anew with its period.
            let mut now = ms("2026-01-31T12:00:00Z");
            let mut begun = None;
            let mut used: Vec<u64> = held.iter().map(|key| key.used_quota).collect();
            for (tokens, pause) in steps {
                now += pause;
                let running = period_of(kind, now);
                // What was used when the key is met counts for the period that runs then.
                if begun.replace(running).is_some_and(|before| before != running) {
                    used.iter_mut().for_each(|used| *used = 0);
                }
                let is_in = held.iter().zip(&used).all(|(key, used)| *used < key.total_quota);
                match clock.terms_of(&keys, now) {
                    None => prop_assert!(held.is_empty()),
                    Some((whose, terms)) => {
                        count.meet(terms);
                        prop_assert_eq!(Some(whose.quota_reset_period), kind);
                        prop_assert_eq!(count.used(terms) < terms.total, is_in);
                        if is_in {
                            count.debit(terms, tokens, 0);
                            used.iter_mut().for_each(|used| *used += tokens);
                        }
                    }
                }
            }
        }
    }

    fn period_of(kind: Option<ResetPeriod>, now: u64) -> Option<i64> {
        let kind = kind.filter(|kind| *kind != ResetPeriod::Never)?;
        Some(period(kind, &TimeZone::UTC, now as i64).begin_ms)
    }
}
