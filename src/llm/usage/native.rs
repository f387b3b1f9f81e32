//! Usage, end and errors in the engines' own forms: SGLang and TGI on `/generate`, llama.cpp on
//! `/completion`, Ollama on `/api`.
//!
//! Their counts have plain names, and a model may put the same names into the arguments of a tool
//! call, which Ollama sends as an object. So, other than for `usage`, a search for a word is not
//! enough: this walks through each object of the answer and looks at its own members and at those
//! of a few known objects in it. What is large (text, vectors) it steps over.
//!
//! An object counts when it is complete, so nothing broken is read half.

use super::super::dialect::Dialect;
use super::super::tokens::{Usage, TOKENS_MAX};
use names::Name;

mod names;
mod walk;

/// Watches bytes of an answer, cut anywhere.
#[derive(Debug, Default)]
pub struct NativeScan {
    dialect: Dialect,
    walk: walk::Walk,
    /// What the object being read has said so far.
    said: Said,
    /// The sum of the objects that ended a choice. There is one, but for several prompts or
    /// choices in one request, which these engines answer as tasks of their own.
    finished: Option<Usage>,
    /// The last object that only says how far it is, or does not say that it is the end.
    running: Option<Usage>,
    ended: bool,
    error: bool,
}

/// The members of one object that matter.
#[derive(Debug, Default)]
struct Said {
    /// Tokens of the prompt, under the dialect's name.
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
    reasoning: Option<u64>,
    /// llama.cpp's `timings`, and its older count of the whole cache.
    timed_prompt: Option<u64>,
    timed_completion: Option<u64>,
    in_cache: Option<u64>,
    /// The end mark stands there, and says yes or no.
    end: Option<bool>,
    /// SGLang's `finish_reason` is not null.
    finish: bool,
    error: bool,
    /// A number was negative, broken or too large.
    absurd: bool,
}

impl NativeScan {
    /// Begins an answer of this dialect.
    pub fn reset(&mut self, dialect: Dialect) {
        *self = NativeScan { dialect, ..NativeScan::default() };
    }

    /// Bytes passed that were not seen: nothing goes on across them.
    pub fn skip(&mut self) {
        self.walk = walk::Walk::default();
        self.said = Said::default();
    }

    /// What was found so far.
    pub fn usage(&self) -> Option<Usage> {
        self.finished.or(self.running)
    }

    /// The mark that ends a stream was seen.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// An object said `error`.
    pub fn error(&self) -> bool {
        self.error
    }

    /// A complete object.
    fn commit(&mut self) {
        let said = std::mem::take(&mut self.said);
        self.error |= said.error;
        self.ended |= said.end == Some(true);
        let Some(usage) = said.usage(self.dialect) else { return };
        if said.finish || said.end == Some(true) {
            self.finished = Some(self.finished.map_or(usage, |sum| sum.plus(usage)));
        } else {
            self.running = Some(usage);
        }
    }
}

impl Said {
    fn usage(&self, dialect: Dialect) -> Option<Usage> {
        if self.absurd {
            return None;
        }
        let (prompt, completion) = match dialect {
            // The last line leaves out what is zero.
            Dialect::Ollama if self.end == Some(true) => (self.prompt.or(Some(0)), self.completion),
            Dialect::LlamaCpp => {
                let timed = self.timed_prompt.map(|n| n + self.cached.unwrap_or(0));
                (self.prompt.or(timed), self.completion.or(self.timed_completion))
            }
            _ => (self.prompt, self.completion),
        };
        if prompt.is_none() && completion.is_none() {
            return None;
        }
        let (prompt_tokens, completion_tokens) = (prompt.unwrap_or(0), completion.unwrap_or(0));
        // `tokens_cached` was first what its name says, then all that lies in the cache after the
        // answer: never less than the prompt, of which one token at least is always computed.
        let reused = self.in_cache.filter(|tokens| *tokens < prompt_tokens);
        Some(Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            cached_tokens: self.cached.or(reused),
            reasoning_tokens: self.reasoning,
        })
    }

    /// A number was read under this name.
    fn number(&mut self, name: Name, number: Option<u64>) {
        let field = match name {
            Name::Prompt => &mut self.prompt,
            Name::Completion => &mut self.completion,
            Name::Cached => &mut self.cached,
            Name::Reasoning => &mut self.reasoning,
            Name::TimedPrompt => &mut self.timed_prompt,
            Name::TimedCompletion => &mut self.timed_completion,
            Name::InCache => &mut self.in_cache,
            _ => return,
        };
        match number.filter(|number| *number <= TOKENS_MAX) {
            Some(number) => *field = Some(number),
            None => self.absurd = true,
        }
    }

    /// A value that is no number begins with this byte.
    fn other(&mut self, name: Name, first: u8) {
        match name {
            Name::End if matches!(first, b't' | b'f') => self.end = Some(first == b't'),
            // TGI's text is null until the last event.
            Name::Text => self.end = Some(first == b'"'),
            Name::Finish => self.finish = first != b'n',
            Name::Error => self.error |= matches!(first, b'"' | b'{'),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
