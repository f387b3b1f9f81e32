//! Which name a key of a JSON object is to a parser that undoes escapes, or that does not look at
//! the case of letters. Without an allocation, and to the first letter that no name has: a body can
//! have a million keys.

/// Bytes of the longest name that is looked for.
const NAME_BYTES_MAX: usize = 24;
/// Bytes of an escape, which is one letter at least.
const ESCAPE_BYTES: usize = 6;

/// The name, of small letters and `_`, that a key spells, and whether it has escapes; `None` when
/// it spells none of them. `key` is what stands between the quotes of a string that was walked.
pub fn plainest(key: &[u8], names: &[&'static str]) -> Option<(&'static str, bool)> {
    if key.len() > ESCAPE_BYTES * NAME_BYTES_MAX {
        return None;
    }
    // Most keys begin as no name does.
    let (first, _) = first_letter(key)?;
    let first = first?;
    if !names.iter().any(|name| name.as_bytes().first() == Some(&first)) {
        return None;
    }
    let mut plain = [0; NAME_BYTES_MAX];
    let (mut len, mut is_escaped) = (0, false);
    let mut rest = key;
    while let Some((letter, behind)) = first_letter(rest) {
        is_escaped |= rest.first() == Some(&b'\\');
        *plain.get_mut(len)? = letter?;
        (len, rest) = (len + 1, behind);
    }
    let plain = plain.get(..len)?;
    names.iter().find(|name| name.as_bytes() == plain).map(|name| (*name, is_escaped))
}

/// The first letter of a key in its plainest form, and what is behind it; `Some(None)` is a letter
/// that is in no name.
fn first_letter(key: &[u8]) -> Option<(Option<u8>, &[u8])> {
    let code = |hex: &[u8; 4]| u32::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok();
    match key {
        [] => None,
        [b'\\', b'u', a, b, c, d, behind @ ..] => {
            Some((code(&[*a, *b, *c, *d]).and_then(char::from_u32).and_then(small), behind))
        }
        // The two letters beyond ASCII that Go folds into it.
        [0xc5, 0xbf, behind @ ..] => Some((small('\u{17f}'), behind)),
        [0xe2, 0x84, 0xaa, behind @ ..] => Some((small('\u{212a}'), behind)),
        // Of an escape of two bytes no letter comes.
        [byte, behind @ ..] => Some((small(char::from(*byte)), behind)),
    }
}

fn small(letter: char) -> Option<u8> {
    match letter {
        'a'..='z' | '_' => Some(letter as u8),
        'A'..='Z' => Some(letter.to_ascii_lowercase() as u8),
        '\u{17f}' => Some(b's'),
        '\u{212a}' => Some(b'k'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAMES: [&str; 3] = ["model", "max_tokens", "max_completion_tokens"];

    #[test]
    fn a_name_fits() {
        assert!(NAMES.iter().all(|name| name.len() <= NAME_BYTES_MAX));
    }

    /// The same by a parser that makes a string of it first.
    fn by_the_book(key: &str) -> Option<(&'static str, bool)> {
        let text: String = serde_json::from_str(&format!("\"{key}\"")).ok()?;
        let fold = |c: char| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        };
        let name = NAMES.iter().find(|name| text.chars().map(fold).eq(name.chars()))?;
        Some((name, key.contains('\\')))
    }

    proptest! {
        /// Catches: a spelling that an engine reads and we do not.
        #[test]
        fn any_spelling_is_read_as_a_parser_reads_it(
            name in prop::sample::select(&NAMES[..]),
            ways in prop::collection::vec(0..40u8, 24),
            more in "(x|\\\\n|\\\\u00e9|é|\\\\ud83d\\\\ude00|\\\\\\\\)?",
        ) {
            let spell = |(letter, way): (char, &u8)| match (way, letter) {
                (0, _) => format!("\\u{:04x}", letter as u32),
                (1, _) => format!("\\u{:04X}", letter.to_ascii_uppercase() as u32),
                (2, _) => letter.to_ascii_uppercase().to_string(),
                (3, 's') => "\u{17f}".to_owned(),
                (3, 'k') => "\u{212a}".to_owned(),
                (4, 'k') => "\\u212a".to_owned(),
                (5, _) => format!("{letter}{letter}"),
                (6, _) => String::new(),
                _ => letter.to_string(),
            };
            let key: String = name.chars().zip(&ways).map(spell).collect();
            for key in [key.clone(), format!("{key}{more}"), format!("{more}{key}")] {
                prop_assert_eq!(plainest(key.as_bytes(), &NAMES), by_the_book(&key), "{}", key);
            }
        }
    }
}
