//! Addresses to listen on, and ranges of client addresses.

use super::quoted;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address to listen on: `:8000` and `[::]:8000` (every address, IPv6 and IPv4), `0.0.0.0:8000`
/// (every IPv4 address), `127.0.0.1:8000`, `localhost:8000`. Port 0 is any free one, which the log
/// names. Names are not looked up here.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    let advice = || {
        format!(
            "{} must be an address and a port, such as :8000, 127.0.0.1:8000 or [::]:8000",
            quoted(text)
        )
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(advice)?;
    let port: u16 =
        port.parse().map_err(|_| format!("{} must end in a port from 0 to 65535", quoted(text)))?;
    let address: IpAddr = match host {
        "" => Ipv6Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        _ => match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| advice())?.into(),
            None => host.parse::<Ipv4Addr>().map_err(|_| advice())?.into(),
        },
    };
    Ok(SocketAddr::new(address, port))
}

/// True when the two would get each other's connections: the same port, and the same host or one
/// that stands for all. Port 0 is another free port each time.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |all: IpAddr, one: IpAddr| {
        all == one || all.is_unspecified() && (all.is_ipv6() || one.is_ipv4())
    };
    a.port() == b.port() && a.port() != 0 && (covers(a.ip(), b.ip()) || covers(b.ip(), a.ip()))
}

/// Clients of a Unix socket, in lists of addresses, as nginx has it. They count as 0.0.0.0, from
/// which nobody comes, and which no other range has.
const UNIX: &str = "unix:";
/// What stands in the place of its prefix.
const UNIX_PREFIX: u8 = 33;

