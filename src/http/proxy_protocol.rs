//! The PROXY protocol, versions 1 and 2: what a balancer that knows nothing of HTTP puts before the
//! first byte of a connection, to say whose it is. The rules are those of HAProxy's
//! `doc/proxy-protocol.txt`.

use crate::base::limits::PROXY_HEADER_BYTES_MAX;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FIXED: usize = 16;
const TEXT: &[u8] = b"PROXY ";
/// The longest header of version 1, its line end included.
const TEXT_BYTES_MAX: usize = 107;

/// How far a header has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    /// More of it has to come.
    Partial,
    /// It is there.
    Whole {
        /// Its bytes, behind which the client's begin.
        len: usize,
        /// Whose connection it is; `None`: the balancer's own, or of somebody whom it does not
        /// know.
        source: Option<IpAddr>,
    },
}

/// What came is no such header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadProxyHeader;

/// Reads the beginning of a connection.
///
/// # Errors
/// It is no header of the protocol.
pub fn parse(bytes: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    let begins = |with: &[u8]| {
        let len = with.len().min(bytes.len());
        bytes.get(..len) == with.get(..len)
    };
    if begins(SIGNATURE) {
        binary(bytes)
    } else if begins(TEXT) {
        text(bytes)
    } else {
        Err(BadProxyHeader)
    }
}

fn binary(bytes: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    let Some([command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(ProxyHeader::Partial);
    };
    let len = FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if len > PROXY_HEADER_BYTES_MAX {
        return Err(BadProxyHeader);
    }
    // Where it ends before the addresses do, it is none, and need not be waited for.
    let addresses = match (command, family) {
        (0x20, _) | (0x21, 0x00) => 0,
        (0x21, 0x11) => 12,
        (0x21, 0x21) => 36,
        (0x21, 0x31) => 216,
        _ => return Err(BadProxyHeader),
    };
    if len < FIXED + addresses {
        return Err(BadProxyHeader);
    }
    let Some(rest) = bytes.get(FIXED..len) else { return Ok(ProxyHeader::Partial) };
    let source = match (addresses, rest) {
        (12, [a, b, c, d, ..]) => Some(IpAddr::from([*a, *b, *c, *d])),
        (36, _) => rest.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
        _ => None,
    };
    Ok(ProxyHeader::Whole { len, source: source.map(|source| source.to_canonical()) })
}

fn text(bytes: &[u8]) -> Result<ProxyHeader, BadProxyHeader> {
    let start = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = start.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() < TEXT_BYTES_MAX {
            true => Ok(ProxyHeader::Partial),
            false => Err(BadProxyHeader),
        };
    };
    let line = start.get(TEXT.len()..end).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(BadProxyHeader)?;
    let source = match line.split_once(' ').unwrap_or((line, "")) {
        ("UNKNOWN", _) => None,
        ("TCP4", rest) => Some(source::<Ipv4Addr>(rest)?.into()),
        ("TCP6", rest) => Some(source::<Ipv6Addr>(rest)?.into()),
        _ => return Err(BadProxyHeader),
    };
    let source = source.map(|source: IpAddr| source.to_canonical());
    Ok(ProxyHeader::Whole { len: end + 2, source })
}

/// The first of two addresses, behind which two ports stand.
fn source<A: std::str::FromStr>(text: &str) -> Result<A, BadProxyHeader> {
    let mut parts = text.split(' ');
    let mut next = || parts.next().ok_or(BadProxyHeader);
    let source = next()?.parse().map_err(|_| BadProxyHeader)?;
    next()?.parse::<A>().map_err(|_| BadProxyHeader)?;
    for _ in 0..2 {
        let port = next()?;
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        let is_plain = is_number && (port == "0" || !port.starts_with('0'));
        port.parse::<u16>().ok().filter(|_| is_plain).ok_or(BadProxyHeader)?;
    }
    match parts.next() {
        None => Ok(source),
        Some(_) => Err(BadProxyHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &len, rest].concat()
    }

    fn whole(bytes: &[u8]) -> Option<IpAddr> {
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len]), Ok(ProxyHeader::Partial), "{len}: {bytes:?}");
        }
        let with_more = [bytes, b"GET / HTTP/1.1\r\n"].concat();
        match parse(&with_more) {
            Ok(ProxyHeader::Whole { len, source }) if len == bytes.len() => source,
            other => panic!("{other:?}: {bytes:?}"),
        }
    }

    #[test]
    fn headers_are_read() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let mut v6 = [0u8; 36];
        v6[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        v6[15] = 7;
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        let mapped = [&mapped[..], &[0; 20]].concat();
        let with_tlv = [&v4[..], &[0x01, 0, 2, b'h', b'2', 0x03, 0, 4, 1, 2, 3, 4]].concat();
        for (bytes, source) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec(), Some("192.0.2.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 1 65535\r\n".to_vec(), Some("2001:db8::7")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 0\r\n".to_vec(), Some("192.0.2.7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 what ever\r\n".to_vec(), None),
            (v2(0x21, 0x11, &v4), Some("192.0.2.7")),
            (v2(0x21, 0x11, &with_tlv), Some("192.0.2.7")),
            (v2(0x21, 0x21, &v6), Some("2001:db8::7")),
            (v2(0x21, 0x21, &mapped), Some("192.0.2.7")),
            (v2(0x21, 0x31, &[0; 216]), None),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &v4), None),
        ] {
            assert_eq!(whole(&bytes), source.map(|s| s.parse().unwrap()), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_no_header_is_none() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"proxy TCP4 1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1  1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 1\r\n".to_vec(),
            b"PROXY TCP6 1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 01 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 +1 1\r\n".to_vec(),
            b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY  UNKNOWN\r\n".to_vec(),
            b"PROXY TCP4\xff 1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            long.into_bytes(),
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x41, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x11, &[0; 5000]),
        ] {
            assert_eq!(parse(&bytes), Err(BadProxyHeader), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(rest in prop::collection::vec(any::<u8>(), 0..64), kind in 0..3u8) {
            let start: &[u8] = [SIGNATURE, b"PROXY TCP4 ", b""][usize::from(kind)];
            let bytes = [start, &rest].concat();
            if let Ok(ProxyHeader::Whole { len, .. }) = parse(&bytes) {
                prop_assert!(len <= bytes.len());
                // What comes behind it is not looked at.
                prop_assert_eq!(parse(&bytes[..len]), parse(&bytes));
            }
        }
    }
}
