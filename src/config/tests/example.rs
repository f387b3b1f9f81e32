//! `config.yaml.example` names every key and shows every default, or these tests fail.

use super::*;
use crate::config::raw::{Node, ValueKind};
use std::collections::BTreeSet;

pub fn example() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.yaml.example"))
        .unwrap()
}

/// The example with everything that is off by default switched on.
pub fn uncommented() -> String {
    let uncomment = |line: &str| line.strip_prefix("#~ ").unwrap_or(line).to_owned() + "\n";
    example().lines().map(uncomment).collect()
}

#[test]
fn the_example_starts_and_is_nothing_but_defaults() {
    let Loaded { plan, report } = load(&example());
    assert!(report.findings.is_empty(), "{report}");
    assert!(plan.unbuilt.is_empty(), "{:?}", plan.unbuilt);
    let bare = load("backends: [{url: 'http://localhost:8080'}]\nhealth_check:\n").plan;
    assert_eq!(plan, bare);
}

/// The same file without any key that has a default.
pub const BARE: &str = r#"
server:
  listen: ':8000'
  listeners: [{listen: ':8443', tls: true}, {listen: 'unix:/run/llmproxy/clients.sock'}]
  pid_file: /run/llmproxy/llmproxy.pid
  cors: {enabled: true}
  tls:
    enabled: true
    cert_file: /etc/llmproxy/tls.crt
    key_file: /etc/llmproxy/tls.key
    certificates: [{cert_file: /etc/llmproxy/other.crt, key_file: /etc/llmproxy/other.key}]
    client_ca_file: /etc/llmproxy/clients-ca.crt
    client_auth: require
    acme: {domains: [llm.example.com], ca_file: /etc/llmproxy/acme-ca.crt, eab: {kid: kid-1, hmac_key: Y2hhbmdlLW1l}}
logging:
  access:
  request: {enabled: true, storage: main}
backends: [{url: "http://localhost:8080"}, {url: "https://llm.internal/engine", tls: {ca_file: /etc/llmproxy/engines-ca.crt}}]
routing:
  queue: {}
  session_affinity:
  retry:
  fallback: [{primary: "localhost:8080", fallback: ["llm.internal:443"], retry: 1}]
health_check:
auth:
  forward_identity:
  status_codes:
    active: {http_code: 200}
    disabled: {http_code: 403}
    expired: {http_code: 403}
    quota_exceeded: {http_code: 429}
    not_found: {http_code: 401}
  pipeline:
    - {type: file, script: "return {allow = true}"}
    - {type: static}
    - {type: redis}
    - {type: database, database: {storage: main}}
    - {type: webhook, webhook: {url: "http://localhost:9000/auth"}}
    - {type: lua, lua: {path: /etc/llmproxy/auth.lua}}
    - {type: builtin}
api_keys: [{key: sk-llmproxy-example}]
rate_limit:
  global: {requests_per_second: 0}
  per_key: {requests_per_second: 0}
  per_user: {requests_per_second: 0}
  per_model: {"llama-3-*": {requests_per_second: 0}}
usage:
  spool:
  reporters:
    - {webhook: {url: "http://localhost:9000/usage", hmac_secret: change-me}}
    - {type: redis, redis: {tls: true, ca_file: /etc/llmproxy/redis-ca.crt}}
    - {type: database, database: {storage: main}}
    - {type: file, file: {path: /var/log/llmproxy/usage.jsonl, max_age: 24h}}
    - {type: builtin}
metrics: {listen: "127.0.0.1:9100"}
tracing: {otlp: {endpoint: "http://localhost:4318"}}
storage: {databases: [{name: main, driver: sqlite}]}
admin: {enabled: true, token: change-me}
hooks:
  on_request: {enabled: true, path: /etc/llmproxy/on_request.lua}
  on_auth: {enabled: true, script: "return {}"}
  on_route: {enabled: true, script: "return {}"}
  on_response: {enabled: true, script: "return {}"}
  on_error: {enabled: true, script: "return {}"}
  on_complete: {enabled: true, script: "return {}"}
