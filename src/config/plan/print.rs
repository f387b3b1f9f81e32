//! The plan as YAML in the canonical schema: what `llmproxy check` shows. Secrets are masked;
//! apart from them, what is printed loads again and means the same (a test holds this).

use super::*;
use crate::base::secret::Secret;
use crate::config::value::print_duration;
use serde::ser::{SerializeMap, Serializer};
use serde::Serialize;
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::time::Duration;

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("server", &self.server)?;
        map.serialize_entry("log", &self.log)?;
        if self.log.access.is_some() || self.log.request.is_some() {
            let parts = Logging { access: &self.log.access, request: &self.log.request };
            map.serialize_entry("logging", &parts)?;
        }
        map.serialize_entry("backends", &self.backends)?;
        map.serialize_entry("routing", &self.routing)?;
        entry(&mut map, "health_check", &self.health_check)?;
        if let Some(auth) = &self.auth {
            map.serialize_entry("auth", auth)?;
        }
        if !self.api_keys.is_empty() {
            map.serialize_entry("api_keys", &self.api_keys)?;
        }
        entry(&mut map, "rate_limit", &self.rate_limit)?;
        if self.counters != CountersPlan::default() {
            map.serialize_entry("counters", &self.counters)?;
        }
        map.serialize_entry("usage", &self.usage)?;
        entry(&mut map, "metrics", &self.metrics)?;
        if let Some(otlp) = &self.tracing {
            map.serialize_entry("tracing", &BTreeMap::from([("otlp", otlp)]))?;
        }
        if let Some(admin) = &self.admin {
            map.serialize_entry("admin", &Enabled::new(admin))?;
        }
        if !self.hooks.is_empty() {
            let hooks: Vec<_> =
                self.hooks.iter().map(|h| (h.point, Enabled::new(&h.script))).collect();
            map.serialize_entry("hooks", &Pairs(&hooks))?;
        }
        if let Some(discovery) = &self.discovery {
            map.serialize_entry("discovery", &Enabled::new(discovery))?;
        }
        map.end()
    }
}

/// A section, or `enabled: false` so that one sees that it is off.
fn entry<M: SerializeMap, T: Serialize>(
    map: &mut M,
    key: &'static str,
    section: &Option<T>,
) -> Result<(), M::Error> {
    match section {
        Some(section) => map.serialize_entry(key, section),
        None => map.serialize_entry(key, &BTreeMap::from([("enabled", false)])),
    }
}

#[derive(Serialize)]
struct Logging<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    access: &'a Option<AccessLog>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "enabled")]
    request: &'a Option<RequestLog>,
}

/// A section that is off unless it says that it is on.
#[derive(Serialize)]
struct Enabled<'a, T> {
    enabled: bool,
    #[serde(flatten)]
    section: &'a T,
}

impl<'a, T> Enabled<'a, T> {
    fn new(section: &'a T) -> Self {
        Enabled { enabled: true, section }
    }
}

/// What is reserved of a quota.
pub fn quota_reserve<S: Serializer>(reserves: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *reserves { "estimate" } else { "none" })
}

/// A list of pairs as a mapping, in its order.
pub struct Pairs<'a, K, V>(pub &'a [(K, V)]);

impl<K: Serialize, V: Serialize> Serialize for Pairs<'_, K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(k, v)| (k, v)))
    }
}

impl Serialize for LogOutput {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            LogOutput::Stdout => map.serialize_entry("output", "stdout")?,
            LogOutput::Stderr => map.serialize_entry("output", "stderr")?,
            LogOutput::File(path) => {
                map.serialize_entry("output", "file")?;
                map.serialize_entry("file", &BTreeMap::from([("path", path)]))?;
            }
        }
        map.end()
    }
}

impl Serialize for Reporter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.name)?;
        map.serialize_entry("api_key", &self.api_key)?;
        match &self.kind {
            ReporterKind::Webhook(webhook) => {
                map.serialize_entry("type", "webhook")?;
                map.serialize_entry("format", &webhook.format)?;
                map.serialize_entry("webhook", webhook)?;
            }
            ReporterKind::Database(database) => {
                map.serialize_entry("type", "database")?;
                map.serialize_entry("database", database)?;
            }
            ReporterKind::Redis(redis) => {
                map.serialize_entry("type", "redis")?;
                map.serialize_entry("redis", redis)?;
            }
            ReporterKind::File(file) => {
                map.serialize_entry("type", "file")?;
                map.serialize_entry("format", &file.format)?;
                map.serialize_entry("file", file)?;
            }
            ReporterKind::Builtin(builtin) => {
                map.serialize_entry("type", "builtin")?;
                map.serialize_entry("builtin", builtin)?;
            }
        }
        map.end()
    }
}

/// What stands for a secret.
pub fn mask(secret: &Secret) -> Cow<'static, str> {
    masked(secret.reveal())
}

fn masked(text: &str) -> Cow<'static, str> {
    match MARKS.get() {
        _ if text.is_empty() => "".into(),
        false => "***".into(),
        true => format!("***{MARK}{:016x}{MARK}", hash_of(text)).into(),
    }
}

thread_local! {
    /// True while a plan is printed to be compared.
    static MARKS: Cell<bool> = const { Cell::new(false) };
}

