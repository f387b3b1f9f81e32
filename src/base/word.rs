//! Eight bytes at a time in one word, for texts too short for a vector search.

/// One in each byte.
pub const EACH: u64 = 0x0101_0101_0101_0101;
/// The top bit of each byte.
pub const TOPS: u64 = EACH * 0x80;

/// How many bytes there are before the first that `marks` marks in its top bit (the lowest mark
/// must be exact). Behind the last byte come zeros, which it must mark.
pub fn run_len(bytes: &[u8], marks: impl Fn(u64) -> u64) -> usize {
    let mut rest = bytes;
    let mut len = 0_usize;
    while let Some((word, more)) = rest.split_first_chunk() {
        let marked = marks(u64::from_le_bytes(*word));
        if marked != 0 {
            return len.wrapping_add((marked.trailing_zeros() / 8) as usize);
        }
        len = len.wrapping_add(8);
        rest = more;
    }
    // The last eight bytes, of which those that were looked at before have no mark.
    let (word, before) = match bytes.last_chunk() {
        Some(word) => (u64::from_le_bytes(*word), bytes.len().wrapping_sub(8)),
        None => (short_word(bytes), 0),
    };
    before.wrapping_add((marks(word).trailing_zeros() / 8) as usize)
}

/// Up to seven bytes as a word, with zeros behind them.
fn short_word(bytes: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        // Those that are in both come to lie on themselves.
        let behind = 8 * (bytes.len().wrapping_sub(4) as u32);
        let last = u64::from(u32::from_le_bytes(*last)).wrapping_shl(behind);
        return u64::from(u32::from_le_bytes(*first)) | last;
    }
    bytes.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte))
}

/// Marks the bytes that a text of JSON may have to escape: control characters, `"`, `\\` and all
/// above ASCII. The lowest mark is exact.
pub fn no_plain_json(word: u64) -> u64 {
    // With one bit turned, the quote follows the control characters: one comparison finds both.
    let turned = (word ^ (EACH * 2)).wrapping_sub(EACH * 0x21);
    let backslash = (word ^ (EACH * u64::from(b'\\'))).wrapping_sub(EACH);
    // What is marked wrongly is above ASCII, and marked anyway; borrows only travel upwards.
    (turned | backslash | word) & TOPS
}

/// Marks the bytes that are below `least` (at most 0x80) or DEL. Borrows only travel upwards, so
/// the lowest mark is exact.
pub fn below(word: u64, least: u8) -> u64 {
    let low = word.wrapping_sub(EACH * u64::from(least)) & !word;
    (low & TOPS) | equal(word, 0x7f)
}

/// Marks the bytes that are this one; the lowest mark is exact.
pub fn equal(word: u64, byte: u8) -> u64 {
    let differs = word ^ (EACH * u64::from(byte));
    differs.wrapping_sub(EACH) & !differs & TOPS
}

/// Marks the bytes that are not a letter, a digit, `-` or `_`. All marks are exact.
pub fn no_name(word: u64) -> u64 {
    let low = word & !TOPS;
    // Carries stay in their bytes: none is above 0x7f before, or 0xff after.
    let within = |word: u64, first: u8, last: u8| {
        let least = word.wrapping_add(EACH * u64::from(0x80 - first));
        least & !word.wrapping_add(EACH * u64::from(0x7f - last))
    };
    let letters = within(low | (EACH * 0x20), b'a', b'z');
    let digits = within(low, b'0', b'9');
    let others = within(low, b'-', b'-') | within(low, b'_', b'_');
    (!(letters | digits | others) | word) & TOPS
}

/// The 16 hexadecimal digits of a word.
pub fn hex(word: u64) -> [u8; 16] {
    let mut digits = [0; 16];
    let halves = [(word >> 32) as u32, word as u32];
    for (digits, half) in digits.chunks_exact_mut(8).zip(halves) {
        digits.copy_from_slice(&hex_of_half(half).to_be_bytes());
    }
    digits
}

fn hex_of_half(half: u32) -> u64 {
    let mut spread = u64::from(half);
    spread = (spread | (spread << 16)) & 0x0000_FFFF_0000_FFFF;
    spread = (spread | (spread << 8)) & 0x00FF_00FF_00FF_00FF;
    spread = (spread | (spread << 4)) & 0x0F0F_0F0F_0F0F_0F0F;
    let letters = ((spread + EACH * 6) >> 4) & EACH;
    spread + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_is_exact_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            for at in 0..12 {
                let mut text = [b'x'; 12];
                text[at] = byte;
                for least in [b' ', b'!'] {
                    let found = run_len(&text, |word| below(word, least));
                    let expected = if byte < least || byte == 0x7f { at } else { 12 };
                    assert_eq!(found, expected, "{byte} at {at} below {least}");
                }
                let quote = run_len(&text, |word| equal(word, b'"') | below(word, 1));
                let expected = if matches!(byte, b'"' | 0 | 0x7f) { at } else { 12 };
                assert_eq!(quote, expected, "{byte} at {at}");
            }
        }
    }

    #[test]
    fn plain_json_ends_where_something_may_have_to_be_escaped() {
        for byte in 0..=u8::MAX {
            for (len, at) in (0..20).flat_map(|len| (0..len).map(move |at| (len, at))) {
                let mut text = vec![0x7f; len];
                text[at] = byte;
                let is_plain = byte.is_ascii() && byte >= b' ' && byte != b'"' && byte != b'\\';
                let expected = if is_plain { len } else { at };
                assert_eq!(run_len(&text, no_plain_json), expected, "{byte} at {at} of {len}");
            }
        }
        // Behind a mark there may be more of them, and before it none.
        for text in ["!\"!\u{ff}#", "##\u{1}\"", "#\\]\u{0}\"", "[]^_\u{80}"] {
            let odd = |byte: u8| !byte.is_ascii() || byte < b' ' || matches!(byte, b'"' | b'\\');
            let expected = text.bytes().position(odd).unwrap();
            assert_eq!(run_len(text.as_bytes(), no_plain_json), expected, "{text:?}");
        }
    }

    #[test]
    fn names_end_where_another_byte_stands() {
        for byte in 0..=u8::MAX {
            for at in 0..12 {
                let mut text = *b"aZ09-_zA-xyz";
                text[at] = byte;
                let fine = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
                let expected = if fine { 12 } else { at };
                assert_eq!(run_len(&text, no_name), expected, "{byte} at {at}");
            }
        }
    }

    #[test]
    fn hex_digits_are_those_of_the_standard_library() {
        for word in [0, 1, 0xf, 0x10, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX] {
            assert_eq!(hex(word), *format!("{word:016x}").as_bytes());
        }
    }
}
