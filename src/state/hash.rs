//! A quick hasher for maps whose keys no client chooses: labels from fixed sets, numbers of
//! backends. The standard one guards against chosen keys, at ten times the cost.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map with such keys.
pub type QuickMap<K, V> = HashMap<K, V, BuildHasherDefault<QuickHasher>>;

/// Multiplies and adds, a word at a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuickHasher(u64);

impl QuickHasher {
    fn add(&mut self, word: u64) {
        // Odd, and its bits are in no order.
        self.0 = self.0.wrapping_add(word).wrapping_mul(0xF135_7AEA_2E62_A9C5);
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        let last = rest.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        self.add(last);
    }

    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }

    /// A multiplication moves what differs upwards, a map looks at both ends.
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::Hash;

    fn hash(key: impl Hash) -> u64 {
        let mut hasher = QuickHasher::default();
        key.hash(&mut hasher);
        hasher.finish()
    }

    /// A map that puts all keys in one place would still be right, and slow.
    #[test]
    fn keys_like_ours_are_spread() {
        let paths = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/embed", "other"];
        let mut low = HashSet::new();
        let mut all = HashSet::new();
        for path in paths {
            for backend in 0..100_u32 {
                let hash = hash((path, true, Some(backend)));
                all.insert(hash);
                low.insert(hash % 1024);
            }
        }
        assert_eq!(all.len(), 500);
        // Of 500 keys thrown into 1024 places at random, some 395 are met.
        assert!(low.len() > 350, "{} places", low.len());
    }
}
