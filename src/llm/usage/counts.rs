//! Counts by the names that engines use, and how later ones replace earlier ones.

use super::number::{sum, Odd};
use super::places::{UsageField, FIELDS};
use crate::llm::dialect::Dialect;
use crate::llm::tokens::{Oddities, Usage};

/// The counts of one event, or of all events of an answer so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    values: [u64; FIELDS],
    /// Which of them are there, by bit.
    known: u16,
    /// Which of them were said last as something that is no count, by bit.
    odd: u16,
    /// What was wrong with the last of those.
    why: Option<Odd>,
    oddities: Oddities,
}

const _: () = assert!(FIELDS <= 16, "a bit for each field");

impl Counts {
    /// A member says a count. The last one counts, but zero takes nothing back: engines that say
    /// zero first and count then are as usual as engines that clear their counters at the end.
    pub fn set(&mut self, field: UsageField, count: Result<u64, Odd>) {
        let (at, bit) = (field as usize, 1 << field as u16);
        match count {
            Err(odd) => {
                self.odd |= bit;
                self.why = Some(odd);
            }
            Ok(0) if self.value(field) > 0 => {
                self.oddities = self.oddities.and(Oddities::ZERO_AFTER_COUNT);
            }
            Ok(count) => {
                if let Some(value) = self.values.get_mut(at) {
                    *value = count;
                }
                self.known |= bit;
                self.odd &= !bit;
            }
        }
    }

    /// Counts of the same answer that were said later.
    pub fn merge(&mut self, later: &Counts) {
        // A sum is of the counts beside it, and not of later ones.
        if later.has_any(&COUNTED) && !later.has(UsageField::Total) {
            self.known &= !(1 << UsageField::Total as u16);
            self.values[UsageField::Total as usize] = 0;
        }
        for field in ALL {
            if later.has(field) {
                self.set(field, Ok(later.value(field)));
            }
        }
        self.odd |= later.odd;
        self.why = later.why.or(self.why);
        self.oddities = self.oddities.and(later.oddities);
    }

    /// There is one of this name.
    pub fn has(&self, field: UsageField) -> bool {
        self.known & 1 << field as u16 != 0
    }

    fn has_any(&self, fields: &[UsageField]) -> bool {
        fields.iter().any(|field| self.has(*field))
    }

    /// Nothing was said.
    pub fn is_empty(&self) -> bool {
        self.known == 0 && self.odd == 0
    }

    /// Seconds of audio.
    pub fn seconds(&self) -> Option<u64> {
        self.get(UsageField::Seconds)
    }

    fn value(&self, field: UsageField) -> u64 {
        self.values.get(field as usize).copied().unwrap_or_default()
    }

    fn get(&self, field: UsageField) -> Option<u64> {
        self.has(field).then(|| self.value(field))
    }

    /// What is strange in them.
    pub fn oddities(&self, usage: Option<Usage>) -> Oddities {
        let Some(usage) = usage else { return self.oddities };
        let exceeds = usage.cached_tokens.is_some_and(|n| n > usage.prompt_tokens);
        let differs = usage.total_tokens != usage.prompt_tokens + usage.completion_tokens;
        self.oddities
            .and_if(exceeds, Oddities::CACHED_EXCEEDS_PROMPT)
            .and_if(differs, Oddities::TOTAL_DIFFERS)
    }

    /// The tokens, of an answer of this dialect; `None` when nothing was said of them. `is_end`:
    /// its end mark stood beside them.
    ///
    /// # Errors
    /// Why nothing of this may stand in a bill: a wrong one is worse than one that is missing,
    /// because a missing one is seen.
    pub fn usage(&self, dialect: Dialect, is_end: bool) -> Result<Option<Usage>, Odd> {
        if let Some(odd) = self.why.filter(|_| self.odd & !self.unread() != 0) {
            return Err(odd);
        }
        match dialect {
            Dialect::Generate | Dialect::Ollama => self.native(dialect, is_end),
            _ if dialect.is_llama_cpp()
                && !self.has_any(&[UsageField::Input, UsageField::Output, UsageField::Total]) =>
            {
                self.native(dialect, is_end)
            }
            _ => self.common(dialect),
        }
    }

    /// Fields that are not looked at, since others tell prompt and completion: what is odd in them
    /// (llama.cpp's `"prompt_n": -1` for a prompt that was not computed) spoils nothing.
    fn unread(&self) -> u16 {
        let prompt = self.has_any(&[UsageField::Prompt, UsageField::Input]);
        match prompt && self.has_any(&[UsageField::Completion, UsageField::Output]) {
            true => TIMED.iter().fold(0, |bits, field| bits | 1 << *field as u16),
            false => 0,
        }
    }

