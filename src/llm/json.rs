//! A strict reader of JSON bytes (RFC 8259) that builds nothing: it walks, and hands out the keys
//! and values that its caller asks for. What it accepts, every JSON parser accepts with the same
//! meaning, or refuses: `NaN` and `Infinity`, which Python writes and reads, are values here too.
//! Only the text of strings is left undecoded.
//!
//! A chat request is one small object around strings of up to megabytes, so [`Reader::string`] is
//! the hot place: see [`string_end`].

mod walk;

use crate::base::limits::{JSON_DEPTH_MAX, JSON_DIGITS_MAX};
use std::ops::Range;
pub use walk::{JsonStep, JsonWalk};

/// Why reading stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonFault {
    /// Not JSON.
    Malformed {
        /// Byte at which no JSON text could go on.
        offset: usize,
    },
    /// More than [`JSON_DEPTH_MAX`] objects and arrays inside each other.
    TooDeep,
    /// More than [`JSON_DIGITS_MAX`] digits in a row.
    LongNumber,
}

/// A position in JSON bytes.
///
/// An object is walked by `let mut key = reader.enter_object()?`, then, as long as there is a key,
/// exactly one value is read and `key = reader.next_key()?`.
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    non_ascii: bool,
}

impl<'a> Reader<'a> {
    /// Starts before the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0, depth: 0, non_ascii: false }
    }

    /// Starts behind a byte order mark, if there is one: Python and llama.cpp pass over it.
    pub fn behind_mark(bytes: &'a [u8]) -> Self {
        let at = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        Reader { at, ..Reader::new(bytes) }
    }

    /// Reads what stands at a place of some JSON, and nothing behind it.
    pub fn within(bytes: &'a [u8], place: Range<usize>) -> Self {
        let bytes = bytes.get(..place.end).unwrap_or(bytes);
        Reader { at: place.start, ..Reader::new(bytes) }
    }

    /// Offset of the next byte to be read.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Bytes that follow.
    pub fn bytes_left(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// True when a string that was read may hold bytes above ASCII: only then is there anything to
    /// be checked about them.
    pub fn saw_non_ascii(&self) -> bool {
        self.non_ascii
    }

    /// The next byte that is not white space, unread; `None` at the end.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Passes over white space as far as `stop`; true when it ended before.
    pub fn pass_space(&mut self, stop: usize) -> bool {
        let end = stop.min(self.bytes.len());
        while self.at < end && matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r'))
        {
            self.at += 1;
        }
        self.at < stop
    }

    /// Reads `{` and, unless the object is empty, its first key and colon. The key is given raw:
    /// the bytes between its quotes, escapes and all.
    pub fn enter_object(&mut self) -> Result<Option<&'a [u8]>, JsonFault> {
        self.enter(b'{')?;
        if self.leave(b'}') {
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// Reads what follows a member's value: a comma and the next key, or the end of the object.
    pub fn next_key(&mut self) -> Result<Option<&'a [u8]>, JsonFault> {
        if self.leave(b'}') {
            return Ok(None);
        }
        self.expect(b',')?;
        self.key().map(Some)
    }

    /// Reads a string; gives the raw bytes between its quotes.
    pub fn string(&mut self) -> Result<&'a [u8], JsonFault> {
        self.expect(b'"')?;
        let start = self.at;
        let (end, _) = string_end(self.bytes, start, usize::MAX, &mut self.non_ascii)?;
        self.at = end + 1;
        Ok(self.bytes.get(start..end).unwrap_or_default())
    }

    /// Reads a number; gives its bytes.
    pub fn number(&mut self) -> Result<&'a [u8], JsonFault> {
        self.peek();
        let start = self.at;
        if self.skip_if(b"-") && self.bytes.get(self.at) == Some(&b'I') {
            self.literal(b"Infinity")?;
            return Ok(self.bytes.get(start..self.at).unwrap_or_default());
        }
        // A number does not begin with a zero that more digits follow.
        if !self.skip_if(b"0") {
            self.digits()?;
        }
        if self.skip_if(b".") {
            self.digits()?;
        }
        if self.skip_if(b"eE") {
            self.skip_if(b"+-");
            self.digits()?;
        }
        Ok(self.bytes.get(start..self.at).unwrap_or_default())
    }

    /// Reads exactly these bytes, such as `true`, `false` or `null`.
    pub fn literal(&mut self, word: &'static [u8]) -> Result<(), JsonFault> {
        self.peek();
        if !self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return Err(self.malformed());
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads any value and forgets it.
    pub fn skip_value(&mut self) -> Result<(), JsonFault> {
        let mut walk = JsonWalk::new(self);
        while walk.step(self, usize::MAX)? != JsonStep::Whole {}
        Ok(())
    }

    /// Nothing but white space may be left.
    pub fn end(&mut self) -> Result<(), JsonFault> {
        self.peek().map_or(Ok(()), |_| Err(self.malformed()))
    }

    fn key(&mut self) -> Result<&'a [u8], JsonFault> {
        let key = self.string()?;
        self.expect(b':')?;
        Ok(key)
    }

    fn enter(&mut self, bracket: u8) -> Result<(), JsonFault> {
        self.expect(bracket)?;
        if self.depth == JSON_DEPTH_MAX {
            return Err(JsonFault::TooDeep);
        }
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self, bracket: u8) -> bool {
        let here = self.peek() == Some(bracket);
        if here {
            self.at += 1;
            self.depth = self.depth.saturating_sub(1);
        }
        here
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonFault> {
        if self.peek() != Some(byte) {
            return Err(self.malformed());
        }
        self.at += 1;
        Ok(())
    }

    fn skip_if(&mut self, any_of: &[u8]) -> bool {
        let here = self.bytes.get(self.at).is_some_and(|byte| any_of.contains(byte));
        self.at += usize::from(here);
        here
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), JsonFault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let digits = rest.iter().take(JSON_DIGITS_MAX + 1).take_while(|b| b.is_ascii_digit());
        match digits.count() {
            0 => Err(self.malformed()),
            n if n > JSON_DIGITS_MAX => Err(JsonFault::LongNumber),
            n => {
                self.at += n;
                Ok(())
            }
        }
    }

    fn malformed(&self) -> JsonFault {
        JsonFault::Malformed { offset: self.at }
    }
}

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
/// Bytes of a string that are read exactly before whole blocks are tried: most keys and values
/// end within them.
const EXACT_BYTES: usize = 32;
/// Bytes that are judged at once; a few vector registers.
const BLOCK_BYTES: usize = 64;
/// Bytes before a block that tell which of its characters are escaped.
const BEFORE_BYTES: usize = 4;
/// Blocks that are asked for escapes after one had some, before bare text is expected again.
const ESCAPED_BLOCKS: usize = 16;

