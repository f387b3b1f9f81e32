//! Sixty-four bytes at a time: which of them are a given byte, as bits of one word.
//!
//! In lists of small objects (log probabilities) and in code there is a quote, a backslash or a
//! bracket every few bytes, and a search that stops at each is slow.
//!
//! The bits are not in the order of the bytes: byte `8 * row + column` of the block is bit
//! `8 * column + row`. So a compiler can make a mark of sixteen bytes at once, with the vector
//! instructions that every CPU has, and most questions need no order. [`in_order`] turns it.

use crate::base::word::EACH;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 64;

/// The bit of each byte within its column: that of its row.
const ROW_BITS: [u8; BLOCK_BYTES] = {
    let mut bits = [0; BLOCK_BYTES];
    let mut at = 0;
    while at < BLOCK_BYTES {
        bits[at] = 1 << (at / 8);
        at += 1;
    }
    bits
};

/// Which bytes of a block are this one.
pub fn places_of(block: &[u8; BLOCK_BYTES], byte: u8) -> u64 {
    let mut marks = [0; BLOCK_BYTES];
    for ((mark, here), bit) in marks.iter_mut().zip(block).zip(ROW_BITS) {
        *mark = if *here == byte { bit } else { 0 };
    }
    marks.as_chunks().0.iter().fold(0, |all, row| all | u64::from_le_bytes(*row))
}

/// The same marks in the order of the bytes, and back: a matrix of 8 by 8 bits is flipped.
pub fn in_order(marks: u64) -> u64 {
    let swap = |bits: u64, by: u32, which: u64| {
        let differ = (bits ^ (bits >> by)) & which;
        bits ^ differ ^ (differ << by)
    };
    let bits = swap(marks, 7, 0x00AA_00AA_00AA_00AA);
    let bits = swap(bits, 14, 0x0000_CCCC_0000_CCCC);
    swap(bits, 28, 0x0000_0000_F0F0_F0F0)
}

/// True when the last byte is marked.
pub fn has_last(marks: u64) -> bool {
    marks >> (BLOCK_BYTES - 1) == 1
}

/// Each mark moved to the next byte; the first byte gets `first`.
fn to_next(marks: u64, first: u64) -> u64 {
    (marks << 8) | ((marks >> 56 << 1) & 0xff) | first
}

/// Between each two marks all bits, from the first of the two on; `inside`: another mark stood
/// before the block.
pub fn running(marks: u64, inside: bool) -> u64 {
    let mut sum = marks;
    for shift in [8, 16, 32] {
        sum ^= sum << shift;
    }
    // The last column has now the sum of each row; each row needs that of all rows before it.
    let mut rows = sum >> 56;
    for shift in [1, 2, 4] {
        rows ^= rows << shift;
    }
    let before = (rows << 1 & 0xff) ^ if inside { 0xff } else { 0 };
    sum ^ before.wrapping_mul(EACH)
}

/// Which bytes have an open escape before them, by the places of backslashes, all in one text;
/// `is_escaped`: the first one has. Gives also whether the byte behind the block has.
pub fn escaped(backslashes: u64, is_escaped: bool) -> (u64, bool) {
    let first = u64::from(is_escaped);
    let opening = backslashes & !first;
    let behind = to_next(opening, first);
    if opening & behind == 0 {
        return (behind, has_last(opening));
    }
    // Of backslashes side by side every second one is escaped. An addition carries through those
    // that begin at an odd place, which tells where they end.
    const EVEN: u64 = 0x5555_5555_5555_5555;
    let opening = in_order(opening);
    let behind = (opening << 1) | first;
    let odd_starts = opening & !EVEN & !behind;
    let (ends, goes_on) = odd_starts.overflowing_add(opening);
    let escaped = (EVEN ^ (ends << 1)) & behind;
    (in_order(escaped), goes_on)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(marks: u64) -> Vec<bool> {
        (0..BLOCK_BYTES).map(|at| in_order(marks) >> at & 1 == 1).collect()
    }

    proptest! {
        /// Catches: a mark at another byte, a text or an escape that ends elsewhere than when each
        /// byte is looked at.
        #[test]
        fn all_is_as_byte_by_byte(
            bytes in "[\\\\\\\\\\\\\"a{]{64}",
            inside in any::<bool>(),
            is_escaped in any::<bool>(),
        ) {
            let block: &[u8; BLOCK_BYTES] = bytes.as_bytes().first_chunk().unwrap();
            let quotes = places_of(block, b'"');
            prop_assert_eq!(set(quotes), block.map(|byte| byte == b'"'));
            prop_assert_eq!(in_order(in_order(quotes)), quotes);
            prop_assert_eq!(has_last(quotes), block[63] == b'"');
            let mut now = inside;
            let texts = block.map(|byte| {
                now ^= byte == b'"';
                now
            });
            prop_assert_eq!(set(running(quotes, inside)), texts);
            let mut next = is_escaped;
            let expected = block.map(|byte| {
                let was = next;
                next = !was && byte == b'\\';
                was
            });
            let (found, behind) = escaped(places_of(block, b'\\'), is_escaped);
            prop_assert_eq!(set(found), expected);
            prop_assert_eq!(behind, next);
        }
    }
}
