//! Texts of which each is one line, whatever a client, an engine or a server put into them: for
//! files and terminals whose readers tell one entry from the next by its line's end.

/// True for a character that ends a line in some reader's sense of the word (Python's `splitlines`
/// counts U+0085, U+2028 and U+2029), or that a terminal obeys instead of showing it.
pub fn is_unshown(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Text for a terminal: what it would obey, or what changes the order in which it shows the text
/// behind it (`Bidi_Control` of Unicode), has another character in its place. A name could else
/// make a line of a table look like another one.
pub fn for_terminal(text: &str) -> String {
    let turns = |c| {
        let is_mark = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}');
        is_mark || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_unshown(c) || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// Text or JSON, without its last line end, made into one line: nothing in it ends a line in any
/// reader's sense. Also how many line ends were taken out.
///
/// U+0085, U+2028 and U+2029 are escaped as in a string of JSON, the only place where JSON can have
/// them. ASCII's own line ends cannot stand in such a string, and in text one becomes a blank.
pub fn one_line(bytes: Vec<u8>) -> (Vec<u8>, u64) {
    // Most are ASCII without control characters, which vector instructions see without a branch:
    // bytes above it are below zero.
    let is_odd = bytes.iter().fold(false, |odd, byte| odd | ((*byte as i8) < 0x20));
    if !is_odd || !bytes.iter().any(|byte| is_end(*byte) || matches!(byte, 0xC2 | 0xE2)) {
        return (bytes, 0);
    }
    let mut line = Vec::with_capacity(bytes.len());
    let mut taken_out = 0;
    let mut rest = bytes.as_slice();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        match (*first, behind) {
            (byte, _) if is_end(byte) => {
                taken_out += 1;
                line.push(b' ');
            }
            (0xC2, [0x85, behind @ ..]) => {
                line.extend_from_slice(b"\\u0085");
                rest = behind;
            }
            (0xE2, [0x80, last @ (0xA8 | 0xA9), behind @ ..]) => {
                line.extend_from_slice(if *last == 0xA8 { b"\\u2028" } else { b"\\u2029" });
                rest = behind;
            }
            (byte, _) => line.push(byte),
        }
    }
    (line, taken_out)
}

/// LF, VT, FF, CR, and the separators of ASCII, at which `splitlines` splits too.
fn is_end(byte: u8) -> bool {
    matches!(byte, 0x0a..=0x0d | 0x1c..=0x1e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_ends_a_line_is_escaped_or_taken_out() {
        for (text, line, taken_out) in [
            ("", "", 0),
            ("plain \u{e9} \u{201c}", "plain \u{e9} \u{201c}", 0),
            ("a\nb\r\nc", "a b  c", 3),
            ("\u{b}\u{c}\u{1c}\u{1d}\u{1e}", "     ", 5),
            ("a\u{85}b\u{2028}c\u{2029}", "a\\u0085b\\u2028c\\u2029", 0),
        ] {
            let made = one_line(text.as_bytes().to_vec());
            assert_eq!(made, (line.as_bytes().to_vec(), taken_out), "{text:?}");
        }
    }

    /// Catches: a name that writes elsewhere on the terminal, or turns what stands behind it.
    #[test]
    fn a_terminal_shows_a_name_and_does_not_obey_it() {
        assert_eq!(for_terminal("gpu-1 \u{e9}\u{5d0}"), "gpu-1 \u{e9}\u{5d0}");
        let odd = "\u{1b}\u{9b}\n\u{2028}\u{202e}\u{202a}\u{2066}\u{2069}\u{200f}\u{61c}";
        assert!(for_terminal(odd).chars().all(|c| c == '\u{fffd}'));
    }

    proptest! {
        #[test]
        fn any_text_is_one_line(text in any::<String>(), more in "[\n\r\u{85}\u{2028}\u{2029}ab]*") {
            let (line, _) = one_line(format!("{text}{more}").into_bytes());
            let line = String::from_utf8(line).unwrap();
            let ends = "\n\r\u{b}\u{c}\u{1c}\u{1d}\u{1e}\u{85}\u{2028}\u{2029}";
            prop_assert_eq!(line.find(|c| ends.contains(c)), None);
        }

        #[test]
        fn what_ends_no_line_is_kept(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (line, taken_out) = one_line(bytes.clone());
            let kept = line.iter().filter(|byte| **byte != b' ').count();
            let ends = bytes.iter().filter(|byte| is_end(**byte)).count();
            prop_assert_eq!(taken_out, ends as u64);
            prop_assert!(kept + ends >= bytes.iter().filter(|byte| **byte != b' ').count());
        }
    }
}
