//! Request bodies that came packed, unpacked piece by piece for a worker: each step is short, what
//! may come out is bounded, and so is how much more it is than what came in.
//!
//! A body is one member or frame, whole and with nothing behind it. More than one is lawful and
//! nobody's way to send a request; each would cost time without giving a byte.

use super::inflate::{has_zlib_frame, Coding};
use crate::base::limits::{INFLATE_WINDOW_BYTES_MAX, UNPACKED_RATIO_BYTES_MIN, UNPACKED_RATIO_MAX};
use brotli_decompressor::{BrotliDecoderParameter, Decompressor};
use flate2::bufread::GzDecoder;
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::errors::FrameDecoderError;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, BufRead, Read};
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Bytes that a step unpacks, but for zstd, which keeps up to a window back and gives it at its
/// end.
const STEP_BYTES: usize = 64 * 1024;
/// Packed bytes that a step may take. No honest body needs as many for what a step gives.
const STEP_PACKED_BYTES_MAX: usize = 256 * 1024;
/// Blocks of zstd in a step that have given nothing yet.
const STEP_BLOCKS_MAX: usize = 64;

/// Why a body cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnpackFault {
    /// It is not what it is said to be, was cut off, or has something behind its end.
    Broken,
    /// More than the limit of a body, or the decoder would hold more than
    /// [`INFLATE_WINDOW_BYTES_MAX`].
    TooLarge,
    /// More than [`UNPACKED_RATIO_MAX`] times what came.
    TooDense,
}

/// A packed body on its way.
pub struct BodyUnpacking<'a> {
    decoder: Decoder<'a>,
    piece: Vec<u8>,
    /// Bytes that came out, and that may.
    made: u64,
    bytes_max: u64,
    dense_max: u64,
}