/// Stands around the hash of a secret where plans are compared. No file has it in a value.
const MARK: char = '\u{f8ff}';

/// A number that tells secrets apart. It is keyed at random and never shown.
fn hash_of(text: &str) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one(text)
}

/// A plan as printed, to be compared with another one: two secrets are equal there only if they
/// are. [`shown`] makes text for a person of its values.
pub(in crate::config) fn compared(plan: &Plan) -> serde_json::Value {
    MARKS.set(true);
    // Fails only for a path that is not UTF-8, which no file can bring.
    let value = serde_json::to_value(plan).unwrap_or_default();
    MARKS.set(false);
    value
}

/// A value of [`compared`] as [`print`](crate::config::print) shows it.
pub(in crate::config) fn shown(text: &str) -> String {
    text.split(MARK).step_by(2).collect()
}

pub fn secret<S: Serializer>(secret: &Secret, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&mask(secret))
}

/// A URL whose query, which may hold a token, is masked.
pub fn url<S: Serializer>(url: &Secret, s: S) -> Result<S::Ok, S::Error> {
    match url.reveal().split_once('?') {
        Some((before, query)) => s.serialize_str(&format!("{before}?{}", masked(query))),
        None => s.serialize_str(url.reveal()),
    }
}

/// Header fields; every value counts as a secret.
pub fn fields<S: Serializer>(fields: &[(String, Secret)], s: S) -> Result<S::Ok, S::Error> {
    s.collect_map(fields.iter().map(|(name, value)| (name, mask(value))))
}

pub fn enabled<T: Serialize, S: Serializer>(section: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
    section.as_ref().map(Enabled::new).serialize(s)
}

/// Permissions as `chmod` has them.
pub fn mode<S: Serializer>(mode: &Option<u32>, s: S) -> Result<S::Ok, S::Error> {
    mode.map(|mode| format!("{mode:04o}")).serialize(s)
}

pub fn duration<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&print_duration(*duration))
}

pub fn maybe_duration<S: Serializer>(duration: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    duration.map(print_duration).serialize(s)
}

pub fn or_unlimited<S: Serializer>(value: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&value.map_or("unlimited".into(), print_duration))
}

pub fn or_auto<S: Serializer, T: Serialize>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => value.serialize(s),
        None => s.serialize_str("auto"),
    }
}

pub fn or_false<S: Serializer>(value: &Option<usize>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(number) => number.serialize(s),
        None => s.serialize_bool(false),
    }
}

pub fn or_off<T: Serialize, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(section) => section.serialize(s),
        None => BTreeMap::from([("enabled", false)]).serialize(s),
    }
}

pub fn address_or_off<S: Serializer>(
    value: &Option<std::net::SocketAddr>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(address) => address.serialize(s),
        None => s.serialize_str("off"),
    }
}

pub fn cpus<S: Serializer>(cpus: &[usize], s: S) -> Result<S::Ok, S::Error> {
    if cpus.is_empty() {
        return s.serialize_str("off");
    }
    cpus.serialize(s)
}

pub fn texts<T: Display, S: Serializer>(items: &[T], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(items.iter().map(|item| item.to_string()))
}

/// A list of one as its only item.
pub fn one_or_more<T: Serialize, S: Serializer>(items: &[T], s: S) -> Result<S::Ok, S::Error> {
    match items {
        [one] => one.serialize(s),
        items => items.serialize(s),
    }
}

pub fn maybe_text<T: Display, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(|v| v.to_string()).serialize(s)
}

pub fn pairs<S: Serializer>(items: &[(String, String)], s: S) -> Result<S::Ok, S::Error> {
    Pairs(items).serialize(s)
}

pub fn status_codes<S: Serializer>(
    codes: &[(KeyState, StatusCode)],
    s: S,
) -> Result<S::Ok, S::Error> {
    Pairs(codes).serialize(s)
}

pub fn per_model<S: Serializer>(
    limits: &[(ModelPattern, Limits)],
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_map(limits.iter().map(|(pattern, limits)| (pattern.to_string(), limits)))
}

pub fn statuses<S: Serializer>(statuses: &[u16], s: S) -> Result<S::Ok, S::Error> {
    if statuses.is_empty() {
        return s.serialize_str("2xx");
    }
    statuses.serialize(s)
}

/// The access log calls its text form by the name of the format it resembles.
pub fn access_format<S: Serializer>(format: &LogFormat, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(match format {
        LogFormat::Json => "json",
        LogFormat::Text => "combined",
    })
}

/// Milliseconds printed as the seconds in which buckets are configured.
pub fn seconds<S: Serializer>(milliseconds: &[u64], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(milliseconds.iter().map(|ms| *ms as f64 / 1000.0))
}

impl Display for RetryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RetryOn::ConnectFailure => f.write_str("connect_failure"),
            RetryOn::Timeout => f.write_str("timeout"),
            RetryOn::ServerError => f.write_str("5xx"),
            RetryOn::Status(status) => write!(f, "{status}"),
        }
    }
}

pub fn fsync<S: Serializer>(fsync: &Fsync, s: S) -> Result<S::Ok, S::Error> {
    match fsync {
        Fsync::Always => s.serialize_str("always"),
        Fsync::Off => s.serialize_str("off"),
        Fsync::Every(interval) => duration(interval, s),
    }
}
