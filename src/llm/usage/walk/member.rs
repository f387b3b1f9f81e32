//! Members of an object: their names, and the values that do not matter and are short.

use super::super::facts::UsageFacts;
use super::super::places::{MemberName, UsagePlace};
use super::{first_token, At, UsageWalk};
use crate::base::word::{below, equal, run_len};
use crate::llm::tokens::TOKENS_MAX;

/// Bytes in which a text that does not matter is looked for its end at once.
const SHORT_TEXT_BYTES: usize = 64;
/// Digits of a number that needs no second look: it is less than [`TOKENS_MAX`].
const COUNT_DIGITS: usize = 15;
const _: () = assert!(10_u64.pow(COUNT_DIGITS as u32) < TOKENS_MAX);

impl UsageWalk {
    pub(super) fn member(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest) else { return rest.len() };
        match rest.get(at) {
            Some(b'"') => return self.begin_name(facts, rest, at + 1),
            Some(b'}') if self.at == At::FirstName => self.leave(facts),
            _ => self.give_up(facts),
        }
        at + 1
    }

    /// A name begins at `from`. Nearly always all of it is here, and the value too. A short value
    /// that does not matter is passed over at once, and the next name begins.
    pub(super) fn begin_name(&mut self, facts: &mut UsageFacts, rest: &[u8], from: usize) -> usize {
        let place = self.place();
        let mut from = from;
        loop {
            let text = rest.get(from..).unwrap_or_default();
            let len = plain_len(text);
            if text.get(len) != Some(&b'"') {
                self.text.begin();
                self.at = At::MemberName;
                return from;
            }
            self.name = meaning(facts, place, text.get(..len).unwrap_or_default());
            let behind = from + len + 1;
            let value = match rest.get(behind..) {
                Some([b':', value @ ..]) => value,
                _ => {
                    self.at = At::Colon;
                    return behind;
                }
            };
            let passed = if self.name == MemberName::None { short_value(value) } else { None };
            let Some(len) = passed else {
                self.at = At::Value;
                return self.value(facts, rest, behind + 1);
            };
            from = behind + 1 + len;
        }
    }

    pub(super) fn finish_name(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let (used, is_over) = self.text.take(rest);
        if is_over {
            self.name = meaning(facts, self.place(), self.text.get().unwrap_or_default());
            self.at = At::Colon;
        }
        used
    }

    /// The object whose members are read.
    fn place(&self) -> UsagePlace {
        let innermost = self.depth.checked_sub(1).and_then(|at| self.places.get(usize::from(at)));
        innermost.copied().unwrap_or_default()
    }

    pub(super) fn colon(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest) else { return rest.len() };
        match rest.get(at) {
            Some(b':') => self.at = At::Value,
            _ => self.give_up(facts),
        }
        at + 1
    }
}

/// What a member of this name means in an object there.
fn meaning(facts: &UsageFacts, place: UsagePlace, name: &[u8]) -> MemberName {
    match place {
        UsagePlace::Top if !facts.is_stream => MemberName::of_whole(facts.dialect, name),
        _ => MemberName::of(facts.dialect, place, name),
    }
}

/// The bytes of a value and of what is behind it, up to the next name: of a null, a whole number
/// or a short text with nothing between. `None`: it is something else, or not all of it is here.
fn short_value(value: &[u8]) -> Option<usize> {
    let len = match value {
        [b'n', b'u', b'l', b'l', ..] => 4,
        [b'0'..=b'9', ..] => value.iter().position(|byte| !byte.is_ascii_digit())?,
        [b'"', text @ ..] => {
            let len = plain_len(text.get(..SHORT_TEXT_BYTES).unwrap_or(text));
            (text.get(len) == Some(&b'"')).then_some(len + 2)?
        }
        _ => return None,
    };
    value.get(len..)?.starts_with(b",\"").then_some(len + 2)
}