/// Offset of the quote that closes the string whose text begins at `start`, and true; or, where
/// that is not found before `stop`, the offset at which the search is to go on, and false.
///
/// Three gears, because prompts of coding agents are long *and* full of `\n` and `\"`: a search for
/// the next quote or backslash would stop every 30 bytes and mispredict each time. The high gears
/// ask of a whole block whether it holds nothing but bare text (images, prose), or nothing but
/// plain text and simple escapes (code), which the compiler turns into vector code without a
/// branch; the low gear decides byte by byte.
fn string_end(
    bytes: &[u8],
    start: usize,
    stop: usize,
    non_ascii: &mut bool,
) -> Result<(usize, bool), JsonFault> {
    let before_stop = bytes.get(..stop).unwrap_or(bytes);
    let mut at = start;
    let mut pause = at + EXACT_BYTES;
    loop {
        while at < pause {
            let word = word_at(bytes, at);
            *non_ascii |= word & NON_ASCII != 0;
            let hits = special_bytes(word);
            at += (hits.trailing_zeros() / 8) as usize;
            if hits == 0 {
                continue;
            }
            match bytes.get(at) {
                Some(b'"') => return Ok((at, true)),
                Some(b'\\') => at = escape_end(bytes, at)?,
                _ => return Err(JsonFault::Malformed { offset: at }),
            }
        }
        if at >= stop {
            return Ok((at, false));
        }
        at = skip_plain_blocks(before_stop, at, non_ascii);
        pause = at + BLOCK_BYTES;
    }
}

/// Skips blocks that need no decision. `at` stands behind a complete character or escape, and so
/// does the result.
fn skip_plain_blocks(bytes: &[u8], mut at: usize, non_ascii: &mut bool) -> usize {
    let start = at;
    'bare: loop {
        // What stands behind a backslash may be the rest of an escape: not for this gear.
        if bytes.get(at - 1) != Some(&b'\\') {
            at = skip_bare_blocks(bytes, at);
        }
        for _ in 0..ESCAPED_BLOCKS {
            let window = bytes.get(at - BEFORE_BYTES..).and_then(|rest| rest.first_chunk());
            match window {
                Some(window) if is_plain(window, non_ascii) => at += BLOCK_BYTES,
                _ => break 'bare,
            }
        }
    }
    // An odd number of backslashes at the very end begins an escape: back to its start.
    let ended = bytes.get(start..at).unwrap_or_default();
    let backslashes = ended.iter().rev().take_while(|byte| **byte == b'\\').count();
    at - backslashes % 2
}

