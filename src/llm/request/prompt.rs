//! Where the prompt stands in a body, and the milestones along it: hashes of its beginnings. Two
//! requests that have a milestone in common begin with the same text, as far as that milestone.
//!
//! Engines keep what they have computed for a prompt, and use it again for one that begins alike.
//! No tokenizer is needed to know which prompts do: the same bytes become the same tokens. Bytes as
//! they are written, that is: the same text with other escapes, or other white space within a
//! message, counts as another one. Clients write their earlier messages as they wrote them before.

mod trail;

use super::flag;
use crate::base::fold::FoldKey;
use crate::base::limits::{
    PREFIX_SALT_BYTES_MAX, PREFIX_TURNS_MAX, SESSION_BYTES_MAX, SESSION_SPAN_BYTES_MAX,
};
use crate::llm::json::Reader;
use std::ops::Range;
use trail::LOOKED_AT_BYTES;
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
/// What makes an engine read all of a prompt, whatever it has in its cache. With `echo` it is
/// `logprobs` that does, and `return_logprob` from where `logprob_start_len` says.
const UNCACHED: [&str; 6] =
    ["cache_prompt", "prompt_logprobs", "echo", "logprobs", "return_logprob", "logprob_start_len"];
/// Those that are lists of messages.
const MESSAGES: [&str; 2] = ["messages", "input"];
/// Those that are a message beside them.
const OF_THE_SYSTEM: [&str; 2] = ["system", "instructions"];
const KEYS: usize = SALTS.len() + PARTS.len() + SESSIONS.len() + UNCACHED.len();

/// Where in a body the values stand that make a prompt or name a session.
#[derive(Debug, Clone, Copy)]
pub struct PromptSpans {
    spans: [(u32, u32); KEYS],
    /// Where the last messages end, of those that anybody looks at; a ring.
    ends: [u32; PREFIX_TURNS_MAX],
    ended: usize,
    /// Messages follow at which nobody looks.
    goes_on: bool,
}

impl Default for PromptSpans {
    fn default() -> PromptSpans {
        let ends = [0; PREFIX_TURNS_MAX];
        PromptSpans { spans: [(0, 0); KEYS], ends, ended: 0, goes_on: false }
    }
}

impl PromptSpans {
    /// Notes a member of the body. Of two with one key the last counts, as it does for Python.
    pub(super) fn note(&mut self, key: &[u8], value: &Range<usize>) {
        let mut names = SALTS.into_iter().chain(PARTS).chain(SESSIONS).chain(UNCACHED);
        let Some(place) = names.position(|name| name.as_bytes() == key) else { return };
        let span = u32::try_from(value.start).ok().zip(u32::try_from(value.end).ok());
        if let (Some(slot), Some(span)) = (self.spans.get_mut(place), span) {
            *slot = span;
        }
    }

    /// Notes where an item of an array ends that is the value of a member.
    pub(super) fn note_item(&mut self, key: &[u8], array: usize, end: usize) {
        if !MESSAGES.iter().any(|name| name.as_bytes() == key) {
            return;
        }
        match u32::try_from(end) {
            Ok(end) if end as usize - array <= LOOKED_AT_BYTES => {
                if let Some(slot) = self.ends.get_mut(self.ended % PREFIX_TURNS_MAX) {
                    *slot = end;
                    self.ended += 1;
                }
            }
            _ => self.goes_on = true,
        }
    }

    fn at(&self, place: usize) -> Option<Range<usize>> {
        let (start, end) = *self.spans.get(place)?;
        (end > start).then_some(start as usize..end as usize)
    }

