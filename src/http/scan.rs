//! Finds the end of a head that arrives in pieces.
//!
//! Every byte is looked at once, however small the pieces are, so a client that sends one byte at
//! a time costs no more than one that sends all. What can already be told to be wrong is refused
//! at once: a peer that never sends the blank line must not get a deadline's worth of patience.

use std::ops::Range;
use std::sync::LazyLock;

use memchr::memchr_iter;
use memchr::memmem::Finder;

use super::fault::Fault;
use crate::base::limits::HEAD_FIELDS_MAX;

/// What the bytes so far hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// No blank line yet. The lines in the range became complete since the last call (all of
    /// them well-ended and free of control characters); it may be empty.
    Partial(Range<usize>),
    /// The head without a leading empty line, and with its blank line.
    Done(Range<usize>),
}

/// How far a head was looked at.
#[derive(Debug, Clone, Default)]
pub struct Scan {
    /// First byte of the head: 2 after a leading empty line, else 0.
    start: usize,
    /// First byte of the line that is not complete.
    line: usize,
    /// Bytes that were looked at.
    seen: usize,
    /// Complete lines.
    lines: usize,
}

impl Scan {
    /// Looks at what is new in `bytes`, which grows from call to call.
    pub fn advance(&mut self, bytes: &[u8], head_bytes_max: usize) -> Result<Progress, Fault> {
        if self.seen == 0 {
            if let Some(len) = whole(bytes, head_bytes_max) {
                return Ok(Progress::Done(0..len));
            }
        }
        let from = self.seen.min(bytes.len());
        let fresh_from = self.line;
        for offset in memchr_iter(b'\n', bytes.get(from..).unwrap_or_default()) {
            let at = from + offset;
            if at == 0 || bytes.get(at - 1) != Some(&b'\r') {
                return Err(Fault::BareLineFeed);
            }
            let next = at + 1;
            if next > head_bytes_max {
                return Err(Fault::HeadTooLarge);
            }
            if at == self.line + 1 {
                if self.lines > 0 {
                    return Ok(Progress::Done(self.start..next));
                }
                // RFC 9112 §2.2: one empty line before a request line is to be ignored.
                if self.start > 0 {
                    return Err(Fault::EmptyLines);
                }
                self.start = next;
            } else {
                self.lines += 1;
            }
            self.line = next;
        }
        self.seen = bytes.len();
        if bytes.len() >= head_bytes_max {
            return Err(Fault::HeadTooLarge);
        }
        if self.lines > HEAD_FIELDS_MAX + 1 {
            return Err(Fault::TooManyFields);
        }
        // A CR at the end of the last piece is judged now that more is here.
        refuse_controls(bytes.get(from.saturating_sub(1)..).unwrap_or_default())?;
        Ok(Progress::Partial(fresh_from.max(self.start)..self.line.max(self.start)))
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

/// Built once: it holds the vector routine chosen for this CPU.
static END_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));

/// The length of a head that arrived whole and holds no line end in doubt; what [`Scan::advance`]
/// says of it line by line is the same. Nearly all heads are like that.
fn whole(bytes: &[u8], head_bytes_max: usize) -> Option<usize> {
    if matches!(bytes, [b'\r' | b'\n', ..]) {
        return None;
    }
    let len = END_FINDER.find(bytes)? + END_FINDER.needle().len();
    let head = bytes.get(..len).filter(|head| head.len() <= head_bytes_max)?;
    // Without an early exit the loop is a vector loop.
    let after = head.iter().skip(1);
    let bare = head.iter().zip(after).fold(false, |any, (a, b)| any | (*b == b'\n' && *a != b'\r'));
    (!bare).then_some(len)
}

