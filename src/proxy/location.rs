//! References in answers that name a backend. Engines build them from the address at which we asked
//! them; a client that followed one would go around us, unmetered and with our address for it.

use super::worker::Worker;
use crate::config::plan::{Backend, Endpoint};
use crate::http::reference::{below, without_slashes, Authority, Reference};

/// The path here of a reference in an answer of backend `answering`, without the slash at its
/// start; `None` when it may stay as it is. A path is a whole reference (RFC 9110 section 10.2.2),
/// and for the client it is one of ours, however it came to us.
pub fn at_ours<'v>(w: &Worker, answering: u32, value: &'v [u8]) -> Option<&'v [u8]> {
    let own = w.backend(answering)?;
    match Reference::parse(value) {
        Reference::Other => None,
        Reference::Here(_) if own.root_path().is_empty() => None,
        Reference::Here(path) => below(path, own.root_path()).map(without_slashes),
        Reference::Elsewhere(authority, path) => {
            let all = w.plan.backends.iter().enumerate();
            let named = all.filter(|(index, plan)| is_named(w, *index, plan, &authority));
            let mut bases: Vec<&Backend> = named.map(|(_, plan)| plan).collect();
            // Backends may share an address and differ in their bases: the one that answered knows
            // its own.
            bases.sort_by_key(|plan| !std::ptr::eq(*plan, own));
            let base = bases.iter().find_map(|plan| below(path, plan.root_path()));
            (!bases.is_empty()).then(|| without_slashes(base.unwrap_or(path)))
        }
    }
}

/// True for the address in the backend's URL, one that its name stands for, and the `Host` under
/// which we ask it, however they are written. No name is looked up for it.
fn is_named(w: &Worker, index: usize, plan: &Backend, authority: &Authority<'_>) -> bool {
    let is_host = authority.text.eq_ignore_ascii_case(plan.host.as_bytes());
    let is_endpoint = match &plan.endpoint {
        Endpoint::Tcp { host, port } => authority.is(host, *port),
        Endpoint::Unix(_) => false,
    };
    let is_address = || {
        let addresses = w.fleet.get(index).map(|member| member.addresses());
        addresses.is_some_and(|addresses| addresses.iter().any(|at| authority.is_at(*at)))
    };
    is_host || is_endpoint || is_address()
}
