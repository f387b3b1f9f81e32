use super::*;
use crate::base::limits::FIELD_NAME_BYTES_MAX;

/// Decodes all of `input` in pieces of at most `step` bytes; gives the data and what was consumed,
/// or `None` in its place when more is needed.
fn decode_in(input: &[u8], step: usize) -> Result<(Vec<u8>, Option<usize>), BadChunk> {
    let mut decoder = ChunkDecoder::new(256);
    let mut data = Vec::new();
    let mut at = 0;
    while at < input.len() {
        let part = &input[at..input.len().min(at + step)];
        match decoder.decode(part)? {
            Piece::Data { start, end } => {
                assert!(start < end && end <= part.len());
                data.extend_from_slice(&part[start..end]);
                at += end;
            }
            Piece::NeedMore => at += part.len(),
            Piece::End { consumed } => {
                assert!(decoder.is_done());
                assert_eq!(decoder.decode(b"more"), Ok(Piece::End { consumed: 0 }));
                return Ok((data, Some(at + consumed)));
            }
        }
    }
    assert!(!decoder.is_done());
    Ok((data, None))
}

/// Decodes at every step width; all must agree.
fn decode(input: &[u8]) -> Result<(Vec<u8>, Option<usize>), BadChunk> {
    let whole = decode_in(input, input.len());
    for step in 1..input.len().min(40) {
        assert_eq!(decode_in(input, step), whole, "step {step}");
    }
    whole
}

fn complete(input: &str, data: &str) {
    let with_next = [input.as_bytes(), b"GET / HTTP/1.1\r\n"].concat();
    let (found, consumed) = decode(&with_next).unwrap();
    assert_eq!(String::from_utf8_lossy(&found), data, "{input:?}");
    assert_eq!(consumed, Some(input.len()), "{input:?}");
}

fn bad(input: &str, fault: &'static str) {
    assert_eq!(decode(input.as_bytes()), Err(BadChunk(fault)), "{input:?}");
}

#[test]
fn bodies_that_are_read() {
    complete("0\r\n\r\n", "");
    complete("5\r\nhello\r\n0\r\n\r\n", "hello");
    complete("00005\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", "hello!");
    complete("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789");
    complete("4\r\n\r\n\r\n\r\n0\r\n\r\n", "\r\n\r\n");
    complete("5;a=b;c=\"d e\"\r\nhello\r\n0;x\r\n\r\n", "hello");
    complete("1\r\nx\r\n0\r\nA: b\r\nContent-Length: 9\r\nc:\td \r\n\r\n", "x");
}

#[test]
fn a_chunk_is_one_range_of_the_input() {
    let mut decoder = ChunkDecoder::new(64);
    let input = b"5\r\nhello\r\n6\r\nwor";
    assert_eq!(decoder.decode(input), Ok(Piece::Data { start: 3, end: 8 }));
    assert_eq!(decoder.decode(&input[8..]), Ok(Piece::Data { start: 5, end: 8 }));
    assert_eq!(decoder.decode(b""), Ok(Piece::NeedMore));
    assert_eq!(decoder.decode(b"ld!\r"), Ok(Piece::Data { start: 0, end: 3 }));
    assert_eq!(decoder.decode(b"\r"), Ok(Piece::NeedMore));
    assert_eq!(decoder.decode(b"\n0\r\n"), Ok(Piece::NeedMore));
    assert_eq!(decoder.decode(b"\r\nx"), Ok(Piece::End { consumed: 2 }));
}

#[test]
fn sizes_are_hex_digits_and_nothing_else() {
    let faults = [
        "", " ", "\t5", " 5", "5 ", "5\t", "0x5", "x", "+5", "-5", "5_0", "5.", "g", "\u{ff15}",
        "5 ;a",
    ];
    for size in faults {
        bad(&format!("{size}\r\nhello\r\n0\r\n\r\n"), "chunk_size_malformed");
    }
    // hyper once took a missing digit for 0, and overflowed on long sizes (CVE-2021-32714).
    bad(";a\r\n", "chunk_size_malformed");
    bad("0000000000000005\r\nhello\r\n", "chunk_size_too_long");
    bad("fffffffffffffffff\r\n", "chunk_size_too_long");
    let widest = format!("{}\r\nx", "f".repeat(CHUNK_SIZE_DIGITS_MAX));
    assert_eq!(decode(widest.as_bytes()), Ok((b"x".to_vec(), None)));
}

#[test]
fn line_ends_are_crlf() {
    bad("5\nhello\r\n0\r\n\r\n", "chunk_size_malformed");
    bad("5\rhello\r\n0\r\n\r\n", "chunk_size_line_end");
    bad("5\r\r\nhello\r\n0\r\n\r\n", "chunk_size_line_end");
    bad("5\r\nhello0\r\n\r\n", "chunk_data_end");
    bad("5\r\nhello\n0\r\n\r\n", "chunk_data_end");
    bad("5\r\nhello\r0\r\n\r\n", "chunk_data_end");
    bad("5\r\nhello!\r\n0\r\n\r\n", "chunk_data_end");
    bad("0\r\n\rx", "chunk_trailer_line_end");
    bad("0\r\n\n", "chunk_trailer_malformed");
    bad("0\n\n", "chunk_size_malformed");
}

#[test]
fn extensions_are_bounded_and_carry_no_line() {
    bad("5;a\nhello\r\n", "chunk_extension_malformed");
    bad("5;a\0\r\nhello\r\n", "chunk_extension_malformed");
    let size = |n: usize| format!("1;{}\r\nx\r\n", "e".repeat(n));
    complete(&format!("{}0\r\n\r\n", size(CHUNK_EXTENSION_BYTES_MAX)), "x");
    bad(&size(CHUNK_EXTENSION_BYTES_MAX + 1), "chunk_extension_too_long");
    let chunks = BODY_EXTENSION_BYTES_MAX / CHUNK_EXTENSION_BYTES_MAX;
    let full = size(CHUNK_EXTENSION_BYTES_MAX).repeat(chunks);
    complete(&format!("{full}0\r\n\r\n"), &"x".repeat(chunks));
    bad(&format!("{full}0;e\r\n\r\n"), "chunk_extension_too_long");
}

#[test]
fn trailers_are_fields() {
    for trailer in
        [" a: b", ": b", "a b: c", "a", "a : b", "a: b\r\n c", "a: \x01", "a: b\rc", "a: b\nc"]
    {
        bad(&format!("0\r\n{trailer}\r\n\r\n"), "chunk_trailer_malformed");
    }
    let line = |n: usize| format!("0\r\na: {}\r\n\r\n", "x".repeat(n));
    complete(&line(251), "");
    bad(&line(252), "chunk_trailer_too_large");
    let name = format!("0\r\n{}: b\r\n\r\n", "n".repeat(FIELD_NAME_BYTES_MAX));
    bad(&name, "chunk_trailer_too_large");
}
