//! Usage objects as engines write them nearly always: short plain keys, whole numbers, nulls, and
//! details one level deep. Read in one walk that also finds the end; whatever else is in an object
//! is left to the strict reader, which says the same of a plain one.

use super::{wanted_of, Counts, Report};

/// Digits that can neither overflow nor be beyond what counts as a number of tokens.
const DIGITS_MAX: usize = 15;

/// Reads the plain object that `bytes` begin with. Gives where it ends and what it reports; `None`
/// when it is cut off or not plain.
pub fn read_plain(bytes: &[u8]) -> Option<(usize, Option<Report>)> {
    let mut walk = Walk { bytes, at: 0 };
    let mut counts = Counts::default();
    walk.object(&mut counts, None)?;
    Some((walk.at, counts.report()))
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Reads an object. `only`: it holds details, of which one number is wanted.
    fn object(&mut self, counts: &mut Counts, only: Option<&'static [u8]>) -> Option<()> {
        if self.token()? != b'{' {
            return None;
        }
        let mut token = self.token()?;
        if token == b'}' {
            return Some(());
        }
        loop {
            if token != b'"' {
                return None;
            }
            let key = self.key()?;
            if self.token()? != b':' {
                return None;
            }
            match self.token()? {
                first @ b'0'..=b'9' => {
                    let number = self.number(first)?;
                    let is_wanted = only.is_none_or(|wanted| wanted == key);
                    if let (true, Some(field)) = (is_wanted, counts.field(key)) {
                        *field = Some(number);
                    }
                }
                b'n' => self.rest_of_null()?,
                b'{' if only.is_none() => {
                    self.at -= 1;
                    self.object(counts, Some(wanted_of(key)?))?;
                }
                _ => return None,
            }
            match self.token()? {
                b',' => token = self.token()?,
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    /// The next byte that is not white space.
    fn token(&mut self) -> Option<u8> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
        }
    }

    /// A key behind its first quote, up to and with the other.
    fn key(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        let letter = |b: &u8| matches!(b, b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'0'..=b'9');
        let len = rest.iter().position(|b| !letter(b))?;
        self.at += len + 1;
        (rest.get(len) == Some(&b'"')).then(|| rest.get(..len))?
    }

    /// A whole number behind its first digit. What may follow it, the caller checks.
    fn number(&mut self, first: u8) -> Option<u64> {
        let mut number = u64::from(first - b'0');
        let rest = self.bytes.get(self.at..)?;
        let mut digits = 0;
        for byte in rest.iter().take_while(|b| b.is_ascii_digit()).take(DIGITS_MAX) {
            number = number * 10 + u64::from(byte - b'0');
            digits += 1;
        }
        self.at += digits;
        // `007` is no JSON, and a long one is the strict reader's to judge.
        (digits == 0 || (first != b'0' && digits < DIGITS_MAX)).then_some(number)
    }

    fn rest_of_null(&mut self) -> Option<()> {
        self.bytes.get(self.at..)?.strip_prefix(b"ull")?;
        self.at += 3;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::tokens;
    use proptest::prelude::*;

    #[test]
    fn what_is_plain_is_read_at_once() {
        let object = br#"{"prompt_tokens": 12,"total_tokens":15 , "completion_tokens":3,
            "prompt_tokens_details":{"cached_tokens":8,"audio_tokens":1},
            "completion_tokens_details":null}"#;
        let (end, report) = read_plain(&[object, b", \"x\":{}}".as_slice()].concat()).unwrap();
        let usage = report.unwrap().usage();
        assert_eq!((end, usage.prompt_tokens, usage.completion_tokens), (object.len(), 12, 3));
        assert_eq!((usage.total_tokens, usage.cached_tokens), (15, Some(8)));
        assert_eq!(
            read_plain(b"{ } ").map(|(end, report)| (end, report.is_none())),
            Some((3, true))
        );
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_strict_reader() {
        for odd in [
            r#"{"prompt_tokens":007}"#,
            r#"{"prompt_tokens":1.0}"#,
            r#"{"prompt_tokens":1e3}"#,
            r#"{"prompt_tokens":-1}"#,
            r#"{"prompt_tokens":9007199254740993}"#,
            r#"{"prompt_tokens":1"#,
            r#"{"prompt_tokens":1,}"#,
            r#"{"prompt_tokens"1}"#,
            r#"{"prompt_tokens":"1"}"#,
            r#"{"prompt_\u0074okens":1}"#,
            r#"{"prompt_tokens":nul}"#,
            r#"{"a":{"b":1}}"#,
            r#"{"prompt_tokens_details":{"a":{}}}"#,
            r#"["prompt_tokens"]"#,
            "{",
            "",
        ] {
            assert!(read_plain(odd.as_bytes()).is_none(), "{odd}");
        }
    }

    proptest! {
        /// Texts of the right tokens in any order: most are not JSON.
        #[test]
        fn both_readers_say_the_same(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "{", "}", "{", "}", ",", ",", ":", " ", "null", "0", "7", "12", "-1", "[", "]",
                "\"prompt_tokens\":5", "\"completion_tokens\":6", "\"input_tokens\":7",
                "\"prompt_tokens_details\":{", "\"cached_tokens\":3", "\"output_tokens\":0",
                "\"completion_tokens_details\":{", "\"reasoning_tokens\":2", "\"x\":", "\"y\":1.5",
            ]), 0..12),
        ) {
            let text = format!("{{{}}}", parts.concat());
            if let Some((end, report)) = read_plain(text.as_bytes()) {
                let strict = tokens::read(&text.as_bytes()[..end]);
                prop_assert_eq!(format!("{:?}", report), format!("{:?}", strict), "{}", text);
            }
        }
    }
}
