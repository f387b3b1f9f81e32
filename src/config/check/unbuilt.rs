//! What a file may ask for and this version cannot do yet: one line each. Starting with any of
//! them refuses, so that nobody believes in a limit that nobody holds. Each issue that builds one
//! takes its line away.

use crate::config::plan::Plan;

/// The lines for a plan, in the order of the canonical schema.
pub fn lines(plan: &Plan) -> Vec<String> {
    let asked = [
        (plan.log.request.is_some(), "logging.request: the request log"),
        (
            plan.metrics.as_ref().is_some_and(|m| !m.custom_labels.is_empty()),
            "metrics.custom_labels: further labels",
        ),
        (
            cfg!(not(feature = "acme")) && plan.server.tls.iter().any(|tls| tls.acme.is_some()),
            "server.tls.acme: certificates from an authority",
        ),
        (!plan.hooks.is_empty(), "hooks: scripts at points of a request"),
    ];
    let active = asked.iter().filter(|(active, _)| *active);
    active.map(|(_, what)| format!("{what}: not built yet in this version")).collect()
}