/// A CIDR range, or a single address as a range of one. Kept as its first address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRange {
    first: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// Reads `10.0.0.0/8`, `10.1.2.3`, `fd00::/8`. Bits below the prefix must be zero, since a
    /// range that is not what it looks like lets the wrong clients in.
    pub fn parse(text: &str) -> Result<IpRange, String> {
        let advice =
            || format!("{} must be an address or a range, such as 10.0.0.0/8", quoted(text));
        if text == UNIX {
            let first = Ipv4Addr::UNSPECIFIED.into();
            return Ok(IpRange { first, prefix: UNIX_PREFIX });
        }
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let first = address.parse::<IpAddr>().map_err(|_| advice())?;
        let bits = if first.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(p) if p.len() <= 3 && p.bytes().all(|b| b.is_ascii_digit()) => {
                p.parse::<u8>().ok().filter(|p| *p <= bits).ok_or_else(advice)?
            }
            Some(_) => return Err(advice()),
        };
        let range = IpRange { first, prefix };
        let masked = range.mask(first);
        if masked != first {
            return Err(format!(
                "{} has bits below its prefix: write {masked}/{prefix}",
                quoted(text)
            ));
        }
        // The addresses of clients are looked at in their IPv4 form, so a range of the other form
        // would never match: a list of those who may not come in would keep nobody out.
        match first {
            IpAddr::V6(v6) if prefix >= 96 => match v6.to_ipv4_mapped() {
                Some(v4) => Ok(IpRange { first: v4.into(), prefix: prefix - 96 }),
                None => Ok(range),
            },
            _ => Ok(range),
        }
    }

    /// True when the address lies in the range. An IPv4 address in IPv6 form (`::ffff:10.0.0.1`,
    /// what a dual-stack listener reports) counts as IPv4. Who comes by a Unix socket has no
    /// address, and is in no range but `unix:`.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address == Ipv4Addr::UNSPECIFIED || self.is_unix() {
            return self.is_unix() && address == Ipv4Addr::UNSPECIFIED;
        }
        address.is_ipv4() == self.first.is_ipv4() && self.mask(address) == self.first
    }

    fn is_unix(&self) -> bool {
        self.prefix == UNIX_PREFIX && self.first.is_ipv4()
    }

    fn mask(&self, address: IpAddr) -> IpAddr {
        // A shift by the full width is no shift in Rust: a prefix of 0 is its own case.
        match address {
            IpAddr::V4(a) => {
                let keep = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
                Ipv4Addr::from_bits(a.to_bits() & keep).into()
            }
            IpAddr::V6(a) => {
                let keep =
                    u128::MAX.checked_shl(128 - u32::from(self.prefix.min(128))).unwrap_or(0);
                Ipv6Addr::from_bits(a.to_bits() & keep).into()
            }
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unix() {
            return f.write_str(UNIX);
        }
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_forms() {
        assert_eq!(listen(":8000"), Ok("[::]:8000".parse().unwrap()));
        assert_eq!(listen("0.0.0.0:8000"), Ok("0.0.0.0:8000".parse().unwrap()));
        assert_eq!(listen("[::]:8000"), Ok("[::]:8000".parse().unwrap()));
        assert_eq!(listen("[::1]:1"), Ok("[::1]:1".parse().unwrap()));
        assert_eq!(listen("localhost:80"), Ok("127.0.0.1:80".parse().unwrap()));
        assert_eq!(listen("127.0.0.1:0"), Ok("127.0.0.1:0".parse().unwrap()));
        for bad in ["", "8000", ":65536", "host:80", "::1:80", "1.2.3.4", "[1.2.3.4]:5", ":80x"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    /// Catches: two listeners that share a port, of which each gets a part of the connections.
    #[test]
    fn an_address_overlaps_with_what_stands_for_it() {
        let meet = |a: &str, b: &str| {
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            assert_eq!(overlap(a, b), overlap(b, a), "{a} {b}");
            overlap(a, b)
        };
        assert!(meet("127.0.0.1:1", "127.0.0.1:1") && meet("0.0.0.0:1", "127.0.0.1:1"));
        assert!(meet("[::]:1", "127.0.0.1:1") && meet("[::]:1", "[::1]:1"));
        assert!(!meet("0.0.0.0:1", "[::1]:1") && !meet("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!meet("[::]:1", "[::]:2") && !meet("127.0.0.1:0", "127.0.0.1:0"));
    }

    /// Catches: clients of a Unix socket that are everybody, or nobody.
    #[test]
    fn clients_of_a_unix_socket_have_a_name() {
        let unix = IpRange::parse("unix:").unwrap();
        assert!(unix.contains(Ipv4Addr::UNSPECIFIED.into()));
        assert!(!unix.contains(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(unix.to_string(), "unix:");
        assert!(IpRange::parse("unix:/run/x").is_err());
        // A list of every address is one of addresses.
        for range in ["0.0.0.0/0", "0.0.0.0", "::/0", "0.0.0.0/8"] {
            assert!(!IpRange::parse(range).unwrap().contains(Ipv4Addr::UNSPECIFIED.into()));
        }
    }

    #[test]
    fn ranges_contain_what_they_say() {
        let has =
            |range: &str, ip: &str| IpRange::parse(range).unwrap().contains(ip.parse().unwrap());
        assert!(has("10.0.1.0/24", "10.0.1.255") && !has("10.0.1.0/24", "10.0.2.0"));
        assert!(has("10.0.0.1", "10.0.0.1") && !has("10.0.0.1", "10.0.0.2"));
        assert!(has("0.0.0.0/0", "8.8.8.8") && !has("0.0.0.0/0", "::1"));
        assert!(has("10.0.0.0/8", "::ffff:10.9.9.9"));
        assert!(has("::ffff:10.0.0.1", "10.0.0.1") && has("::ffff:10.0.0.1", "::ffff:a00:1"));
        assert!(has("::ffff:10.0.0.0/104", "10.9.9.9") && !has("::ffff:10.0.0.0/104", "11.0.0.1"));
        assert!(
            has("::/0", "fe80::1") && has("fd00::/8", "fd12::1") && !has("fd00::/8", "fe00::1")
        );
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/",
            "10.0.0/8",
            "a/8",
            "::/129",
            "10.0.0.0/+8",
        ] {
            assert!(IpRange::parse(bad).is_err(), "{bad}");
        }
    }
}
