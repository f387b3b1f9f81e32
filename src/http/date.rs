//! Dates of HTTP (RFC 9110 section 5.6.7): the form that is written today, and the two that
//! recipients must understand all the same.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const FORMS: [&str; 3] =
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
/// The longest: `Wednesday, 09-Nov-94 08:49:37 GMT`.
const BYTES_MAX: usize = 33;

/// Seconds since 1970; `None`: it is no date, or none of this century and the next half.
pub fn unix_seconds(value: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(value.get(..value.len().min(BYTES_MAX + 1))?).ok()?;
    if text.len() > BYTES_MAX {
        return None;
    }
    let date = FORMS.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    let seconds = date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    u32::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Catches: a date that is not understood, or as another one.
    #[test]
    fn each_form_is_understood_and_nothing_else() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(unix_seconds(text.as_bytes()), Some(784_111_777), "{text}");
        }
        for text in [
            "",
            "soon",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 31 Feb 2027 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT and so on",
            "Sun, 06 Nov 1904 08:49:37 GMT",
            "1994-11-06T08:49:37Z",
        ] {
            assert_eq!(unix_seconds(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_bring_it_down(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            unix_seconds(&value);
        }
    }
}
