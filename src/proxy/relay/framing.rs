//! How the answer's body is delimited, on its way in and on its way out. All framing is decoded
//! here. What goes out was written anew, or is a chunk that was read whole and has the plainest
//! framing there is, byte for byte what we would write but for the case of its digits.

use crate::base::limits::{HEAD_BYTES_MAX, SECTIONS_PER_SEND_MAX};
use crate::http::chunked::{whole_chunk, BadChunk, ChunkDecoder, Piece};
use crate::http::framing::ResponseFraming;
use crate::http::head::Version;
use crate::http::response::ResponseHead;
use crate::http::write::OutFraming;
use std::ops::Range;

/// Decodes the engine's framing.
pub enum Inbound {
    /// So many bytes are still to come.
    Length(u64),
    /// Chunks.
    Chunked(ChunkDecoder),
    /// All bytes until the connection closes.
    UntilClose,
}

/// The body found in one buffer of engine bytes, in sections.
///
/// Offsets of 32 bits: it lives in the future of every stream, and a buffer is far smaller.
#[derive(Debug, Default)]
pub struct Sections {
    list: [BodySection; SECTIONS_PER_SEND_MAX],
    count: u32,
    has_last_chunk: bool,
    data_len: u64,
}

/// A piece of what was read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BodySection {
    start: u32,
    end: u32,
    /// It is a run of whole chunks, their framing included; else it is data.
    pub is_framed: bool,
}

impl BodySection {
    /// Its bytes; `input` is what was decoded.
    pub fn of<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        input.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

impl Sections {
    /// So many bytes of data and nothing else.
    pub fn of_data(len: usize) -> Sections {
        let mut sections = Sections::default();
        sections.push_data(0..len);
        sections
    }

    /// The sections, in order.
    pub fn list(&self) -> &[BodySection] {
        self.list.get(..self.count as usize).unwrap_or_default()
    }

    /// Bytes of body data.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// True when there is no body data.
    pub fn is_empty(&self) -> bool {
        self.data_len == 0
    }

    /// True when the framed section at the end has the last chunk in it.
    pub fn has_last_chunk(&self) -> bool {
        self.has_last_chunk
    }

    /// Shows the body data, in order; `input` is what was decoded.
    pub fn for_each_data<'a>(&self, input: &'a [u8], mut see: impl FnMut(&'a [u8])) {
        for section in self.list() {
            let mut bytes = section.of(input);
            if !section.is_framed {
                see(bytes);
                continue;
            }
            while let Some(chunk) = whole_chunk(bytes) {
                if !chunk.is_last() {
                    see(bytes.get(chunk.start..chunk.end).unwrap_or_default());
                }
                bytes = bytes.get(chunk.wire_len()..).unwrap_or_default();
            }
        }
    }

    fn push(&mut self, range: Range<usize>, is_framed: bool, data: usize) {
        if range.is_empty() {
            return;
        }
        debug_assert!(!self.is_full(), "body bytes would be lost");
        if let Some(slot) = self.list.get_mut(self.count as usize) {
            *slot = BodySection { start: range.start as u32, end: range.end as u32, is_framed };
            self.count += 1;
            self.data_len += data as u64;
        }
    }

    fn push_data(&mut self, range: Range<usize>) {
        let data = range.len();
        self.push(range, false, data);
    }

    fn is_full(&self) -> bool {
        self.count as usize == self.list.len()
    }
}

/// Where the decoder stands after a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the buffer that were taken in.
    pub consumed: usize,
    /// The body is complete.
    pub finished: bool,
    /// What is wrong behind the data that was found.
    pub broken: Option<&'static str>,
}

impl Inbound {
    /// A decoder for a framing.
    pub fn new(framing: ResponseFraming) -> Inbound {
        match framing {
            ResponseFraming::None => Inbound::Length(0),
            ResponseFraming::Length(n) => Inbound::Length(n),
            ResponseFraming::Chunked => Inbound::Chunked(ChunkDecoder::new(HEAD_BYTES_MAX)),
            ResponseFraming::UntilClose => Inbound::UntilClose,
        }
    }

