//! Chunked bodies (RFC 9112 §7.1), decoded as they arrive.
//!
//! The decoder holds no bytes: data is given as ranges of the input, so that a relay can forward
//! it from the buffer it was read into. Sizes are read as strictly as the grammar allows and the
//! line ends must be CRLF, since every lenience here once let a request be smuggled.

use super::hop::is_token;
use crate::base::limits::{
    BODY_EXTENSION_BYTES_MAX, CHUNK_EXTENSION_BYTES_MAX, CHUNK_SIZE_DIGITS_MAX,
    FIELD_NAME_BYTES_MAX,
};

/// Why bytes are not a chunked body. The text is stable, machine-readable snake case.
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

/// Incremental decoder; holds no bytes and never allocates. Every stream has one, so its counters
/// are as small as their limits allow.
#[derive(Debug, Clone)]
pub struct ChunkDecoder {
    state: State,
    /// Size of the chunk while its digits are read, then bytes of it still to come.
    size: u64,
    /// Extension bytes of this chunk, and of the body.
    extension: u32,
    extensions: u32,
    /// Trailer bytes that may still come.
    trailer_left: u32,
    /// Bytes of the name of the trailer that is read.
    name: u16,
    digits: u8,
}

// So that what counts up to them cannot overflow.
const _: () = assert!(FIELD_NAME_BYTES_MAX < u16::MAX as usize);
const _: () = assert!(CHUNK_SIZE_DIGITS_MAX < u8::MAX as usize);
const _: () = assert!(BODY_EXTENSION_BYTES_MAX < u32::MAX as usize);

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// First byte of a trailer line, or the CR of the empty line that ends the body.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl ChunkDecoder {
    /// A decoder at the start of a body. `trailer_bytes_max` bounds the trailer section, its line
    /// ends included.
    pub fn new(trailer_bytes_max: usize) -> Self {
        ChunkDecoder {
            state: State::Size,
            size: 0,
            digits: 0,
            extension: 0,
            extensions: 0,
            trailer_left: u32::try_from(trailer_bytes_max).unwrap_or(u32::MAX),
            name: 0,
        }
    }

    /// Looks at `input` and returns the next piece. After `Data{end}` call again with
    /// `&input[end..]`. `NeedMore` means that all of it was taken in. After an error or `End` the
    /// decoder stays where it is.
    pub fn decode(&mut self, input: &[u8]) -> Result<Piece, BadChunk> {
        let mut at = 0;
        loop {
            if self.state == State::Done {
                return Ok(Piece::End { consumed: at });
            }
            if at >= input.len() {
                return Ok(Piece::NeedMore);
            }
            if self.state == State::Data {
                let here = (input.len() - at) as u64;
                let end = at + here.min(self.size) as usize;
                self.size -= (end - at) as u64;
                if self.size == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Piece::Data { start: at, end });
            }
            // Lines are short: size lines have a few bytes, trailers are rare.
            let Some(byte) = input.get(at) else {
                return Ok(Piece::NeedMore);
            };
            self.state = self.step(*byte)?;
            at += 1;
        }
    }

    /// Takes in the line end behind the data of a chunk, if that is what comes next; gives the
    /// bytes consumed.
    pub fn line_end(&mut self, input: &[u8]) -> Result<usize, BadChunk> {
        let mut at = 0;
        while matches!(self.state, State::DataCr | State::DataLf) {
            let Some(byte) = input.get(at) else { break };
            self.state = self.step(*byte)?;
            at += 1;
        }
        Ok(at)
    }

    /// The chunk that begins with the input, if the decoder stands between two chunks and
    /// [`whole_chunk`] finds one. It is consumed then.
    pub fn whole_chunk(&mut self, input: &[u8]) -> Option<WholeChunk> {
        if self.state != State::Size || self.digits > 0 {
            return None;
        }
        let chunk = whole_chunk(input)?;
        if chunk.is_last() {
            self.state = State::Done;
        }
        Some(chunk)
    }

    /// True once the last chunk and the trailers were seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes one byte that is not data.
    fn step(&mut self, byte: u8) -> Result<State, BadChunk> {
        match self.state {
            State::Size => self.size_byte(byte),
            State::Extension => self.extension_byte(byte),
            State::SizeLf => {
                expect(byte, b'\n', "chunk_size_line_end")?;
                self.digits = 0;
                self.extension = 0;
                Ok(if self.size == 0 { State::TrailerStart } else { State::Data })
            }
            State::DataCr => expect(byte, b'\r', "chunk_data_end").map(|()| State::DataLf),
            State::DataLf => expect(byte, b'\n', "chunk_data_end").map(|()| State::Size),
            State::EndLf => expect(byte, b'\n', "chunk_trailer_line_end").map(|()| State::Done),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLf),
            State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf => {
                self.trailer_byte(byte)
            }
            State::Data | State::Done => Ok(self.state),
        }
    }

    /// Hex digits, then `;` or CR: no sign, no `0x`, no blank, at least one digit.
    fn size_byte(&mut self, byte: u8) -> Result<State, BadChunk> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b';' if self.digits > 0 => return Ok(State::Extension),
            b'\r' if self.digits > 0 => return Ok(State::SizeLf),
            _ => return Err(BadChunk("chunk_size_malformed")),
        };
        if usize::from(self.digits) == CHUNK_SIZE_DIGITS_MAX {
            return Err(BadChunk("chunk_size_too_long"));
        }
        // The chunk before is used up, so `size` is 0 here before the first digit.
        self.size = self.size * 16 + u64::from(digit);
        self.digits += 1;
        Ok(State::Size)
    }

    /// Anything but controls, up to two limits: an extension carries nothing and costs reading.
    fn extension_byte(&mut self, byte: u8) -> Result<State, BadChunk> {
        if byte == b'\r' {
            return Ok(State::SizeLf);
        }
        if byte.is_ascii_control() {
            return Err(BadChunk("chunk_extension_malformed"));
        }
        self.extension += 1;
        self.extensions += 1;
        let (chunk, body) = (self.extension as usize, self.extensions as usize);
        if chunk > CHUNK_EXTENSION_BYTES_MAX || body > BODY_EXTENSION_BYTES_MAX {
            return Err(BadChunk("chunk_extension_too_long"));
        }
        Ok(State::Extension)
    }

    /// Trailer fields are held to the rules of fields in a head and then forgotten.
    fn trailer_byte(&mut self, byte: u8) -> Result<State, BadChunk> {
        self.trailer_left =
            self.trailer_left.checked_sub(1).ok_or(BadChunk("chunk_trailer_too_large"))?;
        match (self.state, byte) {
            (State::TrailerStart, _) if is_token(byte) => {
                self.name = 1;
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, _) if is_token(byte) => {
                self.name += 1;
                if usize::from(self.name) > FIELD_NAME_BYTES_MAX {
                    return Err(BadChunk("chunk_trailer_too_large"));
                }
                Ok(State::TrailerName)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if byte == b'\t' || !byte.is_ascii_control() => {
                Ok(State::TrailerValue)
            }
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(BadChunk("chunk_trailer_malformed")),
        }
    }
}

