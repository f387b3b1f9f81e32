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
        self.begin(before).up_to(bytes, bytes.len())
    }

    /// The same for several beginnings of the same bytes, each of which is read once.
    pub fn begin(&self, before: u64) -> Fold {
        let FoldKey([even, odd, left, right]) = *self;
        // Two rows, which the processor works on at the same time.
        Fold { one: before ^ even, two: before ^ odd, left, right, read: 0 }
    }
}

/// What was read of some bytes.
#[derive(Clone)]
pub struct Fold {
    one: u64,
    two: u64,
    left: u64,
    right: u64,
    /// Bytes, in whole blocks.
    read: usize,
}

impl Fold {
    /// The hash of the first `len` of these bytes. `bytes` are the same in each call, and `len` is
    /// no less than in the one before.
    pub fn up_to(&mut self, bytes: &[u8], len: usize) -> u64 {
        let bytes = bytes.get(..len).unwrap_or(bytes);
        let (blocks, rest) = bytes.get(self.read..).unwrap_or_default().as_chunks::<BLOCK_BYTES>();
        blocks.iter().for_each(|block| self.mix(block));
        self.read += blocks.len() * BLOCK_BYTES;
        let mut end = self.clone();
        if !rest.is_empty() {
            let mut last = [0; BLOCK_BYTES];
            last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            end.mix(&last);
        }
        // The length tells zeros of the bytes from those of the padding.
        fold(end.one ^ bytes.len() as u64 ^ self.right, end.two ^ self.left)
    }

    fn mix(&mut self, block: &[u8; BLOCK_BYTES]) {
        let [a, b, c, d] = words(block);
        self.one = fold(a ^ self.left, b ^ self.one);
        self.two = fold(c ^ self.right, d ^ self.two);
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

    /// Catches: bytes that are read twice, or not at all, between one beginning and the next.
    #[test]
    fn each_beginning_has_the_hash_that_it_has_alone() {
        let text: Vec<u8> = (0..200).collect();
        let mut all = KEY.begin(5);
        for len in [0, 1, 31, 32, 32, 33, 100, 128, 130, 200] {
            assert_eq!(all.up_to(&text, len), KEY.link(5, &text[..len]), "{len}");
        }
    }

    #[test]
    fn keys_at_random_differ() {
        let hashes = [(); 3].map(|()| FoldKey::random().link(0, b"the same"));
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "{hashes:?}");
    }
}
