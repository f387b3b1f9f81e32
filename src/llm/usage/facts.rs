//! What the JSON of an answer has said: of the event that is being read, and of all before it.
//!
//! An event counts when its object is complete, so nothing broken is read half.

use super::account::{Account, Of, ToldCounts};
use super::choices::{Choices, INDEX_MAX};
use super::counts::Counts;
use super::number::Odd;
use super::places::{MemberName, UsageField, UsagePlace};
use crate::llm::answer_id::AnswerId;
use crate::llm::dialect::Dialect;
use crate::llm::tokens::{Oddities, Usage};

/// Rank of a code that is not there.
const NO_CODE: u8 = u8::MAX;

/// All that is known of an answer.
#[derive(Debug, Default)]
pub struct UsageFacts {
    pub(super) dialect: Dialect,
    pub(super) is_stream: bool,
    said: Said,
    /// The answer's counts. Boxed: most of a stream has none. Kept from answer to answer.
    account: Option<Box<Account>>,
    /// An event had `timings` that tell all of it.
    is_timed: bool,
    /// Those that were told of.
    choices: Choices,
    /// The choice that ended last, until counts are told behind its end.
    uncounted: Option<u8>,
    /// The text that was begun last has ended, in a dialect that says so.
    is_text_over: bool,
    /// Events in which the model said something.
    content: u32,
    marks: Marks,
    /// The last object had text of the model, and else nothing that matters.
    is_plain: bool,
    code: Option<Box<str>>,
    /// The answer's own id.
    pub(super) id: AnswerId,
}

/// What an event says beside its counts.
#[derive(Debug)]
struct Said {
    content: bool,
    choices: Choices,
    /// Index of the choice that is being read; of native answers, in the event itself.
    index: u8,
    /// Why that ended.
    finish: bool,
    /// A token of TGI's, whose index is that of the token.
    token: bool,
    /// It has `usage`; it has `timings`.
    usage: bool,
    timings: bool,
    end: bool,
    error: bool,
    /// A text ended, or one begins.
    text_over: Option<bool>,
    marks: Marks,
    code: u8,
}

impl Default for Said {
    fn default() -> Said {
        Said {
            content: false,
            choices: Choices::default(),
            index: 0,
            finish: false,
            token: false,
            usage: false,
            timings: false,
            end: false,
            error: false,
            text_over: None,
            marks: Marks::default(),
            code: NO_CODE,
        }
    }
}

impl Said {
    fn is_plain(&self) -> bool {
        let marks = self.marks;
        let marked = marks.message_stop | marks.response_end | marks.error;
        let ends = self.finish | self.end | self.choices.first_ended().is_some();
        self.content && !(ends | self.usage | self.timings | self.error | marked)
    }
}

/// What an answer was heard to say.
#[derive(Debug, Default, Clone, Copy)]
struct Marks {
    /// Anything.
    any: bool,
    /// The end, in an engine's own form.
    end: bool,
    message_stop: bool,
    response_end: bool,
    error: bool,
}

impl UsageFacts {
    /// Forgets the last answer, keeps what was allocated.
    pub fn reset(&mut self, dialect: Dialect, is_stream: bool) {
        let mut id = std::mem::take(&mut self.id);
        id.reset();
        let mut account = self.account.take();
        if let Some(account) = &mut account {
            **account = Account::default();
        }
        *self = UsageFacts { dialect, is_stream, id, account, ..UsageFacts::default() };
    }

    /// The engine tells by itself what usage would: llama.cpp's `timings` stand in its last event
    /// whether it is asked for usage or not.
    pub fn is_timed(&self) -> bool {
        self.is_timed
    }

    /// An object is entered.
    pub(super) fn enter(&mut self, place: UsagePlace) {
        match place {
            UsagePlace::Usage | UsagePlace::EarlyUsage => self.said.usage = true,
            UsagePlace::Timings => self.said.timings = true,
            UsagePlace::Choice => (self.said.index, self.said.finish) = (0, false),
            UsagePlace::Token => self.said.token = true,
            UsagePlace::Error => self.said.error = true,
            _ => {}
        }
    }

    /// A count, or what stands in its place.
    pub(super) fn count(&mut self, field: UsageField, count: Result<u64, Odd>) {
        self.account.get_or_insert_default().now.set(field, count);
    }

