//! The chunked decoder (contract).

/// Why bytes are not a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadChunk(pub &'static str);

/// One step of the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// `input[start..end]` is body data; `end` bytes of the input are consumed.
    Data {
        /// First byte of data in the input.
        start: usize,
        /// One past the last; also what is consumed.
        end: usize,
    },
    /// All of the input is consumed without further data; more is needed.
    NeedMore,
    /// The body is complete; `consumed` bytes of the input belong to it.
    End {
        /// Bytes consumed.
        consumed: usize,
    },
}

/// Incremental decoder; holds no bytes.
#[derive(Debug, Clone, Default)]
pub struct ChunkDecoder {}

impl ChunkDecoder {
    /// A decoder at the start of a body. `trailer_bytes_max` bounds the trailer section.
    pub fn new(trailer_bytes_max: usize) -> Self { let _ = trailer_bytes_max; todo!() }
    /// Looks at `input` and returns the next piece. After `Data{end}` call again with `&input[end..]`.
    /// `NeedMore` means that all of it was taken in.
    pub fn decode(&mut self, input: &[u8]) -> Result<Piece, BadChunk> { let _ = input; todo!() }
    /// True once the last chunk and the trailers were seen.
    pub fn is_done(&self) -> bool { todo!() }
}