/// A whole number of few digits, and how many they are, where nothing else can belong to it.
/// `None`: it is another, or goes on behind these bytes.
pub(super) fn short_count(value: &[u8]) -> Option<(u64, usize)> {
    let (mut sum, mut len) = (0, 0);
    while let Some(digit @ b'0'..=b'9') = value.get(len).filter(|_| len < COUNT_DIGITS) {
        sum = sum * 10 + u64::from(digit - b'0');
        len += 1;
    }
    let is_whole = matches!(value, [b'1'..=b'9', ..] | [b'0', b',' | b'}', ..]);
    (is_whole && matches!(value.get(len), Some(b',' | b'}'))).then_some((sum, len))
}

/// Bytes that are judged at once; one vector register.
const ROW_BYTES: usize = 16;

/// How many bytes of a text there are before its end, an escape, or what no text has.
pub(super) fn plain_len(text: &[u8]) -> usize {
    let mut len = 0;
    let mut rest = text;
    while let Some((row, more)) = rest.split_first_chunk::<ROW_BYTES>() {
        // A loop that the compiler turns into vector instructions.
        let mut marks = [0; ROW_BYTES];
        for (mark, byte) in marks.iter_mut().zip(row) {
            let ends = byte.is_ascii_control() | (*byte == b'"') | (*byte == b'\\');
            *mark = if ends { u8::MAX } else { 0 };
        }
        let marks = u128::from_le_bytes(marks);
        if marks != 0 {
            return len + (marks.trailing_zeros() / 8) as usize;
        }
        len += ROW_BYTES;
        rest = more;
    }
    len + run_len(rest, |word| below(word, b' ') | equal(word, b'"') | equal(word, b'\\'))
}

#[cfg(test)]
mod tests {
    use super::super::super::number::Number;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Catches: a row whose marks are not in the order of its bytes.
        #[test]
        fn a_name_ends_where_a_search_finds_its_end(
            text in prop::collection::vec(prop::sample::select(&b"ab_\"\\\n\x7f\xc3"[..]), 0..70),
        ) {
            let ends = |byte: &u8| byte.is_ascii_control() || matches!(byte, b'"' | b'\\');
            prop_assert_eq!(plain_len(&text), text.iter().position(ends).unwrap_or(text.len()));
        }

        /// Catches: a number that is billed as another one because it is short.
        #[test]
        fn a_short_count_is_what_byte_by_byte_makes_of_it(
            value in "(0|00|[0-9]{1,20})([.]0)?(e1)?[,} \\]]?",
        ) {
            let digits = value.strip_suffix([',', '}']).unwrap_or_default();
            let is_short = (1..=COUNT_DIGITS).contains(&digits.len());
            let is_canonical = digits == "0" || !digits.starts_with('0');
            let is_whole = digits.bytes().all(|byte| byte.is_ascii_digit());
            let expected = (is_short && is_canonical && is_whole)
                .then(|| (Number::read(digits.as_bytes()), digits.len()));
            let found = short_count(value.as_bytes()).map(|(count, len)| (Ok(count), len));
            prop_assert_eq!(found, expected);
        }

        /// Catches: a value that is passed over and takes a part of the next name with it.
        #[test]
        fn a_short_value_ends_before_the_next_name(
            value in "(null|nul|7|12[.]5|\"[a,\"]{0,5}\"|\\{\\}|true)(,\"|, \"|\\}|\\])b\":1",
        ) {
            if let Some(len) = short_value(value.as_bytes()) {
                let whole = format!("{{\"a\":{value}}}");
                let tree: Option<serde_json::Value> = serde_json::from_str(&whole).ok();
                let members = tree.as_ref().and_then(|tree| tree.as_object());
                let next = members.and_then(|members| members.keys().find(|name| *name != "a"));
                let rest = &value.as_bytes()[len..];
                prop_assert!(next.is_none_or(|name| rest.starts_with(name.as_bytes())), "{next:?}");
            }
        }
    }
}
