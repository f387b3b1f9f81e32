//! The id that an engine gave its answer (`chatcmpl-...`): what a record and the engine's own log
//! have in common.

use memchr::memmem;

/// Bytes of an answer within which the id is looked for: an engine that has one says it first.
const PREFIX_BYTES_MAX: usize = 1024;
/// Bytes of the longest id that is kept.
const ID_BYTES_MAX: usize = 128;

/// Looks for the first `"id":"..."` of an answer.
#[derive(Debug)]
pub enum AnswerId {
    /// Not seen in the bytes so far, which are kept (they end within [`PREFIX_BYTES_MAX`]).
    Sought(Vec<u8>),
    /// The search is over.
    Settled(Option<Box<str>>),
}

impl Default for AnswerId {
    fn default() -> Self {
        AnswerId::Sought(Vec::new())
    }
}

impl AnswerId {
    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let AnswerId::Sought(seen) = self else { return };
        let room = PREFIX_BYTES_MAX - seen.len();
        let window = bytes.get(..room).unwrap_or(bytes);
        // Nearly always the first slice has it, and nothing is copied.
        let found = if seen.is_empty() {
            find(window)
        } else {
            seen.extend_from_slice(window);
            find(seen)
        };
        match found {
            Found::Id(id) => *self = AnswerId::Settled(id.map(Box::from)),
            Found::NotYet if window.len() == room => *self = AnswerId::Settled(None),
            Found::NotYet if seen.is_empty() => seen.extend_from_slice(window),
            Found::NotYet => {}
        }
    }

    /// The id, when there was one.
    pub fn get(&self) -> Option<&str> {
        match self {
            AnswerId::Settled(id) => id.as_deref(),
            AnswerId::Sought(_) => None,
        }
    }
}

enum Found<'a> {
    /// The first id, or `None` when it is nothing to keep: TGI's is empty.
    Id(Option<&'a str>),
    /// More bytes are needed.
    NotYet,
}

/// The first string under a key `id`. Stops at a key whose value is still cut off, so that the
/// answer does not depend on how the bytes were cut.
fn find(bytes: &[u8]) -> Found<'_> {
    let mut rest = bytes;
    while let Some(at) = memmem::find(rest, b"\"id\"") {
        rest = rest.get(at + 4..).unwrap_or_default().trim_ascii_start();
        let Some((first, value)) = rest.split_first() else { return Found::NotYet };
        if *first != b':' {
            continue;
        }
        match value.trim_ascii_start().split_first() {
            None => return Found::NotYet,
            Some((b'"', text)) => return first_string(text),
            Some(_) => rest = value,
        }
    }
    Found::NotYet
}

/// The text up to the closing quote, when it is fit for a record.
fn first_string(text: &[u8]) -> Found<'_> {
    match memchr::memchr(b'"', text) {
        Some(end) => {
            let id = text.get(..end).unwrap_or_default();
            let plain = |b: &u8| b.is_ascii_graphic() && *b != b'\\';
            let fit = !id.is_empty() && id.len() <= ID_BYTES_MAX && id.iter().all(plain);
            Found::Id(std::str::from_utf8(id).ok().filter(|_| fit))
        }
        None => Found::NotYet,
    }
}
