//! Backends found at run time: who is asked for them.

use super::{print, Backend, Engine, EngineMetrics, ModelPattern, Sql};
use crate::base::secret::Secret;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Backends found at run time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Discovery {
    /// How several sources add up.
    pub mode: DiscoveryMode,
    /// Between two looks.
    #[serde(serialize_with = "print::duration")]
    pub interval: Duration,
    /// Where to look.
    pub sources: Vec<DiscoverySource>,
}

/// How several sources add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryMode {
    /// All of them; the first wins for a URL that several name.
    Merge,
    /// The first that is not empty.
    First,
}

/// One place to look for backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiscoverySource {
    /// Label in logs and metrics.
    pub name: String,
    /// What its backends have in common.
    pub common: CommonParts,
    /// What it is.
    #[serde(flatten)]
    pub kind: SourceKind,
}

/// What the backends of a source have in common, as far as they do not say it themselves: what name
/// servers and registries cannot say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CommonParts {
    /// Fields set on every forwarded request. `api_key` becomes one of them.
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
    /// Models that they serve; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub models: Vec<ModelPattern>,
    /// Where they stand.
    pub region: String,
    /// What they are.
    pub engine: Engine,
    /// Whether their figures of their load are read.
    pub metrics: EngineMetrics,
    /// Requests that one may have at a time; 0 = any number.
    pub max_concurrent: u32,
    /// For so long one that came has less than its weight.
    #[serde(serialize_with = "print::duration")]
    pub slow_start: Duration,
    /// PEM file of trusted roots, for those that speak TLS; `None` = the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

impl Default for CommonParts {
    fn default() -> Self {
        CommonParts {
            headers: Vec::new(),
            models: Vec::new(),
            region: String::new(),
            engine: Engine::Auto,
            metrics: EngineMetrics::Off,
            max_concurrent: 0,
            slow_start: Duration::ZERO,
            ca_file: None,
        }
    }
}

impl CommonParts {
    /// Gives a backend what it does not say itself: these keys were written for it.
    pub fn give_to(&self, backend: &mut Backend, written: &[String]) {
        let says = |key: &str| written.iter().any(|own| own == key);
        for (name, value) in &self.headers {
            let is_same = |(own, _): &(String, Secret)| own.eq_ignore_ascii_case(name);
            if !backend.headers.iter().any(is_same) {
                backend.headers.push((name.clone(), value.clone()));
            }
        }
        if backend.models.is_empty() {
            backend.models.clone_from(&self.models);
        }
        if backend.region.is_empty() {
            backend.region.clone_from(&self.region);
        }
        if !says("engine") {
            backend.engine = self.engine;
        }
        if !says("metrics") {
            backend.metrics.clone_from(&self.metrics);
        }
        if !says("max_concurrent") {
            backend.max_concurrent = self.max_concurrent;
        }
        if !says("slow_start") {
            backend.slow_start = self.slow_start;
        }
        if let Some(tls) = backend.tls.as_mut().filter(|tls| tls.ca_file.is_none()) {
            tls.ca_file.clone_from(&self.ca_file);
        }
    }
}

impl DiscoverySource {
    /// Between two looks, when the section says `usual`.
    pub fn interval(&self, usual: Duration) -> Duration {
        let own = match &self.kind {
            SourceKind::Http { http } => http.interval,
            SourceKind::File { file } => file.interval,
            SourceKind::Dns { dns } => dns.interval,
            SourceKind::Consul { consul } => consul.interval,
            _ => None,
        };
        own.unwrap_or(usual)
    }
}

