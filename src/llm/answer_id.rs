//! The id that an engine gave its answer (`chatcmpl-...`): what a record and the engine's own log
//! have in common.

use memchr::memmem::Finder;
use std::ops::Range;
use std::sync::LazyLock;

/// Bytes of an answer within which the id is looked for: an engine that has one says it first.
const PREFIX_BYTES_MAX: usize = 1024;
/// Bytes of the longest id that is kept.
const ID_BYTES_MAX: usize = 128;

/// Built once: it holds the vector routine chosen for this CPU.
static KEY_FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
const KEY: &[u8] = b"\"id\"";

/// Looks for the first `"id":"..."` of an answer.
#[derive(Debug, Default)]
pub struct AnswerId {
    state: State,
    /// While it is sought, the bytes so far (they end within [`PREFIX_BYTES_MAX`]); then the id.
    /// Kept from answer to answer for its capacity.
    bytes: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Not seen in the bytes so far.
    #[default]
    Sought,
    Found,
    /// There is none that is fit for a record.
    Absent,
}

impl AnswerId {
    /// Forgets the last answer, keeps capacity.
    pub fn reset(&mut self) {
        self.state = State::Sought;
        self.bytes.clear();
        self.bytes.shrink_to(ID_BYTES_MAX);
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.state != State::Sought {
            return;
        }
        let room = PREFIX_BYTES_MAX - self.bytes.len();
        let window = bytes.get(..room).unwrap_or(bytes);
        // Nearly always the first slice has it, and nothing is copied but the id.
        let first = self.bytes.is_empty();
        if !first {
            self.bytes.extend_from_slice(window);
        }
        let found = find(if first { window } else { &self.bytes });
        match found {
            Found::Id(Some(id)) if first => {
                self.state = State::Found;
                self.bytes.extend_from_slice(window.get(id).unwrap_or_default());
            }
            Found::Id(Some(id)) => {
                self.state = State::Found;
                self.bytes.truncate(id.end);
                self.bytes.drain(..id.start);
                self.bytes.shrink_to_fit();
            }
            Found::NotYet if window.len() < room => {
                if first {
                    self.bytes.extend_from_slice(window);
                }
            }
            Found::Id(None) | Found::NotYet => {
                self.state = State::Absent;
                self.bytes = Vec::new();
            }
        }
    }

    /// Bytes that are held, of the answer or of its id.
    pub fn held(&self) -> usize {
        self.bytes.capacity()
    }

    /// The id, when there was one.
    pub fn get(&self) -> Option<&str> {
        match self.state {
            State::Found => std::str::from_utf8(&self.bytes).ok(),
            State::Sought | State::Absent => None,
        }
    }
}

enum Found {
    /// Where the first id stands, or `None` when it is nothing to keep: TGI's is empty.
    Id(Option<Range<usize>>),
    /// More bytes are needed.
    NotYet,
}

/// The first string under a key `id`. Stops at a key whose value is still cut off, so that the
/// answer does not depend on how the bytes were cut.
fn find(bytes: &[u8]) -> Found {
    let mut rest = bytes;
    while let Some(at) = KEY_FINDER.find(rest) {
        rest = rest.get(at + KEY.len()..).unwrap_or_default().trim_ascii_start();
        let Some((first, value)) = rest.split_first() else { return Found::NotYet };
        if *first != b':' {
            continue;
        }
        match value.trim_ascii_start().split_first() {
            None => return Found::NotYet,
            Some((b'"', text)) => return first_string(text, bytes.len() - text.len()),
            Some(_) => rest = value,
        }
    }
    Found::NotYet
}

/// The text up to the closing quote, when it is fit for a record. It begins at `start`.
fn first_string(text: &[u8], start: usize) -> Found {
    match memchr::memchr(b'"', text) {
        Some(end) => {
            let id = text.get(..end).unwrap_or_default();
            let fit = !id.is_empty() && id.len() <= ID_BYTES_MAX && is_plain(id);
            Found::Id(fit.then_some(start..start + end))
        }
        None => Found::NotYet,
    }
}

/// Visible ASCII without escapes. Without an early exit the loop is a vector loop.
fn is_plain(id: &[u8]) -> bool {
    !id.iter().fold(false, |odd, b| odd | !b.is_ascii_graphic() | (*b == b'\\'))
}
