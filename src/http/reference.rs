//! References in the head of an answer (`Location`, `Content-Location`; RFC 9110 sections 10.2.2
//! and 8.7): whom they name, and the path that they mean there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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

    /// True when it names this port of this host, by whatever way to write the host.
    pub fn is(&self, host: &str, port: u16) -> bool {
        let same_name = without_dot(self.host).eq_ignore_ascii_case(without_dot(host.as_bytes()));
        let same_address = || self.ip().is_some_and(|ip| address_of(host.as_bytes()) == Some(ip));
        self.has(port) && (same_name || same_address())
    }

    /// True when it names this address and port. Of a host that is reached on this machine, every
    /// name of this machine for itself is one: `localhost`, `127.0.0.1`, `[::1]`, `0.0.0.0`.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let is_here = || is_own(ip) && (self.ip().is_some_and(is_own) || self.is_localhost());
        self.has(address.port()) && (self.ip() == Some(ip) || is_here())
    }

    fn has(&self, port: u16) -> bool {
        // Without a scheme the port may be that of either.
        self.port.map_or(matches!(port, 80 | 443), |ours| ours == port)
    }

    fn ip(&self) -> Option<IpAddr> {
        address_of(self.host)
    }

    /// `localhost` and the names below it (RFC 6761 section 6.3).
    fn is_localhost(&self) -> bool {
        let last = without_dot(self.host).rsplit(|byte| *byte == b'.').next();
        last.is_some_and(|last| last.eq_ignore_ascii_case(b"localhost"))
    }
}

/// An address of a machine for itself. Who connects to 0.0.0.0 or `::` meets itself too.
fn is_own(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// A name without the dot that says that it is whole.
fn without_dot(host: &[u8]) -> &[u8] {
    host.strip_suffix(b".").unwrap_or(host)
}

/// The address that a host is, as clients read it: IPv6 in any spelling, and IPv4 in one to four
/// numbers, decimal, octal or hexadecimal (WHATWG URL section 3.5, `inet_aton`). IPv4 inside of
/// IPv6 is IPv4.
fn address_of(host: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(without_dot(host)).ok()?;
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let (first, last) = match text.rsplit_once('.') {
        Some((first, last)) => (Some(first), last),
        None => (None, text),
    };
    let (mut ip, mut bits_left) = (0, u32::BITS);
    for byte in first.into_iter().flat_map(|first| first.split('.')) {
        bits_left = bits_left.checked_sub(8).filter(|bits| *bits > 0)?;
        ip |= u32::from(u8::try_from(number(byte)?).ok()?) << bits_left;
    }
    // The last one is all that the others leave.
    let last = number(last).filter(|last| u64::from(*last) < 1 << bits_left)?;
    Some(Ipv4Addr::from_bits(ip | last).into())
}

fn number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
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

    fn authority(text: &str) -> Authority<'_> {
        Authority::parse(text.as_bytes(), Some(80)).unwrap()
    }

    /// Catches: an address of a backend that is told because it is written in another way than it
    /// is configured.
    #[test]
    fn a_host_is_known_by_all_its_names() {
        for (text, host) in [
            ("ENGINE.test:81", "engine.test"),
            ("engine.test.:81", "engine.test"),
            ("engine.test:81", "engine.test."),
            ("127.1:81", "127.0.0.1"),
            ("[2001:DB8:0:0::1]:81", "2001:db8::1"),
            ("[::ffff:192.0.2.1]:81", "192.0.2.1"),
        ] {
            assert!(authority(text).is(host, 81) && !authority(text).is(host, 80), "{text}");
        }
        for (text, address) in [
            ("192.0.2.1:81", "192.0.2.1:81"),
            ("192.0.513:81", "192.0.2.1:81"),
            ("192.513:81", "192.0.2.1:81"),
            ("3221225985:81", "192.0.2.1:81"),
            ("0xC0.0.2.0x1:81", "192.0.2.1:81"),
            ("0300.00.02.01.:81", "192.0.2.1:81"),
            ("[::ffff:c000:201]:81", "192.0.2.1:81"),
            ("192.0.2.1:81", "[::ffff:192.0.2.1]:81"),
            ("[2001:db8:0::1]:81", "[2001:db8::1]:81"),
            ("192.0.2.1", "192.0.2.1:80"),
        ] {
            assert!(authority(text).is_at(address.parse().unwrap()), "{text} {address}");
        }
        let own = [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1",
            "127.1",
            "[::1]",
            "0.0.0.0",
            "[::]",
            "0",
            "[::ffff:127.0.0.1]",
            "127.9.9.9",
        ];
        for name in own {
            let at =
                |address: &str| authority(&format!("{name}:81")).is_at(address.parse().unwrap());
            assert!(at("127.0.0.1:81") && at("[::1]:81"), "{name}");
            assert!(!at("127.0.0.1:82") && !at("192.0.2.1:81"), "{name}");
        }
    }

    #[test]
    fn a_host_that_is_another_is_none_of_ours() {
        let here: SocketAddr = "127.0.0.1:81".parse().unwrap();
        for text in [
            "localhost.test:81",
            "notlocalhost:81",
            "127.0.0.1.test:81",
            "127.0.0.256:81",
            "127.0.0.0.1:81",
            "1.2.3.4.5:81",
            "127.0x:81",
            "127.+1:81",
            ".1:81",
            "127..1:81",
            ":81",
            "4294967296:81",
            "256.1:81",
            "08:81",
            "[1::2::3]:81",
            "128.1:81",
        ] {
            let authority = authority(text);
            assert!(!authority.is_at(here) && !authority.is("127.0.0.1", 81), "{text}");
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
