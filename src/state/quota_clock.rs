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
mod tests;
