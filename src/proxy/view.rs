//! The view as one worker has it: the configuration in use, the backends with this worker's own
//! connections to them, and whose turn it is. A request keeps the one that it began with.

mod affinity;

use super::admit::cors::CorsRules;
use super::admit::credential::KeyFields;
use super::admit::gate::Gate;
use super::admit::identity::IdentityFields;
use super::queue::LocalQueue;
use super::route::affinity::{Hints, Sessions};
use super::route::strategy::Balancer;
use super::route::tiers::{self, Tier};
use super::route::{NotPicked, TriedMembers};
use super::rules::Rules;
use super::upstream::pool::{InFlight, LocalMember};
use crate::base::id::RequestId;
use crate::base::refusal::Refusal;
use crate::config::plan::{KeyForm, LoadBalance, Plan};
use crate::script::Vm;
use crate::state::board::View;
use crate::state::counters::shared::Counters;
use crate::state::member::{Member, MemberId};
use crate::state::models::GroupId;
use crate::state::quota_clock::QuotaClock;
use affinity::Leads;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;

/// How often a backend is picked anew because another worker has just filled the one that was.
/// Beyond: all count as full.
const LOST_RACES_MAX: usize = 16;

/// Said where a limit or a quota cannot be counted.
pub const NO_COUNTERS: Refusal = Refusal::new(
    503,
    "limits_unavailable",
    "Requests cannot be counted, and nobody is served beyond the limits.",
);

/// One view of one worker.
pub struct WorkerView {
    /// What all threads share of it.
    pub shared: Arc<View>,
    /// What the configuration means.
    pub plan: Arc<Plan>,
    /// The backends, in the order of the plan.
    pub members: Vec<Rc<LocalMember>>,
    /// For each group of backends that serve the same models, who is asked before whom.
    groups: Vec<Box<[Tier]>>,
    /// For each group, where requests wait for room; none without `routing.queue`.
    queues: Vec<Rc<LocalQueue>>,
    /// Requests that went past the first tier of their group, because nobody in it could take them.
    /// All views of the worker count together.
    spilled: Rc<Cell<u64>>,
    /// What tells where the next request is better off, and what came of that.
    leads: Rc<Leads>,
    /// The worker's number.
    worker: usize,
    /// How records keep the clients' keys.
    pub key_form: KeyForm,
    /// Who may come in; `None`: everybody.
    pub gate: Option<Gate>,
    /// The scripts of the providers, compiled.
    pub vm: Option<Rc<Vm>>,
    /// Which pages of other origins may ask; `None`: nobody says.
    pub cors: Option<CorsRules>,
    /// Where clients present keys when nobody checks them.
    pub usual_fields: KeyFields,
    /// Models with a label of their own.
    models: HashMap<String, u32>,
    credential_fields: Vec<String>,
    /// Which periods of quotas are running.
    pub quotas: QuotaClock,
    /// The limits that requests are held to, if there are any.
    pub rules: Option<Rules>,
}

impl WorkerView {
    /// The first view of worker number `index`.
    pub fn first(shared: Arc<View>, index: usize) -> WorkerView {
        let strategy = shared.plan.routing.load_balance;
        let shared = (shared, Rc::default(), Rc::default());
        WorkerView::with(shared, (index, None), &HashMap::new(), |weights, _, seed| {
            Balancer::new(strategy, weights, (index, seed))
        })
    }

    /// The next one. Whose turn it is stays as it was; `leaving` are backends of earlier views that
    /// the worker still has connections to.
    pub fn next(&self, shared: Arc<View>, leaving: &[Rc<LocalMember>]) -> WorkerView {
        let known = self.members.iter().chain(leaving).map(|member| (member.id(), member));
        let strategy = shared.plan.routing.load_balance;
        let view = (shared, Rc::clone(&self.spilled), Rc::clone(&self.leads));
        let (tiers, of_all) = (self.tiers(), OnceCell::new());
        let worker = (self.worker, self.gate.as_ref());
        WorkerView::with(view, worker, &known.collect(), |weights, tier, seed| {
            let turns = (strategy == LoadBalance::RoundRobin)
                .then(|| self.turns_of((&tiers, &of_all), tier));
            match turns.flatten() {
                Some(turns) => {
                    let weighted = weights.iter().copied().zip(turns);
                    Balancer::in_turn_again(&weighted.collect::<Vec<_>>(), seed)
                }
                None => Balancer::new(strategy, weights, (self.worker, seed)),
            }
        })
    }

    /// The tiers by the backends that they have.
    fn tiers(&self) -> HashMap<Vec<MemberId>, &Tier> {
        self.groups.iter().flatten().map(|tier| (ids(&self.shared, &tier.places), tier)).collect()
    }

