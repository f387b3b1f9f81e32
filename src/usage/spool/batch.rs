//! Entries that go to the kernel in one write.

use super::segment::{self, Header, Kind, Marker, ENTRY_BYTES};
use crate::base::limits::{SPOOL_BATCH_BYTES, SPOOL_PAYLOAD_BYTES_MAX};

/// Entries that are not written yet.
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub marker: Marker,
    /// Of the next entry.
    pub next_sequence: u64,
    /// Sequence of the first entry in `bytes`.
    pub first: u64,
    pub entries: u64,
    /// Records for all reporters among them.
    pub closes: u64,
    /// Records for one reporter among them, by its place in the configuration.
    pub again: Vec<usize>,
}

impl Batch {
    pub fn new(marker: Marker, next_sequence: u64) -> Self {
        let (bytes, again) = (Vec::new(), Vec::new());
        Batch { bytes, marker, next_sequence, first: next_sequence, entries: 0, closes: 0, again }
    }

    /// The header of a segment that begins with this sequence, as bytes to go on with.
    pub fn header(&self, first: u64) -> Vec<u8> {
        Header { marker: self.marker, first }.to_bytes().to_vec()
    }

    /// Adds an entry; false, and nothing is added, when it is too long.
    pub fn push(&mut self, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.bytes.len();
        segment::push(&mut self.bytes, self.marker, (self.next_sequence, kind), fill);
        if self.bytes.len() - start - ENTRY_BYTES > SPOOL_PAYLOAD_BYTES_MAX {
            self.bytes.truncate(start);
            return false;
        }
        self.next_sequence += 1;
        self.entries += 1;
        true
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        // One that a burst or a large request body blew up is not kept so.
        self.bytes.shrink_to(SPOOL_BATCH_BYTES / 4);
        self.again.clear();
        (self.first, self.entries, self.closes) = (self.next_sequence, 0, 0);
    }
}
