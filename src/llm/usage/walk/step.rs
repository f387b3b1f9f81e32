//! What does not matter is stepped over: numbers, words, and lists and objects of any depth, of
//! which only the brackets of one kind, outside of texts, are counted.

use super::super::facts::UsageFacts;
use super::super::places::UsageField;
use super::block::{escaped, has_last, in_order, places_of, running, BLOCK_BYTES};
use super::text::text_end;
use super::{is_space, At, UsageWalk};
use memchr::memchr3;

/// What is stepped over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// `{...}`
    Object,
    /// `[...]`
    List,
}

impl MemberKind {
    fn open(self) -> u8 {
        match self {
            MemberKind::Object => b'{',
            MemberKind::List => b'[',
        }
    }

    /// The bracket that ends it.
    pub fn close(self) -> u8 {
        match self {
            MemberKind::Object => b'}',
            MemberKind::List => b']',
        }
    }
}

impl UsageWalk {
    pub(super) fn word(&mut self, rest: &[u8]) -> usize {
        let is_end = |byte: &u8| is_space(*byte) || matches!(byte, b',' | b'}' | b']');
        let end = rest.iter().position(is_end);
        if end.is_some() {
            self.close_value();
        }
        end.unwrap_or(rest.len())
    }

    /// Steps over a list or object; `in_text`: what comes is in a text inside of it.
    pub(super) fn step_over(&mut self, rest: &[u8], kind: MemberKind, in_text: bool) -> usize {
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
    pub(super) fn count_entries(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
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
                    facts.count(UsageField::Prompt, Ok(self.entries));
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
    kind: MemberKind,
    /// Brackets that are open.
    open: u32,
    in_text: bool,
    /// A backslash stands before the next byte of a text.
    escaped: bool,
}

impl Steps {
    /// Gives how many bytes were passed, and whether the last bracket was closed by the last.
    fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let (used, is_over) = match self.kind {
            MemberKind::Object => self.blocks::<b'{', b'}'>(bytes),
            MemberKind::List => self.blocks::<b'[', b']'>(bytes),
        };
        if is_over {
            return (used, true);
        }
        let (passed, is_over) = self.one_by_one(behind(bytes, used));
        (used + passed, is_over)
    }

    fn one_by_one(&mut self, bytes: &[u8]) -> (usize, bool) {
        match bytes.iter().position(|byte| self.byte(*byte)) {
            Some(at) => (at + 1, true),
            None => (bytes.len(), false),
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

    /// Where one of these brackets closes the last one that is open.
    fn closes_last(&self, opens: u64, closes: u64) -> Option<usize> {
        let opens = in_order(opens);
        let (mut left, mut closed) = (in_order(closes), 0);
        while left != 0 {
            let before = (left & left.wrapping_neg()) - 1;
            closed += 1;
            if self.open.saturating_add((opens & before).count_ones()) == closed {
                return Some(left.trailing_zeros() as usize);
            }
            left &= left - 1;
        }
        None
    }

    /// The same as [`Steps::one_by_one`], of whole blocks: what is left may be almost one.
    fn blocks<const OPEN: u8, const CLOSE: u8>(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(block) = behind(bytes, at).first_chunk() {
            let backslashes = places_of(block, b'\\');
            let mut quotes = places_of(block, b'"');
            let mut next_escaped = false;
            if quotes == 0 && self.in_text {
                match text_end(behind(bytes, at), self.escaped) {
                    Ok(end) => {
                        self.in_text = false;
                        self.escaped = false;
                        at += end;
                        continue;
                    }
                    Err(escaped) => {
                        self.escaped = escaped;
                        return (bytes.len(), false);
                    }
                }
            }
            if backslashes != 0 || self.escaped {
                let (marks, next) = escaped(backslashes, self.escaped);
                quotes &= !marks;
                next_escaped = next;
            }
            let inside = running(quotes, self.in_text);
            if backslashes & !inside != 0 {
                // This is no JSON: only in texts something is escaped.
                let (used, is_over) = self.one_by_one(block);
                at += used;
                if is_over {
                    return (at, true);
                }
                continue;
            }
            let opens = places_of(block, OPEN) & !inside;
            let closes = places_of(block, CLOSE) & !inside;
            if quotes | opens | closes == 0 && !self.in_text {
                at += memchr3(b'"', OPEN, CLOSE, behind(bytes, at)).unwrap_or(bytes.len() - at);
                continue;
            }
            let closed = closes.count_ones();
            if closed >= self.open {
                if let Some(last) = self.closes_last(opens, closes) {
                    (self.open, self.in_text, self.escaped) = (0, false, false);
                    return (at + last + 1, true);
                }
            }
            self.open = self.open.saturating_add(opens.count_ones()).saturating_sub(closed);
            self.in_text = has_last(inside);
            self.escaped = next_escaped;
            at += BLOCK_BYTES;
        }
        (at, false)
    }
}

/// `bytes` from `at`; empty when that is past the end.
fn behind(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As long as a block and longer, with all that matters to a step, be it JSON or not.
    fn bytes() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            6 => "[a-z:, ]{1,12}",
            6 => "[\"\\\\{}\\[\\]]{1,3}",
            1 => "[\"\\\\]{60,70}",
            1 => "[a-z]{70,140}",
        ];
        prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// Catches: a block that is read otherwise than its bytes, one by one.
        #[test]
        fn blocks_say_what_their_bytes_say(
            text in bytes(),
            is_list in any::<bool>(),
            open in 1..5u32,
            in_text in any::<bool>(),
            escaped in any::<bool>(),
        ) {
            let escaped = escaped && in_text;
            let kind = if is_list { MemberKind::List } else { MemberKind::Object };
            let mut blocks = Steps { kind, open, in_text, escaped };
            let mut bytes = Steps { kind, open, in_text, escaped };
            let found = blocks.take(text.as_bytes());
            prop_assert_eq!(found, bytes.one_by_one(text.as_bytes()));
            let said = |steps: Steps| (steps.open, steps.in_text, steps.escaped);
            prop_assert_eq!(said(blocks), said(bytes));
        }

        /// Catches: a text that ends at an escaped quote, or not at its own.
        #[test]
        fn a_text_ends_at_its_quote(text in bytes(), is_escaped in any::<bool>()) {
            let mut next = is_escaped;
            let end = text.bytes().position(|byte| {
                let was = std::mem::replace(&mut next, false);
                next = !was && byte == b'\\';
                !was && byte == b'"'
            });
            let expected = end.map(|at| at + 1).ok_or(next);
            prop_assert_eq!(text_end(text.as_bytes(), is_escaped), expected);
        }
    }
}
