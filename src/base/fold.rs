//! A keyed hash that reads long bytes as quickly as they come from memory: 16 bytes for each
//! product of 128 bits, of which the halves are folded into one (as wyhash does, by Wang Yi).
//! Whoever does not know the key cannot choose bytes that have one hash; it is not made to keep a
//! secret from somebody who sees hashes, so none of them leaves the process.

use std::hash::{BuildHasher, RandomState};

/// The key of such hashes.
#[derive(Clone)]
pub struct FoldKey([u64; 4]);

/// Bytes that are read at once.
const BLOCK_BYTES: usize = 32;

impl FoldKey {
    /// One that nobody can guess.
    pub fn random() -> FoldKey {
        FoldKey([0, 1, 2, 3].map(|word: u64| RandomState::new().hash_one(word)))
    }

    /// One that is always the same: for tests, and for what is compared between processes.
    pub const fn of(words: [u64; 4]) -> FoldKey {
        FoldKey(words)
    }

    /// The hash of these bytes behind what has the hash `before`: a chain of them stands for all
    /// bytes from its beginning, and for where it was cut.
    pub fn link(&self, before: u64, bytes: &[u8]) -> u64 {
        let FoldKey([even, odd, left, right]) = *self;
        // Two rows, which the processor works on at the same time.
        let (mut one, mut two) = (before ^ even, before ^ odd);
        let mut mix = |block: &[u8; BLOCK_BYTES]| {
            let [a, b, c, d] = words(block);
            one = fold(a ^ left, b ^ one);
            two = fold(c ^ right, d ^ two);
        };
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        blocks.iter().for_each(&mut mix);
        if !rest.is_empty() {
            let mut last = [0; BLOCK_BYTES];
            last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            mix(&last);
        }
        // The length tells zeros of the bytes from those of the padding.
        fold(one ^ bytes.len() as u64 ^ right, two ^ left)
    }
}

fn words(block: &[u8; BLOCK_BYTES]) -> [u64; 4] {
    let (words, _) = block.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
    [word(0), word(1), word(2), word(3)]
}

/// Both halves of a product in one word.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const KEY: FoldKey = FoldKey::of([0x9e37_79b9, 0x7f4a_7c15_f39c, 0x2545_f491_4f6c_dd1d, 77]);

    /// Catches: a byte, or a length, that is not in the hash; halves of a word that stay apart.
    #[test]
    fn any_bit_any_length_and_what_was_before_change_it() {
        let text: Vec<u8> = (0..100).collect();
        let mut seen = HashSet::new();
        for len in 0..=text.len() {
            assert!(seen.insert(KEY.link(0, &text[..len])), "{len} bytes");
            assert!(seen.insert(KEY.link(1, &text[..len])), "{len} bytes behind others");
        }
        for bit in 0..text.len() * 8 {
            let mut other = text.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(seen.insert(KEY.link(0, &other)), "bit {bit}");
        }
        for zeros in 101..200 {
            assert!(seen.insert(KEY.link(0, &vec![0; zeros])), "{zeros} zeros");
        }
        for part in [0, 20, 40] {
            let parts: HashSet<u64> = seen.iter().map(|hash| (hash >> part) & 0xff_ffff).collect();
            assert!(parts.len() > seen.len() - 4, "24 bits from {part} tell them apart");
        }
    }

    #[test]
    fn keys_at_random_differ() {
        let hashes = [(); 3].map(|()| FoldKey::random().link(0, b"the same"));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "{hashes:?}");
    }
}
