//! Where the prompt stands in a body, and the milestones along it: hashes of its beginnings. Two
//! requests that have a milestone in common begin with the same text, as far as that milestone.
//!
//! Engines keep what they have computed for a prompt, and use it again for one that begins alike.
//! No tokenizer is needed to know which prompts do: the same bytes become the same tokens. Bytes as
//! they are written, that is: the same text with other escapes, or other white space within a
//! message, counts as another one. Clients write their earlier messages as they wrote them before.

mod trail;

use crate::base::fold::FoldKey;
use crate::base::limits::{PREFIX_BYTES_MAX, PREFIX_SALT_BYTES_MAX, SESSION_BYTES_MAX};
use crate::llm::json::{JsonFault, JsonStep, JsonWalk, Reader};
use std::ops::Range;
pub use trail::{Milestone, Milestones, Trail};

/// What changes the prompt, or what an engine keeps of it, from its first token on. (A LoRA of vLLM
/// is a model by its name.)
const SALTS: [&str; 8] = [
    "cache_salt",
    "lora",
    "lora_path",
    "chat_template",
    "chat_template_kwargs",
    "template",
    "reasoning_effort",
    "reasoning",
];
/// The parts of a prompt in the order in which engines render them: chat templates begin with the
/// tools and the system's words. For each kind of request some of them.
const PARTS: [&str; 14] = [
    "tools",
    "functions",
    "documents",
    "system",
    "instructions",
    "context",
    "input_extra",
    "input_prefix",
    "messages",
    "prompt",
    "input",
    "inputs",
    "text",
    "images",
];
/// What may name the session that a request belongs to: members of a body, or of an object in it.
const SESSIONS: [&str; 5] =
    ["user", "prompt_cache_key", "safety_identifier", "session_id", "metadata"];
const KEYS: usize = SALTS.len() + PARTS.len() + SESSIONS.len();

/// Where in a body the values stand that make a prompt or name a session.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromptSpans([(u32, u32); KEYS]);

impl PromptSpans {
    /// Notes a member of the body. Of two with one key the last counts, as it does for Python.
    pub(super) fn note(&mut self, key: &[u8], value: &Range<usize>) {
        let mut names = SALTS.into_iter().chain(PARTS).chain(SESSIONS);
        let Some(place) = names.position(|name| name.as_bytes() == key) else { return };
        let span = u32::try_from(value.start).ok().zip(u32::try_from(value.end).ok());
        if let (Some(slot), Some(span)) = (self.0.get_mut(place), span) {
            *slot = span;
        }
    }

    fn at(&self, place: usize) -> Option<Range<usize>> {
        let (start, end) = *self.0.get(place)?;
        (end > start).then_some(start as usize..end as usize)
    }

    /// The milestones of the body's prompt, for this model, by the name that engines know. It looks
    /// at no more than [`PREFIX_BYTES_MAX`] of the prompt.
    pub fn milestones(&self, body: &[u8], model: &str, key: &FoldKey) -> Milestones {
        let mut start = key.link(0, model.as_bytes());
        for (place, _) in SALTS.iter().enumerate() {
            if let Some(salt) = self.at(place).and_then(|span| body.get(span)) {
                let salt = salt.get(..PREFIX_SALT_BYTES_MAX).unwrap_or(salt);
                start = key.link(start.wrapping_add(1 + place as u64), salt);
            }
        }
        let mut walk = Walk { body, key, trail: Trail::new(start) };
        for (place, name) in PARTS.iter().enumerate() {
            let Some(span) = self.at(SALTS.len() + place) else { continue };
            let is_of_messages = matches!(*name, "messages" | "input");
            // The values were walked before: none of them is malformed.
            let whole = match is_of_messages && body.get(span.start) == Some(&b'[') {
                true => walk.messages(span).unwrap_or(false),
                false => walk.piece(span),
            };
            if !whole {
                break;
            }
        }
        walk.trail.finish()
    }

    /// The name of a session, as it stands between its quotes; `None` where the body has none.
    /// `by` is the member that has it, such as `user` or `metadata.user_id`.
    pub fn session<'a>(&self, body: &'a [u8], by: &str) -> Option<&'a [u8]> {
        let (outer, inner) = by.split_once('.').unwrap_or((by, ""));
        let index = SESSIONS.iter().position(|known| *known == outer)?;
        let mut reader = Reader::within(body, self.at(SALTS.len() + PARTS.len() + index)?);
        if !inner.is_empty() {
            if reader.peek() != Some(b'{') {
                return None;
            }
            let mut key = reader.enter_object().ok()?;
            while key? != inner.as_bytes() {
                reader.skip_value().ok()?;
                key = reader.next_key().ok()?;
            }
        }
        let name = match reader.peek()? {
            b'"' => reader.string().ok()?,
            b'-' | b'0'..=b'9' => reader.number().ok()?,
            _ => return None,
        };
        (!name.is_empty() && name.len() <= SESSION_BYTES_MAX).then_some(name)
    }
}

/// The way along a prompt.
struct Walk<'a> {
    body: &'a [u8],
    key: &'a FoldKey,
    trail: Trail,
}

impl Walk<'_> {
    /// Goes past a piece of the prompt; false: that is as far as anybody looks.
    fn piece(&mut self, span: Range<usize>) -> bool {
        let Walk { body, key, trail } = self;
        let piece = body.get(span).unwrap_or_default();
        let bytes = |part| piece.get(part).unwrap_or_default();
        let is_all = trail.go_on(piece.len(), |before, part| key.link(before, bytes(part)));
        if is_all {
            trail.end_piece();
        }
        is_all
    }

    /// The same of a list of messages, each of which is a piece. A list of anything else (tokens,
    /// texts) is one piece.
    fn messages(&mut self, span: Range<usize>) -> Result<bool, JsonFault> {
        let mut reader = Reader::within(self.body, span.clone());
        let mut is_item = reader.enter_array()?;
        if is_item && reader.peek() != Some(b'{') {
            return Ok(self.piece(span));
        }
        while is_item {
            reader.peek();
            let start = reader.offset();
            // An image may have megabytes, of which nobody looks at the rest.
            let stop = start.saturating_add(PREFIX_BYTES_MAX);
            let mut walk = JsonWalk::new(&reader);
            let end = loop {
                match walk.step(&mut reader, stop)? {
                    JsonStep::Member { .. } => {}
                    JsonStep::Whole => break reader.offset(),
                    JsonStep::Paused => break span.end,
                }
            };
            if !self.piece(start..end) {
                return Ok(false);
            }
            is_item = end < span.end && reader.next_item()?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
