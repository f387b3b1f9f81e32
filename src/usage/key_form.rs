//! How a client's key appears in records: the one place that shortens or digests it.

use crate::config::plan::KeyForm;
use ring::digest::{digest, SHA256};

/// Keys of at least so many letters show their ends; a shorter one would be given away by them.
const MASK_LETTERS_MIN: usize = 12;
/// Letters that a masked key shows at each end.
const MASK_LETTERS_SHOWN: usize = 4;

/// How a key that is written in one form comes to be written in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Not at all, or it cannot be made from what is there: a form that nobody asked for must not
    /// stand in its place.
    Never,
    /// It is.
    AsItIs,
    /// By [`write_key`].
    Written,
}

/// How a key that is written as `have` is written as `want`.
pub fn way(have: KeyForm, want: KeyForm) -> Way {
    match (have, want) {
        (KeyForm::None, _) | (_, KeyForm::None) => Way::Never,
        (have, want) if have == want => Way::AsItIs,
        (KeyForm::Plain, _) => Way::Written,
        _ => Way::Never,
    }
}

/// A key that is written as `have`, written as `want`; `None` when that is not possible.
pub fn key_as(have: KeyForm, want: KeyForm, key: &str) -> Option<String> {
    match way(have, want) {
        Way::Never => None,
        Way::AsItIs => Some(key.to_owned()),
        Way::Written => {
            let mut form = String::new();
            write_key(want, key, &mut form);
            Some(form)
        }
    }
}

/// Appends a key, which is plain, in a form; nothing where that is not at all.
pub fn write_key(form: KeyForm, key: &str, into: &mut String) {
    match form {
        KeyForm::Sha256 => into.extend(digits(digest(&SHA256, key.as_bytes()).as_ref())),
        _ => write_digested(form, key, &[], into),
    }
}

/// The same of a key whose SHA-256 is known.
pub fn write_digested(form: KeyForm, key: &str, sha256: &[u8], into: &mut String) {
    match form {
        KeyForm::Plain => into.push_str(key),
        KeyForm::Masked => mask(key, into),
        KeyForm::Sha256 => into.extend(digits(sha256)),
        KeyForm::None => {}
    }
}

fn mask(key: &str, into: &mut String) {
    let letters = key.chars().count();
    if letters < MASK_LETTERS_MIN {
        return into.push_str("***");
    }
    let first = key.chars().take(MASK_LETTERS_SHOWN);
    let last = key.chars().skip(letters - MASK_LETTERS_SHOWN);
    into.extend(first.chain("...".chars()).chain(last));
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    digits(bytes).collect()
}

fn digits(bytes: &[u8]) -> impl Iterator<Item = char> + '_ {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes.iter().flat_map(move |byte| [digit(byte >> 4), digit(byte & 15)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use KeyForm::*;

    /// Catches: a short key that its mask gives away, and letters cut in two.
    #[test]
    fn a_mask_shows_the_ends_of_long_keys_only() {
        for (key, shown) in [
            ("sk-llmproxy-0123456789", "sk-l...6789"),
            ("123456789012", "1234...9012"),
            ("12345678901", "***"),
            ("", "***"),
            ("ключ-ключ-ключ", "ключ...ключ"),
        ] {
            assert_eq!(key_as(Plain, Masked, key).as_deref(), Some(shown));
        }
    }

    /// Catches: a digest that nobody else can compute from the key.
    #[test]
    fn a_digest_is_the_sha256_of_the_key() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(key_as(Plain, Sha256, "abc").as_deref(), Some(abc));
    }

    /// Catches: a key that leaves in a form that was not configured.
    #[test]
    fn no_form_stands_in_for_another() {
        for have in [Plain, Masked, Sha256, None] {
            for want in [Plain, Masked, Sha256, None] {
                let shown = key_as(have, want, "sk-llmproxy-0123456789");
                let possible = have != None && want != None && (have == want || have == Plain);
                assert_eq!(shown.is_some(), possible, "{have:?} as {want:?}");
                assert!(have != want || have == None || shown.is_some_and(|s| s.contains("sk-")));
            }
        }
    }
}
