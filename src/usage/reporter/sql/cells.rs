//! The values of a row: each as its column can hold it, without memory of its own where that can
//! be. Pure: a column and a record in, a value out.

use super::columns::{Letters, Width};
use crate::base::limits::SQL_JSON_DEPTH_MAX;
use std::borrow::Cow;

/// Bytes of the longest text of a time: `2026-01-14 10:30:00.007+00:00` has 29.
const SHORT_BYTES: usize = 32;

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell<'a> {
    /// NULL.
    Null,
    /// A whole number.
    Int(i64),
    /// A text.
    Text(Cow<'a, str>),
    /// A short text.
    Short(Short),
}

impl<'a> Cell<'a> {
    /// As a text: what the protocols of the servers take.
    pub fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Cell::Null => None,
            Cell::Int(number) => Some(number.to_string().into()),
            Cell::Text(text) => Some(text),
            Cell::Short(short) => Some(short.as_str().to_owned().into()),
        }
    }
}

/// A short text that is kept in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    bytes: [u8; SHORT_BYTES],
    len: u8,
}

impl Short {
    /// These texts together; what is too much of them is left out.
    pub fn of<const N: usize>(texts: [&str; N]) -> Short {
        let mut short = Short { bytes: [0; SHORT_BYTES], len: 0 };
        for text in texts {
            let from = usize::from(short.len);
            let Some(room) = short.bytes.get_mut(from..from + text.len()) else { break };
            room.copy_from_slice(text.as_bytes());
            short.len += text.len() as u8;
        }
        short
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// A request body as JSON that every database takes: as it was sent, or as a JSON string where it
/// is no JSON, is too long, or is JSON that one of them refuses. A client must not be able to keep
/// its record out of a table by what it sends.
pub fn json(body: &[u8], longest: usize) -> Cow<'_, str> {
    let plain = std::str::from_utf8(body).ok().filter(|text| {
        // PostgreSQL's JSONB has no NUL, and the parser refuses what others cannot hold: numbers
        // beyond a double, halves of surrogates.
        body.len() <= longest
            && !text.contains("\\u0000")
            && serde_json::from_str::<serde_json::Value>(text).is_ok_and(|v| is_flat(&v, 0))
    });
    if let Some(text) = plain {
        return Cow::Borrowed(text);
    }
    // Written as a string, a byte may become six, and there are the quotes.
    let kept = body.get(..body.len().min(longest.saturating_sub(2) / 6)).unwrap_or_default();
    let text = String::from_utf8_lossy(kept).replace('\0', "\u{fffd}");
    Cow::Owned(serde_json::to_string(&text).unwrap_or_else(|_| "null".to_owned()))
}

fn is_flat(value: &serde_json::Value, depth: usize) -> bool {
    let inside = |value| depth < SQL_JSON_DEPTH_MAX && is_flat(value, depth + 1);
    match value {
        serde_json::Value::Array(items) => items.iter().all(inside),
        serde_json::Value::Object(members) => members.values().all(inside),
        _ => true,
    }
}

/// A text as its column can hold it: without NUL, without letters that its character set has not,
/// and cut to its width.
pub fn fit(text: Cow<'_, str>, width: Option<Width>, letters: Letters) -> Cow<'_, str> {
    let (most, bytes) = match width {
        Some(Width::Letters(most)) => (most, usize::MAX),
        Some(Width::Bytes(bytes)) => (usize::MAX, bytes),
        None => (usize::MAX, usize::MAX),
    };
    // A text has no more letters than bytes, and what is ASCII is in every character set.
    let fine = |byte: u8| byte != 0 && (letters == Letters::All || byte < 0x80);
    if text.len() <= most.min(bytes) && text.bytes().all(fine) {
        return text;
    }
    let mut fitted = String::with_capacity(text.len().min(bytes).saturating_add(4));
    for letter in text.chars().take(most) {
        let letter = match letters {
            Letters::Ascii if !letter.is_ascii() || letter == '\0' => '?',
            _ if letter == '\0' => '\u{fffd}',
            Letters::ThreeBytes if letter.len_utf8() > 3 => '\u{fffd}',
            _ => letter,
        };
        if fitted.len() + letter.len_utf8() > bytes {
            break;
        }
        fitted.push(letter);
    }
    Cow::Owned(fitted)
}

#[cfg(test)]
mod tests;