    /// Whether its engine reads all of the prompt, and uses nothing of what it has in its cache:
    /// `cache_prompt: false` (llama.cpp), and whoever wants to know of the prompt's own tokens how
    /// likely they were (`prompt_logprobs`, `echo` with `logprobs`; `return_logprob` with a
    /// `logprob_start_len`, of SGLang). What it reads is in its cache afterwards as that of others.
    pub fn is_read_anew(&self, body: &[u8]) -> bool {
        let first = SALTS.len() + PARTS.len() + SESSIONS.len();
        let mut spans = [None; UNCACHED.len()];
        for (span, place) in spans.iter_mut().zip(first..) {
            *span = self.spans.get(place).filter(|(start, end)| end > start).copied();
        }
        let [cache_prompt, prompt_logprobs, echo, logprobs, return_logprob, start] = spans;
        let text = |span: Option<(u32, u32)>| body.get(span?.0 as usize..span?.1 as usize);
        let is_set = |span| text(span).is_some_and(|value| value != b"null");
        let is_true = |span: Option<(u32, u32)>| {
            let reader = |(start, end)| Reader::within(body, start as usize..end as usize);
            span.is_some_and(|span| matches!(flag(&mut reader(span)), Ok(Some(true))))
        };
        let wants_logprobs = is_set(logprobs) && text(logprobs) != Some(b"false");
        let from_start = is_set(start) && text(start) != Some(b"-1");
        text(cache_prompt) == Some(b"false")
            || is_set(prompt_logprobs)
            || (is_true(echo) && wants_logprobs)
            || (is_true(return_logprob) && from_start)
    }

    /// The milestones of the body's prompt, for this model, by the name that engines know. It looks
    /// at no more than `PREFIX_BYTES_MAX` of the prompt.
    pub fn milestones(&self, body: &[u8], model: &str, key: &FoldKey) -> Milestones {
        let mut start = key.link(0, model.as_bytes());
        for (place, _) in SALTS.iter().enumerate() {
            if let Some(salt) = self.at(place).and_then(|span| body.get(span)) {
                let salt = salt.get(..PREFIX_SALT_BYTES_MAX).unwrap_or(salt);
                start = key.link(start.wrapping_add(1 + place as u64), salt);
            }
        }
        let (mut trail, mut messages) = (Trail::new(start), 0);
        for (place, name) in PARTS.iter().enumerate() {
            let Some(span) = self.at(SALTS.len() + place) else { continue };
            let start = span.start;
            let ends = self.ends_in(&span);
            messages += match MESSAGES.contains(name) {
                // A text alone is one.
                true => ends.clone().count().max(1),
                false => usize::from(OF_THE_SYSTEM.contains(name)),
            };
            // Where the next request has a comma and another message, this one has the end of the
            // array: that is no part of what they have in common.
            let end = ends.clone().last().filter(|_| !self.goes_on).unwrap_or(span.end);
            let part = body.get(start..end).unwrap_or_default();
            let mut fold = None;
            let hash_at =
                |before, len| fold.get_or_insert_with(|| key.begin(before)).up_to(part, len);
            if !trail.part(part.len(), ends.map(|end| end - start), hash_at) {
                break;
            }
        }
        trail.finish(messages)
    }

    /// The ends of messages within a value.
    fn ends_in(&self, span: &Range<usize>) -> impl Iterator<Item = usize> + Clone + use<> {
        let (ends, span) = (self.ends, span.clone());
        let first = self.ended.saturating_sub(PREFIX_TURNS_MAX);
        let end = move |at: usize| ends.get(at % PREFIX_TURNS_MAX).map(|end| *end as usize);
        let all = (first..self.ended).filter_map(end);
        all.filter(move |end| span.start < *end && *end < span.end)
    }

    /// The name of a session, as it stands between its quotes; `None` where the body has none.
    /// `by` is the member that has it, such as `user` or `metadata.user_id`.
    pub fn session<'a>(&self, body: &'a [u8], by: &str) -> Option<&'a [u8]> {
        let (outer, inner) = by.split_once('.').unwrap_or((by, ""));
        let index = SESSIONS.iter().position(|known| *known == outer)?;
        let span = self.at(SALTS.len() + PARTS.len() + index)?;
        // All of it is walked at once: what a client sends must not hold the worker.
        if span.len() > SESSION_SPAN_BYTES_MAX {
            return None;
        }
        let mut reader = Reader::within(body, span);
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

#[cfg(test)]
mod tests;
