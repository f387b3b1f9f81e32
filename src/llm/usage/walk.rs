//! The walk through the JSON of an answer, cut anywhere. It knows which object it is in, hands what
//! stands in a place that matters to [`UsageFacts`], and steps over all else, however deep.
//!
//! It is strict about the objects that it enters: where no JSON could go on, the event is none.

use super::facts::UsageFacts;
use super::number::{Number, Odd};
use super::places::{MemberName, UsageField, UsagePlace, NAME_BYTES_MAX};
use member::{plain_len, short_count};
use memchr::memmem;
use step::MemberKind;

mod block;
mod member;
mod step;
pub mod text;

/// Objects that are entered inside each other at most: `response`, `usage`, details.
const PLACES_MAX: usize = 4;
/// Bytes of the longest text whose words matter.
const TEXT_BYTES_MAX: usize = 40;
const _: () = assert!(NAME_BYTES_MAX <= TEXT_BYTES_MAX);
/// The key that is looked for where the place is not known.
const USAGE_KEY: &[u8] = b"\"usage\"";

/// Where the next byte stands.
#[derive(Debug, Default)]
pub struct UsageWalk {
    at: At,
    /// The objects that are open, outermost first.
    places: [UsagePlace; PLACES_MAX],
    depth: u8,
    /// What is read are the entries of a list: of choices, or of whole answers.
    in_list: bool,
    /// The whole is a list of answers.
    is_list: bool,
    /// Bytes passed unseen: the object being read is taken for the answer's last one until more
    /// follows it.
    is_tail: bool,
    /// The member whose value is read.
    name: MemberName,
    text: text::Text,
    number: Number,
    /// Brackets that are open in what is stepped over.
    open: u32,
    /// Entries that were counted.
    entries: u64,
    /// Bytes of the piece being read that were left when the step began, and when the last text of
    /// the model did.
    left: usize,
    content_left: usize,
    /// Texts of the model in this object.
    contents: u8,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before all.
    #[default]
    Start,
    /// Behind all.
    Over,
    /// Behind what is no JSON, or none that we read.
    Broken,
    /// Bytes passed unseen: so many of the key's are there.
    Lost(u8),
    /// Behind the brace that opens an object.
    FirstName,
    /// Behind a comma.
    NextName,
    /// In a name.
    MemberName,
    Colon,
    Value,
    /// Behind a value.
    Behind,
    /// In a list, whose entries matter.
    List,
    /// In a number that matters.
    Number,
    /// In a number or a word that does not, or only for its being there.
    Word,
    /// Behind the quote that opens a text of which it matters whether it is empty.
    MaybeEmpty,
    /// Behind the bracket of a list or object of which that matters.
    MaybeBare(MemberKind),
    /// In a text that does not matter.
    Text,
    /// In a text whose words matter.
    Words,
    /// In a number or word that is kept as a text.
    BareWords,
    /// In the answer's id.
    Id,
    /// In a list or object that does not matter; in a text there.
    Inside(MemberKind, bool),
    /// In the list whose entries are counted, and in a text inside.
    Entries,
    TextOfEntries,
}

impl UsageWalk {
    /// An event, a line or an answer begins, and this is what its object is.
    pub fn begin(&mut self, place: UsagePlace) {
        self.at = At::Start;
        self.depth = 0;
        self.in_list = false;
        self.is_list = false;
        self.is_tail = false;
        self.contents = 0;
        self.places = [place; PLACES_MAX];
    }

    /// An event begins that is known already, and ends.
    pub fn pass(&mut self) {
        self.begin(UsagePlace::Top);
        self.at = At::Over;
    }

    /// How many bytes before the end of the piece that was read last the text of the model began,
    /// if the object is complete and had one such text.
    pub fn content_left(&self) -> Option<usize> {
        (self.at == At::Over && self.contents == 1).then_some(self.content_left)
    }

    /// The data of an event goes on in another line: a line end stands between the two.
    pub fn join(&mut self, facts: &mut UsageFacts) {
        let in_text = matches!(
            self.at,
            At::MemberName
                | At::MaybeEmpty
                | At::Text
                | At::Words
                | At::Id
                | At::Inside(_, true)
                | At::TextOfEntries
        );
        match in_text {
            true => self.give_up(facts),
            false => self.feed(facts, b"\n"),
        }
    }