    /// Finds body data in `input`, at most as many sections as one send takes: `consumed` may be
    /// less than the input, then call again with the rest. `framed`: whole chunks are wanted as
    /// they came.
    pub fn decode(&mut self, input: &[u8], framed: bool, into: &mut Sections) -> Progress {
        *into = Sections::default();
        // An offset must fit in 32 bits. Buffers are far smaller; should one not be, it is decoded
        // in steps.
        let input = input.get(..u32::MAX as usize).unwrap_or(input);
        match self {
            Inbound::UntilClose => {
                into.push_data(0..input.len());
                Progress { consumed: input.len(), finished: false, broken: None }
            }
            Inbound::Length(left) => {
                let take = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                into.push_data(0..take);
                *left -= take as u64;
                Progress { consumed: take, finished: *left == 0, broken: None }
            }
            Inbound::Chunked(decoder) => {
                let mut chunks = Chunks { decoder, rest: input, consumed: 0, finished: false };
                let broken = chunks.find(framed, into).err().map(|bad| bad.0);
                let progress =
                    Progress { consumed: chunks.consumed, finished: chunks.finished, broken };
                if broken.is_some() {
                    // Where this answer ends will never be known: whoever drains the connection
                    // must not take it for one that stands at its end.
                    *self = Inbound::UntilClose;
                }
                progress
            }
        }
    }

    /// Bytes that are certainly still to come; 0 when that is not known.
    pub fn announced(&self) -> u64 {
        match self {
            Inbound::Length(left) => *left,
            Inbound::Chunked(_) | Inbound::UntilClose => 0,
        }
    }

    /// Notes that so many of the announced bytes passed without being decoded.
    pub fn pass(&mut self, bytes: u64) {
        if let Inbound::Length(left) = self {
            *left = left.saturating_sub(bytes);
        }
    }

    /// True when a close of the connection is the proper end of the body.
    pub fn ends_with_close(&self) -> bool {
        matches!(self, Inbound::UntilClose)
    }
}

/// The chunks of one read.
struct Chunks<'a> {
    decoder: &'a mut ChunkDecoder,
    rest: &'a [u8],
    consumed: usize,
    finished: bool,
}

impl Chunks<'_> {
    /// Most engines write a chunk for each event, and most reads bring whole ones: those go out as
    /// they came, in one piece. Only what lies across two reads is framed anew, so that between two
    /// sends the client always stands between two chunks, where an event of ours can follow.
    fn find(&mut self, framed: bool, into: &mut Sections) -> Result<(), BadChunk> {
        while !into.is_full() && !self.finished {
            let line_end = self.decoder.line_end(self.rest)?;
            self.consume(line_end);
            if framed {
                self.whole_ones(into);
                if into.is_full() || self.finished {
                    break;
                }
            }
            match self.decoder.decode(self.rest)? {
                Piece::Data { start, end } => {
                    into.push_data(self.consumed + start..self.consumed + end);
                    self.consume(end);
                }
                Piece::NeedMore => {
                    self.consume(self.rest.len());
                    break;
                }
                Piece::End { consumed } => {
                    self.consume(consumed);
                    self.finished = true;
                }
            }
        }
        Ok(())
    }

    fn whole_ones(&mut self, into: &mut Sections) {
        let start = self.consumed;
        let mut data = 0;
        while let Some(chunk) = self.decoder.whole_chunk(self.rest) {
            self.consume(chunk.wire_len());
            data += chunk.end - chunk.start;
            if chunk.is_last() {
                into.has_last_chunk = true;
                self.finished = true;
            }
        }
        into.push(start..self.consumed, true, data);
    }

    fn consume(&mut self, n: usize) {
        self.consumed += n;
        self.rest = self.rest.get(n..).unwrap_or_default();
    }
}

/// How the body goes out: as it came where the client can read that.
pub fn outbound(response: &ResponseHead, client: Version) -> OutFraming {
    match (response.framing, response.content_length, client) {
        // The answer to a HEAD, and a 304, say how long the body would have been; a 204 has none
        // to speak of (RFC 9110 section 8.6).
        (ResponseFraming::None, Some(n), _) if response.status != 204 => OutFraming::Length(n),
        (ResponseFraming::None, _, _) => OutFraming::None,
        (ResponseFraming::Length(n), _, _) => OutFraming::Length(n),
        // RFC 9112 section 6.1: never chunks to an HTTP/1.0 client.
        (_, _, Version::Http10) => OutFraming::UntilClose,
        (_, _, Version::Http11) => OutFraming::Chunked,
    }
}

#[cfg(test)]
mod tests;
