//! What a file may ask for and this version cannot do yet: one line each. Starting with any of
//! them refuses, so that nobody believes in a limit that nobody holds. Each issue that builds one
//! takes its line away.

use crate::config::plan::{Backend, LoadBalance, Plan, SourceKind, StaticSource};

/// The lines for a plan, in the order of the canonical schema.
pub fn lines(plan: &Plan) -> Vec<String> {
    let routing = &plan.routing;
    let asked = [
        (!plan.server.region.is_empty(), "server.region: choosing backends by region"),
        (
            !plan.server.trusted_proxies.is_empty(),
            "server.trusted_proxies: client addresses from X-Forwarded-For",
        ),
        (plan.server.cors.is_some(), "server.cors: cross-origin answers"),
        (plan.server.tls.is_some(), "server.tls: TLS towards clients"),
        (plan.log.request.is_some(), "logging.request: the request log"),
        (
            routing.load_balance != LoadBalance::RoundRobin,
            "routing.load_balance: any policy but round_robin",
        ),
        (plan.auth.is_some(), "auth: authentication"),
        (plan.rate_limit.is_some(), "rate_limit: rate limits"),
        (
            plan.metrics.as_ref().is_some_and(|m| !m.custom_labels.is_empty()),
            "metrics.custom_labels: further labels",
        ),
        (plan.admin.is_some(), "admin: the admin API"),
        (!plan.hooks.is_empty(), "hooks: scripts at points of a request"),
    ];
    let active = asked.iter().filter(|(active, _)| *active).map(|(_, what)| *what);
    let listed =
        plan.discovery.iter().flat_map(|d| &d.sources).flat_map(|source| match &source.kind {
            SourceKind::Static { list: StaticSource { backends } } => backends.as_slice(),
            _ => &[],
        });
    let backends: Vec<&Backend> = plan.backends.iter().chain(listed).collect();
    let any = |has: &Has| backends.iter().any(|backend| has(backend));
    let of_backends = OF_BACKENDS.iter().filter(|(has, _)| any(has)).map(|(_, what)| *what);
    active.chain(of_backends).map(line).collect()
}

type Has = fn(&Backend) -> bool;

/// What a backend asks for in vain.
const OF_BACKENDS: [(Has, &str); 2] = [
    (|b| !b.region.is_empty(), "backends[].region: choosing backends by region"),
    (|b| b.backup, "backends[].backup: standby backends"),
];

/// The line for a backend that was found while the process runs.
pub fn of_backend(backend: &Backend) -> Option<String> {
    let (_, what) = OF_BACKENDS.iter().find(|(has, _)| has(backend))?;
    Some(line(what))
}

fn line(what: &str) -> String {
    format!("{what}: not built yet in this version")
}
