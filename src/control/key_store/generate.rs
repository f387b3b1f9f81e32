//! New keys, and what of a key may be shown.

use crate::base::secret::Secret;
use crate::keys::digest::KeyDigest;

/// What every key of ours begins with.
const FIXED: &str = "sk-llmproxy-";
/// Random letters behind it: 190 bits.
const RANDOM_LETTERS: usize = 32;
/// Of which people see so many in lists; what is left is far more than anybody can guess.
const SHOWN_RANDOM_LETTERS: usize = 4;
/// Letters that are shown of a key that somebody else made, at most; and at most a quarter of it.
const SHOWN_LETTERS_MAX: usize = 8;

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A key that nobody has seen yet.
pub struct Generated {
    /// The key.
    pub key: Secret,
    /// Its digest.
    pub digest: KeyDigest,
    /// What is shown of it.
    pub prefix: String,
}

/// Makes a key of the system's randomness.
///
/// # Errors
/// The system has none.
pub fn generate() -> Result<Generated, String> {
    let mut key = FIXED.to_owned();
    while key.len() < FIXED.len() + RANDOM_LETTERS {
        let mut bytes = [0; RANDOM_LETTERS];
        getrandom::fill(&mut bytes).map_err(|error| format!("no randomness: {error}"))?;
        // Of 256 values the last eight are thrown away: every letter is as likely as any other.
        let letters = bytes.iter().filter(|byte| usize::from(**byte) < LETTERS.len() * 4);
        let letters = letters.filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()));
        let room = FIXED.len() + RANDOM_LETTERS - key.len();
        key.extend(letters.take(room).map(|letter| char::from(*letter)));
    }
    let (digest, prefix) = (KeyDigest::of(key.as_bytes()), prefix_of(&key));
    Ok(Generated { key: Secret::new(key), digest, prefix })
}

/// What is shown of a key: enough to recognise it, too little to help anybody guess the rest.
pub fn prefix_of(key: &str) -> String {
    let is_ours = key.starts_with(FIXED) && key.len() >= FIXED.len() + RANDOM_LETTERS;
    let shown = match is_ours {
        true => FIXED.len() + SHOWN_RANDOM_LETTERS,
        false => SHOWN_LETTERS_MAX.min(key.chars().count() / 4),
    };
    key.chars().take(shown).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// Catches: keys that are too short, alike, or of letters that some program escapes; letters
    /// that are rarer than others.
    #[test]
    fn keys_are_random_letters() {
        let keys: Vec<_> = (0..400).map(|_| generate().unwrap()).collect();
        let mut counts = [0_u32; 128];
        let mut seen = HashSet::new();
        for made in &keys {
            let key = made.key.reveal();
            let random = key.strip_prefix("sk-llmproxy-").unwrap();
            assert!(random.len() == 32 && random.bytes().all(|b| b.is_ascii_alphanumeric()));
            random.bytes().for_each(|byte| counts[usize::from(byte)] += 1);
            assert!(seen.insert(key.to_owned()));
            assert_eq!(made.digest, KeyDigest::of(key.as_bytes()));
            assert_eq!(made.prefix, key.chars().take(16).chain(['…']).collect::<String>());
        }
        // 12 800 letters, 206 of each: a letter that is left out, or comes twice as often, is seen.
        let of_letters = LETTERS.iter().map(|letter| counts[usize::from(*letter)]);
        assert!(of_letters.clone().all(|count| (100..400).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_short_key_is_not_given_away_by_its_prefix() {
        assert_eq!(prefix_of("abc"), "…");
        assert_eq!(prefix_of("0123456789abcdef"), "0123…");
        assert_eq!(prefix_of(&"x".repeat(100)), "xxxxxxxx…");
        assert_eq!(prefix_of("sk-llmproxy-short-one"), "sk-ll…");
    }
}