discovery:
  enabled: true
  sources:
    - {type: static, static: {}, common: {ca_file: /etc/llmproxy/engines-ca.crt}}
    - {type: http, http: {url: "http://localhost:9000/backends", interval: 30s}}
    - {type: file, file: {path: /etc/llmproxy/backends.yaml, interval: 30s}}
    - {type: dns, dns: {name: vllm.llm.svc.cluster.local, port: 8000, interval: 30s}}
    - {type: consul, consul: {service: vllm, interval: 30s}}
    - {type: kubernetes, kubernetes: {service: vllm}}
    - {type: etcd, etcd: {prefix: /llmproxy/backends/}}
    - {type: database, database: {storage: main}}
"#;

#[test]
fn what_the_example_keeps_off_shows_defaults_too() {
    let Loaded { plan, report } = load(&uncommented());
    assert!(!report.has_ignored_keys(), "{report}");
    assert_eq!(plan, load(BARE).plan);
}

#[test]
fn the_example_uses_canonical_names_only() {
    let mut tree = raw::parse(&uncommented()).unwrap();
    let before = keys_of(&tree);
    let desk = Desk::new(&env);
    alias::canonical(&desk, &mut tree);
    assert_eq!(before, keys_of(&tree));
}

#[test]
fn the_example_names_every_key_that_is_read() {
    let mut known = load_with_keys("t", &uncommented(), &env).unwrap().1;
    for entry in std::fs::read_dir("tests/fixtures/config").unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        known.extend(load_with_keys("t", &text, &env).unwrap().1);
    }
    let shown: BTreeSet<String> =
        keys_of(&raw::parse(&uncommented()).unwrap()).iter().map(|key| home(key)).collect();
    let missing: Vec<_> = known.iter().filter(|key| !shown.contains(&home(key))).collect();
    assert!(missing.is_empty(), "{missing:#?}");
    assert!(known.len() > 250, "the keys are collected: {}", known.len());
}

/// Several sections hold the same object; its keys are shown at one of them.
fn home(key: &str) -> String {
    let (parent, leaf) = key.rsplit_once('.').unwrap_or(("", key));
    let shared = match parent {
        "auth.pipeline[].static.keys[]" => "api_keys[]",
        "discovery.sources[].static.backends[]" => "backends[]",
        "discovery.sources[].static.backends[].tls" => "backends[].tls",
        "api_keys[].rate_limit" | "auth.pipeline[].static.keys[].rate_limit" => {
            "rate_limit.per_key"
        }
        "auth.pipeline[].lua" | "auth.pipeline[].script" => "hooks.on_request",
        hook if hook.starts_with("hooks.on_") => "hooks.on_request",
        "auth.redis" | "auth.pipeline[].redis" | "rate_limit.redis"
            if !["storage", "key_pattern"].contains(&leaf) =>
        {
            "storage.caches[]"
        }
        // A reporter has one connection: there they are read to be told that they do nothing.
        "usage.reporters[].redis" if ["pool_size", "min_idle_conns"].contains(&leaf) => {
            "storage.caches[]"
        }
        "logging.request"
        | "auth.pipeline[].database"
        | "usage.reporters[].database"
        | "discovery.sources[].database"
            if CONNECTION.contains(&leaf) =>
        {
            "storage.databases[]"
        }
        parent => parent,
    };
    format!("{shared}.{leaf}")
}

const CONNECTION: [&str; 14] = [
    "driver",
    "dsn",
    "path",
    "host",
    "port",
    "socket",
    "user",
    "password",
    "database",
    "options",
    "max_open_conns",
    "max_idle_conns",
    "conn_max_lifetime",
    "conn_max_idle_time",
];

/// Canonical paths of all keys of a tree.
fn keys_of(node: &Node) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    collect(node, "", &mut keys);
    keys
}

fn collect(node: &Node, place: &str, keys: &mut BTreeSet<String>) {
    match &node.kind {
        ValueKind::List(items) => {
            items.iter().for_each(|item| collect(item, &format!("{place}[]"), keys));
        }
        ValueKind::Map(entries) => {
            for entry in entries {
                let name = if place == "rate_limit.per_model" { "*" } else { &entry.key };
                let path = if place.is_empty() { name.into() } else { format!("{place}.{name}") };
                collect(&entry.value, &path, keys);
                keys.insert(path);
            }
        }
        _ => {}
    }
}
