//! Heads as nearly all senders write them: arrived in one piece, plain first line, every line ended
//! by CRLF, no doubtful byte. They are read in one walk, at half the cost of finding their end,
//! splitting and checking them one after the other.
//!
//! What is not plain, be it wrong, cut off or merely odd, is `None` here and left to
//! [`scan`](super::scan) and `httparse`: they say what is wrong with it. Of a plain head they say
//! the same as this module; tests hold them to that.

use super::head::{Field, Span, Version};
use super::hop::is_token;
use crate::base::limits::{FIELD_NAME_BYTES_MAX, HEAD_FIELDS_MAX};
use crate::base::word::{below, run_end, TOPS};

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
    let target = method + 1;
    let end = run_end(bytes, target, |word| below(word, b'!') | (word & TOPS));
    if bytes.get(method) != Some(&b' ') || end == target {
        return None;
    }
    let version = match bytes.get(end..)?.first_chunk()? {
        b" HTTP/1.1\r\n" => Version::Http11,
        b" HTTP/1.0\r\n" => Version::Http10,
        _ => return None,
    };
    let (method, target) = (span(0, method), span(target, end));
    Some(RequestLine { method, target, version, end: end + b" HTTP/1.1\r\n".len() })
}

/// The status line at the start of `bytes`.
pub(super) fn status_line(bytes: &[u8]) -> Option<StatusLine> {
    let (version, rest) = match bytes.split_first_chunk()? {
        (b"HTTP/1.1 ", rest) => (Version::Http11, rest),
        (b"HTTP/1.0 ", rest) => (Version::Http10, rest),
        _ => return None,
    };
    let [code @ .., b' '] = rest.first_chunk::<4>()? else { return None };
    if !code.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let status = code.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
    let end = run_end(bytes, "HTTP/1.1 200 ".len(), |word| below(word, b' ') | (word & TOPS));
    match bytes.get(end..)? {
        [b'\r', b'\n', ..] => Some(StatusLine { status, version, end: end + 2 }),
        _ => None,
    }
}

/// Reads the field lines from `at` on into `fields`. Gives the length of the head.
pub(super) fn fields(bytes: &[u8], at: usize, fields: &mut Vec<Field>) -> Option<usize> {
    let mut at = at;
    loop {
        if let [b'\r', b'\n', ..] = bytes.get(at..)? {
            return Some(at + 2);
        }
        let name = at + bytes.get(at..)?.iter().position(|b| !TOKENS[usize::from(*b)])?;
        if bytes.get(name) != Some(&b':') || name == at || name - at > FIELD_NAME_BYTES_MAX {
            return None;
        }
        let mut start = name + 1;
        while is_blank(bytes.get(start)) {
            start += 1;
        }
        let line_end = value_end(bytes, start);
        let Some([b'\r', b'\n', ..]) = bytes.get(line_end..) else { return None };
        let mut end = line_end;
        while end > start && is_blank(bytes.get(end - 1)) {
            end -= 1;
        }
        if fields.len() == HEAD_FIELDS_MAX {
            return None;
        }
        fields.push(Field::at(span(at, name), span(start, end), bytes));
        at = line_end + 2;
    }
}

/// Where the text of a value ends: at a control character that is not a TAB.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let mut end = run_end(bytes, start, |word| below(word, b' '));
    while bytes.get(end) == Some(&b'\t') {
        end = run_end(bytes, end + 1, |word| below(word, b' '));
    }
    end
}

/// Heads are far below 4 GiB.
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}

fn is_blank(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

/// What a name may consist of.
static TOKENS: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = is_token(byte as u8);
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests;
