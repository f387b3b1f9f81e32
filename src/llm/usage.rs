//! Token usage in an answer that passes, streamed or not, whatever the dialect.
//!
//! A raw search for `"usage"` is enough: inside a JSON string the quotes would be escaped, so the
//! bytes can only be a key, or a whole string value that no colon follows. Only the object behind
//! the key is read. **The last one with tokens wins**: Ollama sends zeros first, vLLM's continuous
//! usage is cumulative, SGLang mixes in nulls. (A Responses answer repeats the client's tool
//! schemas, which may have a property `usage`; they stand before the engine's own.)
//!
//! One form has no last one: llama.cpp answers each choice of `n` as a task of its own, each with a
//! usage of its own, and only the sum says what was done. Other engines may send several usages
//! too, with counts so far or counts of one choice, and a last one that is the sum already (vLLM's
//! continuous usage), so a sum is made only of those that `timings` follow at once: nobody but
//! llama.cpp sends that, always, and on the event that ends a choice only. (Two events with
//! `"choices":[]` would tell less: text completions have their usage on an event with choices.)
//!
//! The engines' own forms have neither the word nor the rule: [`native`] reads them.
//!
//! An engine is trusted with its own numbers and with nothing else: whatever it sends, the state
//! stays small, and numbers that cannot be are no usage.

use super::answer_id::AnswerId;
use super::dialect::Dialect;
use super::tokens::{self, Report};
use crate::base::limits::USAGE_OBJECT_BYTES_MAX;
use memchr::memmem::Finder;
use memchr::{memchr, memrchr};
use native::NativeScan;
use std::sync::LazyLock;

pub mod native;

pub use super::tokens::Usage;

const KEY: &[u8] = b"\"usage\"";
/// Built once: it holds the vector routine chosen for this CPU.
static KEY_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));

/// What follows the usage of a choice that llama.cpp has finished.
const TIMINGS: &[u8] = b",\"timings\"";

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
    /// The last one is of a finished choice; what is of the ones before, if there are any, is
    /// their sum.
    finished: bool,
    dialect: Dialect,
    before: Option<Box<Usage>>,
    id: AnswerId,
    /// Kept from answer to answer once one was in an engine's own form.
    native: Option<Box<NativeScan>>,
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
    /// What may follow the object, of which so many bytes ended the last slice.
    Behind(u8),
}

impl UsageScan {
    /// Forgets the last answer, keeps what its id had allocated. Of the next one nothing is known.
    pub fn reset(&mut self) {
        self.state = State::Elsewhere;
        self.begun = Vec::new();
        self.last = None;
        self.finished = false;
        self.before = None;
        self.id.reset();
        self.expect(Dialect::Other);
    }

    /// The answer that begins is of this dialect. Asks the allocator only for the first answer in
    /// an engine's own form.
    pub fn expect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
        if dialect.is_native() {
            self.native.get_or_insert_default().reset(dialect);
        }
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.id.feed(bytes);
        if let Some(native) = self.native_mut() {
            return native.feed(bytes);
        }
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
                State::Behind(matched) => {
                    let matched = *matched;
                    self.behind(matched, rest)
                }
            };
        }
    }

    /// Bytes passed that were not seen: nothing goes on across them.
    pub fn skip(&mut self) {
        self.state = State::Elsewhere;
        self.begun = Vec::new();
        if let Some(native) = self.native_mut() {
            native.skip();
        }
    }

    /// What was found so far.
    pub fn usage(&self) -> Option<Usage> {
        if let Some(native) = self.native() {
            return native.usage();
        }
        let last = self.last?.usage();
        let before = self.before.as_deref().filter(|_| self.finished);
        Some(before.map_or(last, |before| before.plus(last)))
    }

    /// What an engine's own form says beside its counts; `None` for the other dialects.
    pub fn native(&self) -> Option<&NativeScan> {
        self.native.as_deref().filter(|_| self.dialect.is_native())
    }

    fn native_mut(&mut self) -> Option<&mut NativeScan> {
        self.native.as_deref_mut().filter(|_| self.dialect.is_native())
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
                self.take(report);
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
        let report = match closed {
            None => None,
            Some(_) if self.begun.is_empty() => tokens::read(piece),
            Some(_) => {
                self.begun.extend_from_slice(piece);
                tokens::read(&self.begun)
            }
        };
        self.begun = Vec::new();
        self.take(report);
        behind(rest, used)
    }

    /// An object ended, and this is what it reports.
    fn take(&mut self, report: Option<Report>) {
        let Some(report) = report else {
            self.state = State::Elsewhere;
            return;
        };
        if let Some(last) = self.last.filter(|_| self.finished) {
            let before = self.before.get_or_insert_default();
            **before = before.plus(last.usage());
        }
        self.finished = false;
        self.last = Some(report.after(self.last));
        self.state = State::Behind(0);
    }

    fn behind<'b>(&mut self, matched: u8, rest: &'b [u8]) -> &'b [u8] {
        let missing = behind(TIMINGS, usize::from(matched));
        let alike = missing.iter().zip(rest).take_while(|(a, b)| a == b).count();
        let matched = matched + alike as u8;
        self.state = if alike == missing.len() {
            self.finished = true;
            State::Elsewhere
        } else if alike == rest.len() {
            State::Behind(matched)
        } else if matched == 2 {
            // Another key, whose quote is taken already: it may be the one that is sought.
            State::Key(1)
        } else {
            State::Elsewhere
        };
        behind(rest, alike)
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
