//! How a body is delimited: nothing else exists.

use super::fault::HttpFault;
use super::head::Version;

/// Framing of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// No body.
    #[default]
    None,
    /// So many bytes (may be 0).
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Framing of a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseFraming {
    /// No body, whatever the fields say (1xx, HEAD, 204, 304).
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection closes.
    UntilClose,
}

/// What the framing fields of one head say, gathered line by line.
#[derive(Debug, Default)]
pub(super) struct FramingFields {
    length: Option<u64>,
    chunked: bool,
}

impl FramingFields {
    /// Takes a Content-Length. RFC 9110 §8.6 lets a receiver repair equal repetitions; we refuse.
    pub(super) fn length(&mut self, value: &[u8]) -> Result<(), HttpFault> {
        if self.length.is_some() {
            return Err(HttpFault::DuplicateLength);
        }
        self.length = Some(parse_length(value).ok_or(HttpFault::BadLength)?);
        Ok(())
    }

    /// Takes a Transfer-Encoding. Any list, parameter or second line is refused: a reader that
    /// splits it otherwise would see another body (RFC 9112 §6.1).
    pub(super) fn coding(&mut self, value: &[u8]) -> Result<(), HttpFault> {
        if self.chunked {
            return Err(HttpFault::BadCoding);
        }
        if !value.eq_ignore_ascii_case(b"chunked") {
            return Err(coding_fault(value));
        }
        self.chunked = true;
        Ok(())
    }

    /// The rules between the fields. Gives Content-Length and whether there are chunks.
    pub(super) fn judge(&self, version: Version) -> Result<(Option<u64>, bool), HttpFault> {
        if self.chunked && self.length.is_some() {
            return Err(HttpFault::LengthAndCoding);
        }
        if self.chunked && version == Version::Http10 {
            return Err(HttpFault::CodingOnHttp10);
        }
        Ok((self.length, self.chunked))
    }
}

/// 1 to 18 digits: no sign, no blank, no list; 18 digits cannot overflow 64 bits.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 {
        return None;
    }
    value.iter().try_fold(0u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
    })
}

/// 501 when every coding of the list exists (RFC 9112 §6.1), else 400.
fn coding_fault(value: &[u8]) -> HttpFault {
    const EXISTING: [&[u8]; 6] =
        [b"gzip", b"x-gzip", b"deflate", b"compress", b"x-compress", b"identity"];
    let mut codings = value.split(|b| *b == b',').map(<[u8]>::trim_ascii).peekable();
    let mut others = 0;
    while let Some(coding) = codings.next() {
        let last = codings.peek().is_none();
        if EXISTING.iter().any(|e| coding.eq_ignore_ascii_case(e)) {
            others += 1;
        } else if !(last && coding.eq_ignore_ascii_case(b"chunked")) {
            return HttpFault::BadCoding;
        }
    }
    if others > 0 {
        HttpFault::CodingNotImplemented
    } else {
        HttpFault::BadCoding
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_nothing_else() {
        assert_eq!(parse_length(b"0"), Some(0));
        assert_eq!(parse_length(b"007"), Some(7));
        assert_eq!(parse_length(b"999999999999999999"), Some(999_999_999_999_999_999));
        let bad = ["", "+1", "-1", "1 1", "1,1", "0x1", "1_0", "1.0", "1e3", "1000000000000000000"];
        for text in bad {
            assert_eq!(parse_length(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(parse_length("\u{661}".as_bytes()), None, "digits of another script");
    }

    #[test]
    fn a_coding_is_chunked_or_refused() {
        let with = |value: &[u8]| FramingFields::default().coding(value);
        assert_eq!(with(b"chunked"), Ok(()));
        assert_eq!(with(b"Chunked"), Ok(()));
        for known in ["gzip", "gzip, chunked", "identity", "deflate,x-gzip , chunked"] {
            assert_eq!(with(known.as_bytes()), Err(HttpFault::CodingNotImplemented), "{known:?}");
        }
        let bad = [
            "",
            "xchunked",
            "chunked,",
            ",chunked",
            "chunked, chunked",
            "chunked, gzip",
            "chunked;q=1",
            "\"chunked\"",
            "chunk",
            "chunked\u{b}",
            "ſhunked",
            "gzip, brotli",
        ];
        for text in bad {
            assert_eq!(with(text.as_bytes()), Err(HttpFault::BadCoding), "{text:?}");
        }
    }

    #[test]
    fn the_two_framings_exclude_each_other() {
        let mut both = FramingFields::default();
        both.length(b"3").unwrap();
        both.coding(b"chunked").unwrap();
        assert_eq!(both.judge(Version::Http11), Err(HttpFault::LengthAndCoding));
        assert_eq!(both.length(b"3"), Err(HttpFault::DuplicateLength));
        assert_eq!(both.coding(b"chunked"), Err(HttpFault::BadCoding));
        let mut old = FramingFields::default();
        old.coding(b"chunked").unwrap();
        assert_eq!(old.judge(Version::Http10), Err(HttpFault::CodingOnHttp10));
    }
}
