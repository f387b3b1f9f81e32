//! Texts of single values and what they mean. Pure: text in, value or advice out.
//!
//! *Takes:* the text of one value. *Gives:* the value, or how it should be written. *Runs on:* the
//! main thread. *May:* allocate. *Never:* knows which key it belongs to.

mod duration;
mod header;
mod net;
mod redis;
mod sql;
mod time;
mod url;

pub use duration::{duration, duration_or_zero, long_duration, print_duration};
pub use header::{header_name, header_value};
pub use net::{listen, overlap, IpRange};
pub use redis::{host_and_port, redis_address, RedisAddress};
pub use sql::options as sql_options;
pub use sql::{sql_address, sql_hosts, sql_remarks, SqlAddress, SqlDriver, SqlPlace, SqlServer};
pub use time::{instant, End};
pub use url::{http_url, Url};

use super::plan::endpoints::BELOW_MODELS;
use super::report::nearest;
use crate::base::line::is_unshown;
use crate::http::path::normalise;
use std::fmt::Display;
use std::ops::RangeInclusive;

/// `true` or `false`, as YAML writes them.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "True" | "TRUE" => Ok(true),
        "false" | "False" | "FALSE" => Ok(false),
        _ => Err(format!("{} must be true or false", quoted(text))),
    }
}

/// What `read` makes of a text; an empty one is none.
pub fn optional<T>(
    read: impl FnOnce(&str) -> Result<T, String>,
) -> impl FnOnce(&str) -> Result<Option<T>, String> {
    |text| if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

/// A whole number within a range; the message names the range.
pub fn int<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: TryFrom<i128> + Into<i128> + Copy,
{
    let (low, high) = ((*range.start()).into(), (*range.end()).into());
    let value = text.trim().parse::<i128>().ok().filter(|v| (low..=high).contains(v));
    value.and_then(|v| T::try_from(v).ok()).ok_or_else(|| {
        if high >= i128::from(u32::MAX) {
            format!("{} must be a whole number of {low} or more", quoted(text))
        } else {
            format!("{} must be a whole number from {low} to {high}", quoted(text))
        }
    })
}

/// One of the named values; the message lists them, and names the one that is most likely meant.
pub fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    if let Some((_, value)) = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        return Ok(*value);
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let meant = nearest(&text.to_ascii_lowercase(), names.iter().copied());
    let meant = meant.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
    Err(format!("{} is not one of: {}{meant}", quoted(text), names.join(", ")))
}

/// Bytes: a whole number, or one with `KB`, `MB`, `GB` (powers of 1000) or `KiB`, `MiB`, `GiB`.
pub fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "ki" | "kib" => 1 << 10,
        "m" | "mi" | "mib" => 1 << 20,
        "g" | "gi" | "gib" => 1 << 30,
        _ => return Err(format!("{} must be bytes, such as 1048576 or 1MiB", quoted(text))),
    };
    let value = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    value.filter(|v| range.contains(v)).ok_or_else(|| {
        format!("{} must be from {} to {} bytes", quoted(text), range.start(), range.end())
    })
}

/// Any text but the empty one.
pub fn nonempty(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("must not be empty".into());
    }
    Ok(text.to_owned())
}

/// An absolute path of a URL, without query: `/health`.
pub fn url_path(text: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_graphic() && !matches!(b, b'#' | b'?');
    if text.starts_with('/') && text.bytes().all(fine) {
        return Ok(text.to_owned());
    }
    Err(format!("{} must be a path that begins with `/`, such as /health", quoted(text)))
}

/// A path under which clients ask, or the start of one. What they ask for is brought into its
/// plainest spelling before it is compared, so that nothing else could ever match.
pub fn request_path(text: &str) -> Result<String, String> {
    let path = url_path(text)?;
    let never = |why: &str| format!("{} can never match: {why}", quoted(text));
    let mut plain = path.clone().into_bytes();
    let normal = normalise(&mut plain).map_err(|bad| never(bad.0))?;
    if normal.encoded_slash && !path.starts_with(BELOW_MODELS) {
        return Err(never("an encoded slash may stand below /v1/models/ only"));
    }
    plain.truncate(normal.len);
    match String::from_utf8(plain) {
        Ok(plain) if plain == path => Ok(path),
        Ok(plain) => Err(never(&format!("write {}", quoted(plain)))),
        Err(_) => Err(never("it is not text")),
    }
}

/// A value in a message: in backquotes, control characters visible, long ones cut. No backquote
/// inside, so that the end of the value can be told.
pub fn quoted(text: impl Display) -> String {
    let text = text.to_string().replace('`', "'");
    let mut shown = String::new();
    for c in text.chars().take(60) {
        match is_unshown(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    if text.chars().count() > 60 {
        shown.push('…');
    }
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units_and_limits() {
        let all = 0..=u64::MAX;
        assert_eq!(size("33554432", all.clone()), Ok(32 << 20));
        assert_eq!(size("32MiB", all.clone()), Ok(32 << 20));
        assert_eq!(size("32 MB", all.clone()), Ok(32_000_000));
        assert_eq!(size("1k", all.clone()), Ok(1024));
        for bad in ["", "MiB", "-1", "1.5MiB", "99999999999GiB", "1x"] {
            assert!(size(bad, all.clone()).is_err(), "{bad}");
        }
        assert!(size("11", 1..=10).unwrap_err().contains("1 to 10"));
    }

    #[test]
    fn messages_name_the_limit_or_the_choices() {
        assert!(int::<u32>("0", 1..=9).unwrap_err().contains("from 1 to 9"));
        assert!(int::<u64>("x", 1..=u64::MAX).unwrap_err().contains("1 or more"));
        let message = choice("fast", &[("slow", 1), ("slower", 2)]).unwrap_err();
        assert!(message.ends_with("slow, slower"), "{message}");
        let message = choice("RoundRobin", &[("round_robin", 1), ("random", 2)]).unwrap_err();
        assert!(message.ends_with("did you mean `round_robin`?"), "{message}");
        assert!(quoted("a\r\nb").contains("\\r\\n"));
    }
}
