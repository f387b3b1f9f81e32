//! What an answer cost: as its engine counts it for the whole, or for each of its choices.
//!
//! Counts beside a choice are of that choice: vLLM and SGLang say with each event how far the
//! choice in it is, and llama.cpp answers each choice as a task of its own and says what that cost
//! where it ends. Counts without a choice are of the whole, and once they are there nothing else
//! counts.

use super::choices::INDEX_MAX;
use super::counts::Counts;
use super::number::Odd;
use crate::llm::dialect::Dialect;
use crate::llm::tokens::{Oddities, Usage};

/// What counts are of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// Of the whole answer.
    #[default]
    Whole,
    /// Of the choice with this index, which is [`INDEX_MAX`] at most.
    Choice(u8),
    /// Of a choice that ended, and of which nothing else is known.
    Unnamed,
}

/// Counts of an event, less their numbers.
#[derive(Debug, Clone, Copy)]
pub struct ToldCounts {
    /// The form of the answer.
    pub dialect: Dialect,
    /// What they are of.
    pub of: Of,
    /// They are the last ones of that.
    pub is_final: bool,
    /// An end mark stood beside them.
    pub is_end: bool,
    /// The engine counts each choice as a task of its own, which has a prompt of its own.
    pub is_task: bool,
    /// They stand in an engine's own form: each event says all of it.
    pub is_native: bool,
}

/// The counts of an answer.
#[derive(Debug, Default)]
pub struct Account {
    /// Of the event that is being read.
    pub now: Counts,
    /// Of what was told of last.
    last: Part,
    /// An end mark stood beside these.
    is_end: bool,
    /// Each choice has a prompt of its own.
    is_task: bool,
    /// Of other choices; so many at most as there are indexes. Few answers have more than one.
    others: Vec<Part>,
    /// The sum of choices that ended and whose index was used again, or not told.
    before: Option<Usage>,
    /// Something in that sum was no count.
    fault: Option<Odd>,
    oddities: Oddities,
    /// Something stands behind a whole object and is none of it.
    pub has_text_behind: bool,
}

/// The counts of one choice, or of the whole.
#[derive(Debug, Default)]
struct Part {
    of: Of,
    is_final: bool,
    counts: Counts,
}

impl Account {
    /// Takes the counts of the event that was read.
    pub fn take(&mut self, told: ToldCounts) {
        let now = std::mem::take(&mut self.now);
        self.is_end = told.is_end;
        if told.of == Of::Whole {
            return self.take_whole(told.dialect, &now);
        }
        self.is_task |= told.is_task;
        self.turn_to(told.of);
        if self.last.is_final && told.is_task {
            if !told.is_final {
                // How far another choice of the same index is: what is done counts.
                return;
            }
            self.put_away(told.dialect);
        } else if told.is_native {
            self.last.counts = Counts::default();
        }
        self.last.counts.merge(&now);
        self.last.is_final |= told.is_final;
    }

    fn take_whole(&mut self, dialect: Dialect, now: &Counts) {
        if !self.is_single() && matches!(now.usage(dialect, false), Ok(Some(_))) {
            let has_text_behind = self.has_text_behind;
            *self = Account { has_text_behind, ..Account::default() };
        }
        if self.is_single() {
            self.last.of = Of::Whole;
            self.last.is_final = false;
        }
        self.last.counts.merge(now);
    }

    /// Nothing is added up.
    fn is_single(&self) -> bool {
        self.others.is_empty() && self.before.is_none() && self.fault.is_none()
    }

    /// What is told next is of this.
    fn turn_to(&mut self, of: Of) {
        if self.last.of == of {
            return;
        }
        if self.last.of == Of::Whole {
            // Nothing was told yet, or of an answer that has one choice.
            self.last.of = of;
            return;
        }
        match self.others.iter_mut().find(|part| part.of == of) {
            Some(part) => std::mem::swap(part, &mut self.last),
            None => {
                let part = Part { of, ..Part::default() };
                self.others.push(std::mem::replace(&mut self.last, part));
            }
        }
    }

    /// What was told of last goes into the sum.
    fn put_away(&mut self, dialect: Dialect) {
        let Part { of, counts, .. } = std::mem::take(&mut self.last);
        self.last.of = of;
        let usage = counts.usage(dialect, false);
        self.oddities = self.oddities.and(counts.oddities(usage.ok().flatten()));
        match usage.and_then(|usage| add(self.before, usage)) {
            Ok(sum) => self.before = sum,
            Err(odd) => self.fault = self.fault.or(Some(odd)),
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Counts> {
        self.others.iter().map(|part| &part.counts).chain([&self.last.counts])
    }

    /// The tokens; `None` when nothing was said of them.
    ///
    /// # Errors
    /// Why nothing of this may stand in a bill.
    pub fn usage(&self, dialect: Dialect) -> Result<Option<Usage>, Odd> {
        if self.is_single() {
            return self.last.counts.usage(dialect, self.is_end);
        }
        if let Some(odd) = self.fault {
            return Err(odd);
        }
        let mut sum = self.before;
        for (at, counts) in self.parts().enumerate() {
            let Some(mut usage) = counts.usage(dialect, self.is_end)? else { continue };
            let is_of_same = |other: &Counts| match other.usage(dialect, self.is_end) {
                Ok(Some(other)) => other.prompt_tokens == usage.prompt_tokens,
                _ => false,
            };
            // Choices with one and the same prompt. Prompts of the same length cannot be told from
            // it; then the sum is too low until the engine tells that of the whole.
            if !self.is_task && self.parts().take(at).any(is_of_same) {
                usage.prompt_tokens = 0;
                usage.cached_tokens = None;
                usage.total_tokens = usage.completion_tokens;
            }
            sum = add(sum, Some(usage))?;
        }
        Ok(sum)
    }

    /// Nothing of a completion was said.
    pub fn is_half(&self) -> bool {
        self.parts().all(Counts::is_half)
    }

    /// Seconds of audio.
    pub fn seconds(&self) -> Option<u64> {
        self.last.counts.seconds()
    }

    /// What is strange in the counts.
    pub fn oddities(&self, dialect: Dialect) -> Oddities {
        let of = |counts: &Counts| {
            let usage = counts.usage(dialect, self.is_end);
            counts.oddities(usage.ok().flatten())
        };
        let is_strange = self.has_text_behind && matches!(self.usage(dialect), Ok(Some(_)));
        let all = self.oddities.and_if(is_strange, Oddities::TEXT_BEHIND);
        self.parts().fold(all, |all, counts| all.and(of(counts)))
    }
}

fn add(a: Option<Usage>, b: Option<Usage>) -> Result<Option<Usage>, Odd> {
    match (a, b) {
        (Some(a), Some(b)) => a.plus(b).map(Some),
        (a, b) => Ok(a.or(b)),
    }
}

impl Of {
    /// The choice with this index.
    pub fn choice(index: u8) -> Of {
        Of::Choice(index.min(INDEX_MAX))
    }
}