    /// Where the backends of a tier of the next view stand: as they did in the tier of this one
    /// that had the same backends, or, if there was none, in that of all backends which had the
    /// first of them.
    fn turns_of(
        &self,
        (known, of_all): (&HashMap<Vec<MemberId>, &Tier>, &OnceCell<Vec<Turns>>),
        tier: &[MemberId],
    ) -> Option<Vec<Option<u64>>> {
        if let Some(Tier { places, balancer, .. }) = known.get(tier) {
            return Some(balancer.borrow().turns(places.len())?.into_iter().map(Some).collect());
        }
        // Made once: one backend that comes or goes makes each tier a new one that it belongs to.
        let of_all = of_all.get_or_init(|| self.turns_of_all());
        let first = tier.iter().find(|id| self.shared.place(**id).is_some())?;
        let turns = of_all.iter().find(|turns| turns.contains_key(first))?;
        Some(tier.iter().map(|id| turns.get(id).copied()).collect())
    }

    /// The same of each tier of all backends.
    fn turns_of_all(&self) -> Vec<Turns> {
        let tiers = self.groups.first().into_iter().flatten();
        let turns = tiers.filter_map(|Tier { places, balancer, .. }| {
            let turns = balancer.borrow().turns(places.len())?;
            Some(ids(&self.shared, places).into_iter().zip(turns).collect())
        });
        turns.collect()
    }

    fn with(
        (shared, spilled, leads): (Arc<View>, Rc<Cell<u64>>, Rc<Leads>),
        (worker, gate): (usize, Option<&Gate>),
        known: &HashMap<MemberId, &Rc<LocalMember>>,
        balancer: impl Fn(&[u32], &[MemberId], u64) -> Balancer,
    ) -> WorkerView {
        let backends = shared.plan.backends.iter();
        let standing = backends.map(|backend| (backend.region.as_str(), backend.backup));
        let ranks = tiers::ranks(&shared.plan.server.region, standing);
        let dice = RandomState::new();
        let has_sessions = shared.plan.routing.session_affinity.is_some();
        let tier = |places: Box<[u32]>| {
            let members = places.iter().filter_map(|place| shared.members().get(*place as usize));
            let weights: Vec<_> = members.clone().map(|member| member.plan.weight).collect();
            let named = members.map(|member| (&*member.name, member.plan.weight));
            let sessions = has_sessions.then(|| Sessions::new(named));
            let balancer = balancer(&weights, &ids(&shared, &places), dice.hash_one(&places));
            Tier { places, balancer: RefCell::new(balancer), sessions }
        };
        let group = |places: &[u32]| tiers::split(places, &ranks).into_iter().map(tier).collect();
        let groups = shared.models.groups().iter().map(|places| group(places)).collect();
        let local = |member: &Arc<Member>| {
            let before = known.get(&member.id());
            Rc::new(LocalMember::new(member, before.map(|old| &***old), shared.queues()))
        };
        let queues = shared.waiting.iter().flatten();
        let queues = queues
            .filter_map(|queue| Some(Rc::new(LocalQueue::new(queue, shared.queues()?, worker))));
        let plan = Arc::clone(&shared.plan);
        let gate = Gate::of(&shared, gate);
        WorkerView {
            members: shared.members().iter().map(local).collect(),
            groups,
            queues: queues.collect(),
            spilled,
            leads,
            worker,
            key_form: plan.usage.kept_key_form(),
            models: shared.labelled_models().iter().cloned().zip(0..).collect(),
            credential_fields: credential_fields(gate.as_ref(), plan.server.forward_credentials),
            gate,
            vm: compiled(&shared, worker),
            cors: plan.server.cors.as_ref().map(CorsRules::of),
            usual_fields: KeyFields::new(&USUAL_FIELDS.map(str::to_owned)),
            quotas: QuotaClock::of(plan.auth.as_ref()),
            rules: Rules::of(&plan),
            plan,
            shared,
        }
    }

    /// The next try of a request, in flight from here on at the backend of the group that gets it.
    pub fn pick(
        &self,
        (group, id): (GroupId, &RequestId),
        tried: &TriedMembers,
    ) -> Result<InFlight, NotPicked> {
        let tiers = self.groups.get(group.place()).ok_or(NotPicked::Nobody)?;
        let known = self.hints(id);
        let hints = known.as_ref().unwrap_or(&Hints::NONE);
        for _ in 0..LOST_RACES_MAX {
            let picked = tiers::pick(tiers, self.shared.members(), (tried, hints))?;
            let member = self.members.get(picked.place).ok_or(NotPicked::Nobody)?;
            if let Some(inflight) = InFlight::enter(member) {
                self.spilled.set(self.spilled.get() + u64::from(picked.is_spilled));
                known.iter().for_each(|hints| self.follow(hints, picked, tried.is_empty()));
                self.note_why(group, hints, picked);
                return Ok(inflight);
            }
            // It may have been its scout.
            member.untried();
        }
        Err(NotPicked::Full { retry_after_s: 1 })
    }

    /// Where requests for a group wait; `None`: they do not.
    pub fn queue(&self, group: GroupId) -> Option<&Rc<LocalQueue>> {
        self.queues.get(group.place())
    }

