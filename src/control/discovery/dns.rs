//! Sources that are names in DNS: each address is a backend. `Host` and the name that a certificate
//! must be for stay the name.

use super::finder::Inquiry;
use crate::base::limits::{DISCOVERY_BACKENDS_MAX, DISCOVERY_V6_KEPT, WEIGHT_MAX};
use crate::config::found::FoundRows;
use crate::config::plan::{DnsRecord, DnsSource};
use crate::store::dns::{self, DnsRecords, RecordKind, Srv};
use crate::store::{left, names, Trouble};
use serde_json::{json, Value};
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// Asks for a name.
pub struct DnsInquiry {
    source: DnsSource,
    on_v6: RefCell<OnV6>,
}

/// Hosts whose last good AAAA answer had addresses: these, and when they were told.
#[derive(Default)]
struct OnV6(HashMap<String, (Vec<IpAddr>, Instant)>);

impl DnsInquiry {
    /// Asks nobody yet.
    pub fn new(source: &DnsSource) -> DnsInquiry {
        DnsInquiry { source: source.clone(), on_v6: RefCell::default() }
    }

    fn records(&self, name: &str, kind: RecordKind, until: Instant) -> Result<DnsRecords, Trouble> {
        match self.source.resolver {
            Some(server) => dns::ask(&[server], name, kind, until),
            None => dns::ask(&dns::system_servers()?, name, kind, until),
        }
    }

    /// The addresses of a host, of the families that are wanted.
    fn addresses(&self, host: &str, until: Instant) -> Result<Vec<IpAddr>, Trouble> {
        let (v4, v6) = match self.source.record {
            DnsRecord::A => (true, false),
            DnsRecord::Aaaa => (false, true),
            DnsRecord::Any | DnsRecord::Srv => (true, true),
        };
        let is_wanted = |ip: &IpAddr| if ip.is_ipv4() { v4 } else { v6 };
        if self.source.resolver.is_none() {
            // The system's way knows /etc/hosts and search domains too.
            let all = names::addresses(host, 0, left(until)?)?;
            return Ok(all.iter().map(SocketAddr::ip).filter(is_wanted).collect());
        }
        let mut found = Vec::new();
        if v4 {
            found.extend(self.records(host, RecordKind::A, until)?.addresses);
        }
        if v6 {
            match self.records(host, RecordKind::Aaaa, until) {
                Ok(records) => {
                    self.on_v6.borrow_mut().note(host, &records.addresses, Instant::now());
                    found.extend(records.addresses);
                }
                Err(trouble) if found.is_empty() => return Err(trouble),
                // To miss a part of the answer because the server fails for a moment would take
                // backends away. But to take nothing at all would keep those of IPv4 that are gone.
                Err(trouble) => match self.on_v6.borrow_mut().known(host, Instant::now()) {
                    Some(addresses) => found.extend(addresses),
                    None if Instant::now() >= until => return Err(trouble),
                    // Servers that know nothing of IPv6 say so in several ways.
                    None => {}
                },
            }
        }
        Ok(found)
    }

    fn services(&self, until: Instant) -> Result<Vec<Value>, Trouble> {
        let DnsRecords { services, along, .. } =
            self.records(&self.source.name, RecordKind::Srv, until)?;
        let first = services.iter().map(|srv| srv.priority).min().unwrap_or_default();
        let mut rows = Vec::new();
        for Srv { priority, weight, port, target } in services {
            let came_along = along.iter().filter(|(host, _)| *host == target).map(|(_, ip)| *ip);
            let mut addresses: Vec<IpAddr> = came_along.collect();
            if addresses.is_empty() {
                addresses = self.addresses(&target, until)?;
            }
            let weight = u32::from(weight).clamp(1, WEIGHT_MAX);
            rows.extend(addresses.into_iter().map(|ip| {
                let mut row = self.row(&target, SocketAddr::new(ip, port));
                row["weight"] = weight.into();
                // Those with a higher number are for when none with the lowest is left.
                row["backup"] = (priority > first).into();
                row
            }));
        }
        Ok(rows)
    }