    /// The index of a choice. What is no index is the first one's.
    pub(super) fn index(&mut self, index: Result<u64, Odd>) {
        self.said.index = index.map_or(0, |index| index.min(INDEX_MAX.into()) as u8);
    }

    /// A choice was read.
    pub(super) fn end_choice(&mut self) {
        self.said.choices.see(self.said.index, self.said.finish);
        self.said.finish = false;
    }

    /// A text, list or object that is not empty.
    pub(super) fn filled(&mut self, name: MemberName) {
        match name {
            MemberName::Content => self.said.content = true,
            MemberName::Finish => self.said.finish = true,
            MemberName::Error => self.said.error = true,
            MemberName::End | MemberName::EndText => self.said.end = true,
            _ => {}
        }
    }

    /// True when a code of this rank would be kept: an error was told of, and no better one.
    pub(super) fn wants_code(&self, rank: u8) -> bool {
        self.said.error && rank < self.said.code
    }

    /// A short text, its escapes decoded.
    pub(super) fn text(&mut self, name: MemberName, text: &[u8]) {
        match name {
            MemberName::Type => {
                UsageFacts::named(&mut self.said.marks, text);
                self.said.text_over = text_over(self.dialect, text).or(self.said.text_over);
            }
            MemberName::Kind => self.said.error |= text == b"error",
            MemberName::Code(rank) => {
                let is_plain = text.iter().all(|byte| matches!(byte, b'!'..=b'~'));
                if is_plain && !text.is_empty() {
                    self.said.code = rank;
                    self.code = std::str::from_utf8(text).ok().map(Into::into);
                }
            }
            _ => {}
        }
    }

    /// The name of an event, from outside its data.
    pub(super) fn event_name(&mut self, name: &[u8]) {
        UsageFacts::named(&mut self.marks, name);
    }

    fn named(marks: &mut Marks, name: &[u8]) {
        match name {
            b"message_stop" => marks.message_stop = true,
            b"response.completed" | b"response.incomplete" => marks.response_end = true,
            b"response.failed" => {
                marks.response_end = true;
                marks.error = true;
            }
            b"error" => marks.error = true,
            _ => {}
        }
    }

    /// An error, said outside of all objects.
    pub(super) fn mark_error(&mut self) {
        self.marks.error = true;
        self.said.error = true;
    }

    /// The event being read is none after all, or is cut off.
    pub(super) fn drop_said(&mut self) {
        self.is_plain = false;
        self.said = Said::default();
        if let Some(account) = &mut self.account {
            account.now = Counts::default();
        }
    }

    /// All counts were of something else.
    pub(super) fn drop_counts(&mut self) {
        if let Some(account) = &mut self.account {
            **account = Account::default();
        }
    }

    /// Something stands behind a whole object and is none of it.
    pub(super) fn mark_text_behind(&mut self) {
        self.account.get_or_insert_default().has_text_behind = true;
    }

    /// The object of an event is complete.
    pub(super) fn commit(&mut self) {
        let mut said = std::mem::take(&mut self.said);
        self.is_plain = said.is_plain();
        self.marks.any = true;
        self.marks.end |= said.end;
        self.marks.error |= said.error | said.marks.error;
        self.marks.message_stop |= said.marks.message_stop;
        self.marks.response_end |= said.marks.response_end;
        self.content = self.content.saturating_add(said.content.into());
        self.is_text_over = said.text_over.unwrap_or(self.is_text_over) && !said.content;
        let has_counts = self.account.as_ref().is_some_and(|account| !account.now.is_empty());
        self.is_plain &= !has_counts;
        // What stands beside no choice is one: an answer in an engine's own form, or a message.
        let is_native = self.dialect.is_native() && said.choices.is_empty() && !said.usage;
        let is_some = said.content | said.end | said.finish | has_counts;
        let is_message = self.dialect == Dialect::Messages && said.choices.is_empty();
        if is_some && (is_native || is_message) {
            let index = if said.token { 0 } else { said.index };
            said.choices.see(index, said.end | said.finish);
        }
        if self.choices.add(said.choices) {
            self.uncounted = said.choices.first_ended();
        }
        let leaves_out_zeros = self.dialect == Dialect::Ollama && said.end;
        if has_counts || leaves_out_zeros {
            self.take_counts(&said, is_native);
        }
    }

