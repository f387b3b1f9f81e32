//! Points in time as records have them, without a formatter: one is written for each record.

use super::digits::pair;

/// Milliseconds since 1970 of the last moment that has a form here. It is the last that `jiff`
/// knows, and a record with a later time would be refused by many a receiver anyway.
const LAST_MS: u64 = 253_402_207_200_000;

const DAY_SECONDS: u64 = 24 * 3600;

/// A moment in UTC as RFC 3339 writes it, always with three digits of milliseconds so that texts
/// sort as times do: `2026-01-14T10:30:00.007Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; 24]);

impl Stamp {
    /// The moment so many milliseconds after 1970 began; `None` = beyond the year 9999.
    pub fn of(unix_ms: u64) -> Option<Stamp> {
        if unix_ms > LAST_MS {
            return None;
        }
        let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
        let (year, month, day) = civil(seconds / DAY_SECONDS);
        let second = seconds % DAY_SECONDS;
        let ([c, e], [y, r]) = (pair(year / 100), pair(year));
        let ([m, o], [d, a]) = (pair(month), pair(day));
        let ([h, u], [i, n]) = (pair(second / 3600), pair(second / 60 % 60));
        let ([s, t], [_, x], [z, w]) = (pair(second % 60), pair(ms / 100), pair(ms));
        Some(Stamp([
            c, e, y, r, b'-', m, o, b'-', d, a, b'T', h, u, b':', i, n, b':', s, t, b'.', x, z, w,
            b'Z',
        ]))
    }

    /// The whole of it.
    pub fn as_str(&self) -> &str {
        self.part(self.0.len())
    }

    /// The same as bytes, without a look at whether they are text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `2026-01-14`.
    pub fn day(&self) -> &str {
        self.part(10)
    }

    /// `2026-01-14T10`.
    pub fn hour(&self) -> &str {
        self.part(13)
    }

    /// `10:30:00.007`.
    pub fn time(&self) -> &str {
        self.as_str().get(11..23).unwrap_or_default()
    }

    fn part(&self, len: usize) -> &str {
        std::str::from_utf8(self.0.get(..len).unwrap_or_default()).unwrap_or_default()
    }
}

impl Default for Stamp {
    /// When 1970 began.
    fn default() -> Stamp {
        Stamp(*b"1970-01-01T00:00:00.000Z")
    }
}

/// Year, month and day of a day since 1970, by the rules of the Gregorian calendar. Years are
/// counted from March here, so that the day that some of them have more is their last one.
fn civil(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01, in eras of 400 years, which all have the same length.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Five months from March on have 153 days together, and so have the next five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + later, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `jiff` says.
    fn reference(unix_ms: u64) -> Option<String> {
        let time = jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()?;
        Some(format!("{time:.3}"))
    }

    fn stamp(unix_ms: u64) -> Option<String> {
        Stamp::of(unix_ms).map(|stamp| stamp.as_str().to_owned())
    }

    /// Catches: a day more or less at the end of February, of a year or of a century.
    #[test]
    fn days_are_those_of_the_calendar() {
        let ends = (1970..9999).flat_map(|year| {
            let march = jiff::civil::date(year, 3, 1);
            let january = jiff::civil::date(year + 1, 1, 1);
            [march, january].map(|date| (date - jiff::civil::date(1970, 1, 1)).get_days() as u64)
        });
        for day in (0..50_000).chain(ends.flat_map(|day| [day - 1, day])) {
            let ms = day * DAY_SECONDS * 1000;
            assert_eq!(stamp(ms), reference(ms));
        }
    }

    #[test]
    fn parts_are_parts_of_it() {
        let stamp = Stamp::of(1_768_386_600_007).unwrap();
        assert_eq!(stamp.as_str(), "2026-01-14T10:30:00.007Z");
        assert_eq!((stamp.day(), stamp.hour()), ("2026-01-14", "2026-01-14T10"));
        assert_eq!(stamp.time(), "10:30:00.007");
    }

    proptest! {
        /// Catches: a time of a bill that is another one, or that a later year takes away.
        #[test]
        fn any_moment_is_what_the_library_says(
            ms in prop_oneof![any::<u64>(), 0..LAST_MS, 1_700_000_000_000..1_900_000_000_000_u64],
            near in 0..2000_u64,
        ) {
            for ms in [ms, LAST_MS - 1000 + near] {
                prop_assert_eq!(stamp(ms), reference(ms));
            }
        }
    }
}
