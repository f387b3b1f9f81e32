//! The request target and the authority: what was asked for, and of whom.

use std::ops::Range;

use super::fault::HttpFault;
use super::request::Method;
use crate::base::limits::{HOST_BYTES_MAX, TARGET_BYTES_MAX};

/// A target in parts; the ranges count from its first byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Authority of an absolute-form target.
    pub authority: Option<Range<usize>>,
    /// Path without the query; empty when an absolute-form target has none.
    pub path: Range<usize>,
    /// Path and query.
    pub path_and_query: Range<usize>,
}

impl Target {
    /// Takes a target apart (RFC 9112 §3.2) or says which rule it breaks.
    pub(super) fn parse(target: &[u8], method: Method) -> Result<Target, HttpFault> {
        if target.len() > TARGET_BYTES_MAX {
            return Err(HttpFault::TargetTooLong);
        }
        // `#` is no part of a target, and readers disagree where such a path ends.
        if !target.is_ascii() || memchr::memchr(b'#', target).is_some() {
            return Err(HttpFault::BadTarget);
        }
        match target.first() {
            Some(b'/') => Ok(Target::split(target, 0, None)),
            Some(b'*') if target.len() == 1 && method == Method::Options => {
                Ok(Target { authority: None, path: 0..1, path_and_query: 0..1 })
            }
            Some(b'*') if target.len() == 1 => Err(HttpFault::MethodNotAllowed),
            _ => Target::absolute(target),
        }
    }

    /// Absolute-form: its authority takes the place of Host (RFC 9112 §3.2.2).
    fn absolute(target: &[u8]) -> Result<Target, HttpFault> {
        let has = |scheme: &[u8]| {
            target.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme))
        };
        let start = match () {
            () if has(b"http://") => 7,
            () if has(b"https://") => 8,
            () => return Err(HttpFault::BadTarget),
        };
        let rest = target.get(start..).unwrap_or_default();
        let end = start + rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
        if !is_authority(target.get(start..end).unwrap_or_default()) {
            return Err(HttpFault::BadHost);
        }
        Ok(Target::split(target, end, Some(start..end)))
    }

    fn split(target: &[u8], start: usize, authority: Option<Range<usize>>) -> Target {
        let rest = target.get(start..).unwrap_or_default();
        let query = memchr::memchr(b'?', rest).unwrap_or(rest.len());
        Target { authority, path: start..start + query, path_and_query: start..target.len() }
    }
}

/// `uri-host [":" port]` (RFC 9110 §7.2): a name, an IPv4 address or a bracketed IPv6 address, and
/// a port of up to five digits. User information is refused (RFC 9110 §4.2.4).
pub(super) fn is_authority(value: &[u8]) -> bool {
    if value.len() > HOST_BYTES_MAX {
        return false;
    }
    let (host, port) = match value.strip_prefix(b"[") {
        Some(inner) => match inner.iter().position(|b| *b == b']') {
            Some(end) => {
                let address = inner.get(..end).unwrap_or_default();
                let fine = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
                (address.iter().all(fine) && address.contains(&b':'), inner.get(end + 1..))
            }
            None => (false, None),
        },
        None => {
            let end = memchr::memchr(b':', value).unwrap_or(value.len());
            let name = value.get(..end).unwrap_or_default();
            (!name.is_empty() && is_name(name), value.get(end..))
        }
    };
    host && is_port(port.unwrap_or_default())
}

/// The `unreserved` part of `reg-name` (RFC 3986 §3.2.2): no name in use has more, and escapes or
/// `=` and `,` in a host are how one reader is made to see another host than the next.
fn is_name(name: &[u8]) -> bool {
    name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~'))
}

/// Nothing, or a colon and a port that exists; RFC 3986 lets the digits be absent.
fn is_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else {
        return text.is_empty();
    };
    digits.len() <= 5
        && digits.iter().all(u8::is_ascii_digit)
        && digits.iter().fold(0u32, |n, d| n * 10 + u32::from(d - b'0')) <= 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, HttpFault> {
        Target::parse(text.as_bytes(), Method::Post)
    }

    #[test]
    fn authorities() {
        let good =
            ["a", "a.b:80", "a:", "127.0.0.1:8000", "[::1]", "[::1]:65535", "a_b", "xn--a.test"];
        for text in good {
            assert!(is_authority(text.as_bytes()), "{text:?}");
        }
        let bad = [
            "",
            ":80",
            "a b",
            "a:b",
            "a:65536",
            "a:123456",
            "u@a",
            "a/b",
            "a,\u{e9}",
            "[::1",
            "[]",
            "[::1]a",
            "[::1%25eth0]",
            "::1",
            "a:80:80",
            "a%2",
            "a%zz",
            "a?b",
            "a#b",
            "a\\b",
            "<a>",
        ];
        for text in bad {
            assert!(!is_authority(text.as_bytes()), "{text:?}");
        }
        assert!(!is_authority(&[b'a'; HOST_BYTES_MAX + 1]));
    }

    #[test]
    fn the_four_forms() {
        let origin = parse("/a?b?c").unwrap();
        assert_eq!((origin.path, origin.path_and_query, origin.authority), (0..2, 0..6, None));
        let absolute = parse("HTTP://h:1/a?b").unwrap();
        assert_eq!(absolute.authority, Some(7..10));
        assert_eq!((absolute.path, absolute.path_and_query), (10..12, 10..14));
        let bare = parse("https://h?q").unwrap();
        assert_eq!((bare.path, bare.path_and_query), (9..9, 9..11));
        assert_eq!(parse("*"), Err(HttpFault::MethodNotAllowed));
        assert!(Target::parse(b"*", Method::Options).is_ok());
        for bad in ["a", "host:443", "ftp://h/", "//", "http:/a", "/a#b", "/\u{e9}", "**", "?"] {
            let refused = parse(bad).is_err();
            assert_eq!(refused, bad != "//", "{bad:?}");
        }
        for bad in ["http://", "http:///a", "http://u@h/", "http://h:99999/"] {
            assert_eq!(parse(bad), Err(HttpFault::BadHost), "{bad:?}");
        }
        let long = format!("/{}", "a".repeat(TARGET_BYTES_MAX));
        assert_eq!(parse(&long), Err(HttpFault::TargetTooLong));
    }
}
