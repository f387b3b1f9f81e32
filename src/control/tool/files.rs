//! The files that a start reads, for `llmproxy check`: who changes one and restarts should not have
//! to find out then.

use crate::config::plan::Plan;
use crate::control::{acme, scripts, tls};
use crate::usage::reporter;
use std::sync::Arc;

/// Why they keep this plan from starting: a line for each key. Empty = they do not. Blocks.
pub fn unusable(plan: &Plan) -> Vec<String> {
    let mut system_roots = None;
    let mut found: Vec<String> = tls::client_tls(plan, &Arc::default()).err().into_iter().collect();
    if let Some(acme) = plan.server.tls.as_ref().and_then(|tls| tls.acme.as_ref()) {
        found.extend(acme::look(acme).err());
    }
    for (index, backend) in plan.backends.iter().enumerate() {
        let config =
            backend.tls.as_ref().map(|it| tls::settings_of(backend, it, &mut system_roots));
        if let Some(Err(error)) = config {
            found.push(format!("backends[{index}].tls: backend {}: {error}", backend.name));
        }
    }
    for (index, reporter) in plan.usage.reporters.iter().enumerate() {
        if let Err(error) = reporter::readable(reporter) {
            found.push(format!("usage.reporters[{index}]: {error}"));
        }
    }
    found.extend(scripts::read(plan).err());
    found
}
