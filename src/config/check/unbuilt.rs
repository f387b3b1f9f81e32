//! What a file may ask for and this version cannot do yet: one line each. Starting with any of
//! them refuses, so that nobody believes in a limit that nobody holds. Each issue that builds one
//! takes its line away.

use crate::config::plan::{LimitStorage, Plan, Provider, ProviderKind};

/// Whether a provider that is asked about keys is such a one.
fn asks(plan: &Plan, is_such: impl Fn(&Provider) -> bool) -> bool {
    plan.auth.iter().flat_map(|auth| &auth.pipeline).any(is_such)
}

/// Whether limits are to be counted on a server.
fn is_shared(plan: &Plan) -> bool {
    plan.rate_limit.as_ref().is_some_and(|limits| limits.storage != LimitStorage::Memory)
}

/// The lines for a plan, in the order of the canonical schema.
pub fn lines(plan: &Plan) -> Vec<String> {
    let asked = [
        (
            !plan.server.trusted_proxies.is_empty(),
            "server.trusted_proxies: client addresses from X-Forwarded-For",
        ),
        (plan.server.cors.is_some(), "server.cors: cross-origin answers"),
        (plan.server.tls.is_some(), "server.tls: TLS towards clients"),
        (plan.log.request.is_some(), "logging.request: the request log"),
        (asks(plan, |p| matches!(p.kind, ProviderKind::Lua { .. })), "auth: keys of a script"),
        (asks(plan, |p| p.script.is_some()), "auth: scripts of providers"),
        (is_shared(plan), "rate_limit.storage: redis: limits of several gateways together"),
        (
            plan.metrics.as_ref().is_some_and(|m| !m.custom_labels.is_empty()),
            "metrics.custom_labels: further labels",
        ),
        (!plan.hooks.is_empty(), "hooks: scripts at points of a request"),
    ];
    let active = asked.iter().filter(|(active, _)| *active);
    active.map(|(_, what)| format!("{what}: not built yet in this version")).collect()
}
