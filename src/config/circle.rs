//! Backends that are this very proxy, as far as addresses show it: none would ever answer.

use super::plan::{Backend, Endpoint, ListenPlace, Plan};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// The backends whose URL itself, without a name server, shows that they are this proxy; a line for
/// each.
pub(super) fn by_url(plan: &Plan) -> Vec<String> {
    let ours = plan.server.addresses();
    let told = |backend: &Backend| match &backend.endpoint {
        Endpoint::Unix(path) => unix(plan, path).map(|own| line(backend, own)),
        Endpoint::Tcp { .. } => {
            leads_back(&ours, &[address(backend)?]).map(|own| line(backend, own))
        }
    };
    plan.backends.iter().filter_map(told).collect()
}

/// The listener at a socket's file.
fn unix<'a>(plan: &'a Plan, path: &Path) -> Option<&'a ListenPlace> {
    let places = plan.server.unix_listeners().map(|listener| &listener.listen);
    places.into_iter().find(|place| place.file() == Some(path))
}

/// The listener among `ours` at which who connects to one of these addresses arrives.
pub fn leads_back(ours: &[SocketAddr], addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let leads_to = |own: &SocketAddr| addresses.iter().any(|a| is_same(*own, *a, is_local));
    ours.iter().copied().find(leads_to)
}

/// What is said of a backend that leads back to this listener.
pub fn line(backend: &Backend, own: impl Display) -> String {
    let (name, url) = (&backend.name, &backend.url);
    format!("the backend `{name}` ({url}) is this proxy itself, which listens on {own}")
}

/// Where a backend is, when that needs no looking up. `localhost` may have another address besides,
/// and is never another machine.
fn address(backend: &Backend) -> Option<SocketAddr> {
    let Endpoint::Tcp { host, port } = &backend.endpoint else { return None };
    let ip = match host.parse() {
        Ok(ip) => ip,
        Err(_) if host.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
        Err(_) => return None,
    };
    Some(SocketAddr::new(ip, *port))
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

    /// Catches: a backend at our own Unix socket that nobody warns of.
    #[test]
    fn our_own_unix_socket_is_known() {
        let led_back = |url: &str| {
            let yaml = format!(
                "server: {{listeners: [{{listen: 'unix:/run/a.sock'}}]}}\nbackends: [{{url: '{url}'}}]"
            );
            let loaded = crate::config::load_text("a.yaml", &yaml, &|_| None).unwrap();
            by_url(&loaded.plan)
        };
        let told = led_back("unix:/run/a.sock");
        assert!(told.len() == 1 && told[0].ends_with("listens on unix:/run/a.sock"), "{told:?}");
        assert!(led_back("unix:/run/b.sock").is_empty());
    }

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
