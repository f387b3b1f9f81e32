//! A backend that is this very process is refused at start, as far as addresses show it; those that
//! a name stands for are known here. What they do not show (another proxy between, a name that
//! changes) is caught request by request.

use crate::config::circle;
use crate::state::board::View;
use crate::state::member::{Member, MemberId};
use std::net::SocketAddr;
use std::sync::Arc;

/// The numbers of backends at one of the addresses that we listen on.
pub fn those_that_lead_back(view: &View, ours: &[SocketAddr]) -> Vec<MemberId> {
    let members = view.members().iter();
    let ours = |member: &&Arc<Member>| circle::leads_back(ours, &member.addresses()).is_some();
    members.filter(ours).map(|member| member.id()).collect()
}

/// Looks for a backend at one of the addresses that we listen on.
///
/// # Errors
/// There is one; a line for a person.
pub fn check(view: &View, ours: &[SocketAddr]) -> Result<(), String> {
    for member in view.members() {
        if let Some(own) = circle::leads_back(ours, &member.addresses()) {
            return Err(circle::line(&member.plan, own));
        }
    }
    Ok(())
}
