//! Single values as other systems write them: a number may be a text, a list may be JSON or words
//! between commas, a time may be many things.

use crate::base::limits::{KEY_IDENTITY_BYTES_MAX, KEY_LIST_ITEMS_MAX};
use crate::base::line::is_unshown;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// A value that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unclear;

/// Which end of a day a date without a time means: a key that expires on a day may be used on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Day {
    /// Its first moment.
    Begin,
    /// The first moment after it.
    End,
}

/// Seconds since 1970 at the end of the year 9999. More than that are milliseconds.
const LAST_SECOND: i64 = 253_402_300_799;
/// More than that are no time at all.
const LAST_MILLISECOND: i64 = LAST_SECOND * 1000 + 999;
/// Tokens are counted in 64-bit signed numbers wherever they are stored.
const WHOLE_MAX: u64 = i64::MAX as u64;
/// Beginning of the last day that calendars know: by it people mean "never".
const LAST_DAY: &str = "9999-12-31";

/// A text, or what would be one in Redis.
pub fn text(value: &Value) -> Result<Cow<'_, str>, Unclear> {
    match value {
        Value::String(text) => Ok(Cow::Borrowed(text)),
        Value::Number(number) => Ok(Cow::Owned(number.to_string())),
        Value::Bool(flag) => Ok(Cow::Borrowed(if *flag { "true" } else { "false" })),
        _ => Err(Unclear),
    }
}

/// A name for people: one line, and not too long. Whatever cannot be shown is left out; it limits
/// nothing, so anything else than a text is no name.
pub fn label(value: &Value) -> Result<Option<String>, Unclear> {
    let Ok(text) = text(value) else { return Ok(None) };
    let mut label = String::new();
    for c in text.chars().filter(|c| !is_unshown(*c)) {
        if label.len() + c.len_utf8() > KEY_IDENTITY_BYTES_MAX {
            break;
        }
        label.push(c);
    }
    Ok(Some(label).filter(|label| !label.is_empty()))
}

/// Yes or no.
pub fn boolean(value: &Value) -> Result<Option<bool>, Unclear> {
    match text(value)?.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Ok(Some(true)),
        "false" | "0" | "no" | "off" | "f" | "n" => Ok(Some(false)),
        _ => Err(Unclear),
    }
}

/// What may be a number or a moment, without blanks around it; `None`: nothing.
fn figure(value: &Value) -> Result<Option<String>, Unclear> {
    if matches!(value, Value::Bool(_)) {
        return Err(Unclear);
    }
    let text = text(value)?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}

/// A number that is not less than zero, without its fraction. What is more than zero stays so: a
/// limit of zero is none.
pub fn whole(value: &Value) -> Result<Option<u64>, Unclear> {
    let Some(text) = figure(value)? else { return Ok(None) };
    let text = text.as_str();
    if let Ok(number) = text.parse::<u64>() {
        return Ok(Some(number.min(WHOLE_MAX)));
    }
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1.0 => Ok(Some(1)),
        // The cast saturates.
        Ok(number) if number.is_finite() && number >= 0.0 => {
            Ok(Some((number as u64).min(WHOLE_MAX)))
        }
        _ => Err(Unclear),
    }
}

/// A number.
pub fn real(value: &Value) -> Result<Option<f64>, Unclear> {
    if matches!(value, Value::Bool(_)) {
        return Err(Unclear);
    }
    let text = text(value)?;
    match text.trim() {
        "" => Ok(None),
        text => match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Some(number)),
            _ => Err(Unclear),
        },
    }
}