/// Refuses controls but TAB and CRLF. Without an early exit the first loop is a vector loop.
fn refuse_controls(bytes: &[u8]) -> Result<(), Fault> {
    let bad = |b: u8| (b < 0x20 && !matches!(b, b'\t' | b'\r' | b'\n')) || b == 0x7f;
    if bytes.iter().fold(false, |any, b| any | bad(*b)) {
        return Err(Fault::ControlCharacter);
    }
    for at in memchr_iter(b'\r', bytes) {
        if bytes.get(at + 1).is_some_and(|b| *b != b'\n') {
            return Err(Fault::ControlCharacter);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scan(bytes: &[u8]) -> Result<Progress, Fault> {
        Scan::default().advance(bytes, 1024)
    }

    #[test]
    fn the_end_is_found_and_what_follows_is_left_alone() {
        assert_eq!(scan(b"GET / HTTP/1.1\r\n\r\n\x00\n"), Ok(Progress::Done(0..18)));
        assert_eq!(scan(b"\r\nGET / HTTP/1.1\r\n\r\n"), Ok(Progress::Done(2..20)));
        assert_eq!(scan(b"GET / HT"), Ok(Progress::Partial(0..0)));
        assert_eq!(scan(b"a\r\nb: c\r\nd"), Ok(Progress::Partial(0..9)));
    }

    /// Would have waited for a blank line that never comes.
    #[test]
    fn a_doubtful_byte_is_refused_as_soon_as_it_is_there() {
        assert_eq!(scan(b"GET / HTTP/1.1\n"), Err(Fault::BareLineFeed));
        assert_eq!(scan(b"\n"), Err(Fault::BareLineFeed));
        assert_eq!(scan(b"\r\n\r\n"), Err(Fault::EmptyLines));
        assert_eq!(scan(b"GET /\x00"), Err(Fault::ControlCharacter));
        assert_eq!(scan(b"GET /\x7f"), Err(Fault::ControlCharacter));
        assert_eq!(scan(b"\x16\x03\x01"), Err(Fault::ControlCharacter));
        assert_eq!(scan(b"a: b\rc"), Err(Fault::ControlCharacter));
        let mut split = Scan::default();
        assert_eq!(split.advance(b"a: b\r", 99), Ok(Progress::Partial(0..0)));
        assert_eq!(split.advance(b"a: b\rc", 99), Err(Fault::ControlCharacter));
    }

    #[test]
    fn the_limits_hold_with_and_without_an_end() {
        let long = [b"GET / HTTP/1.1\r\na: ".as_slice(), &[b'x'; 100], b"\r\n\r\n"].concat();
        assert_eq!(Scan::default().advance(&long, 100), Err(Fault::HeadTooLarge));
        assert_eq!(Scan::default().advance(&long[..100], 100), Err(Fault::HeadTooLarge));
        assert_eq!(Scan::default().advance(&long[..99], 100), Ok(Progress::Partial(0..16)));
        let whole = long.len();
        assert_eq!(Scan::default().advance(&long, whole), Ok(Progress::Done(0..whole)));
        assert_eq!(Scan::default().advance(&long, whole - 1), Err(Fault::HeadTooLarge));
        let many = "a:b\r\n".repeat(HEAD_FIELDS_MAX + 2);
        assert_eq!(Scan::default().advance(many.as_bytes(), 4096), Err(Fault::TooManyFields));
    }

    proptest! {
        /// What arrives whole is judged as if it came in two pieces.
        #[test]
        fn a_whole_head_is_what_its_lines_are(
            parts in proptest::collection::vec(
                proptest::sample::select(vec!["\r\n", "\r\n", "\r", "\n", "a", "b: c", "\r\n\r\n"]),
                0..12,
            ),
            max in 1usize..40,
        ) {
            let text = parts.concat();
            if let Some(len) = whole(text.as_bytes(), max) {
                let mut split = Scan::default();
                let (first, _) = text.as_bytes().split_at(1);
                if max > 1 {
                    prop_assert!(matches!(split.advance(first, max), Ok(Progress::Partial(_))));
                }
                prop_assert_eq!(split.advance(text.as_bytes(), max), Ok(Progress::Done(0..len)));
            }
        }
    }
}
