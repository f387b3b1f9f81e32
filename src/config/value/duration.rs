//! Durations as the Go programs of the seeds write them: `500ms`, `1m30s`, `1.5h`, or seconds.

use super::quoted;
use crate::base::limits::DURATION_SECONDS_MAX;
use std::time::Duration;

const NS_PER_S: f64 = 1e9;

/// A duration above zero and of at most a year. A bare number counts seconds (in Go it would
/// count nanoseconds, which nobody means).
pub fn duration(text: &str) -> Result<Duration, String> {
    let nanoseconds = nanoseconds(text.trim()).ok_or_else(|| {
        format!("{} must be a duration, such as 500ms, 30s, 1m30s or 1h", quoted(text))
    })?;
    if nanoseconds < 1.0 {
        return Err(format!("{} must be a duration above zero", quoted(text)));
    }
    if nanoseconds > DURATION_SECONDS_MAX as f64 * NS_PER_S {
        return Err(format!(
            "{} must be at most {}h (one year)",
            quoted(text),
            DURATION_SECONDS_MAX / 3600
        ));
    }
    Ok(Duration::from_nanos(nanoseconds.round() as u64))
}

/// The same, or zero.
pub fn duration_or_zero(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" | "0ms" => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

fn nanoseconds(text: &str) -> Option<f64> {
    let (mut rest, mut sum) = (text, 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        // "." alone is no number, "1." and ".5" are (as in Go).
        let number: f64 = number.parse().ok()?;
        if tail.is_empty() && number_only(text) {
            return Some(number * NS_PER_S);
        }
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        sum += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => NS_PER_S,
                "m" => 60.0 * NS_PER_S,
                "h" => 3600.0 * NS_PER_S,
                _ => return None,
            };
        rest = tail;
    }
    Some(sum)
}

fn number_only(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// The shortest text that [`duration`] reads back: `500ms`, `90s`.
pub fn print_duration(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (unit, size) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if ns.is_multiple_of(size) {
            return format!("{}{unit}", ns / size);
        }
    }
    format!("{ns}ns")
}

/// A long time as a person says it: `83h20m`.
pub fn long_duration(seconds: u64) -> String {
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_are_said_without_zeros() {
        for (seconds, text) in
            [(2_000, "33m20s"), (300_000, "83h20m"), (3_601, "1h1s"), (7_200, "2h")]
        {
            assert_eq!(long_duration(seconds), text);
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
    }

    #[test]
    fn go_forms_and_bare_seconds() {
        for (text, ms) in [
            ("500ms", 500),
            ("1s", 1_000),
            ("1m30s", 90_000),
            ("1h", 3_600_000),
            ("1.5s", 1_500),
            ("3600", 3_600_000),
            ("0.5", 500),
            ("1h2m3s4ms", 3_723_004),
            (".5s", 500),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "", "0", "0s", "-1s", "s", "1d", "1 s x", "1s500", ".", "1e3", "9999999h", "1.2.3s",
            "5S",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn printing_and_reading_agree(ns in 1u64..DURATION_SECONDS_MAX * 1_000_000_000) {
            // f64 keeps 53 bits: whole microseconds of a year survive, finer than any timer.
            let want = Duration::from_micros((ns / 1000).max(1));
            proptest::prop_assert_eq!(duration(&print_duration(want)), Ok(want));
        }

        #[test]
        fn any_text_gives_an_answer(text in "[0-9.a-zµ ]{0,12}") {
            let _ = duration(&text);
        }
    }
}
