//! A backend that is this very process is refused at start, as far as addresses show it. What they
//! do not show (another proxy between, a name that changes) is caught request by request.

use crate::config::plan::Plan;
use crate::state::fleet::Fleet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Looks for a backend at one of the addresses that we listen on.
///
/// # Errors
/// There is one; a line for a person.
pub fn check(plan: &Plan, fleet: &Fleet, ours: &[SocketAddr]) -> Result<(), String> {
    for (backend, member) in plan.backends.iter().zip(fleet.iter()) {
        let addresses = member.addresses();
        let leads_to = |own: &&SocketAddr| addresses.iter().any(|a| is_same(**own, *a, is_local));
        if let Some(own) = ours.iter().find(leads_to) {
            return Err(format!(
                "the backend `{}` ({}) is this proxy itself, which listens on {own}",
                backend.name, backend.url
            ));
        }
    }
    Ok(())
}

/// Whether who connects to `target` arrives at the listener `own`.
fn is_same(own: SocketAddr, target: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    // The kernel connects to nobody's address as to the loopback one.
    let target_ip = match target.ip().to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let is_covered = match own.ip().to_canonical() {
        // `[::]` takes IPv4 too, or stands beside a listener that does.
        ip if ip.is_unspecified() => (ip.is_ipv6() || target_ip.is_ipv4()) && is_local(target_ip),
        ip => ip == target_ip,
    };
    own.port() == target.port() && is_covered
}

/// Only a socket of the machine that has an address can be bound to it.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_everywhere_is_met_at_each_local_address() {
        let same = |own: &str, target: &str| {
            let here = |ip: IpAddr| ip.is_loopback() || ip.to_string() == "10.0.0.5";
            is_same(own.parse().unwrap(), target.parse().unwrap(), here)
        };
        for (own, target) in [
            ("0.0.0.0:8000", "127.0.0.1:8000"),
            ("0.0.0.0:8000", "127.9.9.9:8000"),
            ("0.0.0.0:8000", "0.0.0.0:8000"),
            ("0.0.0.0:8000", "10.0.0.5:8000"),
            ("[::]:8000", "127.0.0.1:8000"),
            ("[::]:8000", "[::1]:8000"),
            ("[::]:8000", "[::ffff:127.0.0.1]:8000"),
            ("127.0.0.1:8000", "127.0.0.1:8000"),
            ("[::1]:8000", "[::]:8000"),
        ] {
            assert!(same(own, target), "{own} {target}");
        }
        for (own, target) in [
            ("0.0.0.0:8000", "127.0.0.1:8001"),
            ("0.0.0.0:8000", "10.0.0.6:8000"),
            ("0.0.0.0:8000", "[::1]:8000"),
            ("127.0.0.1:8000", "127.0.0.2:8000"),
            ("10.0.0.5:8000", "127.0.0.1:8000"),
        ] {
            assert!(!same(own, target), "{own} {target}");
        }
        assert!(is_local("127.0.0.1".parse().unwrap()));
        assert!(!is_local("192.0.2.1".parse().unwrap()), "an address of nobody");
    }
}
