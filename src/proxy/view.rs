//! The view as one worker has it: the configuration in use, the backends with this worker's own
//! connections to them, and whose turn it is. A request keeps the one that it began with.

use super::route::round_robin::RoundRobin;
use super::route::{self, TriedMembers};
use super::upstream::pool::LocalMember;
use crate::config::plan::{KeyForm, Plan};
use crate::state::board::View;
use crate::state::member::{Member, MemberId};
use crate::state::models::GroupId;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// One view of one worker.
pub struct WorkerView {
    /// What all threads share of it.
    pub shared: Arc<View>,
    /// What the configuration means.
    pub plan: Arc<Plan>,
    /// The backends, in the order of the plan.
    pub members: Vec<Rc<LocalMember>>,
    /// Who is next in each group of backends that serve the same models.
    balancers: Vec<RefCell<RoundRobin>>,
    /// The worker's number.
    worker: usize,
    /// How records keep the clients' keys.
    pub key_form: KeyForm,
    /// Models with a label of their own.
    models: HashMap<String, u32>,
    credential_fields: Vec<String>,
}

impl WorkerView {
    /// The first view of worker number `index`.
    pub fn first(shared: Arc<View>, index: usize) -> WorkerView {
        WorkerView::with(shared, index, &HashMap::new(), |weights, _| {
            RoundRobin::new(weights, index)
        })
    }

    /// The next one. Whose turn it is stays as it was; `leaving` are backends of earlier views that
    /// the worker still has connections to.
    pub fn next(&self, shared: Arc<View>, leaving: &[Rc<LocalMember>]) -> WorkerView {
        let known = self.members.iter().chain(leaving).map(|member| (member.id(), member));
        WorkerView::with(shared, self.worker, &known.collect(), |weights, group| {
            self.go_on(weights, group)
        })
    }

    /// The order in which a group of the next view gets its turns: that of the group of this one
    /// which has the most of its backends.
    fn go_on(&self, weights: &[u32], group: &[MemberId]) -> RoundRobin {
        let here: Vec<_> = group.iter().map(|id| self.shared.place(*id)).collect();
        let shares = |places: &[u32]| {
            let is_in =
                |place: &Option<usize>| place.is_some_and(|place| places.contains(&(place as u32)));
            here.iter().filter(|place| is_in(place)).count()
        };
        let groups = self.shared.models.groups().iter().zip(&self.balancers);
        // Of several, the one with the fewest others.
        let nearest = groups.max_by_key(|(places, _)| (shares(places), Reverse(places.len())));
        let Some((places, balancer)) = nearest.filter(|(places, _)| shares(places) > 0) else {
            return RoundRobin::new(weights, self.worker);
        };
        let passes = balancer.borrow().passes(places.len());
        let pass = |place: &Option<usize>| {
            let place = places.iter().position(|known| Some(*known as usize) == *place)?;
            passes.get(place).copied()
        };
        let weighted = weights.iter().copied().zip(here.iter().map(pass));
        RoundRobin::going_on(&weighted.collect::<Vec<_>>())
    }

    fn with(
        shared: Arc<View>,
        worker: usize,
        known: &HashMap<MemberId, &Rc<LocalMember>>,
        balancer: impl Fn(&[u32], &[MemberId]) -> RoundRobin,
    ) -> WorkerView {
        let balancers = shared.models.groups().iter().map(|places| {
            let group = places.iter().filter_map(|place| shared.members().get(*place as usize));
            let weights: Vec<_> = group.clone().map(|member| member.plan.weight).collect();
            let ids: Vec<_> = group.map(|member| member.id()).collect();
            RefCell::new(balancer(&weights, &ids))
        });
        let balancers = balancers.collect();
        let local = |member: &Arc<Member>| {
            let before = known.get(&member.id());
            Rc::new(LocalMember::new(member, before.map(|old| &***old)))
        };
        let plan = Arc::clone(&shared.plan);
        WorkerView {
            members: shared.members().iter().map(local).collect(),
            balancers,
            worker,
            key_form: plan.usage.kept_key_form(),
            models: shared.labelled_models().iter().cloned().zip(0..).collect(),
            // Whether or not keys are checked here: what looks like a key of ours is not for
            // engines.
            credential_fields: match plan.server.forward_credentials {
                true => Vec::new(),
                false => vec!["authorization".into(), "x-api-key".into()],
            },
            plan,
            shared,
        }
    }

    /// Who of a group gets the next try; `None`: all that could be picked were tried.
    pub fn pick(&self, group: GroupId, tried: &TriedMembers) -> Option<&Rc<LocalMember>> {
        let mut balancer = self.balancers.get(group.place())?.borrow_mut();
        let places = self.shared.models.members_of(group);
        self.members.get(route::pick(&mut balancer, (self.shared.members(), places), tried)?)
    }

    /// A backend of this view.
    pub fn member(&self, id: MemberId) -> Option<&Rc<LocalMember>> {
        self.members.get(self.shared.place(id)?)
    }

    /// The label of a model, if it has one of its own.
    pub fn model_label(&self, model: &str) -> Option<u32> {
        self.models.get(model).copied()
    }

    /// Lower-case names of the client's fields that never reach a backend.
    pub fn credential_fields(&self) -> &[String] {
        &self.credential_fields
    }
}

#[cfg(test)]
impl WorkerView {
    /// Of a configuration that has nothing but so many backends.
    pub fn sample(backends: u8) -> WorkerView {
        WorkerView::first(crate::state::board::Board::sample(backends).view(), 0)
    }
}