/// Kinds of sources.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SourceKind {
    /// A list.
    Static {
        /// The list.
        #[serde(rename = "static")]
        list: StaticSource,
    },
    /// A service that answers with a list.
    Http {
        /// How it is asked.
        http: HttpSource,
    },
    /// A file with a list.
    File {
        /// The file.
        file: FileSource,
    },
    /// A name, each of whose addresses is a backend.
    Dns {
        /// The name.
        dns: DnsSource,
    },
    /// A table of services. Loads, and is not read.
    Database {
        /// The table.
        database: DatabaseSource,
    },
    /// Consul's health endpoint.
    Consul {
        /// How it is asked.
        consul: ConsulSource,
    },
    /// The endpoints of a service. Loads, and is not read.
    Kubernetes {
        /// Which.
        kubernetes: KubernetesSource,
    },
    /// A range of keys. Loads, and is not read.
    Etcd {
        /// Which.
        etcd: EtcdSource,
    },
}

/// A list of backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StaticSource {
    /// Its backends.
    pub backends: Vec<Backend>,
}

/// A service that answers with a list of backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HttpSource {
    /// http or https URL.
    #[serde(serialize_with = "print::url")]
    pub url: Secret,
    /// `GET` or `POST`.
    pub method: String,
    /// Of one question.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Between two questions; `None` = as the section says.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_duration")]
    pub interval: Option<Duration>,
    /// Further fields.
    #[serde(serialize_with = "print::fields")]
    pub headers: Vec<(String, Secret)>,
}

/// A file that has a list of backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileSource {
    /// The file, YAML or JSON.
    pub path: PathBuf,
    /// It is read anew when it changes, and after so long all the same; `None` = as the section
    /// says.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_duration")]
    pub interval: Option<Duration>,
}

/// A name in DNS.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DnsSource {
    /// The name, whole: no search domain is put behind it where a name server is asked.
    pub name: String,
    /// What is asked for.
    pub record: DnsRecord,
    /// Port of each address. An SRV record brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `http` or `https`.
    pub scheme: String,
    /// Base path of each backend; empty or `/base`.
    pub path: String,
    /// The name server; `None` = the system's way of looking names up, and for SRV records the
    /// servers of `/etc/resolv.conf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolver: Option<SocketAddr>,
    /// Of one look.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Between two looks; `None` = as the section says.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_duration")]
    pub interval: Option<Duration>,
}

/// Records of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsRecord {
    /// Its addresses, IPv4 and IPv6.
    Any,
    /// Its IPv4 addresses.
    A,
    /// Its IPv6 addresses.
    Aaaa,
    /// Hosts and ports, with weights and priorities.
    Srv,
}

/// A table whose rows are backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatabaseSource {
    /// The database.
    #[serde(flatten)]
    pub sql: Sql,
    /// The table.
    pub table: String,
    /// Its columns.
    pub fields: SourceFields,
}

/// Names of the columns of a table of backends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SourceFields {
    /// Label.
    pub name: String,
    /// URL.
    pub url: String,
    /// Weight.
    pub weight: String,
    /// `enabled` or `active`, or the row does not count.
    pub status: String,
}

/// A service in Consul.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsulSource {
    /// `host:port` of an agent.
    pub addr: String,
    /// `http` or `https`, of the agent.
    pub scheme: String,
    /// Token that the agent wants; may be empty.
    #[serde(serialize_with = "print::secret")]
    pub token: Secret,
    /// Name of the service.
    pub service: String,
    /// Its tag; empty = any.
    pub tag: String,
    /// Of one question.
    #[serde(serialize_with = "print::duration")]
    pub timeout: Duration,
    /// Between two looks; `None` = as the section says.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "print::maybe_duration")]
    pub interval: Option<Duration>,
}

/// A service in Kubernetes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KubernetesSource {
    /// Its namespace; empty = that of this pod.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// Only pods with these labels; empty = all.
    pub label_selector: String,
}

/// Keys in etcd.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EtcdSource {
    /// `host:port` of its members.
    pub endpoints: Vec<String>,
    /// Beginning of the keys.
    pub prefix: String,
    /// User; may be empty.
    pub username: String,
    /// Password; may be empty.
    #[serde(serialize_with = "print::secret")]
    pub password: Secret,
}