/// A JSON array of texts, or texts between commas or blanks. An empty list is one; a text of which
/// nothing is left is not.
pub fn list<T>(
    value: &Value,
    parse: impl Fn(&str) -> Result<T, Unclear>,
) -> Result<Option<Vec<T>>, Unclear> {
    let items: Vec<Cow<'_, str>> = match value {
        Value::Array(items) => items.iter().map(item).collect::<Result<_, _>>()?,
        Value::String(text) => {
            let text = text.trim();
            if text.is_empty() {
                return Ok(None);
            }
            if text.starts_with('[') {
                let items: Vec<String> = serde_json::from_str(text).map_err(|_| Unclear)?;
                items.into_iter().map(Cow::Owned).collect()
            } else {
                let words = text.split(|c: char| c == ',' || c.is_whitespace());
                let items: Vec<_> = words.filter(|w| !w.is_empty()).map(Cow::Borrowed).collect();
                if items.is_empty() {
                    return Err(Unclear);
                }
                items
            }
        }
        _ => return Err(Unclear),
    };
    if items.len() > KEY_LIST_ITEMS_MAX {
        return Err(Unclear);
    }
    items.iter().map(|item| parse(item.trim())).collect::<Result<_, _>>().map(Some)
}

fn item(value: &Value) -> Result<Cow<'_, str>, Unclear> {
    match value {
        Value::String(text) => Ok(Cow::Borrowed(text)),
        _ => Err(Unclear),
    }
}

/// A JSON object, or a text of one. PHP writes an empty one as an empty list.
pub fn object(value: &Value) -> Result<Option<Map<String, Value>>, Unclear> {
    match value {
        Value::Object(object) => Ok(Some(object.clone())),
        Value::Array(items) if items.is_empty() => Ok(None),
        Value::String(text) if text.trim().is_empty() => Ok(None),
        Value::String(text) => serde_json::from_str(text).map(Some).map_err(|_| Unclear),
        _ => Err(Unclear),
    }
}

/// A moment: seconds or milliseconds since 1970, RFC 3339, a date, or what databases write (without
/// a zone it is UTC). Empty and zero are no moment.
pub fn time(value: &Value, day: Day) -> Result<Option<Timestamp>, Unclear> {
    let Some(text) = figure(value)? else { return Ok(None) };
    let text = text.as_str();
    if let Some(number) = number(text) {
        return since_1970(number);
    }
    match text.to_ascii_lowercase().as_str() {
        // PostgreSQL's words.
        "infinity" => return Ok(Some(Timestamp::MAX)),
        "-infinity" => return Ok(Some(Timestamp::MIN)),
        text if is_last_day(text) => return Ok(Some(Timestamp::MAX)),
        _ => {}
    }
    if !text.contains(':') {
        let date: Date = text.parse().map_err(|_| Unclear)?;
        let date = match day {
            Day::Begin => date,
            Day::End => date.checked_add(1.day()).map_err(|_| Unclear)?,
        };
        return in_utc(date.at(0, 0, 0, 0)).map(Some);
    }
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(Some(moment));
    }
    let moment: DateTime = text.parse().map_err(|_| Unclear)?;
    in_utc(moment).map(Some)
}

fn is_last_day(text: &str) -> bool {
    let of_time = |b: u8| b.is_ascii_digit() || b":.+-tz ".contains(&b);
    text.strip_prefix(LAST_DAY).is_some_and(|time| time.bytes().all(of_time))
}

fn in_utc(moment: DateTime) -> Result<Timestamp, Unclear> {
    moment.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|_| Unclear)
}

/// What a text of digits says, without its fraction. A date has more than one sign.
fn number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'+'));
    match text.parse::<i64>() {
        Ok(number) => Some(number),
        Err(_) if is_number => {
            let number: f64 = text.parse().ok()?;
            number.is_finite().then_some(number as i64)
        }
        Err(_) => None,
    }
}

fn since_1970(number: i64) -> Result<Option<Timestamp>, Unclear> {
    let (last_second, last_ms) = (Timestamp::MAX.as_second(), Timestamp::MAX.as_millisecond());
    let found = match number {
        0 => return Ok(None),
        // The last hours of 9999 are beyond the last moment that the library knows.
        _ if number <= LAST_SECOND && number > last_second => Ok(Timestamp::MAX),
        _ if number <= LAST_SECOND => Timestamp::from_second(number),
        _ if number <= last_ms => Timestamp::from_millisecond(number),
        _ if number <= LAST_MILLISECOND => Ok(Timestamp::MAX),
        _ => return Err(Unclear),
    };
    found.map(Some).map_err(|_| Unclear)
}
