//! Administration, hooks and discovery.

use super::{print, Backend, Script, Sql};
use crate::base::secret::Secret;
use crate::config::value::IpRange;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The administrators' API, on a listener of its own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Admin {
    /// Its listener.
    pub listen: SocketAddr,
    /// What a request must show; never empty.
    #[serde(serialize_with = "print::secret")]
    pub token: Secret,
    /// File of the store of keys.
    pub db_path: PathBuf,
    /// True to refuse every change.
    pub read_only: bool,
    /// Clients that may ask; empty = all.
    #[serde(serialize_with = "print::texts")]
    pub allowed_ips: Vec<IpRange>,
}

/// A script run at a point of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook {
    /// When it runs.
    pub point: HookPoint,
    /// What runs.
    pub script: Script,
}

/// Points of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HookPoint {
    /// After the body was read.
    OnRequest,
    /// After admission.
    OnAuth,
    /// After a backend was chosen.
    OnRoute,
    /// When the answer begins.
    OnResponse,
    /// When the request failed.
    OnError,
    /// When all is over.
    OnComplete,
}

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
    /// What it is.
    #[serde(flatten)]
    pub kind: SourceKind,
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
    /// A table of services.
    Database {
        /// The table.
        database: DatabaseSource,
    },
    /// Consul's health endpoint.
    Consul {
        /// How it is asked.
        consul: ConsulSource,
    },
    /// The endpoints of a service.
    Kubernetes {
        /// Which.
        kubernetes: KubernetesSource,
    },
    /// A range of keys.
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
    /// Name of the service.
    pub service: String,
    /// Its tag; empty = any.
    pub tag: String,
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
