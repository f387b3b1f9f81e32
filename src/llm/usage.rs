//! What an answer that passes says of tokens, of its end and of errors, streamed or not, whatever
//! the dialect.
//!
//! Whoever writes text must not write bills: clients and models put objects with the right names
//! into arguments of tools, schemas and metadata, which answers repeat. So nothing is searched for.
//! [`lines`] tells what in the bytes is JSON, [`walk`] knows where in it each value stands,
//! [`places`] says which of those places are the engine's, and [`facts`] keeps what stands there.
//!
//! An engine is trusted with its own numbers and with nothing else: whatever it sends, the state
//! stays small, and numbers that cannot be are no usage.

use super::dialect::Dialect;
use super::sse::EventFraming;
use facts::UsageFacts;
use lines::Lines;
use walk::UsageWalk;

pub mod account;
mod alike;
pub mod choices;
pub mod counts;
pub mod facts;
mod lines;
pub mod number;
mod places;
mod walk;

pub use super::tokens::Usage;

/// Watches bytes of an answer, cut anywhere.
#[derive(Debug, Default)]
pub struct UsageScan {
    lines: Lines,
    walk: UsageWalk,
    facts: UsageFacts,
}

impl UsageScan {
    /// Forgets the last answer, keeps what was allocated. Of the next one nothing is known.
    pub fn reset(&mut self) {
        self.expect(Dialect::Other, None);
    }

    /// An answer begins, of this dialect. `framing`: what separates the events of a stream; `None`
    /// for a whole answer.
    pub fn expect(&mut self, dialect: Dialect, framing: Option<EventFraming>) {
        self.facts.reset(dialect, framing.is_some());
        self.walk = UsageWalk::default();
        self.lines.reset(framing);
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.lines.feed(&mut self.walk, &mut self.facts, bytes);
    }

    /// Bytes of a whole answer passed that were not seen: what was said before them counts, and
    /// nothing goes on across them.
    pub fn skip(&mut self) {
        self.walk.skip(&mut self.facts);
    }

    /// Tokens so far.
    pub fn usage(&self) -> Option<Usage> {
        self.facts.usage()
    }

    /// All else that was found so far.
    pub fn facts(&self) -> &UsageFacts {
        &self.facts
    }

    /// The answer's own `id` (`chatcmpl-...`).
    pub fn upstream_id(&self) -> Option<&str> {
        self.facts.id.get()
    }

    /// Data has come: an event other than `[DONE]`, or a part of one; a line; or any byte of an
    /// answer that is no stream.
    pub fn has_data(&self) -> bool {
        self.lines.has_data()
    }

    /// It is a whole answer whose JSON has begun and has no end.
    pub fn is_cut(&self) -> bool {
        !self.facts.is_stream && self.walk.is_open()
    }

    /// The line `data: [DONE]` has come.
    pub fn done(&self) -> bool {
        self.lines.done()
    }
}

#[cfg(test)]
mod tests;
