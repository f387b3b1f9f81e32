//! Periods of quotas: days, weeks that begin on Monday, and months, of a calendar in some zone.

use crate::config::plan::ResetPeriod;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan};

/// Periods are counted from here on: a Monday, the first day of a month and of a year.
const FIRST: Date = jiff::civil::date(2018, 1, 1);
/// Greater numbers begin anew: 44 years of days.
const NUMBERS: i64 = 1 << 14;

/// A period that is running: its number among its kind, and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    /// Greater for a later one.
    pub number: u16,
    /// Its first moment, milliseconds since 1970.
    pub begin_ms: i64,
    /// The first moment after it.
    pub end_ms: i64,
}

impl Period {
    /// The one that never ends.
    pub const ALWAYS: Period = Period { number: 0, begin_ms: i64::MIN, end_ms: i64::MAX };

    /// True when this moment lies in it.
    pub fn has(&self, ms: i64) -> bool {
        (self.begin_ms..self.end_ms).contains(&ms)
    }
}

/// The period of a kind in which a moment lies. Where a day begins twice, or not at midnight,
/// because the clocks are changed, the zone decides when it does.
pub fn period(kind: ResetPeriod, zone: &TimeZone, unix_ms: i64) -> Period {
    find(kind, zone, unix_ms).unwrap_or(Period::ALWAYS)
}

fn find(kind: ResetPeriod, zone: &TimeZone, unix_ms: i64) -> Option<Period> {
    let today = Timestamp::from_millisecond(unix_ms).ok()?.to_zoned(zone.clone()).date();
    let day = today.since(FIRST).ok()?.get_days();
    let (begin, step, number): (Date, Span, i64) = match kind {
        ResetPeriod::Never => return None,
        ResetPeriod::Daily => (today, 1.day(), day.into()),
        ResetPeriod::Weekly => {
            let since_monday = day.rem_euclid(7);
            (today.checked_sub(since_monday.days()).ok()?, 1.week(), (day - since_monday).into())
        }
        ResetPeriod::Monthly => {
            let months = i64::from(today.year() - FIRST.year()) * 12 + i64::from(today.month());
            (today.first_of_month(), 1.month(), months)
        }
    };
    let number = if kind == ResetPeriod::Weekly { number / 7 } else { number };
    let ms =
        |date: Date| Some(zone.to_zoned(date.at(0, 0, 0, 0)).ok()?.timestamp().as_millisecond());
    Some(Period {
        number: u16::try_from(number.rem_euclid(NUMBERS)).ok()?,
        begin_ms: ms(begin)?,
        end_ms: ms(begin.checked_add(step).ok()?)?,
    })
}

#[cfg(test)]
mod tests;
