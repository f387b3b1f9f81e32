//! The view as one worker has it: the configuration in use, the backends with this worker's own
//! connections to them, and whose turn it is. A request keeps the one that it began with.

use super::route::round_robin::RoundRobin;
use super::upstream::pool::LocalMember;
use crate::config::plan::{KeyForm, Plan};
use crate::state::board::View;
use crate::state::member::{Member, MemberId};
use std::cell::RefCell;
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
    /// Who is next.
    pub balancer: RefCell<RoundRobin>,
    /// How records keep the clients' keys.
    pub key_form: KeyForm,
    /// Models with a label of their own.
    models: HashMap<String, u32>,
    credential_fields: Vec<String>,
}

impl WorkerView {
    /// The first view of worker number `index`.
    pub fn first(shared: Arc<View>, index: usize) -> WorkerView {
        let weights: Vec<_> = shared.members().iter().map(|member| member.plan.weight).collect();
        WorkerView::with(shared, RoundRobin::new(&weights, index), &HashMap::new())
    }

    /// The next one. Whose turn it is stays as it was; `leaving` are backends of earlier views that
    /// the worker still has connections to.
    pub fn next(&self, shared: Arc<View>, leaving: &[Rc<LocalMember>]) -> WorkerView {
        let passes = self.balancer.borrow().passes(self.members.len());
        let weighted = shared.members().iter().map(|member| {
            let place = self.shared.place(member.id());
            (member.plan.weight, place.and_then(|place| passes.get(place)).copied())
        });
        let balancer = RoundRobin::going_on(&weighted.collect::<Vec<_>>());
        let known = self.members.iter().chain(leaving).map(|member| (member.id(), member));
        WorkerView::with(shared, balancer, &known.collect())
    }

    fn with(
        shared: Arc<View>,
        balancer: RoundRobin,
        known: &HashMap<MemberId, &Rc<LocalMember>>,
    ) -> WorkerView {
        let local = |member: &Arc<Member>| {
            let before = known.get(&member.id());
            Rc::new(LocalMember::new(member, before.map(|old| &***old)))
        };
        let plan = Arc::clone(&shared.plan);
        WorkerView {
            members: shared.members().iter().map(local).collect(),
            balancer: RefCell::new(balancer),
            key_form: plan.usage.kept_key_form(),
            models: shared.models().iter().cloned().zip(0..).collect(),
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
