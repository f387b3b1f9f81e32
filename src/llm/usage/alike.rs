//! Most events of a stream are the last one again with another text in it. Such a one says what
//! that one said, so it need not be walked through: it is enough that all bytes outside of the text
//! are the same.

use super::walk::text::text_end;

/// Bytes of the longest event that is remembered.
const ALIKE_BYTES_MAX: usize = 512;

/// An event that had some text of the model, and else nothing that matters.
#[derive(Debug, Default)]
pub struct Alike {
    data: Vec<u8>,
    /// Where in it the text stands, without its quotes.
    from: usize,
    to: usize,
    /// Events in a row that were not like it.
    misses: u32,
}

impl Alike {
    /// Forgets it, keeps the room.
    pub fn reset(&mut self) {
        self.data.clear();
        self.misses = 0;
    }

    /// True when the data of an event differs from it in the text at most, which is not empty.
    pub fn is_like(&mut self, data: &[u8]) -> bool {
        let is_like = !self.data.is_empty() && self.differs_in_text(data);
        self.misses = if is_like { 0 } else { self.misses.saturating_add(1) };
        is_like
    }

    fn differs_in_text(&self, data: &[u8]) -> bool {
        let (Some(before), Some(behind)) = (self.data.get(..self.from), self.data.get(self.to..))
        else {
            return false;
        };
        let Some(text) = data.strip_prefix(before) else { return false };
        match text_end(text, false) {
            Ok(end) => end > 1 && text.get(end - 1..) == Some(behind),
            Err(_) => false,
        }
    }

    /// Remembers an event whose text begins so far before its end. Of a stream whose events are
    /// never alike, fewer and fewer.
    pub fn remember(&mut self, data: &[u8], left: usize) {
        let from = data.len().saturating_sub(left);
        let text = data.get(from..).unwrap_or_default();
        let Ok(end) = text_end(text, false) else { return };
        if data.len() <= ALIKE_BYTES_MAX && self.misses.max(1).is_power_of_two() {
            self.data.clear();
            self.data.extend_from_slice(data);
            (self.from, self.to) = (from, from + end - 1);
        }
    }
}
