//! The walk through the objects of an answer, cut anywhere: which bytes are names, numbers and
//! first bytes of values, and which are stepped over.

use super::names::{Name, Section, NAME_BYTES_MAX};
use super::{NativeScan, Said};
use memchr::{memchr2, memchr3};

/// Digits that cannot overflow.
const DIGITS_MAX: u8 = 16;
/// Length of a name that is longer than any of ours.
const TOO_LONG: usize = usize::MAX;

/// Where the next byte stands.
#[derive(Debug, Default)]
pub struct Walk {
    at: At,
    section: Section,
    /// The object is an entry of a list.
    listed: bool,
    /// The member whose value is read.
    name: Name,
    /// Beginning of a name, and how much there is, or [`TOO_LONG`].
    begun: [u8; NAME_BYTES_MAX],
    begun_len: usize,
    number: Number,
    /// Brackets that are open in what is stepped over.
    depth: u32,
    /// The last byte of a text was a backslash that is none itself.
    escaped: bool,
}

#[derive(Debug, Default)]
struct Number {
    value: u64,
    digits: u8,
    /// It is no whole number from zero up.
    odd: bool,
}

#[derive(Debug, Default, Clone, Copy)]
enum At {
    /// Between objects: `data: `, line ends, comments.
    #[default]
    Outside,
    /// Between the entries of a list of objects.
    List,
    /// Between the members of an object.
    Members,
    Name,
    Colon,
    Value,
    Number,
    /// In `true`, `false` or `null`.
    Word,
    /// In a text that means nothing, and what follows it.
    Text(Then),
    /// In an object or a list that means nothing.
    Skip(Kind),
    /// In the list whose entries are counted.
    Prefill,
}

/// Where a text stands.
#[derive(Debug, Clone, Copy)]
enum Then {
    List,
    Members,
    Skip(Kind),
    Prefill,
}

/// Where a text ends.
#[derive(Clone, Copy)]
enum TextEnd {
    /// At a quote.
    Quote(usize),
    /// At the end of a line, which text cannot hold: the object was cut off.
    Line(usize),
    /// Not among these bytes.
    Later,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Object,
    List,
}

impl NativeScan {
    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        // Each step takes a byte at least, but for the end of a number or word, whose state does.
        while !rest.is_empty() {
            let used = match self.walk.at {
                At::Outside => self.outside(rest),
                At::List => self.list(rest),
                At::Members => self.members(rest),
                At::Name => self.name(rest),
                At::Colon => self.colon(rest),
                At::Value => self.value(rest),
                At::Number => self.number(rest),
                At::Word => self.word(rest),
                At::Text(then) => self.text(rest, then),
                At::Skip(kind) => self.step_over(rest, kind),
                At::Prefill => self.prefill(rest),
            };
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    fn outside(&mut self, rest: &[u8]) -> usize {
        let Some(at) = memchr2(b'{', b'[', rest) else { return rest.len() };
        if rest.get(at) == Some(&b'{') {
            self.open(false);
        } else {
            self.walk.at = At::List;
        }
        at + 1
    }

    fn list(&mut self, rest: &[u8]) -> usize {
        // Lists inside are not told from this one: nothing in them is an object of an answer.
        let here = |byte: &u8| matches!(byte, b'{' | b']' | b'"');
        let Some(at) = rest.iter().position(here) else { return rest.len() };
        match rest.get(at) {
            Some(b'{') => self.open(true),
            Some(b'"') => self.walk.at = At::Text(Then::List),
            _ => self.walk.at = At::Outside,
        }
        at + 1
    }

    fn members(&mut self, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest, b",") else { return rest.len() };
        match rest.get(at) {
            Some(b'"') => {
                self.walk.at = At::Name;
                self.walk.begun_len = 0;
            }
            Some(b'}') if self.walk.section == Section::Top => {
                self.walk.at = if self.walk.listed { At::List } else { At::Outside };
                self.commit();
            }
            Some(b'}') => self.walk.section = Section::Top,
            _ => self.abandon(),
        }
        at + 1
    }

    fn name(&mut self, rest: &[u8]) -> usize {
        let end = self.text_end(rest);
        let piece = match end {
            TextEnd::Quote(at) => rest.get(..at).unwrap_or_default(),
            TextEnd::Later => rest,
            TextEnd::Line(at) => {
                self.abandon();
                return at + 1;
            }
        };
        let walk = &mut self.walk;
        let room = walk.begun.get_mut(walk.begun_len..).unwrap_or_default();
        let fits = piece.len() <= room.len();
        room.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        // Once it is too long it stays so.
        walk.begun_len = if fits { walk.begun_len + piece.len() } else { TOO_LONG };
        let TextEnd::Quote(at) = end else { return rest.len() };
        let name = walk.begun.get(..walk.begun_len).unwrap_or_default();
        walk.name = Name::of(self.dialect, walk.section, name);
        walk.at = At::Colon;
        at + 1
    }

