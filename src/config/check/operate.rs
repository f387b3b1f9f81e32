//! `admin`, `hooks`, `discovery`, and scripts wherever they stand.

use super::backend::{backends, Timeouts};
use super::storage::{self, Stores};
use super::{headers, required_url, texts};
use crate::base::secret::Secret;
use crate::config::plan::{
    Admin, ConsulSource, DatabaseSource, Discovery, DiscoveryMode, DiscoverySource, EtcdSource,
    Hook, HookPoint, HttpSource, KubernetesSource, Script, ScriptSource, SourceFields, SourceKind,
    StaticSource,
};
use crate::config::raw::ValueKind;
use crate::config::section::Section;
use crate::config::value::{self, IpRange};
use std::net::SocketAddr;
use std::time::Duration;

/// Reads `admin`. Without a token there is no admin API, whatever else the section says.
pub fn admin(s: &mut Section, taken: &[SocketAddr]) -> Admin {
    let token = s.required("token");
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        s.error("token", "must be of visible ASCII characters: it travels in an HTTP field");
    }
    let path = s.text("db_path").filter(|p| !p.is_empty());
    let allowed_ips = s.list_of_allowed("allowed_ips", IpRange::parse);
    let listen = super::own_listen(s, taken).unwrap_or(([127, 0, 0, 1], 8001).into());
    if !listen.ip().is_loopback() && allowed_ips.is_empty() {
        s.warn("listen", "is open to the network: set allowed_ips, or listen on 127.0.0.1");
    }
    Admin {
        listen,
        token: Secret::new(token),
        db_path: path.unwrap_or_else(|| "./data/keys.db".into()).into(),
        read_only: s.boolean("read_only", false),
        allowed_ips,
    }
}

/// Time and memory of a script that has no bounds of its own.
const SCRIPT_TIMEOUT: Duration = Duration::from_millis(100);
const SCRIPT_MEMORY: u64 = 16 << 20;

/// A script under `key`: its text, or a section with `script` or `path`. Never expanded. One that
/// is there and empty is an error: it would let everyone pass.
pub fn script(section: &mut Section, key: &str) -> Option<Script> {
    let node = section.get(key)?;
    if matches!(node.kind, ValueKind::Map(_)) {
        return section.when_present(key, own_script).flatten();
    }
    let code = section.code(key).unwrap_or_default();
    if code.trim().is_empty() {
        return section
            .desk
            .refuse(node, "has neither `script` nor `path`: it would check nothing");
    }
    let source = ScriptSource::Script(code);
    Some(Script { source, timeout: SCRIPT_TIMEOUT, max_memory: SCRIPT_MEMORY })
}

/// A script that must be there.
fn own_script(s: &mut Section) -> Option<Script> {
    let script = script_section(s);
    if script.is_none() && !s.desk.has_errors() {
        s.error("script", "is required (or `path`)");
    }
    script
}

fn script_section(s: &mut Section) -> Option<Script> {
    let code = s.code("script").filter(|code| !code.trim().is_empty());
    let path = s.text("path").filter(|path| !path.is_empty());
    let timeout = s.duration("timeout", SCRIPT_TIMEOUT);
    let max_memory = s.parsed("max_memory", |t| value::size(t, 64 << 10..=1 << 30));
    let source = match (code, path) {
        (Some(_), Some(_)) => {
            s.error("path", "and `script` are both given: give one");
            return None;
        }
        (Some(code), None) => ScriptSource::Script(code),
        (None, Some(path)) => ScriptSource::Path(path.into()),
        (None, None) => return None,
    };
    Some(Script { source, timeout, max_memory: max_memory.unwrap_or(SCRIPT_MEMORY) })
}

/// Reads `hooks`: each must say whether it is on.
pub fn hooks(root: &mut Section) -> Vec<Hook> {
    let Some(mut s) = root.section("hooks") else { return Vec::new() };
    let why = "a hook is a Lua script; services are asked by auth.pipeline[].webhook";
    s.unsupported(&[("auth_decision", why), ("routing_decision", why), ("webhook", why)]);
    let points = [
        ("on_request", HookPoint::OnRequest),
        ("on_auth", HookPoint::OnAuth),
        ("on_route", HookPoint::OnRoute),
        ("on_response", HookPoint::OnResponse),
        ("on_error", HookPoint::OnError),
        ("on_complete", HookPoint::OnComplete),
    ];
    let mut hooks = Vec::new();
    for (name, point) in points {
        let script = s.when_enabled(name, own_script);
        hooks.extend(script.flatten().map(|script| Hook { point, script }));
    }
    hooks
}

/// Reads `discovery`.
pub fn discovery(s: &mut Section, stores: &Stores) -> Discovery {
    let modes = [("merge", DiscoveryMode::Merge), ("first", DiscoveryMode::First)];
    let mut sources = Vec::new();
    for item in s.sections("sources") {
        sources.extend(item.switched(true, |s| source(s, stores)).flatten());
    }
    if sources.is_empty() {
        s.warn("sources", "discovery is on, but has no source");
    }
    Discovery {
        mode: s.choice("mode", &modes, DiscoveryMode::Merge),
        interval: s.duration("interval", Duration::from_secs(30)),
        sources,
    }
}

fn source(s: &mut Section, stores: &Stores) -> Option<DiscoverySource> {
    s.unsupported(&[("script", "sources are not scripted")]);
    let kinds = ["static", "http", "consul", "kubernetes", "etcd", "database"];
    let kind = s.kind("type", &kinds, true)?;
    let name = s.text("name").filter(|n| !n.is_empty()).unwrap_or_else(|| kind.into());
    let Some(mut inner) = s.section(kind) else {
        s.error(kind, "is required: the source says nothing about itself");
        return None;
    };
    let kind = match kind {
        "http" => SourceKind::Http { http: http(&mut inner) },
        "consul" => SourceKind::Consul { consul: consul(&mut inner) },
        "kubernetes" => SourceKind::Kubernetes { kubernetes: kubernetes(&mut inner) },
        "etcd" => SourceKind::Etcd { etcd: etcd(&mut inner) },
        "database" => SourceKind::Database { database: database(&mut inner, stores)? },
        _ => {
            let backends = backends(&mut inner, "backends", Timeouts::default());
            SourceKind::Static { list: StaticSource { backends } }
        }
    };
    Some(DiscoverySource { name, kind })
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

fn consul(s: &mut Section) -> ConsulSource {
    let addr = s.parsed("addr", value::host_and_port);
    ConsulSource {
        addr: addr.unwrap_or_else(|| "localhost:8500".into()),
        service: s.required("service"),
        tag: s.text("tag").unwrap_or_default(),
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
