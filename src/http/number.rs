//! The sizes of chunks as digits, without the formatting machinery: they are written at the rate of
//! tokens.

/// Bytes of the longest chunk header: 16 hex digits and CRLF.
pub const CHUNK_HEADER_BYTES_MAX: usize = 18;

/// The line before a chunk of `len` bytes, made in `buf`. `len` 0 would end the body
/// ([`LAST_CHUNK`](super::write::LAST_CHUNK)).
pub fn chunk_header(buf: &mut [u8; CHUNK_HEADER_BYTES_MAX], len: usize) -> &[u8] {
    debug_assert!(len > 0, "an empty chunk ends the body");
    let mut rest = len as u64;
    let mut used = 2;
    for (slot, byte) in buf.iter_mut().rev().zip(*b"\n\r") {
        *slot = byte;
    }
    for slot in buf.iter_mut().rev().skip(2) {
        let digit = (rest % 16) as u8;
        *slot = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        rest /= 16;
        used += 1;
        if rest == 0 {
            break;
        }
    }
    buf.get(CHUNK_HEADER_BYTES_MAX - used..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_standard_library() {
        for value in [1, 9, 10, 15, 16, 255, 256, 4095, 65_536, usize::MAX - 1, usize::MAX] {
            let mut buf = [0; CHUNK_HEADER_BYTES_MAX];
            let header = chunk_header(&mut buf, value);
            assert_eq!(header, format!("{value:x}\r\n").as_bytes());
        }
    }
}
