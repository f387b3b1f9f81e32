//! The chunk decoder against a slow reader of whole bodies, and against any cut of the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmproxy::base::limits::{
    BODY_EXTENSION_BYTES_MAX, CHUNK_EXTENSION_BYTES_MAX, CHUNK_SIZE_DIGITS_MAX,
    FIELD_NAME_BYTES_MAX,
};
use llmproxy::http::chunked::{BadChunk, ChunkDecoder, Piece};

const TRAILER_BYTES_MAX: usize = 128;

/// Data and, when the body is complete, how many bytes it took.
type Body = (Vec<u8>, Option<usize>);

fn decode(input: &[u8], step: usize) -> Result<Body, BadChunk> {
    let mut decoder = ChunkDecoder::new(TRAILER_BYTES_MAX);
    let (mut data, mut at) = (Vec::new(), 0);
    while at < input.len() {
        let part = &input[at..input.len().min(at + step.max(1))];
        match decoder.decode(part)? {
            Piece::Data { start, end } => {
                assert!(start < end && end <= part.len());
                data.extend_from_slice(&part[start..end]);
                at += end;
            }
            Piece::NeedMore => at += part.len(),
            Piece::End { consumed } => return Ok((data, Some(at + consumed))),
        }
    }
    Ok((data, None))
}

/// RFC 9112 §7.1 as a sentence: a complete and correct body, or nothing.
fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut data, mut at, mut extensions) = (Vec::new(), 0, 0);
    loop {
        let line = line_at(input, at)?;
        at += line.len() + 2;
        let semicolon = line.iter().position(|b| *b == b';');
        let (digits, rest) = line.split_at(semicolon.unwrap_or(line.len()));
        let extension = rest.len().saturating_sub(1);
        extensions += extension;
        let text = std::str::from_utf8(digits).ok()?;
        let hex = !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        let few = text.len() <= CHUNK_SIZE_DIGITS_MAX
            && extension <= CHUNK_EXTENSION_BYTES_MAX
            && extensions <= BODY_EXTENSION_BYTES_MAX;
        if !hex || !few || rest.iter().any(u8::is_ascii_control) {
            return None;
        }
        let size = usize::from_str_radix(text, 16).ok()?;
        if size == 0 {
            break;
        }
        data.extend_from_slice(input.get(at..at.checked_add(size)?)?);
        at += size;
        if input.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    let mut trailers = 0;
    loop {
        let line = line_at(input, at)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some((data, at));
        }
        trailers += line.len() + 2;
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = line.split_at(colon);
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let fine = |b: &u8| *b == b'\t' || !b.is_ascii_control();
        let named =
            !name.is_empty() && name.len() <= FIELD_NAME_BYTES_MAX && name.iter().all(token);
        if !named || !value.iter().all(fine) || trailers > TRAILER_BYTES_MAX {
            return None;
        }
    }
}

/// The line that begins at `at`, without its CRLF; nothing when it has none or a stray CR or LF.
fn line_at(input: &[u8], at: usize) -> Option<&[u8]> {
    let rest = input.get(at..)?;
    let end = rest.iter().position(|b| matches!(b, b'\r' | b'\n'))?;
    (rest.get(end..end + 2)? == b"\r\n").then(|| &rest[..end])
}

fuzz_target!(|input: &[u8]| {
    let Some((step, text)) = input.split_first() else { return };
    let whole = decode(text, text.len());
    assert_eq!(whole, decode(text, usize::from(*step)));
    let complete = match whole {
        Ok((data, Some(consumed))) => Some((data, consumed)),
        _ => None,
    };
    assert_eq!(complete, reference(text));
});
