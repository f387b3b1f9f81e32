//! What one send is made of: a list of pieces, each where it lies.

use super::framing::Sections;
use crate::base::limits::SECTIONS_PER_SEND_MAX;
use crate::http::write::{chunk_header, CHUNK_HEADER_BYTES_MAX, LAST_CHUNK};
use std::io::IoSlice;

/// Parts of one send at most: the head, chunk header, data and line end of each section, and the
/// last chunk.
const PARTS_MAX: usize = 3 * SECTIONS_PER_SEND_MAX + 2;

/// Room for the chunk headers of one send.
pub type Headers = [[u8; CHUNK_HEADER_BYTES_MAX]; SECTIONS_PER_SEND_MAX];

/// The parts of one send, less the bytes that were sent before.
pub struct Parts<'a> {
    list: [IoSlice<'a>; PARTS_MAX],
    used: usize,
    skip: usize,
    /// Bytes of all parts, with those that were sent before.
    pub total: usize,
}

impl<'a> Parts<'a> {
    /// None yet, of which the first `skip` bytes are left out.
    pub fn after(skip: usize) -> Parts<'a> {
        Parts { list: [IoSlice::new(&[]); PARTS_MAX], used: 0, skip, total: 0 }
    }

    /// Adds a part.
    pub fn push(&mut self, part: &'a [u8]) {
        let start = self.skip.saturating_sub(self.total).min(part.len());
        self.total += part.len();
        let part = part.get(start..).unwrap_or_default();
        if let (false, Some(slot)) = (part.is_empty(), self.list.get_mut(self.used)) {
            *slot = IoSlice::new(part);
            self.used += 1;
        }
    }

    /// Adds a body as chunks: those that came whole as they are, all other data with a header of
    /// ours. `last`: the body ends with it.
    pub fn push_chunks(
        &mut self,
        body: &Sections,
        input: &'a [u8],
        last: bool,
        headers: &'a mut Headers,
    ) {
        for (section, header) in body.list().iter().zip(headers) {
            let bytes = section.of(input);
            if section.is_framed {
                self.push(bytes);
            } else {
                self.push(chunk_header(header, bytes.len()));
                self.push(bytes);
                self.push(b"\r\n");
            }
        }
        if last && !body.has_last_chunk() {
            self.push(LAST_CHUNK);
        }
    }

    /// Adds a body without framing, which was decoded into data alone.
    pub fn push_data(&mut self, body: &Sections, input: &'a [u8]) {
        body.list().iter().for_each(|section| self.push(section.of(input)));
    }

    /// What is left to be sent.
    pub fn list(&self) -> &[IoSlice<'a>] {
        self.list.get(..self.used).unwrap_or_default()
    }
}
