//! References in the head of an answer (`Location`, `Content-Location`; RFC 9110 sections 10.2.2
//! and 8.7): whom they name, and the path that they mean there.

/// A reference, as far as it matters for whether it leads elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'v> {
    /// It names a server: `http://host:port/path`, or `//host:port/path`.
    Elsewhere(Authority<'v>, &'v [u8]),
    /// A path from the root of whoever answered, with what follows it.
    Here(&'v [u8]),
    /// Anything else: a path relative to that of the request, a scheme that is not ours.
    Other,
}

/// Whom a reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authority<'v> {
    /// As written, without a user.
    pub text: &'v [u8],
    /// Without the brackets of an IPv6 address.
    host: &'v [u8],
    /// Given, or that of the scheme; `None` when neither tells.
    port: Option<u16>,
}

impl<'v> Reference<'v> {
    /// Takes a reference apart.
    pub fn parse(value: &'v [u8]) -> Reference<'v> {
        let after = |scheme: &[u8]| {
            let start = value.get(..scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then(|| value.get(scheme.len()..)).flatten()
        };
        let (rest, default_port) = match (after(b"http://"), after(b"https://"), after(b"//")) {
            (Some(rest), _, _) => (rest, Some(80)),
            (_, Some(rest), _) => (rest, Some(443)),
            (_, _, Some(rest)) => (rest, None),
            _ if value.first() == Some(&b'/') => return Reference::Here(value),
            _ => return Reference::Other,
        };
        let ends = |byte: &u8| matches!(byte, b'/' | b'?' | b'#' | b'\\');
        let (authority, path) = rest.split_at(rest.iter().position(ends).unwrap_or(rest.len()));
        let user = memchr::memrchr(b'@', authority).map_or(0, |at| at + 1);
        match Authority::parse(authority.get(user..).unwrap_or_default(), default_port) {
            Some(authority) => Reference::Elsewhere(authority, path),
            None => Reference::Other,
        }
    }
}

impl<'v> Authority<'v> {
    fn parse(text: &'v [u8], default_port: Option<u16>) -> Option<Authority<'v>> {
        let (host, port) = match text.strip_prefix(b"[") {
            Some(rest) => rest.split_at(memchr::memchr(b']', rest)?),
            None => text.split_at(memchr::memchr(b':', text).unwrap_or(text.len())),
        };
        let port = port.strip_prefix(b"]").unwrap_or(port);
        let port = match port.strip_prefix(b":").unwrap_or(port) {
            b"" => default_port,
            digits => Some(std::str::from_utf8(digits).ok()?.parse().ok()?),
        };
        Some(Authority { text, host, port })
    }

    /// True when it names this port of this host.
    pub fn is(&self, host: &str, port: u16) -> bool {
        // Without a scheme the port may be that of either.
        let same_port = self.port.map_or(matches!(port, 80 | 443), |ours| ours == port);
        same_port && self.host.eq_ignore_ascii_case(host.as_bytes())
    }
}

/// A path, with what follows it, less a base (`/base`, or empty); `None` when it is not below that.
pub fn below<'v>(path: &'v [u8], base: &str) -> Option<&'v [u8]> {
    let rest = path.strip_prefix(base.as_bytes())?;
    matches!(rest.first(), None | Some(b'/' | b'?' | b'#')).then_some(rest)
}

/// The same without the slashes at its start, before which one is to be written: `//name/` would be
/// the name of a server, and browsers take a backslash for a slash.
pub fn without_slashes(path: &[u8]) -> &[u8] {
    let slashes = path.iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
    path.get(slashes..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_says_whom_it_names() {
        for (value, host, port, path) in [
            ("http://engine:8000/v1/x?q#f", "engine", 8000, "/v1/x?q#f"),
            ("HTTPS://Engine/v1", "engine", 443, "/v1"),
            ("http://engine", "engine", 80, ""),
            ("http://engine:/x", "engine", 80, "/x"),
            ("http://user:pass@engine:81?x", "engine", 81, "?x"),
            ("http://a@b@engine:81#x", "engine", 81, "#x"),
            ("//engine:81/x", "engine", 81, "/x"),
            ("//engine/x", "engine", 80, "/x"),
            ("//engine/x", "engine", 443, "/x"),
            ("http://[::1]:81/x", "::1", 81, "/x"),
            ("http://[::1]/x", "::1", 80, "/x"),
            ("http://engine:81\\x", "engine", 81, "\\x"),
        ] {
            let Reference::Elsewhere(authority, rest) = Reference::parse(value.as_bytes()) else {
                panic!("{value}");
            };
            assert!(authority.is(host, port), "{value}: {authority:?}");
            assert!(!authority.is(host, port + 1) && !authority.is("other", port), "{value}");
            assert_eq!(rest, path.as_bytes(), "{value}");
        }
        assert_eq!(Reference::parse(b"/v1/x"), Reference::Here(b"/v1/x"));
        for other in ["", "x/y", "?q", "#f", "ftp://h/", "mailto:a@b", "http:/x", "http://h:x/"] {
            assert_eq!(Reference::parse(other.as_bytes()), Reference::Other, "{other}");
        }
        for odd in ["http://[::1", "http://h:99999/", "http://h:1:2/", "http://\u{e9}:x"] {
            assert_eq!(Reference::parse(odd.as_bytes()), Reference::Other, "{odd}");
        }
    }

    #[test]
    fn a_base_is_taken_off_at_the_end_of_a_segment() {
        assert_eq!(below(b"/base/v1", "/base"), Some(&b"/v1"[..]));
        assert_eq!(below(b"/base", "/base"), Some(&b""[..]));
        assert_eq!(below(b"/base?q", "/base"), Some(&b"?q"[..]));
        assert_eq!(below(b"/basement", "/base"), None);
        assert_eq!(below(b"/v1", "/base"), None);
        assert_eq!(below(b"/v1", ""), Some(&b"/v1"[..]));
    }

    /// Catches: a rewritten reference that names a server of somebody else's.
    #[test]
    fn no_path_becomes_the_name_of_a_server() {
        for path in ["//evil/x", "/\\evil/x", "\\/evil/x", "///evil/x", "evil/x"] {
            assert_eq!(without_slashes(path.as_bytes()), b"evil/x", "{path}");
        }
        assert_eq!(without_slashes(b"?q"), b"?q");
        assert_eq!(without_slashes(b"/"), b"");
    }
}
