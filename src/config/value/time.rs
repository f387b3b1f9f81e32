//! Points in time: RFC 3339, or a date.

use super::quoted;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// Which end of a day a bare date means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `starts_at: 2026-01-01` is the first moment of that day.
    First,
    /// `expires_at: 2026-12-31` is valid through that day: the first moment of the next one.
    AfterLast,
}

/// A point in time: RFC 3339 with its zone, or a date in UTC.
pub fn instant(text: &str, end: End) -> Result<Timestamp, String> {
    let advice = || {
        format!(
            "{} must be a time such as 2026-12-31T23:59:59Z, or a date such as 2026-12-31",
            quoted(text)
        )
    };
    let text = text.trim();
    if text.len() > 10 {
        return text.parse::<Timestamp>().map_err(|_| advice());
    }
    let mut date: Date = text.parse().map_err(|_| advice())?;
    if end == End::AfterLast {
        date = date.checked_add(1.day()).map_err(|_| advice())?;
    }
    date.to_zoned(TimeZone::UTC).map(|z| z.timestamp()).map_err(|_| advice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_lasts_to_its_end() {
        let at = |text, end| instant(text, end).unwrap().to_string();
        assert_eq!(at("2026-12-31", End::AfterLast), "2027-01-01T00:00:00Z");
        assert_eq!(at("2026-12-31", End::First), "2026-12-31T00:00:00Z");
        assert_eq!(at("2026-12-31T23:59:59Z", End::AfterLast), "2026-12-31T23:59:59Z");
        assert_eq!(at("2026-12-31T23:59:59+08:00", End::AfterLast), "2026-12-31T15:59:59Z");
        for bad in ["", "tomorrow", "2026-13-01", "2026-12-31T23:59:59", "1735689600", "9999-12-31"]
        {
            assert!(instant(bad, End::AfterLast).is_err(), "{bad}");
        }
    }
}
