//! Most events of a stream are the last one again with another text in it. Such a one says what
//! that one said, so it need not be walked through: it is enough that all bytes outside of the text
//! are the same.

use super::walk::text::text_end;

/// Bytes of the longest event that is remembered.
const ALIKE_BYTES_MAX: usize = 512;

/// An event that had some text of the model, and else nothing that matters.
#[derive(Debug, Default)]
pub struct Alike {
    /// All its bytes, from its first line to the end of the empty one.
    event: Vec<u8>,
    /// Where in it the text stands, without its quotes.
    from: usize,
    to: usize,
    /// Events in a row that were not like it.
    misses: u32,
}

impl Alike {
    /// Forgets it, keeps the room.
    pub fn reset(&mut self) {
        self.event.clear();
        self.misses = 0;
    }

    /// How many of these bytes are an event that differs from it in the text at most, which is not
    /// empty.
    pub fn event_like_it(&mut self, bytes: &[u8]) -> Option<usize> {
        let len = self.len_of_alike(bytes);
        self.misses = if len.is_some() { 0 } else { self.misses.saturating_add(1) };
        len
    }

    fn len_of_alike(&self, bytes: &[u8]) -> Option<usize> {
        let before = self.event.get(..self.from).filter(|before| !before.is_empty())?;
        let text = bytes.strip_prefix(before)?;
        let end = text_end(text, false).ok().filter(|end| *end > 1)?;
        let behind = self.event.get(self.to..)?;
        let is_alike = text.get(end - 1..)?.starts_with(behind);
        is_alike.then(|| before.len() + end - 1 + behind.len())
    }

    /// Remembers an event whose text begins there. Of a stream whose events are never alike, fewer
    /// and fewer.
    pub fn remember(&mut self, event: &[u8], from: usize) {
        let Ok(end) = text_end(event.get(from..).unwrap_or_default(), false) else { return };
        if event.len() <= ALIKE_BYTES_MAX && self.misses.max(1).is_power_of_two() {
            self.event.clear();
            self.event.extend_from_slice(event);
            (self.from, self.to) = (from, from + end - 1);
        }
    }
}
