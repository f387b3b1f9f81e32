//! Eight bytes at a time in one word, for texts too short for a vector search.

/// One in each byte.
pub const EACH: u64 = 0x0101_0101_0101_0101;
/// The top bit of each byte.
pub const TOPS: u64 = EACH * 0x80;

/// The first byte from `at` on that `marks` marks in its top bit (the lowest mark must be exact).
/// Behind the last byte come zeros, which it must mark.
pub fn run_end(bytes: &[u8], mut at: usize, marks: impl Fn(u64) -> u64) -> usize {
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let word = match rest.first_chunk() {
            Some(word) => u64::from_le_bytes(*word),
            None => rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)),
        };
        let marked = marks(word);
        if marked != 0 {
            return at + (marked.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
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
                    let found = run_end(&text, 0, |word| below(word, least));
                    let expected = if byte < least || byte == 0x7f { at } else { 12 };
                    assert_eq!(found, expected, "{byte} at {at} below {least}");
                }
                let quote = run_end(&text, 0, |word| equal(word, b'"') | below(word, 1));
                let expected = if matches!(byte, b'"' | 0 | 0x7f) { at } else { 12 };
                assert_eq!(quote, expected, "{byte} at {at}");
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