    fn colon(&mut self, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest, b"") else { return rest.len() };
        match rest.get(at) {
            Some(b':') => self.walk.at = At::Value,
            _ => self.abandon(),
        }
        at + 1
    }

    fn value(&mut self, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest, b"") else { return rest.len() };
        let first = rest.get(at).copied().unwrap_or_default();
        let name = self.walk.name;
        match first {
            b'-' | b'0'..=b'9' => {
                self.walk.at = At::Number;
                self.walk.number = Number::default();
                return at;
            }
            b'{' => match name {
                Name::Object(inner) => {
                    self.walk.section = Section::Inner(inner);
                    self.walk.at = At::Members;
                }
                _ => self.skip_from(Kind::Object),
            },
            b'[' if name == Name::Prefill => {
                self.walk.at = At::Prefill;
                self.walk.number = Number::default();
                self.walk.depth = 0;
            }
            b'[' => self.skip_from(Kind::List),
            b'"' => self.walk.at = At::Text(Then::Members),
            b't' | b'f' | b'n' => self.walk.at = At::Word,
            _ => {
                self.abandon();
                return at + 1;
            }
        }
        self.said.other(name, first);
        at + 1
    }

    fn number(&mut self, rest: &[u8]) -> usize {
        let number = &mut self.walk.number;
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'0'..=b'9' => {
                    // A JSON number has no zeros before the others.
                    number.odd |=
                        number.digits == DIGITS_MAX || (number.digits > 0 && number.value == 0);
                    if number.digits < DIGITS_MAX {
                        number.value = number.value * 10 + u64::from(byte - b'0');
                        number.digits += 1;
                    }
                }
                b'-' | b'+' | b'.' | b'e' | b'E' => number.odd = true,
                _ => {
                    let whole = (!number.odd).then_some(number.value);
                    self.said.number(self.walk.name, whole);
                    self.walk.at = At::Members;
                    return at;
                }
            }
        }
        rest.len()
    }

    fn word(&mut self, rest: &[u8]) -> usize {
        let end = rest.iter().position(|byte| !byte.is_ascii_alphabetic());
        if end.is_some() {
            self.walk.at = At::Members;
        }
        end.unwrap_or(rest.len())
    }

    fn text(&mut self, rest: &[u8], then: Then) -> usize {
        match self.text_end(rest) {
            TextEnd::Later => rest.len(),
            TextEnd::Line(at) => {
                self.abandon();
                at + 1
            }
            TextEnd::Quote(at) => {
                self.walk.at = match then {
                    Then::List => At::List,
                    Then::Members => At::Members,
                    Then::Skip(kind) => At::Skip(kind),
                    Then::Prefill => At::Prefill,
                };
                at + 1
            }
        }
    }

    /// Steps through text.
    fn text_end(&mut self, rest: &[u8]) -> TextEnd {
        let mut at = usize::from(std::mem::take(&mut self.walk.escaped));
        loop {
            let left = rest.get(at..).unwrap_or_default();
            let Some(found) = memchr3(b'"', b'\\', b'\n', left) else { return TextEnd::Later };
            at += found;
            match rest.get(at) {
                Some(b'"') => return TextEnd::Quote(at),
                Some(b'\\') => at += 2,
                _ => return TextEnd::Line(at),
            }
            if at > rest.len() {
                self.walk.escaped = true;
                return TextEnd::Later;
            }
        }
    }

    fn step_over(&mut self, rest: &[u8], kind: Kind) -> usize {
        let (open, close) = match kind {
            Kind::Object => (b'{', b'}'),
            Kind::List => (b'[', b']'),
        };
        let Some(at) = memchr3(b'"', open, close, rest) else { return rest.len() };
        match rest.get(at) {
            Some(b'"') => self.walk.at = At::Text(Then::Skip(kind)),
            Some(byte) if *byte == open => self.walk.depth = self.walk.depth.saturating_add(1),
            _ if self.walk.depth > 1 => self.walk.depth -= 1,
            _ => self.walk.at = At::Members,
        }
        at + 1
    }
    /// Counts the entries of a list of objects.
    fn prefill(&mut self, rest: &[u8]) -> usize {
        let here = |byte: &u8| matches!(byte, b'{' | b'}' | b']' | b'"');
        let Some(at) = rest.iter().position(here) else { return rest.len() };
        let walk = &mut self.walk;
        match rest.get(at) {
            Some(b'"') => walk.at = At::Text(Then::Prefill),
            Some(b'{') => {
                walk.number.value += u64::from(walk.depth == 0);
                walk.depth = walk.depth.saturating_add(1);
            }
            Some(b'}') => walk.depth = walk.depth.saturating_sub(1),
            Some(b']') if walk.depth == 0 => {
                walk.at = At::Members;
                // It is empty unless the client asked for it.
                if walk.number.value > 0 {
                    self.said.number(Name::Prompt, Some(walk.number.value));
                }
            }
            _ => {}
        }
        at + 1
    }

    /// An object of the answer begins.
    fn open(&mut self, listed: bool) {
        self.walk.at = At::Members;
        self.walk.section = Section::Top;
        self.walk.listed = listed;
    }

    fn skip_from(&mut self, kind: Kind) {
        self.walk.at = At::Skip(kind);
        self.walk.depth = 1;
    }

    /// This is no object after all, or one that was cut off.
    fn abandon(&mut self) {
        self.walk = Walk::default();
        self.said = Said::default();
    }
}

/// Offset of the first byte that is neither white space nor one of these.
fn first_token(rest: &[u8], passed: &[u8]) -> Option<usize> {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r') || passed.contains(byte);
    rest.iter().position(|byte| !space(byte))
}
