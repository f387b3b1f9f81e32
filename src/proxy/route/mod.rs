//! Where to: which backend gets the next try.
//!
//! *Takes:* the health of a view's backends and what was tried already. *Gives:* the place of one
//! in that view. *Runs on:* workers, each with a state of its own. *May:* read atomics. *Never:*
//! waits, allocates per pick.

pub mod round_robin;
pub mod tries;

use crate::base::limits::TRIED_MAX;
use crate::state::member::{Member, MemberId};
use round_robin::RoundRobin;
use std::cell::OnceCell;
use std::sync::Arc;

/// The backends that one request has tried; there are at most [`TRIED_MAX`].
#[derive(Debug, Clone, Default)]
pub struct TriedMembers {
    backends: [Option<MemberId>; TRIED_MAX],
    count: u8,
}

impl TriedMembers {
    /// Notes a try.
    pub fn add(&mut self, backend: MemberId) {
        if let Some(slot) = self.backends.get_mut(usize::from(self.count)) {
            *slot = Some(backend);
            self.count += 1;
        }
    }

    /// Number of tries noted.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// True before the first try.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The same as if this had been the only one.
    pub fn only(backend: MemberId) -> TriedMembers {
        let mut tried = TriedMembers::default();
        tried.add(backend);
        tried
    }

    /// True when it was tried.
    pub fn contains(&self, backend: MemberId) -> bool {
        self.backends.contains(&Some(backend))
    }
}

/// Who may be picked besides those that are well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Others {
    /// One request at a time, to an ejected backend whose pause is over.
    Scouts,
    /// The ejected ones: they are most of those that probes leave. That so many fail at once says
    /// more about us, or about the way there, than about them; and the few that are left would
    /// drown.
    Ejected,
    /// All: probes leave none. A probe can be wrong, and an answer beats a 503.
    All,
}

impl Others {
    fn of<'a>(group: impl Iterator<Item = &'a Arc<Member>> + Clone) -> Others {
        let passing = group.clone().filter(|member| member.passes_probes()).count();
        let well = group.filter(|member| member.is_healthy()).count();
        match passing {
            0 => Others::All,
            _ if 2 * well < passing => Others::Ejected,
            _ => Others::Scouts,
        }
    }
}

/// The place of the next backend of a group, which is given by the places of its members: by weight
/// among the healthy ones not tried yet, or among others when these are too few. `None` when all
/// that could be picked were tried.
pub fn pick(
    balancer: &mut RoundRobin,
    (members, group): (&[Arc<Member>], &[u32]),
    tried: &TriedMembers,
) -> Option<usize> {
    let all = group.iter().filter_map(|place| members.get(*place as usize));
    // Looked at only when somebody is not well: there may be many.
    let others = OnceCell::new();
    let eligible = |turn: u32| {
        let member = group.get(turn as usize).and_then(|place| members.get(*place as usize));
        member.filter(|member| !tried.contains(member.id())).is_some_and(|member| {
            member.is_healthy()
                || match others.get_or_init(|| Others::of(all.clone())) {
                    Others::All => true,
                    Others::Ejected => member.passes_probes(),
                    // Whoever has failed elsewhere already is not asked to try.
                    Others::Scouts => tried.is_empty() && member.passes_probes() && member.admit(),
                }
        })
    };
    let picked = match tried.is_empty() {
        true => balancer.pick(eligible),
        false => balancer.stand_in(eligible),
    };
    group.get(picked? as usize).map(|place| *place as usize)
}

/// True when a backend of a group is well that was not tried.
pub fn has_other<'a>(
    mut group: impl Iterator<Item = &'a Arc<Member>>,
    tried: &TriedMembers,
) -> bool {
    group.any(|member| member.is_healthy() && !tried.contains(member.id()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fault::Fault;
    use crate::base::limits::FAILED_CONNECTS_MAX;
    use crate::config::plan::Backend;
    use crate::state::repute::{Change, Evidence};

    fn members(count: usize) -> (RoundRobin, Vec<Arc<Member>>) {
        let member = |n| Arc::new(Member::new(Backend::sample(&format!("engine-{n}")), None));
        (RoundRobin::new(&vec![1; count], 0), (0..count).map(member).collect())
    }

    fn eject(member: &Member) {
        for _ in 0..FAILED_CONNECTS_MAX {
            member.hear(Evidence::NoConnection(Fault::ConnectFailed));
        }
        assert!(!member.is_healthy());
    }

    /// Who gets the next requests, in order of number and without repetition.
    fn picked(balancer: &mut RoundRobin, members: &[Arc<Member>]) -> Vec<usize> {
        let all: Vec<u32> = (0..members.len() as u32).collect();
        let pick = |_| pick(balancer, (members, &all), &TriedMembers::default()).unwrap();
        let mut picked: Vec<usize> = (0..4 * members.len()).map(pick).collect();
        picked.sort_unstable();
        picked.dedup();
        picked
    }

    #[test]
    fn the_sick_are_left_out_unless_all_are_sick() {
        let (mut balancer, members) = members(2);
        members[0].set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &members), [1]);
        members[1].set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &members), [0, 1]);
        let mut tried = TriedMembers::default();
        tried.add(members[0].id());
        tried.add(members[1].id());
        assert_eq!(pick(&mut balancer, (&members, &[0, 1]), &tried), None);
    }

    /// Catches: an ejected backend that gets traffic; survivors that drown when most are ejected; a
    /// backend that probes rule out taken in because others are ejected.
    #[test]
    fn the_ejected_are_left_out_unless_they_are_most() {
        let (mut balancer, members) = members(4);
        eject(&members[0]);
        assert_eq!(picked(&mut balancer, &members), [1, 2, 3]);
        eject(&members[1]);
        assert_eq!(picked(&mut balancer, &members), [2, 3]);
        eject(&members[2]);
        assert_eq!(picked(&mut balancer, &members), [0, 1, 2, 3]);
        members[1].set_passes_probes(false);
        assert_eq!(picked(&mut balancer, &members), [0, 2, 3]);
        assert_eq!(members[0].hear(Evidence::Good), Some(Change::Back));
        assert_eq!(picked(&mut balancer, &members), [0, 3]);
    }

    #[test]
    fn another_is_one_that_is_well_and_was_not_tried() {
        let (_, members) = members(2);
        assert!(has_other(members.iter(), &TriedMembers::only(members[0].id())));
        eject(&members[1]);
        assert!(!has_other(members.iter(), &TriedMembers::only(members[0].id())));
        assert!(has_other(members.iter(), &TriedMembers::only(members[1].id())));
    }
}