    /// Adds the counts of an event.
    fn take_counts(&mut self, said: &Said, is_native: bool) {
        let of = match said.choices.only() {
            Some(index) => Of::choice(index),
            // llama.cpp's usage event follows the end of its choice.
            None if said.timings => self.uncounted.map_or(Of::Unnamed, Of::choice),
            None => Of::Whole,
        };
        let is_ended = said.choices.is_empty() || said.choices.all_ended();
        let account = self.account.get_or_insert_default();
        self.is_timed |= account.now.has_timings();
        account.take(ToldCounts {
            dialect: self.dialect,
            of,
            is_final: is_ended,
            is_end: said.end,
            is_task: is_native || said.timings,
            is_native,
        });
        if self.uncounted.is_some() && self.is_told() {
            self.uncounted = None;
        }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Option<Usage> {
        self.told().ok().flatten()
    }

    /// Why there is no usage although the engine said something.
    pub fn fault(&self) -> Option<Odd> {
        self.told().err()
    }

    fn told(&self) -> Result<Option<Usage>, Odd> {
        let Some(account) = &self.account else { return Ok(None) };
        // What `message_start` says is half of it, and the rest has not come yet.
        let is_early = self.is_stream && self.dialect == Dialect::Messages && account.is_half();
        if is_early && !self.marks.message_stop {
            return Ok(None);
        }
        account.usage(self.dialect)
    }

    /// Counts were told, even if they are none.
    fn is_told(&self) -> bool {
        !matches!(self.told(), Ok(None))
    }

    /// Seconds of audio.
    pub fn seconds(&self) -> Option<u64> {
        self.account.as_ref()?.seconds()
    }

    /// What is strange in the counts.
    pub fn oddities(&self) -> Oddities {
        let account = self.account.as_ref();
        account.map_or(Oddities::default(), |account| account.oddities(self.dialect))
    }

    /// All that there is was said, and what it cost: each choice has ended, and counts were told
    /// since.
    pub fn is_accounted(&self) -> bool {
        self.choices.all_ended() && self.is_counted()
    }

    /// All that the model says was said, as far as the stream tells, and what it cost was not.
    pub fn awaits_counts(&self) -> bool {
        let is_said = self.is_text_over || self.choices.all_ended();
        is_said && !self.marks.error && !self.is_counted()
    }

    fn is_counted(&self) -> bool {
        self.uncounted.is_none() && self.is_told()
    }

    /// Events in which the model said something.
    pub fn content_events(&self) -> u64 {
        self.content.into()
    }

    /// The last object had text of the model, and else nothing that matters.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// An event has content, and nothing else that matters.
    pub(super) fn count_content(&mut self) {
        self.content = self.content.saturating_add(1);
        self.is_text_over = false;
    }

    /// Choices that were told of.
    pub fn choices(&self) -> Choices {
        self.choices
    }

    /// No text is begun that has not ended, in a dialect that says so.
    pub fn is_text_over(&self) -> bool {
        self.is_text_over
    }

    /// At least one object was complete.
    pub fn is_begun(&self) -> bool {
        self.marks.any
    }

    /// The end of each choice, in an engine's own form.
    pub fn native_end(&self) -> bool {
        self.marks.end && self.choices.all_ended()
    }

    /// `message_stop`, which ends a stream of `/v1/messages`.
    pub fn message_stopped(&self) -> bool {
        self.marks.message_stop
    }

    /// `response.completed`, `response.incomplete` or `response.failed`.
    pub fn response_ended(&self) -> bool {
        self.marks.response_end
    }

    /// The answer told of an error.
    pub fn error(&self) -> bool {
        self.marks.error
    }

    /// The code of the error, or its type: a number or a word.
    pub fn error_code(&self) -> Option<&str> {
        self.code.as_deref().filter(|_| self.marks.error)
    }
}

/// Whether an event of this type ends a text, or begins or goes on with one. Between the two
/// nobody knows whether another text follows.
fn text_over(dialect: Dialect, name: &[u8]) -> Option<bool> {
    match dialect {
        Dialect::Responses if name.ends_with(b".done") => Some(true),
        Dialect::Responses if name.ends_with(b".added") || name.ends_with(b".delta") => Some(false),
        Dialect::Messages if name == b"content_block_stop" => Some(true),
        Dialect::Messages if name == b"content_block_start" => Some(false),
        _ => None,
    }
}
