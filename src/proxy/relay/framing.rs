//! How the answer's body is delimited, on its way in and on its way out. Never relayed: decoded
//! here, and written anew.

use crate::base::limits::{HEAD_BYTES_MAX, SLICES_PER_SEND_MAX};
use crate::http::chunked::{ChunkDecoder, Piece};
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

/// The body found in one buffer of engine bytes.
///
/// Offsets of 32 bits: it lives in the future of every stream, and a buffer is far smaller.
#[derive(Debug, Default)]
pub struct Slices {
    ranges: [(u32, u32); SLICES_PER_SEND_MAX],
    count: u32,
}

impl Slices {
    /// The body data, in order; `input` is what was decoded.
    pub fn of<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.ranges
            .iter()
            .take(self.count as usize)
            .map(|(start, end)| input.get(*start as usize..*end as usize).unwrap_or_default())
    }

    /// Bytes of body data.
    pub fn len(&self) -> usize {
        let ranges = self.ranges.iter().take(self.count as usize);
        ranges.map(|(start, end)| (end - start) as usize).sum()
    }

    /// True when there is no body data.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if let Some(slot) = self.ranges.get_mut(self.count as usize) {
            *slot = (range.start as u32, range.end as u32);
            self.count += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.count as usize == self.ranges.len()
    }
}

/// Where the decoder stands after a buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the buffer that were taken in.
    pub consumed: usize,
    /// The body is complete.
    pub finished: bool,
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

    /// Finds body data in `input`, at most as many slices as one send takes: `consumed` may be
    /// less than the input, then call again with the rest. An error says what is wrong.
    pub fn decode(&mut self, input: &[u8], into: &mut Slices) -> Result<Progress, &'static str> {
        into.count = 0;
        // An offset must fit in 32 bits. Buffers are far smaller; should one not be, it is decoded
        // in steps.
        let input = input.get(..u32::MAX as usize).unwrap_or(input);
        match self {
            Inbound::UntilClose => {
                into.push(0..input.len());
                Ok(Progress { consumed: input.len(), finished: false })
            }
            Inbound::Length(left) => {
                let take = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                into.push(0..take);
                *left -= take as u64;
                Ok(Progress { consumed: take, finished: *left == 0 })
            }
            Inbound::Chunked(decoder) => decode_chunks(decoder, input, into),
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

fn decode_chunks(
    decoder: &mut ChunkDecoder,
    input: &[u8],
    into: &mut Slices,
) -> Result<Progress, &'static str> {
    let mut at = 0;
    while !into.is_full() {
        let rest = input.get(at..).unwrap_or_default();
        match decoder.decode(rest).map_err(|bad| bad.0)? {
            Piece::Data { start, end } => {
                into.push(at + start..at + end);
                at += end;
            }
            Piece::NeedMore => return Ok(Progress { consumed: input.len(), finished: false }),
            Piece::End { consumed } => {
                return Ok(Progress { consumed: at + consumed, finished: true })
            }
        }
    }
    Ok(Progress { consumed: at, finished: false })
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
