//! A key as it is kept: by its digest alone. Who reads our memory or our files finds no key.

use ring::digest::{digest, SHA256};
use std::fmt;
use std::hash::{Hash, Hasher};

/// SHA-256 of a key. Keys are random texts of 128 bits or more, or so they should be: a digest
/// needs no salt and no slow function.
#[derive(Clone, Copy, Eq)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// Of a key as its client shows it.
    pub fn of(key: &[u8]) -> KeyDigest {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, key).as_ref());
        KeyDigest(bytes)
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; 32]) -> KeyDigest {
        KeyDigest(bytes)
    }

    /// To keep it.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What people may know the key by, in records and logs: its first eight bytes, which tells
    /// nothing of the key, and tells it from all others.
    pub fn label(&self) -> u64 {
        (self.id() >> 64) as u64
    }

    /// What counters of the key go by: half of it, which is unique enough, and is no key.
    pub fn id(&self) -> u128 {
        let (id, _) = self.0.split_at(16);
        id.iter().fold(0, |id, byte| id << 8 | u128::from(*byte))
    }
}

impl PartialEq for KeyDigest {
    /// Takes as long for every pair: how much of a digest is right is not to be measured.
    fn eq(&self, other: &KeyDigest) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        let differing = pairs.fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(differing) == 0
    }
}

impl Hash for KeyDigest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.id());
    }
}

/// Of a digest, which is as good as random already.
#[derive(Default)]
pub struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}…", self.id() >> 96)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a digest that is not SHA-256, two keys that are one, an id that is not its half.
    #[test]
    fn a_digest_is_that_of_its_key() {
        let abc = KeyDigest::of(b"abc");
        assert_eq!(abc.id(), 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223);
        assert_eq!(abc.as_bytes()[31], 0xad);
        assert_eq!(abc, KeyDigest::from_bytes(*abc.as_bytes()));
        assert_ne!(abc, KeyDigest::of(b"abd"));
        assert_eq!(format!("{abc:?}"), "ba7816bf…");
    }
}