enum Decoder<'a> {
    Gzip(Box<GzDecoder<Portion<'a>>>),
    Inflate(Decompress, &'a [u8]),
    Brotli(Box<Decompressor<Portion<'a>>>),
    Zstd(Box<FrameDecoder>, &'a [u8]),
}

impl<'a> BodyUnpacking<'a> {
    /// Begins. `bytes_max`: beyond it the body is [`UnpackFault::TooLarge`].
    ///
    /// # Errors
    /// What the first bytes show.
    pub fn new(
        coding: Coding,
        packed: &'a [u8],
        bytes_max: u64,
    ) -> Result<BodyUnpacking<'a>, UnpackFault> {
        let portion = Portion { rest: packed, left: STEP_PACKED_BYTES_MAX };
        let decoder = match coding {
            Coding::Gzip => Decoder::Gzip(Box::new(GzDecoder::new(portion))),
            Coding::Deflate => Decoder::Inflate(Decompress::new(has_zlib_frame(packed)), packed),
            Coding::Brotli => {
                let mut decoder = Decompressor::new(portion, 4096);
                // The windows of RFC 7932, 16 MiB at most.
                decoder.set_parameter(BrotliDecoderParameter::BROTLI_DECODER_PARAM_LARGE_WINDOW, 0);
                Decoder::Brotli(Box::new(decoder))
            }
            Coding::Zstd => zstd(packed)?,
        };
        let dense = (packed.len() as u64).saturating_mul(UNPACKED_RATIO_MAX);
        Ok(BodyUnpacking {
            decoder,
            piece: Vec::with_capacity(STEP_BYTES),
            made: 0,
            bytes_max,
            dense_max: dense.max(UNPACKED_RATIO_BYTES_MIN),
        })
    }

    /// One step: the bytes that follow, and whether they are the last ones.
    ///
    /// # Errors
    /// After one, nothing that came before may be used either.
    pub fn step(&mut self) -> Result<(&[u8], bool), UnpackFault> {
        let BodyUnpacking { decoder, piece, .. } = self;
        piece.clear();
        // The decoders are strangers: what they do not survive is a broken body, and no more.
        let stepped = catch_unwind(AssertUnwindSafe(|| decoder.step(piece)));
        let is_last = stepped.unwrap_or(Err(UnpackFault::Broken))?;
        self.made += self.piece.len() as u64;
        if self.made > self.bytes_max {
            return Err(UnpackFault::TooLarge);
        }
        if self.made > self.dense_max {
            return Err(UnpackFault::TooDense);
        }
        Ok((&self.piece, is_last))
    }
}

fn zstd(packed: &[u8]) -> Result<Decoder<'_>, UnpackFault> {
    let mut decoder = Box::new(FrameDecoder::new());
    decoder.set_max_window_size(INFLATE_WINDOW_BYTES_MAX as u64);
    let mut rest = packed;
    match decoder.init(&mut rest) {
        Ok(()) => Ok(Decoder::Zstd(decoder, rest)),
        Err(FrameDecoderError::WindowSizeTooBig { .. }) => Err(UnpackFault::TooLarge),
        Err(_) => Err(UnpackFault::Broken),
    }
}

impl Decoder<'_> {
    /// Unpacks some bytes into `piece`; true when they are the last ones.
    fn step(&mut self, piece: &mut Vec<u8>) -> Result<bool, UnpackFault> {
        match self {
            Decoder::Gzip(decoder) => {
                decoder.get_mut().left = STEP_PACKED_BYTES_MAX;
                let is_last = pull(&mut **decoder, piece)?;
                whole(is_last, decoder.get_ref().rest)
            }
            Decoder::Brotli(decoder) => {
                decoder.get_mut().left = STEP_PACKED_BYTES_MAX;
                let is_last = pull(&mut **decoder, piece)?;
                whole(is_last, decoder.get_ref().rest)
            }
            Decoder::Inflate(decoder, rest) => inflate(decoder, rest, piece),
            Decoder::Zstd(decoder, rest) => {
                let mut blocks = 0;
                while decoder.can_collect() == 0 && !decoder.is_finished() {
                    if blocks == STEP_BLOCKS_MAX {
                        return Ok(false);
                    }
                    blocks += 1;
                    decoder
                        .decode_blocks(&mut *rest, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(|_| UnpackFault::Broken)?;
                }
                decoder.collect_to_writer(&mut *piece).map_err(|_| UnpackFault::Broken)?;
                whole(decoder.is_finished(), rest)
            }
        }
    }
}

/// Reads what fits in a piece; true at the end.
fn pull(decoder: &mut impl Read, piece: &mut Vec<u8>) -> Result<bool, UnpackFault> {
    piece.resize(STEP_BYTES, 0);
    let read = decoder.read(piece).map_err(|_| UnpackFault::Broken)?;
    piece.truncate(read);
    Ok(read == 0)
}

/// RFC 1950 or 1951. By hand, because the reader of `flate2` takes a stream that was cut off for
/// one that is over.
fn inflate(
    decoder: &mut Decompress,
    rest: &mut &[u8],
    piece: &mut Vec<u8>,
) -> Result<bool, UnpackFault> {
    let (taken, made) = (decoder.total_in(), decoder.total_out());
    piece.resize(STEP_BYTES, 0);
    let portion = rest.get(..STEP_PACKED_BYTES_MAX).unwrap_or(rest);
    let status = decoder.decompress(portion, piece, FlushDecompress::None);
    let status = status.map_err(|_| UnpackFault::Broken)?;
    let (taken, made) = (decoder.total_in() - taken, decoder.total_out() - made);
    piece.truncate(made as usize);
    *rest = rest.get(taken as usize..).unwrap_or_default();
    match status {
        Status::StreamEnd => whole(true, rest),
        _ if taken == 0 && made == 0 => Err(UnpackFault::Broken),
        _ => Ok(false),
    }
}

/// Nothing may stand behind the end.
fn whole(is_last: bool, rest: &[u8]) -> Result<bool, UnpackFault> {
    if is_last && !rest.is_empty() {
        Err(UnpackFault::Broken)
    } else {
        Ok(is_last)
    }
}

/// Packed bytes, of which a step gets so many and no more.
struct Portion<'a> {
    rest: &'a [u8],
    left: usize,
}

impl Read for Portion<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Portion<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 && !self.rest.is_empty() {
            return Err(io::Error::other("a step gives nothing for all that it takes"));
        }
        Ok(self.rest.get(..self.left).unwrap_or(self.rest))
    }

    fn consume(&mut self, n: usize) {
        self.rest = self.rest.get(n..).unwrap_or_default();
        self.left = self.left.saturating_sub(n);
    }
}

#[cfg(test)]
mod tests;
