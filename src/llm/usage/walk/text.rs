//! Texts whose words matter: names, types, codes, the id. Their escapes are decoded, so that
//! `us\u0061ge` is the same as `usage`.

use super::super::facts::UsageFacts;
use super::block::{escaped, in_order, places_of, BLOCK_BYTES};
use super::{At, UsageWalk, TEXT_BYTES_MAX};
use crate::base::word::equal;
use memchr::{memchr, memchr2};

/// Bytes that are looked at in words before blocks are.
const SHORT_BYTES: usize = 16;

/// The beginning of a text, and where in an escape the next byte stands.
#[derive(Debug)]
pub struct Text {
    bytes: [u8; TEXT_BYTES_MAX],
    len: u8,
    /// It is longer than any that matters.
    is_long: bool,
    escape: Escape,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// Behind the backslash.
    Begun,
    /// Behind so many digits of `\u`, with their value.
    Digits(u8, u16),
}

impl Default for Text {
    fn default() -> Text {
        Text { bytes: [0; TEXT_BYTES_MAX], len: 0, is_long: false, escape: Escape::None }
    }
}

impl Text {
    /// One begins.
    pub fn begin(&mut self) {
        self.len = 0;
        self.is_long = false;
        self.escape = Escape::None;
    }

    /// What was kept; `None` when it is too long to matter.
    pub fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..usize::from(self.len)).filter(|_| !self.is_long)
    }

    /// Takes the next bytes, up to the closing quote and with it. Gives how many, and whether it
    /// was there.
    pub fn take(&mut self, rest: &[u8]) -> (usize, bool) {
        for (at, byte) in rest.iter().enumerate() {
            match (self.escape, byte) {
                (Escape::None, b'"') => return (at + 1, true),
                (Escape::None, b'\\') => self.escape = Escape::Begun,
                (Escape::None, byte) => self.push(*byte),
                (Escape::Begun, b'u') => self.escape = Escape::Digits(0, 0),
                (Escape::Begun, b'"' | b'\\' | b'/') => self.push(*byte),
                // A control character, which no text that matters has.
                (Escape::Begun, _) => self.push(0),
                (Escape::Digits(count, value), byte) => self.digit(count, value, *byte),
            }
        }
        (rest.len(), false)
    }

    fn digit(&mut self, count: u8, value: u16, byte: u8) {
        let digit = char::from(byte).to_digit(16).unwrap_or_default() as u16;
        let value = (value << 4) | digit;
        match count {
            // Above ASCII: no text that matters has it.
            3 => self.push(u8::try_from(value).ok().filter(u8::is_ascii).unwrap_or(0)),
            _ => self.escape = Escape::Digits(count + 1, value),
        }
    }

    /// Takes a byte as it is.
    pub fn push(&mut self, byte: u8) {
        self.escape = Escape::None;
        match self.bytes.get_mut(usize::from(self.len)) {
            Some(slot) => {
                *slot = byte;
                self.len += 1;
            }
            None => self.is_long = true,
        }
    }

    /// A backslash stands before the next byte.
    pub fn is_escaped(&self) -> bool {
        self.escape != Escape::None
    }

    /// One does.
    pub fn escape(&mut self) {
        self.escape = Escape::Begun;
    }

    /// Passes over a text that does not matter, up to its closing quote and with it; `None`: it
    /// goes on behind these bytes.
    pub fn pass(&mut self, rest: &[u8]) -> Option<usize> {
        let is_escaped = std::mem::take(&mut self.escape) != Escape::None;
        let end = text_end(rest, is_escaped);
        if end == Err(true) {
            self.escape = Escape::Begun;
        }
        end.ok()
    }
}

/// The end of a text, behind its closing quote. `is_escaped`: a backslash stands before the first
/// byte. `Err`: it goes on, and whether its last byte is such a backslash.
///
/// Most are short. In code there are escapes and quotes everywhere, so whole blocks are looked at;
/// where there are neither, a search is faster.
pub fn text_end(bytes: &[u8], is_escaped: bool) -> Result<usize, bool> {
    let mut at = 0;
    let mut is_escaped = is_escaped;
    if !is_escaped {
        while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_le_bytes(*word);
            let marks = equal(word, b'"') | equal(word, b'\\');
            let found = at + (marks.trailing_zeros() / 8) as usize;
            if marks != 0 && bytes.get(found) == Some(&b'"') {
                return Ok(found + 1);
            }
            if marks != 0 || at == SHORT_BYTES {
                break;
            }
            at += 8;
        }
    }
    while let Some(block) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let (quotes, backslashes) = (places_of(block, b'"'), places_of(block, b'\\'));
        if quotes | backslashes == 0 {
            let rest = bytes.get(at + usize::from(is_escaped)..).unwrap_or_default();
            let Some(found) = memchr2(b'"', b'\\', rest) else { return Err(false) };
            at += usize::from(is_escaped) + found;
            is_escaped = false;
            continue;
        }
        let (marks, next) = escaped(backslashes, is_escaped);
        let ends = quotes & !marks;
        if ends != 0 {
            return Ok(at + in_order(ends).trailing_zeros() as usize + 1);
        }
        is_escaped = next;
        at += BLOCK_BYTES;
    }
    last_end(bytes, at, is_escaped)
}

/// The same for the bytes from `at` on, by searching for quotes: one is escaped when an odd number
/// of backslashes stand before it.
fn last_end(bytes: &[u8], at: usize, is_escaped: bool) -> Result<usize, bool> {
    let mut from = at + usize::from(is_escaped);
    if from > bytes.len() {
        return Err(true);
    }
    let mut at = from;
    while let Some(found) = memchr(b'"', bytes.get(at..).unwrap_or_default()) {
        at += found + 1;
        if !opens_escape(bytes.get(from..at - 1).unwrap_or_default()) {
            return Ok(at);
        }
        from = at;
    }
    Err(opens_escape(bytes.get(from..).unwrap_or_default()))
}

/// True when the last byte of a text, of which no escape is open at the beginning, opens one.
fn opens_escape(text: &[u8]) -> bool {
    text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

impl UsageWalk {
    pub(super) fn words(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let (used, is_over) = self.text.take(rest);
        if is_over {
            facts.text(self.name, self.text.get().unwrap_or_default());
            self.close_value();
        }
        used
    }

    pub(super) fn bare_words(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let end = rest.iter().position(|byte| !byte.is_ascii_alphanumeric());
        let used = end.unwrap_or(rest.len());
        rest.iter().take(used).for_each(|byte| self.text.push(*byte));
        if end.is_some() {
            facts.text(self.name, self.text.get().unwrap_or_default());
            self.close_value();
        }
        used
    }

    /// An id with an escape in it is none that a log would have.
    pub(super) fn id(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let end = memchr2(b'"', b'\\', rest);
        let used = end.unwrap_or(rest.len());
        facts.id.push(rest.get(..used).unwrap_or_default());
        match end.and_then(|at| rest.get(at)) {
            None => return used,
            Some(b'"') => {
                facts.id.end();
                self.close_value();
                return used + 1;
            }
            Some(_) => self.begin_words(At::Text),
        }
        used
    }

    pub(super) fn pass_text(&mut self, rest: &[u8]) -> usize {
        let end = self.text.pass(rest);
        if end.is_some() {
            self.close_value();
        }
        end.unwrap_or(rest.len())
    }
}
