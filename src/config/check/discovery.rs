//! `discovery`: who is asked, while the process runs, where engines are.

use super::backend::{backends, engine, fields, metrics, slow_start, Timeouts};
use super::storage::{self, Stores};
use super::{headers, required_url, texts};
use crate::base::limits::{CONCURRENT_MAX, DISCOVERY_SOURCES_MAX};
use crate::base::secret::Secret;
use crate::config::plan::{
    CommonParts, ConsulSource, DatabaseSource, Discovery, DiscoveryMode, DiscoverySource,
    DnsRecord, DnsSource, EtcdSource, FileSource, HttpSource, KubernetesSource, ModelPattern,
    SourceFields, SourceKind, StaticSource,
};
use crate::config::raw::Node;
use crate::config::section::Section;
use crate::config::value::{self, Url};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Where these are not read, what does the same.
const INSTEAD_OF_KUBERNETES: &str = "is not read: use `type: dns` with the name of a headless \
     service, which has the address of each ready pod (docs/discovery.md)";
const INSTEAD_OF_ETCD: &str = "is not read: use `type: http` with a service, or `type: file` with \
     a file that something like confd writes (docs/discovery.md)";
const INSTEAD_OF_DATABASE: &str = "is not read: use `type: http` with a service that answers with \
     the rows, or `type: file` (docs/discovery.md)";

/// Reads `discovery`.
pub fn discovery(s: &mut Section, stores: &Stores, timeouts: Timeouts) -> Discovery {
    let modes = [("merge", DiscoveryMode::Merge), ("first", DiscoveryMode::First)];
    let mut sources: Vec<DiscoverySource> = Vec::new();
    for mut item in s.sections("sources") {
        let on = item.boolean("enabled", true);
        let desk = item.desk;
        let Some(mut source) = desk.within(!on, || source(&mut item, stores, timeouts)) else {
            continue;
        };
        if !on {
            continue;
        }
        let taken = |name: &str| sources.iter().any(|other| other.name == name);
        if taken(&source.name) && item.given("name") {
            let name = value::quoted(&source.name);
            item.error("name", format!("{name} is also the name of another source"));
        }
        let numbered = |n: usize| format!("{}#{n}", source.name);
        if taken(&source.name) {
            source.name = (2..).map(numbered).find(|name| !taken(name)).unwrap_or_default();
        }
        sources.push(source);
    }
    if sources.is_empty() {
        s.warn("sources", "discovery is on, but has no source");
    }
    if sources.len() > DISCOVERY_SOURCES_MAX {
        s.error("sources", format!("has more than {DISCOVERY_SOURCES_MAX} sources"));
    }
    Discovery {
        mode: s.choice("mode", &modes, DiscoveryMode::Merge),
        interval: s.duration("interval", Duration::from_secs(30)),
        sources,
    }
}

fn source(s: &mut Section, stores: &Stores, timeouts: Timeouts) -> Option<DiscoverySource> {
    s.unsupported(&[("script", "sources are not scripted")]);
    let kinds = ["static", "http", "file", "dns", "consul", "kubernetes", "etcd", "database"];
    let kind = s.kind("type", &kinds, true)?;
    let name = s.text("name").filter(|n| !n.is_empty()).unwrap_or_else(|| kind.into());
    let common = s.section("common").map(|mut s| common(&mut s)).unwrap_or_default();
    let Some(mut inner) = s.section(kind) else {
        s.error(kind, "is required: the source says nothing about itself");
        return None;
    };
    let kind = match kind {
        "http" => SourceKind::Http { http: http(&mut inner) },
        "file" => SourceKind::File { file: file(&mut inner) },
        "dns" => SourceKind::Dns { dns: dns(&mut inner) },
        "consul" => SourceKind::Consul { consul: consul(&mut inner) },
        "kubernetes" => {
            s.warn("type", INSTEAD_OF_KUBERNETES);
            SourceKind::Kubernetes { kubernetes: kubernetes(&mut inner) }
        }
        "etcd" => {
            s.warn("type", INSTEAD_OF_ETCD);
            SourceKind::Etcd { etcd: etcd(&mut inner) }
        }
        "database" => {
            s.warn("type", INSTEAD_OF_DATABASE);
            SourceKind::Database { database: database(&mut inner, stores)? }
        }
        _ => {
            let mut backends = backends(&mut inner, "backends", timeouts);
            // Where one of them is wrong, nothing comes of the file.
            let written = inner.items("backends").unwrap_or_default().iter().map(Node::keys);
            let all = backends.iter_mut().zip(written);
            all.for_each(|(backend, written)| common.give_to(backend, &written));
            SourceKind::Static { list: StaticSource { backends } }
        }
    };
    Some(DiscoverySource { name, common, kind })
}

fn common(s: &mut Section) -> CommonParts {
    let (headers, host) = fields(s);
    if host.is_some() {
        s.error("headers", "must not have a Host: a name in DNS brings its own, as a URL does");
    }
    CommonParts {
        headers,
        models: s.list("models", ModelPattern::parse).unwrap_or_default(),
        region: s.text("region").unwrap_or_default(),
        engine: engine(s),
        metrics: metrics(s),
        max_concurrent: s.int("max_concurrent", 0..=CONCURRENT_MAX, 0),
        slow_start: slow_start(s),
        ca_file: s.protecting("ca_file").map(Into::into),
    }
}

