//! Answers that their engine packed (`Content-Encoding`). The client gets the packed bytes as they
//! are; a copy of them is unpacked here, piece by piece, only to be read.
//!
//! It costs far more than a look at plain bytes, so it is nothing for a worker. An engine could
//! send a bomb: what is unpacked and what a decoder may hold are both limited.

use super::dialect::Dialect;
use super::sse::EventFraming;
use super::usage::UsageScan;
use crate::base::limits::{INFLATED_BYTES_MAX, INFLATE_WINDOW_BYTES_MAX, PACKED_TOTAL_BYTES_MAX};
use brotli_decompressor::BrotliDecoderParameter;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::StreamingDecoder;
use std::io::Read;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that are unpacked and searched at a time.
const PIECE_BYTES: usize = 16 * 1024;

/// How an answer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 1950; some senders leave its frame out (RFC 1951 alone).
    Deflate,
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
}

/// Why a packed answer cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InflateFault {
    /// The bytes are not what they are said to be, or were cut off.
    Broken,
    /// More than [`INFLATED_BYTES_MAX`], or a decoder would hold more than
    /// [`INFLATE_WINDOW_BYTES_MAX`].
    TooLarge,
}

/// Bytes that all copies of packed answers have room for.
static ROOM_TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Why there is no copy of a packed answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoCopy {
    /// It is longer than what may be read of it once it is unpacked.
    TooLarge,
    /// All copies together would be more than [`PACKED_TOTAL_BYTES_MAX`].
    NoRoom,
}

/// A copy of a packed answer.
#[derive(Debug)]
pub struct Packed {
    coding: Coding,
    dialect: Dialect,
    framing: Option<EventFraming>,
    /// Its capacity is a part of [`ROOM_TAKEN`].
    bytes: Vec<u8>,
}

impl Packed {
    /// Of an answer that has not begun.
    pub fn new(coding: Coding, dialect: Dialect, framing: Option<EventFraming>) -> Packed {
        Packed { coding, dialect, framing, bytes: Vec::new() }
    }

    /// Keeps what comes, or says why not.
    pub fn keep(&mut self, more: &[u8]) -> Result<(), NoCopy> {
        let len = self.bytes.len() + more.len();
        if len > INFLATED_BYTES_MAX {
            return Err(NoCopy::TooLarge);
        }
        let had = self.bytes.capacity();
        if len > had {
            let room = len.next_power_of_two();
            let taken = ROOM_TAKEN.fetch_add(room - had, Relaxed);
            if taken + room - had > PACKED_TOTAL_BYTES_MAX {
                ROOM_TAKEN.fetch_sub(room - had, Relaxed);
                return Err(NoCopy::NoRoom);
            }
            self.bytes.reserve_exact(room - self.bytes.len());
            // An allocator may give more than was asked for.
            ROOM_TAKEN.fetch_add(self.bytes.capacity() - room, Relaxed);
        }
        self.bytes.extend_from_slice(more);
        Ok(())
    }

    /// A scan that has seen all of it. Not for a worker.
    ///
    /// # Errors
    /// See [`read`].
    pub fn read(&self) -> Result<Box<UsageScan>, InflateFault> {
        read(self.coding, &self.bytes, (self.dialect, self.framing))
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        ROOM_TAKEN.fetch_sub(self.bytes.capacity(), Relaxed);
    }
}

impl Coding {
    /// The coding that a `Content-Encoding` field names; `None` for one that is not known, for
    /// several, and for `identity`.
    pub fn of(content_encoding: &[u8]) -> Option<Coding> {
        let name = content_encoding.trim_ascii();
        let is = |coding: &str| name.eq_ignore_ascii_case(coding.as_bytes());
        Some(match () {
            () if is("gzip") || is("x-gzip") => Coding::Gzip,
            () if is("deflate") => Coding::Deflate,
            () if is("zstd") => Coding::Zstd,
            () if is("br") => Coding::Brotli,
            () => return None,
        })
    }
}

/// A scan that has seen all of an answer that came packed, whole. Takes time in proportion to what
/// it unpacks to, at most [`INFLATED_BYTES_MAX`]; not for a worker.
pub fn read(
    coding: Coding,
    packed: &[u8],
    (dialect, framing): (Dialect, Option<EventFraming>),
) -> Result<Box<UsageScan>, InflateFault> {
    let mut scan = Box::<UsageScan>::default();
    scan.expect(dialect, framing);
    // The decoders are strangers: what they do not survive is a broken answer, and no more.
    let unpacked = catch_unwind(AssertUnwindSafe(|| unpack(coding, packed, &mut scan)));
    unpacked.unwrap_or(Err(InflateFault::Broken))?;
    Ok(scan)
}

fn unpack(coding: Coding, packed: &[u8], scan: &mut UsageScan) -> Result<(), InflateFault> {
    let mut sink = Sink { scan, room: INFLATED_BYTES_MAX, piece: vec![0; PIECE_BYTES] };
    match coding {
        Coding::Gzip => sink.pull(&mut MultiGzDecoder::new(packed)),
        Coding::Deflate if has_zlib_frame(packed) => sink.pull(&mut ZlibDecoder::new(packed)),
        Coding::Deflate => sink.pull(&mut DeflateDecoder::new(packed)),
        Coding::Brotli => {
            let mut decoder = brotli_decompressor::Decompressor::new(packed, PIECE_BYTES);
            // The windows of RFC 7932, 16 MiB at most: no client takes larger ones.
            decoder.set_parameter(BrotliDecoderParameter::BROTLI_DECODER_PARAM_LARGE_WINDOW, 0);
            sink.pull(&mut decoder)
        }
        Coding::Zstd => unpack_zstd(packed, &mut sink),
    }
}

/// Frame after frame; those that are to be skipped are skipped.
fn unpack_zstd(packed: &[u8], sink: &mut Sink<'_>) -> Result<(), InflateFault> {
    let mut rest = packed;
    let mut frames = 0;
    while frames == 0 || !rest.is_empty() {
        let limit = INFLATE_WINDOW_BYTES_MAX as u64;
        match StreamingDecoder::new_with_max_window_size(&mut rest, limit) {
            Ok(mut decoder) => sink.pull(&mut decoder)?,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => rest = rest.get(length as usize..).ok_or(InflateFault::Broken)?,
            Err(FrameDecoderError::WindowSizeTooBig { .. }) => return Err(InflateFault::TooLarge),
            Err(_) => return Err(InflateFault::Broken),
        }
        frames += 1;
    }
    Ok(())
}

/// RFC 1950 section 2.2: method 8, and a check over the first two bytes.
pub(super) fn has_zlib_frame(packed: &[u8]) -> bool {
    let [method, flags, ..] = packed else { return false };
    method & 0x0f == 8 && (u16::from(*method) << 8 | u16::from(*flags)) % 31 == 0
}

/// Where unpacked bytes go, and how many may still come.
struct Sink<'a> {
    scan: &'a mut UsageScan,
    room: usize,
    piece: Vec<u8>,
}

impl Sink<'_> {
    /// Reads to the end.
    fn pull(&mut self, decoder: &mut impl Read) -> Result<(), InflateFault> {
        loop {
            let read = decoder.read(&mut self.piece).map_err(|_| InflateFault::Broken)?;
            if read == 0 {
                return Ok(());
            }
            self.room = self.room.checked_sub(read).ok_or(InflateFault::TooLarge)?;
            self.scan.feed(self.piece.get(..read).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests;