    /// It has begun, and its end has not come. Of one of which bytes passed unseen nobody knows.
    pub fn is_open(&self) -> bool {
        !self.is_tail && !matches!(self.at, At::Start | At::Over | At::Broken)
    }

    /// It is over. What is not complete does not count.
    pub fn end(&mut self, facts: &mut UsageFacts) {
        if !matches!(self.at, At::Start | At::Over | At::Broken) {
            self.at = At::Over;
            facts.drop_said();
        }
    }

    /// Bytes pass unseen. Counts that were complete before count.
    pub fn skip(&mut self, facts: &mut UsageFacts) {
        if self.depth == 1 && self.at != At::Number && !self.is_tail {
            facts.commit();
        }
        facts.drop_said();
        self.begin(UsagePlace::Top);
        self.is_tail = true;
        self.at = At::Lost(0);
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, facts: &mut UsageFacts, bytes: &[u8]) {
        let mut rest = bytes;
        // Each step takes a byte at least, or changes the state to one that does.
        while !rest.is_empty() {
            self.left = rest.len();
            let used = match self.at {
                At::Behind => self.behind(facts, rest),
                At::FirstName | At::NextName => self.member(facts, rest),
                At::Value => self.value(facts, rest, 0),
                At::Text => self.pass_text(rest),
                At::Word => self.word(rest),
                At::Inside(kind, in_text) => self.step_over(rest, kind, in_text),
                At::List => self.list(facts, rest),
                At::Number => self.number(facts, rest),
                At::Colon => self.colon(facts, rest),
                At::MemberName => self.finish_name(facts, rest),
                At::MaybeEmpty => self.maybe_empty(facts, rest),
                At::MaybeBare(kind) => self.maybe_bare(facts, rest, kind),
                At::Words => self.words(facts, rest),
                At::BareWords => self.bare_words(facts, rest),
                At::Id => self.id(facts, rest),
                At::Entries => self.count_entries(facts, rest),
                At::TextOfEntries => self.pass_text_of_entries(rest),
                At::Start => self.start(facts, rest),
                At::Lost(matched) => self.search(rest, matched),
                At::Over => self.over(facts, rest),
                At::Broken => rest.len(),
            };
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    fn start(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest) else { return rest.len() };
        match rest.get(at) {
            Some(b'{') => self.enter(facts, self.places[0]),
            // Answers of several prompts.
            Some(b'[') if facts.dialect.is_native() => {
                self.is_list = true;
                self.in_list = true;
                self.at = At::List;
            }
            // Of rerankers, and vectors: it has no usage, but an end.
            Some(b'[') => {
                self.name = MemberName::None;
                self.step_over_from(facts, b'[');
            }
            _ => self.give_up(facts),
        }
        at + 1
    }

    fn over(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        match first_token(rest) {
            None => {}
            Some(_) if self.is_tail => {
                // What was found was not the answer's own.
                facts.drop_counts();
                self.at = At::Lost(0);
                return 0;
            }
            Some(_) => {
                facts.mark_text_behind();
                self.at = At::Broken;
            }
        }
        rest.len()
    }

    /// Looks for the key where it is not known what is a text and what is not: inside of one, the
    /// quote at the end of the key would be escaped.
    fn search(&mut self, rest: &[u8], matched: u8) -> usize {
        let missing = USAGE_KEY.get(usize::from(matched)..).unwrap_or_default();
        let found = |walk: &mut UsageWalk| {
            walk.depth = 1;
            walk.in_list = false;
            walk.name = MemberName::Enter(UsagePlace::Usage);
            walk.at = At::Colon;
        };
        if matched > 0 {
            let alike = missing.iter().zip(rest).take_while(|(a, b)| a == b).count();
            if alike == missing.len() {
                found(self);
            } else if alike == rest.len() {
                self.at = At::Lost(matched + alike as u8);
                return alike;
            } else {
                self.at = At::Lost(0);
                // A quote may begin the key anew.
            }
            return alike;
        }
        if let Some(at) = memmem::find(rest, USAGE_KEY) {
            found(self);
            return at + USAGE_KEY.len();
        }
        // It may begin at the end; it has quotes at its ends only, so then at the last quote.
        let tail = rest.get(rest.len().saturating_sub(USAGE_KEY.len() - 1)..).unwrap_or_default();
        if let Some(quote) = memchr::memrchr(b'"', tail) {
            let begun = tail.get(quote..).unwrap_or_default();
            if USAGE_KEY.starts_with(begun) {
                self.at = At::Lost(begun.len() as u8);
            }
        }
        rest.len()
    }

    /// Behind a value, inside an object.
    fn behind(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(at) = first_token(rest) else { return rest.len() };
        match rest.get(at) {
            Some(b',') => {
                self.at = At::NextName;
                if rest.get(at + 1) == Some(&b'"') {
                    return self.begin_name(facts, rest, at + 2);
                }
            }
            Some(b'}') => self.leave(facts),
            _ => self.give_up(facts),
        }
        at + 1
    }

    /// A value, at `from` or behind white space there.
    fn value(&mut self, facts: &mut UsageFacts, rest: &[u8], from: usize) -> usize {
        let Some(at) = first_token(rest.get(from..).unwrap_or_default()) else {
            return rest.len();
        };
        let at = from + at;
        let first = rest.get(at).copied().unwrap_or_default();
        match (self.name, first) {
            (MemberName::None, _) => {}
            (MemberName::Count(_) | MemberName::Index, b'0'..=b'9' | b'-') => {
                if let Some((count, len)) = short_count(rest.get(at..).unwrap_or_default()) {
                    self.counted(facts, Ok(count));
                    return at + len;
                }
                self.number = Number::default();
                self.at = At::Number;
                return at;
            }
            (MemberName::Count(_), b'n') => {}
            (MemberName::Count(field), _) => facts.count(field, Err(Odd::NotANumber)),
            (MemberName::Content | MemberName::Finish | MemberName::Error, b'"') => {
                // Nearly always the next byte is here too.
                match rest.get(at + 1) {
                    None | Some(b'"') => self.at = At::MaybeEmpty,
                    Some(_) => {
                        facts.filled(self.name);
                        self.contents = self.contents.saturating_add(1);
                        self.content_left = self.left.saturating_sub(at + 1);
                        self.begin_words(At::Text);
                    }
                }
                return at + 1;
            }
            (MemberName::Content, b'[') => self.at = At::MaybeBare(MemberKind::List),
            (MemberName::Content, b'{') => self.at = At::MaybeBare(MemberKind::Object),
            (MemberName::Finish, b'{') | (MemberName::End, b't') | (MemberName::EndText, b'"') => {
                facts.filled(self.name);
            }
            (MemberName::Enter(place), b'{') => self.enter(facts, place),
            (MemberName::Error, b'{') => self.enter(facts, UsagePlace::Error),
            (MemberName::Each(_), b'[') => {
                self.in_list = true;
                self.at = At::List;
            }
            (MemberName::Prefill, b'[') => {
                self.entries = 0;
                self.open = 0;
                self.at = At::Entries;
            }
            (MemberName::Type | MemberName::Kind, b'"') => {
                return self.words_from(facts, rest, at + 1)
            }
            (MemberName::Code(rank), b'"') if facts.wants_code(rank) => {
                return self.words_from(facts, rest, at + 1);
            }
            (MemberName::Code(rank), b'0'..=b'9') if facts.wants_code(rank) => {
                self.begin_words(At::BareWords);
                return at;
            }
            (MemberName::Id, b'"') if facts.id.is_sought() => {
                facts.id.begin();
                self.at = At::Id;
            }
            _ => {}
        }
        if self.at == At::Value {
            self.step_over_from(facts, first);
        }
        at + 1
    }

    /// The value that begins so does not matter.
    fn step_over_from(&mut self, facts: &mut UsageFacts, first: u8) {
        self.open = 1;
        self.text.begin();
        self.at = match first {
            b'"' => At::Text,
            b'{' => At::Inside(MemberKind::Object, false),
            b'[' => At::Inside(MemberKind::List, false),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I' => At::Word,
            _ => return self.give_up(facts),
        };
    }

    /// A text whose words matter begins at `from`. Nearly always all of it is here.
    fn words_from(&mut self, facts: &mut UsageFacts, rest: &[u8], from: usize) -> usize {
        let text = rest.get(from..).unwrap_or_default();
        let len = plain_len(text);
        if len > TEXT_BYTES_MAX || text.get(len) != Some(&b'"') {
            self.begin_words(At::Words);
            return from;
        }
        facts.text(self.name, text.get(..len).unwrap_or_default());
        self.close_value();
        from + len + 1
    }

    fn begin_words(&mut self, at: At) {
        self.text.begin();
        self.at = at;
    }

    fn number(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(used) = rest.iter().position(|byte| !self.number.take(*byte)) else {
            return rest.len();
        };
        let count = match self.name {
            // Nobody is billed for a part of one.
            MemberName::Count(UsageField::Seconds) => self.number.rounded_up(),
            _ => self.number.count(),
        };
        self.counted(facts, count);
        used
    }

    fn counted(&mut self, facts: &mut UsageFacts, count: Result<u64, Odd>) {
        match self.name {
            MemberName::Count(field) => facts.count(field, count),
            MemberName::Index => facts.index(count),
            _ => {}
        }
        self.at = At::Behind;
    }

    fn maybe_empty(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        if rest.first() == Some(&b'"') {
            self.close_value();
            return 1;
        }
        facts.filled(self.name);
        self.text.begin();
        self.at = At::Text;
        0
    }

    fn maybe_bare(&mut self, facts: &mut UsageFacts, rest: &[u8], kind: MemberKind) -> usize {
        let Some(at) = first_token(rest) else { return rest.len() };
        if rest.get(at) == Some(&kind.close()) {
            self.close_value();
            return at + 1;
        }
        facts.filled(self.name);
        self.begin_words(At::Inside(kind, false));
        self.open = 1;
        at
    }

    fn list(&mut self, facts: &mut UsageFacts, rest: &[u8]) -> usize {
        let Some(at) = rest.iter().position(|byte| !is_space(*byte) && *byte != b',') else {
            return rest.len();
        };
        match rest.get(at) {
            Some(b'{') => {
                self.in_list = false;
                let is_choice = self.depth > 0;
                self.enter(facts, if is_choice { UsagePlace::Choice } else { UsagePlace::Top });
            }
            Some(b']') => {
                self.in_list = false;
                self.at = if self.depth > 0 { At::Behind } else { At::Over };
            }
            Some(first) => self.step_over_from(facts, *first),
            None => {}
        }
        at + 1
    }

    /// An object begins whose members matter.
    fn enter(&mut self, facts: &mut UsageFacts, place: UsagePlace) {
        let Some(slot) = self.places.get_mut(usize::from(self.depth)) else {
            return self.give_up(facts);
        };
        *slot = place;
        self.depth += 1;
        self.at = At::FirstName;
        facts.enter(place);
    }

    /// An object ends.
    fn leave(&mut self, facts: &mut UsageFacts) {
        self.depth = self.depth.saturating_sub(1);
        let left = self.places.get(usize::from(self.depth)).copied().unwrap_or_default();
        self.in_list = left == UsagePlace::Choice || (self.depth == 0 && self.is_list);
        self.at = match (self.in_list, self.depth) {
            (true, _) => At::List,
            (false, 0) => At::Over,
            (false, _) => At::Behind,
        };
        if left == UsagePlace::Choice {
            facts.end_choice();
        }
        if self.depth == 0 {
            facts.commit();
        }
    }

    /// A value ends.
    fn close_value(&mut self) {
        self.at = match (self.in_list, self.depth) {
            (true, _) => At::List,
            (false, 0) => At::Over,
            (false, _) => At::Behind,
        };
    }

    /// This is no JSON, or none that we read.
    fn give_up(&mut self, facts: &mut UsageFacts) {
        facts.drop_said();
        self.at = if self.is_tail { At::Lost(0) } else { At::Broken };
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Offset of the first byte that is no white space.
fn first_token(rest: &[u8]) -> Option<usize> {
    // Nearly always the first one.
    match rest.first() {
        Some(byte) if !is_space(*byte) => Some(0),
        _ => rest.iter().position(|byte| !is_space(*byte)),
    }
}
