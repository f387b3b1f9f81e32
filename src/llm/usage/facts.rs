//! What the JSON of an answer has said: of the event that is being read, and of all before it.
//!
//! An event counts when its object is complete, so nothing broken is read half.

use super::counts::Counts;
use super::number::Odd;
use super::places::{Field, Name, Place};
use crate::llm::answer_id::AnswerId;
use crate::llm::dialect::Dialect;
use crate::llm::tokens::{Oddities, Usage};

/// Rank of a code that is not there.
const NO_CODE: u8 = u8::MAX;

/// All that is known of an answer.
#[derive(Debug, Default)]
pub struct Facts {
    pub(super) dialect: Dialect,
    said: Said,
    /// The answer's counts so far, and those of the event that is being read. Boxed: most of a
    /// stream has none. Kept from answer to answer.
    counts: Option<Box<Pair>>,
    /// The sum of what was done for choices that ended before; see [`Facts::take_counts`].
    before: Option<Box<Usage>>,
    /// An event had `timings` that tell all of it.
    is_timed: bool,
    /// The last counts are final, of one choice.
    is_final: bool,
    /// The last counts stood beside an end mark.
    is_last: bool,
    /// Something in that sum was no count.
    fault: Option<Odd>,
    oddities: Oddities,
    content: u64,
    finished: u32,
    marks: Marks,
    /// The last object had text of the model, and else nothing that matters.
    is_plain: bool,
    code: Option<Box<str>>,
    /// The answer's own id.
    pub(super) id: AnswerId,
}

#[derive(Debug, Default)]
struct Pair {
    all: Counts,
    now: Counts,
}

/// What an event says beside its counts.
#[derive(Debug)]
struct Said {
    content: bool,
    /// Choices in it, and those of them that have ended.
    choices: u16,
    finished: u16,
    /// It has `usage`; it has `timings`.
    usage: bool,
    timings: bool,
    end: bool,
    error: bool,
    marks: Marks,
    code: u8,
}

impl Default for Said {
    fn default() -> Said {
        Said {
            content: false,
            choices: 0,
            finished: 0,
            usage: false,
            timings: false,
            end: false,
            error: false,
            marks: Marks::default(),
            code: NO_CODE,
        }
    }
}

