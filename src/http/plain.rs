//! Heads as nearly all senders write them: arrived in one piece, plain first line, every line ended
//! by CRLF, no doubtful byte. They are read in one walk, at half the cost of finding their end,
//! splitting and checking them one after the other.
//!
//! What is not plain, be it wrong, cut off or merely odd, is `None` here and left to
//! [`scan`](super::scan) and `httparse`: they say what is wrong with it. Of a plain head they say
//! the same as this module; tests hold them to that.

use super::field::Known;
use super::head::{Field, Span, Version};
use crate::base::limits::{FIELD_NAME_BYTES_MAX, HEAD_FIELDS_MAX};
use crate::base::word::{below, no_name, run_len, TOPS};

/// A request line, split.
#[derive(Debug)]
pub(super) struct RequestLine {
    pub method: Span,
    pub target: Span,
    pub version: Version,
    /// First byte of the next line.
    pub end: usize,
}

/// A status line, split.
#[derive(Debug)]
pub(super) struct StatusLine {
    pub status: u16,
    pub version: Version,
    /// First byte of the next line.
    pub end: usize,
}

/// The request line at the start of `bytes`.
pub(super) fn request_line(bytes: &[u8]) -> Option<RequestLine> {
    let method = bytes.iter().position(|b| !b.is_ascii_uppercase()).filter(|len| *len > 0)?;
    let [b' ', rest @ ..] = bytes.get(method..)? else { return None };
    let len = run_len(rest, |word| below(word, b'!') | (word & TOPS));
    let version = match rest.get(len..)?.first_chunk()? {
        b" HTTP/1.1\r\n" if len > 0 => Version::Http11,
        b" HTTP/1.0\r\n" if len > 0 => Version::Http10,
        _ => return None,
    };
    let target = span(method + 1, method + 1 + len);
    let end = target.end as usize + b" HTTP/1.1\r\n".len();
    Some(RequestLine { method: span(0, method), target, version, end })
}

/// The status line at the start of `bytes`.
pub(super) fn status_line(bytes: &[u8]) -> Option<StatusLine> {
    let (version, rest) = match bytes.split_first_chunk()? {
        (b"HTTP/1.1 ", rest) => (Version::Http11, rest),
        (b"HTTP/1.0 ", rest) => (Version::Http10, rest),
        _ => return None,
    };
    let ([code @ .., b' '], reason) = rest.split_first_chunk::<4>()? else { return None };
    if !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let len = run_len(reason, |word| below(word, b' ') | (word & TOPS));
    let end = "HTTP/1.1 200 ".len() + len + "\r\n".len();
    reason.get(len..)?.starts_with(b"\r\n").then_some(StatusLine { status, version, end })
}

/// Reads the field lines from `at` on into `fields`. Gives the length of the head.
pub(super) fn fields(bytes: &[u8], at: usize, fields: &mut Vec<Field>) -> Option<usize> {
    let mut rest = bytes.get(at..)?;
    let offset = |rest: &[u8]| bytes.len() - rest.len();
    loop {
        if let [b'\r', b'\n', body @ ..] = rest {
            return Some(offset(body));
        }
        let (name, text) = rest.split_at_checked(run_len(rest, no_name))?;
        let [b':', text @ ..] = text else { return None };
        if name.is_empty() || name.len() > FIELD_NAME_BYTES_MAX || fields.len() == HEAD_FIELDS_MAX {
            return None;
        }
        let mut text = text.strip_prefix(b" ").unwrap_or(text);
        while let [b' ' | b'\t', more @ ..] = text {
            text = more;
        }
        let (mut value, after) = text.split_at_checked(value_len(text))?;
        let [b'\r', b'\n', next @ ..] = after else { return None };
        while let [more @ .., b' ' | b'\t'] = value {
            value = more;
        }
        let (from, start) = (offset(rest), offset(text));
        fields.push(Field::new(
            span(from, from + name.len()),
            span(start, start + value.len()),
            Known::of(name),
        ));
        rest = next;
    }
}

/// How long the text of a value is: up to a control character that is not a TAB.
fn value_len(text: &[u8]) -> usize {
    let mut len = 0;
    loop {
        let rest = text.get(len..).unwrap_or_default();
        len += run_len(rest, |word| below(word, b' '));
        if text.get(len) != Some(&b'\t') {
            return len;
        }
        len += 1;
    }
}

/// Heads are far below 4 GiB.
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}

#[cfg(test)]
mod tests;