/// Skips blocks without escape, end, control character or byte above ASCII.
fn skip_bare_blocks(bytes: &[u8], at: usize) -> usize {
    let (blocks, _) = bytes.get(at..).unwrap_or_default().as_chunks();
    at + BLOCK_BYTES * blocks.iter().take_while(|block| is_bare(block)).count()
}

/// True when the block holds nothing but ASCII text.
fn is_bare(block: &[u8; BLOCK_BYTES]) -> bool {
    let mut odd = false;
    for byte in block {
        // Bytes above ASCII are below zero, and the flipped bit puts the quote (0x22) next to the
        // control characters without moving any of them out or anything else in.
        odd |= (((byte ^ 2) as i8) <= 0x20) | (*byte == b'\\');
    }
    !odd
}

/// A block of a string, and the bytes before it.
type Window = [u8; BEFORE_BYTES + BLOCK_BYTES];

/// True when the block is text of a string without its end, without control characters, and with
/// no escapes but the commonest. Notes bytes above ASCII.
fn is_plain(window: &Window, non_ascii: &mut bool) -> bool {
    if !*non_ascii {
        if is_simply_escaped::<true>(window) {
            return true;
        }
        *non_ascii = !window.is_ascii();
    }
    (*non_ascii && is_simply_escaped::<false>(window)) || is_twice_escaped(window)
}

/// Only `\n`, `\t`, `\r` and `\"`, and no byte above ASCII if that is asked for.
fn is_simply_escaped<const ASCII: bool>(window: &Window) -> bool {
    // A backslash before the block begins an escape unless it ends one.
    let mut odd = window[2] == b'\\' && window[3] == b'\\';
    for at in 0..BLOCK_BYTES {
        let (before, byte) = (window[at + 3], window[at + 4]);
        let escaped = before == b'\\';
        let quote = byte == b'"';
        let letter = (byte == b'n') | (byte == b't') | (byte == b'r');
        let control = if ASCII { (byte as i8) < 0x20 } else { byte < 0x20 };
        // A quote must be escaped; what is escaped must be a quote, or one of the letters.
        odd |= control | ((quote ^ escaped) & !letter);
    }
    !odd
}

/// The same with `\\` too, at twice the work: JSON inside JSON, as in the arguments of tool calls.
fn is_twice_escaped(window: &Window) -> bool {
    let mut odd = false;
    for at in 0..BLOCK_BYTES {
        let (b4, b3) = (window[at] == b'\\', window[at + 1] == b'\\');
        let (b2, b1) = (window[at + 2] == b'\\', window[at + 3] == b'\\');
        // Escaped: behind one backslash or three. Four in a row are left to the low gear.
        let escaped = b1 & (!b2 | b3);
        let run = b1 & b2 & b3 & b4;
        let byte = window[at + 4];
        let quote = byte == b'"';
        let simple = quote | (byte == b'\\') | (byte == b'n') | (byte == b't') | (byte == b'r');
        odd |= (byte < 0x20) | (quote & !escaped) | (escaped & !simple) | run;
    }
    !odd
}

/// Offset behind the escape whose backslash stands at `at`. Surrogates are not paired up here:
/// the grammar allows a lone one (RFC 8259 section 8.2), and engines do too.
fn escape_end(bytes: &[u8], at: usize) -> Result<usize, JsonFault> {
    match bytes.get(at + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
        Some(b'u')
            if bytes.get(at + 2..at + 6).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) =>
        {
            Ok(at + 6)
        }
        _ => Err(JsonFault::Malformed { offset: at }),
    }
}

/// The top bit of each byte of a word.
const NON_ASCII: u64 = 0x8080_8080_8080_8080;

/// Eight bytes from `at`, the first one lowest. Behind the end of input come zeros, which are
/// control characters: they stop the search exactly there.
fn word_at(bytes: &[u8], at: usize) -> u64 {
    let rest = bytes.get(at..).unwrap_or_default();
    if let Some(word) = rest.first_chunk() {
        return u64::from_le_bytes(*word);
    }
    let mut word = [0; 8];
    word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

/// Marks the first quote, backslash or control character of eight bytes in the top bit of its
/// byte (bits above the first mark mean nothing; 0 = none). The arithmetic is the classic test
/// for a zero byte: borrows only travel upwards, so the lowest mark is exact.
fn special_bytes(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let zero = |w: u64| w.wrapping_sub(EACH) & !w;
    let quote = zero(word ^ (EACH * b'"' as u64));
    let backslash = zero(word ^ (EACH * b'\\' as u64));
    let control = word.wrapping_sub(EACH * 0x20) & !word;
    (quote | backslash | control) & (EACH * 0x80)
}

#[cfg(test)]
mod tests;