fn http(s: &mut Section) -> HttpSource {
    HttpSource {
        url: required_url(s, "url"),
        method: s.choice("method", &[("GET", "GET"), ("POST", "POST")], "GET").into(),
        timeout: s.duration("timeout", Duration::from_secs(10)),
        interval: s.duration_opt("interval"),
        headers: headers(s),
    }
}

fn file(s: &mut Section) -> FileSource {
    FileSource { path: s.required("path").into(), interval: s.duration_opt("interval") }
}

fn dns(s: &mut Section) -> DnsSource {
    let records = [
        ("any", DnsRecord::Any),
        ("a", DnsRecord::A),
        ("aaaa", DnsRecord::Aaaa),
        ("srv", DnsRecord::Srv),
    ];
    let record = s.choice("record", &records, DnsRecord::Any);
    let port = s.int_opt("port", 1..=65535u16);
    match (record, port) {
        (DnsRecord::Srv, Some(_)) => s.warn("port", "not used: an SRV record brings its own"),
        (DnsRecord::Srv, None) | (_, Some(_)) => {}
        (_, None) if s.desk.is_off() => {}
        (_, None) => s.error("port", "is required: an address record says nothing of a port"),
    }
    DnsSource {
        name: s.required_parsed("name", dns_name).unwrap_or_default(),
        record,
        port: port.filter(|_| record != DnsRecord::Srv),
        scheme: scheme(s),
        path: s.parsed("path", base_path).unwrap_or_default(),
        resolver: s.parsed("resolver", value::optional(name_server)).flatten(),
        timeout: s.duration("timeout", Duration::from_secs(5)),
        interval: s.duration_opt("interval"),
    }
}

/// A whole name, such as `vllm.llm.svc.cluster.local`. A dot at its end is left out.
fn dns_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_whole = |label: &str| !label.is_empty() && label.len() <= 63;
    match value::http_url(&format!("http://{name}")) {
        Ok(Url::Http { host, .. }) if host == name && name.split('.').all(is_whole) => {
            Ok(name.to_owned())
        }
        _ => Err(format!("{} must be a name, such as vllm.llm.svc", value::quoted(text))),
    }
}

fn base_path(text: &str) -> Result<String, String> {
    match value::http_url(&format!("http://h{text}")) {
        Ok(Url::Http { path, query: None, authority, .. }) if authority == "h" => Ok(path),
        _ => Err(format!("{} must be a path that begins with `/`", value::quoted(text))),
    }
}

/// `10.0.0.10:53`; without a port it is 53.
fn name_server(text: &str) -> Result<SocketAddr, String> {
    let whole = text.parse::<SocketAddr>();
    let address = whole.or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    address.map_err(|_| {
        format!("{} must be an address and a port, such as 127.0.0.1:8600", value::quoted(text))
    })
}

fn scheme(s: &mut Section) -> String {
    s.choice("scheme", &[("http", "http"), ("https", "https")], "http").into()
}

fn consul(s: &mut Section) -> ConsulSource {
    let addr = s.parsed("addr", value::host_and_port);
    ConsulSource {
        addr: addr.unwrap_or_else(|| "localhost:8500".into()),
        scheme: scheme(s),
        token: Secret::new(s.parsed("token", value::header_value).unwrap_or_default()),
        service: s.required("service"),
        tag: s.text("tag").unwrap_or_default(),
        timeout: s.duration("timeout", Duration::from_secs(10)),
        interval: s.duration_opt("interval"),
    }
}

fn kubernetes(s: &mut Section) -> KubernetesSource {
    KubernetesSource {
        namespace: s.text("namespace").unwrap_or_default(),
        service: s.required("service"),
        port: s.int("port", 1..=65535u16, 80),
        label_selector: s.text("label_selector").unwrap_or_default(),
    }
}

fn etcd(s: &mut Section) -> EtcdSource {
    let endpoints = texts(s, "endpoints", &["localhost:2379"]);
    EtcdSource {
        endpoints,
        prefix: s.required("prefix"),
        username: s.text("username").unwrap_or_default(),
        password: Secret::new(s.text("password").unwrap_or_default()),
    }
}

fn database(s: &mut Section, stores: &Stores) -> Option<DatabaseSource> {
    let table = storage::identifier(s, "table", "services");
    let mut fields = SourceFields {
        name: "name".into(),
        url: "url".into(),
        weight: "weight".into(),
        status: "status".into(),
    };
    if let Some(mut columns) = s.section("fields") {
        fields = SourceFields {
            name: storage::identifier(&mut columns, "name", "name"),
            url: storage::identifier(&mut columns, "url", "url"),
            weight: storage::identifier(&mut columns, "weight", "weight"),
            status: storage::identifier(&mut columns, "status", "status"),
        };
    }
    Some(DatabaseSource { sql: storage::sql(s, stores)?, table, fields })
}
