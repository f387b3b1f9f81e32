//! What does not matter is stepped over: numbers, words, and lists and objects of any depth, of
//! which only the brackets of one kind, outside of texts, are counted.

use super::super::facts::Facts;
use super::super::places::Field;
use super::text::text_end;
use super::{is_space, At, Walk};
use crate::base::word::{EACH, TOPS};
use memchr::memchr3;

/// Bytes that are looked at together: in lists of small objects, like log probabilities, there is
/// a quote or a bracket every few bytes, and a search that stops at each is slow.
const BLOCK_BYTES: usize = 64;

/// What is stepped over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{...}`
    Object,
    /// `[...]`
    List,
}

impl Kind {
    fn open(self) -> u8 {
        match self {
            Kind::Object => b'{',
            Kind::List => b'[',
        }
    }

    /// The bracket that ends it.
    pub fn close(self) -> u8 {
        match self {
            Kind::Object => b'}',
            Kind::List => b']',
        }
    }
}

impl Walk {
    pub(super) fn word(&mut self, rest: &[u8]) -> usize {
        let is_end = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b'}' | b']');
        let end = rest.iter().position(is_end);
        if end.is_some() {
            self.close_value();
        }
        end.unwrap_or(rest.len())
    }

    /// Steps over a list or object; `in_text`: what comes is in a text inside of it.
    pub(super) fn step_over(&mut self, rest: &[u8], kind: Kind, in_text: bool) -> usize {
        let mut steps = Steps { kind, in_text, open: self.open, escaped: self.text.is_escaped() };
        let (used, is_over) = steps.take(rest);
        self.open = steps.open;
        self.text.begin();
        if is_over {
            self.close_value();
            return used;
        }
        self.at = At::Inside(kind, steps.in_text);
        if steps.escaped {
            self.text.escape();
        }
        used
    }

    /// Counts the entries of a list of objects.
    pub(super) fn count_entries(&mut self, facts: &mut Facts, rest: &[u8]) -> usize {
        let here = |byte: &u8| matches!(byte, b'{' | b'}' | b']' | b'"');
        let Some(at) = rest.iter().position(here) else { return rest.len() };
        match rest.get(at) {
            Some(b'"') => {
                self.text.begin();
                self.at = At::TextOfEntries;
            }
            Some(b'{') => {
                self.entries += u64::from(self.open == 0);
                self.open = self.open.saturating_add(1);
            }
            Some(b'}') => self.open = self.open.saturating_sub(1),
            Some(b']') if self.open == 0 => {
                // It is empty unless the client asked for it.
                if self.entries > 0 {
                    facts.count(Field::Prompt, Ok(self.entries));
                }
                self.at = At::Behind;
            }
            _ => {}
        }
        at + 1
    }

    pub(super) fn pass_text_of_entries(&mut self, rest: &[u8]) -> usize {
        let end = self.text.pass(rest);
        if end.is_some() {
            self.at = At::Entries;
        }
        end.unwrap_or(rest.len())
    }
}

/// Where a step over something large stands.
struct Steps {
    kind: Kind,
    /// Brackets that are open.
    open: u32,
    in_text: bool,
    /// A backslash stands before the next byte of a text.
    escaped: bool,
}

impl Steps {
    /// Gives how many bytes were passed, and whether the last bracket was closed by the last.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        loop {
            at += self.blocks(bytes.get(at..).unwrap_or_default());
            let near = bytes.get(at..).unwrap_or_default();
            for byte in near.iter().take(BLOCK_BYTES) {
                at += 1;
                if self.byte(*byte) {
                    return (at, true);
                }
            }
            if at >= bytes.len() {
                return (bytes.len(), false);
            }
        }
    }

    /// One byte; true when it closes the last bracket.
    fn byte(&mut self, byte: u8) -> bool {
        if self.in_text {
            let was_escaped = std::mem::take(&mut self.escaped);
            self.escaped = !was_escaped && byte == b'\\';
            self.in_text = was_escaped || byte != b'"';
            return false;
        }
        if byte == b'"' {
            self.in_text = true;
        } else if byte == self.kind.open() {
            self.open = self.open.saturating_add(1);
        } else if byte == self.kind.close() {
            self.open = self.open.saturating_sub(1);
        }
        self.open == 0
    }

    /// True when one of these brackets closes the last one that is open.
    fn closes_last(&self, opens: u64, closes: u64) -> bool {
        if closes.count_ones() < self.open {
            return false;
        }
        let (mut left, mut closed) = (closes, 0);
        while left != 0 {
            let before = (left & left.wrapping_neg()) - 1;
            closed += 1;
            if self.open.saturating_add((opens & before).count_ones()) == closed {
                return true;
            }
            left &= left - 1;
        }
        false
    }

    /// Passes whole blocks in which nothing is escaped and in which the last bracket is not
    /// closed; gives how many bytes they have.
    fn blocks(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let (Some(block), false) = (behind(bytes, at).first_chunk(), self.escaped) {
            let quotes = places_of(block, b'"');
            if quotes == 0 && self.in_text {
                match text_end(behind(bytes, at), false) {
                    Ok(end) => {
                        self.in_text = false;
                        at += end;
                        continue;
                    }
                    Err(escaped) => {
                        self.escaped = escaped;
                        return bytes.len();
                    }
                }
            }
            if places_of(block, b'\\') != 0 {
                break;
            }
            let inside = running(quotes) ^ if self.in_text { u64::MAX } else { 0 };
            let opens = places_of(block, self.kind.open()) & !inside;
            let closes = places_of(block, self.kind.close()) & !inside;
            if quotes == 0 && opens | closes == 0 {
                let (open, close) = (self.kind.open(), self.kind.close());
                at += memchr3(b'"', open, close, behind(bytes, at)).unwrap_or(bytes.len() - at);
                continue;
            }
            if self.closes_last(opens, closes) {
                break;
            }
            self.open = self.open.saturating_add(opens.count_ones()) - closes.count_ones();
            self.in_text = inside >> (BLOCK_BYTES - 1) == 1;
            at += BLOCK_BYTES;
        }
        at
    }
}

/// `bytes` from `at`; empty when that is past the end.
fn behind(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

/// Between each two marks all bits, from the first of the two on.
fn running(marks: u64) -> u64 {
    let mut sum = marks;
    for shift in [1, 2, 4, 8, 16, 32] {
        sum ^= sum << shift;
    }
    sum
}

/// Which bytes of a block are this one, by bit.
fn places_of(block: &[u8; BLOCK_BYTES], byte: u8) -> u64 {
    let wanted = EACH.wrapping_mul(u64::from(byte));
    let mut places = 0;
    for word in block.as_chunks().0 {
        let differs = u64::from_le_bytes(*word) ^ wanted;
        // The top bits of the bytes that do not differ; exact, since nothing is carried over.
        let marks = !((differs & !TOPS).wrapping_add(!TOPS) | differs) & TOPS;
        // A multiplication gathers them in the highest byte.
        let eight = (marks >> 7).wrapping_mul(0x0102_0408_1020_4080) & (0xff << 56);
        places = (places >> 8) | eight;
    }
    places
}
