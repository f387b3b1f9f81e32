//! Token usage in an answer that passes, streamed or not, whatever the dialect.
//!
//! A raw search for `"usage"` is enough: inside a JSON string the quotes would be escaped, so the
//! bytes can only be a key, or a whole string value that no colon follows. Only the object behind
//! the key is read. **The last one with tokens wins**: Ollama sends zeros first, vLLM's continuous
//! usage is cumulative, SGLang mixes in nulls. (A Responses answer repeats the client's tool
//! schemas, which may have a property `usage`; they stand before the engine's own.)
//!
//! An engine is trusted with its own numbers and with nothing else: whatever it sends, the state
//! stays small, and numbers that cannot be are no usage.

use super::answer_id::AnswerId;
use super::tokens::{self, Report};
use crate::base::limits::USAGE_OBJECT_BYTES_MAX;
use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use std::sync::LazyLock;

pub use super::tokens::Usage;

const KEY: &[u8] = b"\"usage\"";
/// Built once: it holds the vector routine chosen for this CPU.
static KEY_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));

/// Quotes are few where [`QUOTES_TRIED`] of them lie so far apart.
const SPARSE_BYTES_MIN: usize = 1024;
/// Quotes that are looked at one by one before they count as few or many.
const QUOTES_TRIED: usize = 4;
/// Bytes that are searched for the word before quotes are tried again.
const DENSE_BYTES: usize = 8 * 1024;

/// Watches bytes of an answer, cut anywhere, for `"usage":{...}` and for the answer's id.
#[derive(Debug, Default)]
pub struct UsageScan {
    state: State,
    /// What earlier slices held of the object; nothing is allocated unless it was cut.
    begun: Vec<u8>,
    last: Option<Report>,
    id: AnswerId,
}

/// What the next byte may belong to.
#[derive(Debug, Default)]
enum State {
    /// Anything; the search is on.
    #[default]
    Elsewhere,
    /// The key, of which so many bytes ended the last slice.
    Key(u8),
    /// White space before the colon.
    BeforeColon,
    /// White space before the value.
    BeforeValue,
    /// The object itself.
    Object(Nesting),
}

impl UsageScan {
    /// Forgets the last answer, keeps what its id had allocated.
    pub fn reset(&mut self) {
        self.state = State::Elsewhere;
        self.begun = Vec::new();
        self.last = None;
        self.id.reset();
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.id.feed(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match &mut self.state {
                State::Elsewhere => self.search(rest),
                State::Key(matched) => {
                    let matched = *matched;
                    self.finish_key(matched, rest)
                }
                State::BeforeColon => self.before_colon(rest),
                State::BeforeValue => self.before_value(rest),
                State::Object(_) => self.object(rest),
            };
        }
    }

    /// Bytes passed that were not seen: nothing goes on across them.
    pub fn skip(&mut self) {
        self.state = State::Elsewhere;
        self.begun = Vec::new();
    }

    /// What was found so far.
    pub fn usage(&self) -> Option<Usage> {
        self.last.map(|report| report.usage())
    }

    /// The answer's own `id` (`chatcmpl-...`), when it stood near the start.
    pub fn upstream_id(&self) -> Option<&str> {
        self.id.get()
    }

    fn search<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        if let Some(at) = find_key(rest) {
            self.state = State::BeforeColon;
            return behind(rest, at + KEY.len());
        }
        // The key has quotes at its ends only, so if it begins in this slice, then at the last
        // quote.
        let tail = behind(rest, rest.len().saturating_sub(KEY.len() - 1));
        if let Some(quote) = memrchr(b'"', tail) {
            let begun = behind(tail, quote);
            if KEY.starts_with(begun) {
                self.state = State::Key(begun.len() as u8);
            }
        }
        &[]
    }

    fn finish_key<'b>(&mut self, matched: u8, rest: &'b [u8]) -> &'b [u8] {
        let missing = behind(KEY, usize::from(matched));
        if let Some(after) = rest.strip_prefix(missing) {
            self.state = State::BeforeColon;
            return after;
        }
        if missing.starts_with(rest) {
            self.state = State::Key(matched + rest.len() as u8);
            return &[];
        }
        self.state = State::Elsewhere;
        rest
    }

    fn before_colon<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let rest = rest.trim_ascii_start();
        match rest.first() {
            None => rest,
            Some(b':') => {
                self.state = State::BeforeValue;
                behind(rest, 1)
            }
            // A string value "usage".
            Some(_) => {
                self.state = State::Elsewhere;
                rest
            }
        }
    }

    fn before_value<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let rest = rest.trim_ascii_start();
        match rest.first() {
            None => {}
            Some(b'{') => self.state = State::Object(Nesting::default()),
            // Null, or nothing that we know.
            Some(_) => self.state = State::Elsewhere,
        }
        rest
    }

    fn object<'b>(&mut self, rest: &'b [u8]) -> &'b [u8] {
        let State::Object(nesting) = &mut self.state else { return rest };
        // Where an endless object is given up must not depend on how the bytes were cut.
        let room = USAGE_OBJECT_BYTES_MAX - self.begun.len();
        let window = rest.get(..room).unwrap_or(rest);
        if self.begun.is_empty() {
            if let Some((end, report)) = tokens::read_plain(window) {
                self.last = report.map(|report| report.after(self.last)).or(self.last);
                self.state = State::Elsewhere;
                return behind(rest, end);
            }
        }
        let closed = nesting.close(window);
        let used = closed.unwrap_or(window.len());
        let piece = window.get(..used).unwrap_or_default();
        if closed.is_none() && used < room {
            self.begun.extend_from_slice(piece);
            return &[];
        }
        if closed.is_some() {
            let report = if self.begun.is_empty() {
                tokens::read(piece)
            } else {
                self.begun.extend_from_slice(piece);
                tokens::read(&self.begun)
            };
            self.last = report.map(|report| report.after(self.last)).or(self.last);
        }
        self.begun = Vec::new();
        self.state = State::Elsewhere;
        behind(rest, used)
    }
}

/// Offset of the key.
///
/// What is large in an answer is vectors, numbers or base64, with a quote every few kilobytes: a
/// search for one byte runs through them twice as fast as one for a word. Where quotes are many
/// it would stop at each, so there, and in the slices of a stream, the word is searched for.
fn find_key(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while bytes.len() - at > SPARSE_BYTES_MIN {
        let sparse_from = at;
        for _ in 0..QUOTES_TRIED {
            at += memchr(b'"', behind(bytes, at))?;
            if behind(bytes, at).starts_with(KEY) {
                return Some(at);
            }
            at += 1;
        }
        if at - sparse_from < SPARSE_BYTES_MIN {
            let window = behind(bytes, at);
            let window = window.get(..DENSE_BYTES).unwrap_or(window);
            if let Some(found) = KEY_FINDER.find(window) {
                return Some(at + found);
            }
            // The key may lie across the end of the window.
            at += window.len().saturating_sub(KEY.len() - 1);
        }
    }
    KEY_FINDER.find(behind(bytes, at)).map(|found| at + found)
}

/// Finds the brace that closes an object, without asking whether it is valid inside.
#[derive(Debug, Default)]
struct Nesting {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    /// Offset behind the closing brace; `None` when it is not among these bytes.
    fn close(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            if self.in_string {
                self.in_string = self.escaped || *byte != b'"';
                self.escaped = !self.escaped && *byte == b'\\';
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' => self.depth += 1,
                b'}' if self.depth <= 1 => return Some(at + 1),
                b'}' => self.depth -= 1,
                _ => {}
            }
        }
        None
    }
}

/// `bytes` from `at`; empty when that is past the end.
fn behind(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
