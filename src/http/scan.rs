//! Finds the end of a head that arrives in pieces.
//!
//! Every byte is looked at once, however small the pieces are, so a client that sends one byte at
//! a time costs no more than one that sends all. What can already be told to be wrong is refused
//! at once: a peer that never sends the blank line must not get a deadline's worth of patience.

use std::ops::Range;

use memchr::memchr_iter;

use super::fault::HttpFault;
use crate::base::limits::HEAD_FIELDS_MAX;

/// What the bytes so far hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanProgress {
    /// No blank line yet. The lines in the range became complete since the last call (all of
    /// them well-ended and free of control characters); it may be empty.
    Partial(Range<usize>),
    /// The head without a leading empty line, and with its blank line.
    Done(Range<usize>),
}

/// How far a head was looked at.
#[derive(Debug, Clone, Default)]
pub struct HeadScan {
    /// First byte of the head: 2 after a leading empty line, else 0.
    start: usize,
    /// First byte of the line that is not complete.
    line: usize,
    /// Bytes that were looked at.
    seen: usize,
    /// Complete lines.
    lines: usize,
}

impl HeadScan {
    /// Looks at what is new in `bytes`, which grows from call to call.
    pub fn advance(
        &mut self,
        bytes: &[u8],
        head_bytes_max: usize,
    ) -> Result<ScanProgress, HttpFault> {
        let from = self.seen.min(bytes.len());
        let fresh_from = self.line;
        for offset in memchr_iter(b'\n', bytes.get(from..).unwrap_or_default()) {
            let at = from + offset;
            if at == 0 || bytes.get(at - 1) != Some(&b'\r') {
                return Err(HttpFault::BareLineFeed);
            }
            let next = at + 1;
            if next > head_bytes_max {
                return Err(HttpFault::HeadTooLarge);
            }
            if at == self.line + 1 {
                if self.lines > 0 {
                    return Ok(ScanProgress::Done(self.start..next));
                }
                // RFC 9112 §2.2: one empty line before a request line is to be ignored.
                if self.start > 0 {
                    return Err(HttpFault::EmptyLines);
                }
                self.start = next;
            } else {
                self.lines += 1;
            }
            self.line = next;
        }
        self.seen = bytes.len();
        if bytes.len() >= head_bytes_max {
            return Err(HttpFault::HeadTooLarge);
        }
        if self.lines > HEAD_FIELDS_MAX + 1 {
            return Err(HttpFault::TooManyFields);
        }
        // A CR at the end of the last piece is judged now that more is here.
        refuse_controls(bytes.get(from.saturating_sub(1)..).unwrap_or_default())?;
        Ok(ScanProgress::Partial(fresh_from.max(self.start)..self.line.max(self.start)))
    }

    /// True before anything was looked at.
    pub fn is_fresh(&self) -> bool {
        self.seen == 0
    }

    /// First byte of the head.
    pub fn start(&self) -> usize {
        self.start
    }

    /// True once the first line is complete.
    pub fn has_first_line(&self) -> bool {
        self.lines > 0
    }
}

/// Refuses controls but TAB and CRLF. Without an early exit the first loop is a vector loop.
fn refuse_controls(bytes: &[u8]) -> Result<(), HttpFault> {
    let bad = |b: u8| (b < 0x20 && !matches!(b, b'\t' | b'\r' | b'\n')) || b == 0x7f;
    if bytes.iter().fold(false, |any, b| any | bad(*b)) {
        return Err(HttpFault::ControlCharacter);
    }
    for at in memchr_iter(b'\r', bytes) {
        if bytes.get(at + 1).is_some_and(|b| *b != b'\n') {
            return Err(HttpFault::ControlCharacter);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(bytes: &[u8]) -> Result<ScanProgress, HttpFault> {
        HeadScan::default().advance(bytes, 1024)
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_left_alone() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\n\r\n\x00\n"), Ok(ScanProgress::Done(0..18)));
        assert_eq!(scan(b"\r\nGET / HTTP/1.1\r\n\r\n"), Ok(ScanProgress::Done(2..20)));
        assert_eq!(scan(b"GET / HT"), Ok(ScanProgress::Partial(0..0)));
        assert_eq!(scan(b"a\r\nb: c\r\nd"), Ok(ScanProgress::Partial(0..9)));
    }

    /// Would have waited for a blank line that never comes.
    #[test]
    fn a_doubtful_byte_is_refused_as_soon_as_it_is_there() {
        assert_eq!(scan(b"GET / HTTP/1.1\n"), Err(HttpFault::BareLineFeed));
        assert_eq!(scan(b"\n"), Err(HttpFault::BareLineFeed));
        assert_eq!(scan(b"\r\n\r\n"), Err(HttpFault::EmptyLines));
        assert_eq!(scan(b"GET /\x00"), Err(HttpFault::ControlCharacter));
        assert_eq!(scan(b"GET /\x7f"), Err(HttpFault::ControlCharacter));
        assert_eq!(scan(b"\x16\x03\x01"), Err(HttpFault::ControlCharacter));
        assert_eq!(scan(b"a: b\rc"), Err(HttpFault::ControlCharacter));
        let mut split = HeadScan::default();
        assert_eq!(split.advance(b"a: b\r", 99), Ok(ScanProgress::Partial(0..0)));
        assert_eq!(split.advance(b"a: b\rc", 99), Err(HttpFault::ControlCharacter));
    }

    #[test]
    fn the_limits_hold_with_and_without_an_end() {
        let long = [b"GET / HTTP/1.1\r\na: ".as_slice(), &[b'x'; 100], b"\r\n\r\n"].concat();
        assert_eq!(HeadScan::default().advance(&long, 100), Err(HttpFault::HeadTooLarge));
        assert_eq!(HeadScan::default().advance(&long[..100], 100), Err(HttpFault::HeadTooLarge));
        assert_eq!(HeadScan::default().advance(&long[..99], 100), Ok(ScanProgress::Partial(0..16)));
        let whole = long.len();
        assert_eq!(HeadScan::default().advance(&long, whole), Ok(ScanProgress::Done(0..whole)));
        assert_eq!(HeadScan::default().advance(&long, whole - 1), Err(HttpFault::HeadTooLarge));
        let many = "a:b\r\n".repeat(HEAD_FIELDS_MAX + 2);
        assert_eq!(
            HeadScan::default().advance(many.as_bytes(), 4096),
            Err(HttpFault::TooManyFields)
        );
    }
}