/// A chunk that lies whole in the input, framing included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WholeChunk {
    /// First byte of its data in the input.
    pub start: usize,
    /// One past the last.
    pub end: usize,
}

impl WholeChunk {
    /// Bytes of the input that it takes up: a line end follows the data (of the last chunk: the
    /// empty trailer section does).
    pub fn wire_len(&self) -> usize {
        self.end + 2
    }

    /// True for the chunk without data, which ends the body.
    pub fn is_last(&self) -> bool {
        self.start == self.end
    }
}

/// The chunk that begins with the input, if all of it is there and its framing is the plainest:
/// no leading zero, no extension, no trailer. Such a chunk can be sent on as it came. `None` says
/// nothing else: the decoder knows whether it is incomplete, unusual or broken.
pub fn whole_chunk(input: &[u8]) -> Option<WholeChunk> {
    let mut size = 0;
    let mut at = 0;
    loop {
        let byte = *input.get(at)?;
        size = match byte {
            b'0'..=b'9' => size * 16 + usize::from(byte - b'0'),
            b'a'..=b'f' => size * 16 + usize::from(byte - b'a' + 10),
            b'A'..=b'F' => size * 16 + usize::from(byte - b'A' + 10),
            _ => break,
        };
        at += 1;
        // A longer size than this is no chunk that would lie in a buffer.
        if at > WHOLE_CHUNK_DIGITS_MAX {
            return None;
        }
    }
    if at == 0 || (at > 1 && input.first() == Some(&b'0')) {
        return None;
    }
    let (start, end) = (at + 2, at + 2 + size);
    let lines = input.get(at..start)? == b"\r\n" && input.get(end..end + 2)? == b"\r\n";
    lines.then_some(WholeChunk { start, end })
}

/// Size digits of a chunk that is looked for whole.
const WHOLE_CHUNK_DIGITS_MAX: usize = 7;

fn expect(byte: u8, wanted: u8, fault: &'static str) -> Result<(), BadChunk> {
    if byte == wanted {
        Ok(())
    } else {
        Err(BadChunk(fault))
    }
}

#[cfg(test)]
mod tests;
