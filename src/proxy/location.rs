//! References in answers that name a backend. Engines build them from the address at which we asked
//! them; a client that followed one would go around us, unmetered and with our address for it.

use crate::config::plan::{Backend, Endpoint};
use crate::http::reference::{below, without_slashes, Authority, Reference};
use crate::state::member::Member;
use std::sync::Arc;

/// The path here of a reference in an answer of the backend `own`, one of `members`, without the
/// slash at its start; `None` when it may stay as it is. A path is a whole reference (RFC 9110
/// section 10.2.2), and for the client it is one of ours, however it came to us.
pub fn at_ours<'v>(members: &[Arc<Member>], own: &Backend, value: &'v [u8]) -> Option<&'v [u8]> {
    match Reference::parse(value) {
        Reference::Other => None,
        Reference::Here(_) if own.root_path().is_empty() => None,
        Reference::Here(path) => below(path, own.root_path()).map(without_slashes),
        Reference::Elsewhere(authority, path) => {
            let named = members.iter().filter(|member| is_named(member, &authority));
            let mut bases: Vec<&Backend> = named.map(|member| &member.plan).collect();
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
fn is_named(member: &Member, authority: &Authority<'_>) -> bool {
    let plan = &member.plan;
    let is_host = authority.text.eq_ignore_ascii_case(plan.host.as_bytes());
    let is_endpoint = match &plan.endpoint {
        Endpoint::Tcp { host, port } => authority.is(host, *port),
        Endpoint::Unix(_) => false,
    };
    let is_address = || member.addresses().iter().any(|at| authority.is_at(*at));
    is_host || is_endpoint || is_address()
}
