//! Answers packed as a front end of an engine would: what is due together is flushed together, so
//! that a client can unpack each event when it comes.

use std::io::Write;

use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::Compression;

use crate::script::Piece;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip
    Gzip,
    /// deflate, in zlib's frame
    Deflate,
    /// zstd, a frame for each piece
    Zstd,
}

impl Packing {
    /// The coding as `Content-Encoding` names it.
    pub fn name(self) -> &'static str {
        match self {
            Packing::Gzip => "gzip",
            Packing::Deflate => "deflate",
            Packing::Zstd => "zstd",
        }
    }

    /// Packs a whole body.
    pub fn body(self, body: &[u8]) -> Vec<u8> {
        let piece = Piece { step: 0, events: 0, bytes: body.to_vec() };
        self.pieces(vec![piece]).into_iter().flat_map(|piece| piece.bytes).collect()
    }

    /// Packs the pieces of a stream, each so that it can be unpacked without the next.
    pub fn pieces(self, mut pieces: Vec<Piece>) -> Vec<Piece> {
        let level = Compression::default();
        match self {
            Packing::Gzip => {
                let mut packer = GzEncoder::new(Vec::new(), level);
                for piece in &mut pieces {
                    piece.bytes = flushed(&mut packer, &piece.bytes, GzEncoder::get_mut);
                }
                end(&mut pieces, packer.finish().unwrap_or_default());
            }
            Packing::Deflate => {
                let mut packer = ZlibEncoder::new(Vec::new(), level);
                for piece in &mut pieces {
                    piece.bytes = flushed(&mut packer, &piece.bytes, ZlibEncoder::get_mut);
                }
                end(&mut pieces, packer.finish().unwrap_or_default());
            }
            Packing::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                for piece in &mut pieces {
                    piece.bytes = ruzstd::encoding::compress_to_vec(&piece.bytes[..], level);
                }
            }
        }
        pieces
    }
}

/// What comes out for these bytes; writing into memory does not fail.
fn flushed<W: Write>(
    packer: &mut W,
    bytes: &[u8],
    out: impl Fn(&mut W) -> &mut Vec<u8>,
) -> Vec<u8> {
    let _ = packer.write_all(bytes).and_then(|()| packer.flush());
    std::mem::take(out(packer))
}

fn end(pieces: &mut [Piece], bytes: Vec<u8>) {
    if let Some(last) = pieces.last_mut() {
        last.bytes.extend_from_slice(&bytes);
    }
}