    /// A backend at an address of a host, in the shape of `backends`.
    fn row(&self, host: &str, address: SocketAddr) -> Value {
        let (scheme, path, port) = (&self.source.scheme, &self.source.path, address.port());
        let authority = match (scheme.as_str(), port) {
            ("http", 80) | ("https", 443) => host.to_owned(),
            _ => format!("{host}:{port}"),
        };
        let mut row = json!({
            "name": format!("{host}/{address}"),
            "url": format!("{scheme}://{address}{path}"),
            "host": authority,
        });
        if scheme == "https" {
            row["tls"] = json!({ "server_name": host });
        }
        row
    }
}

impl OnV6 {
    fn note(&mut self, host: &str, addresses: &[IpAddr], now: Instant) {
        // Targets of services come and go.
        if addresses.is_empty() || self.0.len() >= DISCOVERY_BACKENDS_MAX {
            self.0.remove(host);
        } else {
            self.0.insert(host.to_owned(), (addresses.to_vec(), now));
        }
    }

    /// What stands for an answer that cannot be had; `None`: there was none lately.
    fn known(&mut self, host: &str, now: Instant) -> Option<Vec<IpAddr>> {
        self.0.retain(|_, (_, told)| now.saturating_duration_since(*told) < DISCOVERY_V6_KEPT);
        self.0.get(host).map(|(addresses, _)| addresses.clone())
    }
}

impl Inquiry for DnsInquiry {
    fn look(&mut self) -> Result<FoundRows, String> {
        let until = Instant::now() + self.source.timeout;
        let name = &self.source.name;
        let rows = match self.source.record {
            DnsRecord::Srv => self.services(until),
            _ => self.addresses(name, until).map(|addresses| {
                let port = self.source.port.unwrap_or_default();
                let row = |ip: IpAddr| self.row(name, SocketAddr::new(ip, port));
                addresses.into_iter().map(row).collect()
            }),
        };
        let rows = rows.map_err(|trouble| format!("{name}: {}", trouble.into_words()))?;
        FoundRows::of_values(rows).map_err(|why| format!("{name}: its answer {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_text;
    use crate::config::plan::CommonParts;

    fn row(scheme: &str, address: &str) -> Value {
        let text = format!(
            "discovery: {{enabled: true, sources: [{{type: dns, dns: {{name: e.test, \
             port: 1, scheme: {scheme}, path: /base/}}}}]}}"
        );
        let plan = load_text("t", &text, &|_| None).unwrap().plan;
        let source = plan.discovery.unwrap().sources.remove(0);
        let crate::config::plan::SourceKind::Dns { dns } = source.kind else { panic!() };
        DnsInquiry::new(&dns).row("e.test", address.parse().unwrap())
    }

    /// Catches: addresses that are used for ever though nobody tells them any more.
    #[test]
    fn addresses_of_v6_are_kept_for_a_while() {
        let (mut on_v6, now) = (OnV6::default(), Instant::now());
        let some = [IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])];
        on_v6.note("a", &some, now);
        assert_eq!(on_v6.known("b", now), None);
        let nearly = DISCOVERY_V6_KEPT - std::time::Duration::from_nanos(1);
        assert_eq!(on_v6.known("a", now + nearly).as_deref(), Some(&some[..]));
        assert_eq!(on_v6.known("a", now + DISCOVERY_V6_KEPT), None);
        on_v6.note("a", &some, now);
        on_v6.note("a", &[], now);
        assert_eq!(on_v6.known("a", now), None);
    }

    /// Catches: an engine behind TLS or a name-based proxy that is asked by its address.
    #[test]
    fn an_address_is_asked_by_its_name() {
        assert_eq!(
            row("https", "[2001:db8::1]:443"),
            json!({
                "name": "e.test/[2001:db8::1]:443",
                "url": "https://[2001:db8::1]:443/base",
                "host": "e.test",
                "tls": {"server_name": "e.test"},
            })
        );
        let plain = row("http", "192.0.2.1:8000");
        assert_eq!(plain["host"], "e.test:8000");
        assert!(plain.get("tls").is_none());
        let rows = FoundRows::of_values(vec![plain, row("https", "192.0.2.1:443")]).unwrap();
        let routing = load_text("t", "", &|_| None).unwrap().plan.routing;
        let found = rows.check((&routing, &CommonParts::default()), &|_| None);
        assert_eq!((found.backends.len(), found.faults.len()), (2, 0), "{:?}", found.faults);
        let tls = found.backends[0].tls.as_ref().map(|tls| tls.server_name.as_str());
        assert_eq!(tls, Some("e.test"));
    }
}