impl Said {
    fn is_plain(&self) -> bool {
        let marks = self.marks;
        let marked = marks.message_stop | marks.response_end | marks.error;
        let more = self.finished > 0 || self.usage | self.timings | self.end | self.error;
        self.content && !more && !marked
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

impl Facts {
    /// Forgets the last answer, keeps what was allocated.
    pub fn reset(&mut self, dialect: Dialect) {
        let mut id = std::mem::take(&mut self.id);
        id.reset();
        let mut counts = self.counts.take();
        if let Some(pair) = &mut counts {
            **pair = Pair::default();
        }
        *self = Facts { dialect, id, counts, ..Facts::default() };
    }

    /// The engine tells by itself what usage would: llama.cpp's `timings` stand in its last event
    /// whether it is asked for usage or not.
    pub fn is_timed(&self) -> bool {
        self.is_timed
    }

    /// An object is entered.
    pub(super) fn enter(&mut self, place: Place) {
        match place {
            Place::Usage | Place::EarlyUsage => self.said.usage = true,
            Place::Timings => self.said.timings = true,
            Place::Choice => self.said.choices = self.said.choices.saturating_add(1),
            Place::Error => self.said.error = true,
            _ => {}
        }
    }

    /// A count, or what stands in its place.
    pub(super) fn count(&mut self, field: Field, count: Result<u64, Odd>) {
        self.counts.get_or_insert_default().now.set(field, count);
    }

    /// A text, list or object that is not empty.
    pub(super) fn filled(&mut self, name: Name) {
        match name {
            Name::Content => self.said.content = true,
            Name::Finish => self.said.finished = self.said.finished.saturating_add(1),
            Name::Error => self.said.error = true,
            Name::End | Name::EndText => self.said.end = true,
            _ => {}
        }
    }

    /// True when a code of this rank would be kept: an error was told of, and no better one.
    pub(super) fn wants_code(&self, rank: u8) -> bool {
        self.said.error && rank < self.said.code
    }

    /// A short text, its escapes decoded.
    pub(super) fn text(&mut self, name: Name, text: &[u8]) {
        match name {
            Name::Type => Facts::named(&mut self.said.marks, text),
            Name::Kind => self.said.error |= text == b"error",
            Name::Code(rank) => {
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
        Facts::named(&mut self.marks, name);
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
        if let Some(pair) = &mut self.counts {
            pair.now = Counts::default();
        }
    }

    /// All counts were of something else.
    pub(super) fn drop_counts(&mut self) {
        if let Some(pair) = &mut self.counts {
            **pair = Pair::default();
        }
    }

    /// The object of an event is complete.
    pub(super) fn commit(&mut self) {
        let said = std::mem::take(&mut self.said);
        self.marks.any = true;
        self.marks.end |= said.end;
        self.marks.error |= said.error | said.marks.error;
        self.marks.message_stop |= said.marks.message_stop;
        self.marks.response_end |= said.marks.response_end;
        self.content += u64::from(said.content);
        self.is_plain = said.is_plain();
        self.finished = self.finished.saturating_add(u32::from(said.finished));
        let leaves_out_zeros = self.dialect == Dialect::Ollama && said.end;
        let has_counts = self.counts.as_ref().is_some_and(|pair| !pair.now.is_empty());
        self.is_plain &= !has_counts;
        if has_counts || leaves_out_zeros {
            self.take_counts(&said);
        }
    }

    /// Adds the counts of an event.
    ///
    /// Nearly all engines say how far they are, in one event or in many, and the last word of each
    /// count is the count. Some answer each choice as a task of its own and say what that cost, so
    /// that only the sum tells: SGLang and llama.cpp in their own forms, where the object that ends
    /// a choice says that it does, and llama.cpp on `/v1`, where `timings` stand in the same event
    /// and whatever choice is in it has ended. (vLLM's continuous usage has no `timings`, and its
    /// last event has the sum already.)
    fn take_counts(&mut self, said: &Said) {
        let is_native = self.dialect.is_native() && said.choices == 0 && !said.usage;
        let is_final = match is_native {
            true => said.end || said.finished > 0,
            false => said.timings && said.choices <= said.finished,
        };
        let dialect = self.dialect;
        let Pair { all, now } = &mut **self.counts.get_or_insert_default();
        let now = std::mem::take(now);
        self.is_timed |= now.has_timings();
        if self.is_final {
            if now.is_told() && !all.is_told() && !is_native {
                // `timings` said the same before.
                self.before = None;
            } else if !is_final && (is_native || !now.is_told()) {
                // How far another choice is: what is done counts.
                return;
            } else {
                let usage = all.usage(dialect, self.is_last);
                self.fault = self.fault.or(all.fault());
                self.oddities = self.oddities.and(all.oddities(usage));
                if let Some(usage) = usage {
                    let before = self.before.get_or_insert_default();
                    **before = before.plus(usage);
                }
            }
            *all = Counts::default();
        } else if is_native {
            *all = Counts::default();
        }
        all.merge(&now);
        self.is_final = is_final;
        self.is_last = said.end;
    }

    fn all(&self) -> Option<&Counts> {
        self.counts.as_ref().map(|pair| &pair.all)
    }

    /// Tokens so far.
    pub fn usage(&self) -> Option<Usage> {
        let last = self.all()?.usage(self.dialect, self.is_last)?;
        if self.fault.is_some() && self.is_final {
            return None;
        }
        let before = self.before.as_deref().filter(|_| self.is_final);
        Some(before.map_or(last, |before| before.plus(last)))
    }

    /// Why there is no usage although the engine said something.
    pub fn fault(&self) -> Option<Odd> {
        let sum = self.fault.filter(|_| self.is_final);
        self.all().and_then(Counts::fault).or(sum)
    }

    /// Seconds of audio.
    pub fn seconds(&self) -> Option<u64> {
        self.all().and_then(Counts::seconds)
    }

    /// What is strange in the counts.
    pub fn oddities(&self) -> Oddities {
        let sum = if self.is_final { self.oddities } else { Oddities::default() };
        let usage = self.usage();
        self.all().map_or(sum, |all| all.oddities(usage).and(sum))
    }

    /// Events in which the model said something.
    pub fn content_events(&self) -> u64 {
        self.content
    }

    /// The last object had text of the model, and else nothing that matters.
    pub(super) fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// An event has content, and nothing else that matters.
    pub(super) fn count_content(&mut self) {
        self.content += 1;
    }

    /// Choices that were said to have ended.
    pub fn choices_finished(&self) -> u32 {
        self.finished
    }

    /// At least one object was complete.
    pub fn is_begun(&self) -> bool {
        self.marks.any
    }

    /// The end, in an engine's own form.
    pub fn native_end(&self) -> bool {
        self.marks.end
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