    /// Lets those that are next look for room.
    pub fn look_for_room(&self) {
        self.queues.iter().for_each(|queue| queue.look());
    }

    /// Another view is in use: those that wait go on there.
    pub fn close_queues(&self) {
        self.queues.iter().for_each(|queue| queue.close());
    }

    /// Requests of this worker that went past the first tier of their group, in all views.
    pub fn spilled(&self) -> u64 {
        self.spilled.get()
    }

    /// A backend of this view.
    pub fn member(&self, id: MemberId) -> Option<&Rc<LocalMember>> {
        self.members.get(self.shared.place(id)?)
    }

    /// The label of a model, if it has one of its own.
    pub fn model_label(&self, model: &str) -> Option<u32> {
        self.models.get(model).copied()
    }

    /// The limits, and where they are counted; `None`: there are none.
    ///
    /// # Errors
    /// They cannot be counted, and nobody is served without.
    pub fn limits(&self) -> Result<Option<(&Rules, &Arc<Counters>)>, Refusal> {
        match (&self.rules, &self.shared.counters) {
            (Some(rules), Some(counters)) => Ok(Some((rules, counters))),
            (Some(_), None) => Err(NO_COUNTERS),
            (None, _) => Ok(None),
        }
    }

    /// Lower-case names of the client's fields that never reach a backend.
    pub fn credential_fields(&self) -> &[String] {
        &self.credential_fields
    }
}

/// Where the SDKs of OpenAI and Anthropic put keys.
const USUAL_FIELDS: [&str; 2] = ["authorization", "x-api-key"];

/// What looks like a key of ours is not for engines, whether or not keys are checked here; and one
/// that was checked never is. Nor is what looks as if we said whose a request is.
fn credential_fields(gate: Option<&Gate>, forward: bool) -> Vec<String> {
    let usual = USUAL_FIELDS.into_iter().filter(|_| !forward);
    let checked = gate.into_iter().flat_map(|gate| gate.fields().names());
    let said = gate.and_then(|gate| gate.identity.as_ref());
    let said = said.into_iter().flat_map(IdentityFields::names);
    let all: BTreeSet<String> =
        usual.chain(checked).chain(said).map(str::to_ascii_lowercase).collect();
    all.into_iter().collect()
}

/// The scripts of a view. They were compiled before they came here.
fn compiled(view: &View, worker: usize) -> Option<Rc<Vm>> {
    if view.scripts.is_empty() {
        return None;
    }
    match Vm::new(&view.scripts) {
        Ok(vm) => Some(Rc::new(vm)),
        Err(error) => {
            tracing::error!(worker, %error, "scripts cannot be used: their clients are denied");
            None
        }
    }
}

/// Where backends stand in the order of their turns.
type Turns = HashMap<MemberId, u64>;

fn ids(view: &View, places: &[u32]) -> Vec<MemberId> {
    let group = places.iter().filter_map(|place| view.members().get(*place as usize));
    group.map(|member| member.id()).collect()
}

#[cfg(test)]
impl WorkerView {
    /// Of a configuration that has nothing but so many backends.
    pub fn sample(backends: u8) -> WorkerView {
        WorkerView::first(crate::state::board::Board::sample(backends).view(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::board::Board;

    const TWO_MODELS: &str = "backends: [{url: 'http://192.0.2.1', models: [a], weight: 3}, \
                              {url: 'http://192.0.2.2', models: [a]}, \
                              {url: 'http://192.0.2.3', models: [b]}]";

    fn picked(view: &WorkerView, model: &str) -> usize {
        let group = view.shared.models.choose(model).group;
        let of = (group, &RequestId::default());
        let picked = view.pick(of, &TriedMembers::default()).unwrap();
        view.shared.place(picked.backend().id()).unwrap()
    }

    /// Catches: turns that backends lose to traffic for a model that they do not serve: weights of
    /// 3 to 1 would become 10 to 1.
    #[test]
    fn traffic_for_one_model_costs_others_no_turns() {
        let view = WorkerView::first(Board::of(TWO_MODELS).view(), 0);
        let mut counts = [0; 3];
        for n in 0..4000 {
            let model = if n % 10 == 0 { "a" } else { "b" };
            counts[picked(&view, model)] += 1;
        }
        assert_eq!(counts, [300, 100, 3600]);
    }

    /// Catches: a worker that is reloaded between any two requests, and sends all to one backend;
    /// turns that get lost because the models of a backend, or its neighbours, changed.
    #[test]
    fn orders_go_on_after_a_reload() {
        let board = Board::of(TWO_MODELS);
        let mut view = WorkerView::first(board.view(), 0);
        let mut counts = [0; 3];
        for _ in 0..40 {
            counts[picked(&view, "a")] += 1;
            view = view.next(board.view(), &[]);
        }
        assert_eq!(counts, [30, 10, 0]);
    }
}