    /// In the names of OpenAI's and Anthropic's interfaces. All zeros, which Ollama and LocalAI
    /// send before the real ones, are no usage.
    fn common(&self, dialect: Dialect) -> Result<Option<Usage>, Odd> {
        if !self.has_any(&COUNTED) && !self.has(UsageField::Total) {
            return self.timed();
        }
        let (prompt_tokens, completion_tokens) = self.halves(dialect)?;
        let sum = sum([prompt_tokens, completion_tokens])?;
        // A zero that followed a count was not believed: a total that came with it is the engine's
        // sum of other figures than these.
        let kept = self.oddities.is_empty();
        let usage = Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: self.get(UsageField::Total).filter(|_| kept).unwrap_or(sum),
            cached_tokens: self.get(UsageField::Cached).or(self.get(UsageField::CacheRead)),
            reasoning_tokens: self.get(UsageField::Reasoning),
        };
        Ok((usage.total_tokens > 0 || sum > 0).then_some(usage))
    }

    /// Prompt and completion. Both must be there, but where nothing is generated: then the
    /// completion is zero, and the total may stand for the prompt (as of rerankers).
    fn halves(&self, dialect: Dialect) -> Result<(u64, u64), Odd> {
        let cached = [self.value(UsageField::CacheRead), self.value(UsageField::CacheCreation)];
        let input =
            self.get(UsageField::Input).map(|n| sum([n, cached[0], cached[1]])).transpose()?;
        let prompt = self.get(UsageField::Prompt).or(input);
        let completion = self.get(UsageField::Completion).or(self.get(UsageField::Output));
        let may_generate = !matches!(dialect, Dialect::Embeddings | Dialect::Other);
        match (prompt.or(self.get(UsageField::Total)), completion) {
            (Some(prompt), None) if !may_generate => Ok((prompt, 0)),
            _ => prompt.zip(completion).ok_or(Odd::Missing),
        }
    }

    /// llama.cpp's `timings`, when nothing else tells: what was cached of the prompt, and what was
    /// not, make the prompt. Older ones leave out what was cached.
    fn timed(&self) -> Result<Option<Usage>, Odd> {
        let parts = self.get(UsageField::TimedPrompt).zip(self.get(UsageField::TimedCached));
        let Some(((computed, cached), completion_tokens)) =
            parts.zip(self.get(UsageField::TimedCompletion))
        else {
            return Ok(None);
        };
        let prompt_tokens = sum([computed, cached])?;
        Ok(Some(Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: sum([prompt_tokens, completion_tokens])?,
            cached_tokens: Some(cached),
            reasoning_tokens: None,
        }))
    }

    /// `timings` that tell all of it.
    pub fn has_timings(&self) -> bool {
        matches!(self.timed(), Ok(Some(_)))
    }

    /// In an engine's own names.
    fn native(&self, dialect: Dialect, is_end: bool) -> Result<Option<Usage>, Odd> {
        let cached = self.get(UsageField::Cached).or(self.get(UsageField::TimedCached));
        let timed = self.get(UsageField::TimedPrompt).map(|n| sum([n, cached.unwrap_or(0)]));
        let prompt = self.get(UsageField::Prompt).or(timed.transpose()?);
        let completion = self.get(UsageField::Completion).or(self.get(UsageField::TimedCompletion));
        let (prompt_tokens, completion_tokens) = match (prompt, completion) {
            // Ollama's last line leaves out what is zero.
            (None, None) if !(dialect == Dialect::Ollama && is_end) => return Ok(None),
            _ if dialect == Dialect::Ollama => (prompt.unwrap_or(0), completion.unwrap_or(0)),
            _ => prompt.zip(completion).ok_or(Odd::Missing)?,
        };
        // `tokens_cached` was first what its name says, then all that lies in the cache after the
        // answer: never less than the prompt, of which one token at least is always computed.
        let reused = self.get(UsageField::InCache).filter(|tokens| *tokens < prompt_tokens);
        Ok(Some(Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: sum([prompt_tokens, completion_tokens])?,
            cached_tokens: cached.or(reused),
            reasoning_tokens: self.get(UsageField::Reasoning),
        }))
    }

    /// Nothing of a completion was said.
    pub fn is_half(&self) -> bool {
        !self.has_any(&[UsageField::Output, UsageField::Completion])
    }
}

/// The counts that a sum is of.
const COUNTED: [UsageField; 4] =
    [UsageField::Prompt, UsageField::Completion, UsageField::Input, UsageField::Output];

/// What is read when nothing else tells.
const TIMED: [UsageField; 4] = [
    UsageField::TimedPrompt,
    UsageField::TimedCached,
    UsageField::TimedCompletion,
    UsageField::InCache,
];

const ALL: [UsageField; FIELDS] = [
    UsageField::Prompt,
    UsageField::Completion,
    UsageField::Total,
    UsageField::Input,
    UsageField::Output,
    UsageField::CacheRead,
    UsageField::CacheCreation,
    UsageField::Cached,
    UsageField::Reasoning,
    UsageField::TimedPrompt,
    UsageField::TimedCached,
    UsageField::TimedCompletion,
    UsageField::InCache,
    UsageField::Seconds,
];
