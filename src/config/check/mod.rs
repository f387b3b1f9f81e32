//! From the canonical tree to the plan: every key read, every value checked, every default given.
//! A mistake is noted and the reading goes on with a default, so that one run tells them all.
//!
//! *Takes:* the canonical tree. *Gives:* a plan and findings. *Runs on:* the main thread. *May:*
//! allocate freely. *Never:* reads a file, stops at the first mistake.

mod acme;
mod auth;
mod backend;
mod discovery;
mod key;
mod limit;
mod listeners;
mod log;
mod operate;
mod routing;
mod server;
mod storage;
mod tracing;
mod unbuilt;
mod usage;
mod watch;

use super::desk::Desk;
use super::plan::{Backend, Plan, Routing, Server};
use super::raw::{MapEntry, Node, ValueKind};
use super::section::Section;
use super::{alias, value};
use crate::base::secret::Secret;
use backend::Timeouts;
use std::net::SocketAddr;

/// Reads the whole file; `None`, with an error, when it is no mapping at all.
pub fn plan(desk: &Desk, root: &Node) -> Option<Plan> {
    let mut root = Section::open(desk, root, "")?;
    unsupported(&mut root);
    let stores = storage::stores(&mut root);
    let server = server::server(&mut root);
    let log = log::log(&mut root, &stores);
    let (routing, backends) = routing::routing(&mut root);
    let is_silent = !root.has("health_check");
    let mut health_check = root.when_present("health_check", watch::health_check);
    let discovery = root
        .when_enabled("discovery", |s| discovery::discovery(s, &stores, Timeouts::of(&routing)));
    // Without probes, an engine that hangs is noticed by its clients, who wait for it meanwhile. Of
    // a single backend nobody could make use of the knowledge.
    if is_silent && (backends.len() > 1 || discovery.is_some()) {
        health_check = Some(watch::default_probes());
    }
    if health_check.is_none() {
        watch::unprobed(&mut root);
    }
    // Discovery may find near ones.
    if discovery.is_none() {
        doubt_region(&root, &server.region, &backends);
    }
    let auth::Keys { auth, api_keys } = auth::keys(&mut root, &stores);
    let metrics = watch::metrics(&mut root, &listeners(&server));
    if let Some(page) = metrics.as_ref().filter(|page| page.listen.is_none()) {
        if server.paths.contains(&page.path) {
            let path = &page.path;
            root.warn(
                "server",
                format!("paths: `{path}` is the metrics page and goes to no backend"),
            );
        }
    }
    let mut taken = listeners(&server);
    taken.extend(metrics.as_ref().and_then(|m| m.listen));
    let mut plan = Plan {
        server,
        log,
        backends,
        routing,
        health_check,
        auth,
        rate_limit: root.when_present("rate_limit", |s| limit::rate_limit(s, &stores)),
        counters: root.section("counters").map(|mut s| limit::counters(&mut s)).unwrap_or_default(),
        usage: root.when_present("usage", |s| usage::usage(s, &stores)).unwrap_or_default(),
        metrics,
        tracing: tracing::tracing(&mut root),
        admin: root.when_enabled("admin", |s| operate::admin(s, &taken)),
        hooks: operate::hooks(&mut root),
        discovery,
        api_keys,
        unbuilt: Vec::new(),
    };
    plan.unbuilt = unbuilt::lines(&plan);
    stores.report_unused(desk);
    Some(plan)
}

/// Reads a backend that was found while the process runs, as if it stood in the file. `None`, with
/// an error, when it cannot be used.
pub fn found_backend(desk: &Desk, row: Node, routing: &Routing) -> Option<Backend> {
    let (id, path) = (row.id, row.path.clone());
    let list = Node { id, path: path.clone(), kind: ValueKind::List(vec![row]) };
    let entry = MapEntry { key: "backends".into(), key_id: id, value: list };
    let mut root = Node { id, path, kind: ValueKind::Map(vec![entry]) };
    alias::canonical(desk, &mut root);
    let mut section = Section::open(desk, &root, "")?;
    backend::backends(&mut section, "backends", Timeouts::of(routing)).pop()
}

/// Most likely one of the names is misspelt.
fn doubt_region(root: &Section, region: &str, backends: &[Backend]) {
    let is_near = |backend: &Backend| backend.region == region;
    if !region.is_empty() && !backends.is_empty() && !backends.iter().any(is_near) {
        let region = value::quoted(region);
        root.warn("server", format!("region: no backend is in {region}: all of them are far"));
    }
}

/// Sections of other versions and other gateways that LLMProxy will not have.
fn unsupported(root: &mut Section) {
    root.unsupported(&[
        ("cache", "LLMProxy never caches answers"),
        ("scripts", "no version ever ran them; `hooks` and `auth.pipeline[].script` exist"),
        ("models", "`/v1/models` lists what the engines have, and `routing.model_mapping`"),
    ]);
}

/// Where clients come.
fn listeners(server: &Server) -> Vec<SocketAddr> {
    let plain = server.tls.as_ref().and_then(|tls| tls.acme.as_ref()?.http_listen);
    server.addresses().into_iter().chain(plain).collect()
}

/// A listener of a section's own. Workers share their port by SO_REUSEPORT: a second listener on
/// the same address would bind without an error and take a part of the clients' connections.
fn own_listen(s: &mut Section, taken: &[SocketAddr]) -> Option<SocketAddr> {
    s.parsed("listen", |text| {
        let address = value::listen(text)?;
        match taken.iter().find(|other| value::overlap(**other, address)) {
            Some(other) => {
                Err(format!("{} is taken by the listener on {other}", value::quoted(text)))
            }
            None => Ok(address),
        }
    })
}

/// HTTP fields to set, `headers: {Name: value}`.
fn headers(section: &mut Section) -> Vec<(String, Secret)> {
    let mut headers: Vec<(String, Secret)> = Vec::new();
    for (name, node) in section.named("headers") {
        let desk = section.desk;
        if let Err(message) = value::header_name(&name) {
            desk.error(node, message);
        } else if headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(&name)) {
            desk.error(node, "given twice (field names do not tell case apart)");
        } else if let Some(text) = desk.parse(node, value::header_value) {
            headers.push((name, Secret::new(text)));
        }
    }
    headers
}

/// A list of texts that must not be empty, or a default.
fn texts(section: &mut Section, key: &str, default: &[&str]) -> Vec<String> {
    let given = section.list(key, value::nonempty);
    given.unwrap_or_else(|| default.iter().map(|t| (*t).to_owned()).collect())
}

/// An `http` or `https` URL that must be given. Kept as it is written: it may hold a token.
fn required_url(section: &mut Section, key: &str) -> Secret {
    let read = |text: &str| value::http_url(text).map(|_| Secret::new(text));
    section.required_parsed(key, read).unwrap_or_default()
}
