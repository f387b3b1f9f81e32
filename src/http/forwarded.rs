//! Where a request comes from, as the proxies before us tell it: `X-Forwarded-For`, and `Forwarded`
//! (RFC 7239). Each proxy puts the address of its own peer behind what is there already, so the
//! right end is written by the one next to us, and the left end by whoever likes to.

use super::field::Known;
use super::head::Field;
use crate::base::limits::HOPS_MAX;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address of the client: the rightmost of those told that is not a trusted proxy's. What
/// cannot be read ends the way: then it is the last trusted proxy that is taken for the client, as
/// nobody trustworthy says more. `bytes` is the buffer that was parsed.
///
/// A client can send both fields, and its proxy may know one of them only: where they tell
/// different addresses, neither counts.
pub fn client(
    peer: IpAddr,
    fields: &[Field],
    bytes: &[u8],
    is_trusted: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let peer = peer.to_canonical();
    if !is_trusted(peer) {
        return peer;
    }
    let told = |kind: Known, name: &[u8], read: fn(&[u8], &mut Hops)| {
        let of_name = |f: &&Field| f.known == kind && f.name.of(bytes).eq_ignore_ascii_case(name);
        let mut values =
            fields.iter().filter(of_name).map(|field| field.value.of(bytes)).peekable();
        values.peek()?;
        let mut hops = Hops::default();
        values.for_each(|value| read(value, &mut hops));
        Some(hops.walk(peer, &is_trusted))
    };
    let usual = told(Known::XForwardedFor, b"x-forwarded-for", read_list);
    let standard = told(Known::Origin, b"forwarded", read_forwarded);
    match (usual, standard) {
        (Some(one), Some(other)) if one != other => peer,
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => peer,
    }
}

/// The last of the addresses that were told, from left to right; `None`: it cannot be read.
#[derive(Default)]
struct Hops {
    last: [Option<IpAddr>; HOPS_MAX],
    count: usize,
}

impl Hops {
    fn push(&mut self, hop: Option<IpAddr>) {
        self.last[self.count % HOPS_MAX] = hop;
        self.count += 1;
    }

    fn walk(&self, peer: IpAddr, is_trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
        let mut client = peer;
        for back in 1..=self.count.min(HOPS_MAX) {
            let Some(hop) = self.last[(self.count - back) % HOPS_MAX] else { return client };
            client = hop;
            if !is_trusted(hop) {
                return client;
            }
        }
        client
    }
}

/// `X-Forwarded-For: a, b`. Empty elements of a list are to be ignored (RFC 9110 section 5.6.1).
fn read_list(value: &[u8], hops: &mut Hops) {
    let elements = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty()).for_each(|element| hops.push(address(element)));
}

/// `Forwarded: for=a;proto=http, for="[b]:1"`.
fn read_forwarded(value: &[u8], hops: &mut Hops) {
    for element in split(value, b',') {
        let mut told = None;
        let mut is_clear = true;
        for pair in split(element, b';') {
            let at = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = pair.split_at(at);
            if name.trim_ascii().eq_ignore_ascii_case(b"for") {
                is_clear &= told.is_none();
                told = Some(value.get(1..).unwrap_or_default().trim_ascii());
            }
        }
        if !element.trim_ascii().is_empty() {
            hops.push(told.filter(|_| is_clear).and_then(|told| address(unquoted(told)?)));
        }
    }
}

/// The parts between marks that are not in quotes.
fn split(text: &[u8], mark: u8) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
        !is_quoted && *byte == mark
    })
}

/// What is in the quotes, if there are any. Nothing of an address is written with a backslash.
fn unquoted(text: &[u8]) -> Option<&[u8]> {
    match text.strip_prefix(b"\"") {
        Some(rest) => rest.strip_suffix(b"\""),
        None => Some(text),
    }
}

/// An address, with or without a port, IPv6 with or without brackets. An IPv4 address in the form
/// of an IPv6 one is IPv4.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bare = || text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|at| at.ip());
    let in_brackets = || {
        let inside = text.strip_prefix('[')?.strip_suffix(']')?;
        inside.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    };
    let address = bare().or_else(with_port).or_else(in_brackets)?.to_canonical();
    // Nobody has it, and so it stands for the clients of our Unix sockets.
    (!address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests;
