//! What all threads go by: one view, swapped whole. Whoever reads it has a plan and the backends of
//! that plan, never a mixture of two.

use super::certificates::{ClientTls, GivenCertificates};
use super::counters::shared::Counters;
use super::engine_cache::CacheOf;
use super::hash::QuickMap;
use super::key_tables;
use super::loans::SharedLimits;
use super::lookup::KeyService;
use super::member::{Member, MemberId, MemberTls};
use super::models::{GroupId, ModelIndex};
use super::prefixes::{FoundPrefix, Holder, PrefixTable};
use super::pulse::Pulse;
use super::queues::{FairQueue, Queues};
use super::repute::Tenths;
use crate::base::limits::METRICS_MODELS_MAX;
use crate::config::plan::{Backend, LoadBalance, Plan};
use crate::keys::table::KeyTable;
use crate::script::ScriptText;
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// The configuration in use, and its backends.
pub struct View {
    /// What the configuration means.
    pub plan: Arc<Plan>,
    members: Vec<Arc<Member>>,
    /// The place of each of them.
    places: HashMap<MemberId, usize>,
    /// Backends of earlier views that somebody may still be using. They get no more requests.
    leaving: Vec<Arc<Member>>,
    /// How clients are served over TLS, if they are.
    pub client_tls: Option<ClientTls>,
    /// Certificates that come at run time. All views have the same.
    pub given_certificates: Arc<GivenCertificates>,
    /// Models with a label of their own in the metrics; the place in the list is the label.
    labelled: Vec<String>,
    /// Which of the members serve which model.
    pub models: ModelIndex,
    /// The keys of each provider of `auth.pipeline`, in its order; `None` for one that is asked.
    pub key_tables: Vec<Option<Arc<KeyTable>>>,
    /// Who has read which beginning of a prompt, if the strategy goes by that. It outlives a change
    /// of the configuration that leaves the strategy as it is.
    pub prefixes: Option<Arc<PrefixTable>>,
    /// Who answers for each provider of `auth.pipeline`, in its order; `None`: a provider whose
    /// keys are in the plan, or whose script decides alone.
    pub services: Vec<Option<KeyService>>,
    /// The scripts of the providers, in the order of `auth.pipeline`.
    pub scripts: Arc<[ScriptText]>,
    /// What is counted for limits and quotas, once a plan had any. All views count together.
    pub counters: Option<Arc<Counters>>,
    /// What several gateways count together, if the plan says so.
    pub shared_limits: Option<SharedLimits>,
    /// The places of the members by their numbers in that table.
    holders: QuickMap<u32, u32>,
    /// What the queues of all views share, once there was one.
    queues: Option<Arc<Queues>>,
    /// Where requests wait for backends that are full, if they do: one queue for each group.
    pub waiting: Option<Vec<Arc<FairQueue>>>,
}

impl View {
    /// The view of a plan. `tls` holds, for each of its backends in order, how it speaks TLS if it
    /// does. A backend that `before` has at the same place under the same name stays
    /// what it is there: its health, the requests in flight, what is known of it.
    pub fn new(plan: Arc<Plan>, tls: Vec<Option<MemberTls>>, before: Option<&View>) -> View {
        // Those that are leaving first: where both have a name, it is that of a member now.
        let known = before.into_iter().flat_map(|view| view.leaving.iter().chain(&view.members));
        let mut by_name: HashMap<&str, Vec<&Arc<Member>>> = HashMap::new();
        known.for_each(|member| by_name.entry(&member.name).or_default().push(member));
        let member = |(plan, tls): (&Backend, _)| {
            let of_name = by_name.get(plan.name.as_str()).into_iter().flatten();
            let old = of_name.rev().find(|member| member.is_for(plan));
            Arc::new(match old {
                Some(old) => old.renewed(plan.clone(), tls),
                None => {
                    let new = Member::new(plan.clone(), tls);
                    // Those of the first view all start at the same moment.
                    before.into_iter().for_each(|_| new.note_coming());
                    new
                }
            })
        };
        let members: Vec<_> = plan.backends.iter().zip(tls).map(member).collect();
        let places: HashMap<_, _> = members.iter().map(|member| member.id()).zip(0..).collect();
        let is_gone = |old: &&Arc<Member>| !places.contains_key(&old.id());
        let just_left = before.into_iter().flat_map(|view| &view.members).filter(is_gone);
        let still_used = before.into_iter().flat_map(|view| &view.leaving).filter(is_gone);
        let still_used = still_used.filter(|old| Member::is_used_beside(old));
        let leaving = still_used.chain(just_left).cloned().collect();
        // Workers count by the place in this list: what has one keeps it.
        let mut labelled = before.map(|view| view.labelled.clone()).unwrap_or_default();
        for model in plan.labelled_models() {
            if labelled.len() < METRICS_MODELS_MAX && !labelled.contains(&model) {
                labelled.push(model);
            }
        }
        let models = ModelIndex::new(&plan);
        let prefixes = (plan.routing.load_balance == LoadBalance::PrefixAffinity).then(|| {
            let known = before.and_then(|view| view.prefixes.as_ref());
            known.map_or_else(Arc::default, Arc::clone)
        });
        let number = |member: &Arc<Member>| Holder::of(member).number();
        let holders = match prefixes {
            Some(_) => members.iter().map(number).zip(0..).collect(),
            None => QuickMap::default(),
        };
        let has_queue = plan.routing.queue.is_some();
        let known = before.and_then(|view| view.queues.clone());
        let queues = known.or_else(|| has_queue.then(Arc::default));
        let queue = |places: &[u32]| {
            let members = places.iter().filter_map(|place| members.get(*place as usize));
            let ids = members.map(|member| member.id()).collect();
            Arc::new(FairQueue::new(ids, plan.server.workers))
        };
        let waiting =
            has_queue.then(|| models.groups().iter().map(|places| queue(places)).collect());
        let key_tables = key_tables::of(&plan, before);
        let counters = before.and_then(|view| view.counters.clone());
        let given = before.map(|view| Arc::clone(&view.given_certificates));
        View {
            plan,
            members,
            places,
            leaving,
            labelled,
            models,
            prefixes,
            key_tables,
            services: Vec::new(),
            client_tls: None,
            given_certificates: given.unwrap_or_default(),
            scripts: Arc::default(),
            counters,
            shared_limits: None,
            holders,
            queues,
            waiting,
        }
    }

    /// What the queues of all views share; `None`: there never was one.
    pub fn queues(&self) -> Option<&Arc<Queues>> {
        self.queues.as_ref()
    }

    /// It is the one in use from now on: whoever leaves a backend calls those who wait here.
    fn come_into_use(&self) {
        if let Some(queues) = &self.queues {
            queues.set_current(self.waiting.as_deref().unwrap_or_default());
        }
    }

    /// The place of a backend that has read the beginning of a prompt and is likely to have it
    /// still, in the cache that it has for the prompt's model.
    pub fn place_of(&self, found: FoundPrefix, cache: CacheOf, now: Tenths) -> Option<u32> {
        let place = *self.holders.get(&found.holder.number())?;
        let member = self.members.get(place as usize)?;
        let is_there = Holder::of(member) == found.holder && member.keeps(cache, found.age, now);
        is_there.then_some(place)
    }

    /// Models with a label of their own in the metrics: those of this plan, and those that earlier
    /// ones had. The place in the list is the label.
    pub fn labelled_models(&self) -> &[String] {
        &self.labelled
    }

    /// The backends of a group, in the order of the plan.
    pub fn group(&self, group: GroupId) -> impl Iterator<Item = &Arc<Member>> + Clone {
        let places = self.models.members_of(group).iter();
        places.filter_map(|place| self.members.get(*place as usize))
    }

    /// The backends, in the order of the plan.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Backends that were taken out of the configuration and may still have requests in flight.
    pub fn leaving(&self) -> &[Arc<Member>] {
        &self.leaving
    }

    /// A backend of this view.
    pub fn member(&self, id: MemberId) -> Option<&Arc<Member>> {
        self.members.get(self.place(id)?)
    }

    /// Its place among the members.
    pub fn place(&self, id: MemberId) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// A backend that requests are at or may go to: one of this view, or one that is leaving and
    /// has requests in flight.
    pub fn in_use(&self, id: MemberId) -> Option<&Arc<Member>> {
        let at_work = |member: &&Arc<Member>| member.id() == id && member.inflight() > 0;
        self.member(id).or_else(|| self.leaving.iter().find(at_work))
    }

    /// True when probes, and administrators, leave at least one backend. That all of these are
    /// ejected is no reason to send requests elsewhere: only requests can bring them back.
    pub fn any_passes_probes(&self) -> bool {
        self.members.iter().any(|member| member.passes_probes() && !member.is_drained())
    }
}

/// Where the view hangs.
pub struct Board {
    view: ArcSwap<View>,
    /// Whoever sleeps and should see a new view at once.
    pulses: OnceLock<Vec<Arc<Pulse>>>,
}

impl Board {
    /// With its first view.
    pub fn new(view: View) -> Board {
        view.come_into_use();
        Board { view: ArcSwap::from_pointee(view), pulses: OnceLock::new() }
    }

    /// The view now.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// True when this is the view now. Costs no counter that threads share.
    pub fn shows(&self, view: &Arc<View>) -> bool {
        Arc::ptr_eq(&self.view.load(), view)
    }

    /// Whom a swap calls. To be said once, before the first swap.
    pub fn calls(&self, pulses: Vec<Arc<Pulse>>) {
        let _ = self.pulses.set(pulses);
    }

    /// Hangs up another view, and calls those who sleep. What is in flight keeps the one that it
    /// began with.
    pub fn swap(&self, view: Arc<View>) {
        view.come_into_use();
        self.view.store(view);
        self.pulses.get().into_iter().flatten().for_each(|pulse| pulse.call());
    }
}

#[cfg(test)]
impl Board {
    /// Of a configuration that has nothing but so many backends.
    pub fn sample(backends: u8) -> Board {
        let url = |n| format!("{{url: 'http://192.0.2.{n}:8000'}}");
        let urls: Vec<_> = (1..=backends).map(url).collect();
        Board::of(&format!("backends: [{}]", urls.join(", ")))
    }

    /// Of this configuration.
    pub fn of(text: &str) -> Board {
        let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
        let tls = plan.backends.iter().map(|_| None).collect();
        Board::new(View::new(Arc::new(plan), tls, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn view(backends: &str, before: Option<&View>) -> View {
        of(&format!("backends: [{backends}]"), before)
    }

    fn of(text: &str, before: Option<&View>) -> View {
        let loaded = config::load_text("test", text, &|_| None);
        let plan = loaded.unwrap().plan;
        let tls = plan.backends.iter().map(|_| None).collect();
        View::new(Arc::new(plan), tls, before)
    }

    fn ids(view: &View) -> Vec<MemberId> {
        view.members().iter().map(|member| member.id()).collect()
    }

    const A: &str = "{name: a, url: 'http://192.0.2.1:1'}";
    const A_HEAVY: &str = "{name: a, url: 'http://192.0.2.1:1', weight: 5}";
    const A_ELSEWHERE: &str = "{name: a, url: 'http://192.0.2.9:1'}";
    const B: &str = "{name: b, url: 'http://192.0.2.2:1'}";
    const B_RENAMED: &str = "{name: c, url: 'http://192.0.2.2:1'}";

    /// Catches: a connection to one engine that is given to requests for another one, and a
    /// backend that loses its health because its weight, or its neighbour, changed.
    #[test]
    fn a_backend_is_the_same_if_its_name_and_place_are() {
        let first = view(&format!("{A}, {B}"), None);
        let [a, b] = ids(&first)[..] else { panic!() };
        first.members()[0].set_passes_probes(false);
        let second = view(&format!("{B}, {A_HEAVY}"), Some(&first));
        assert_eq!(ids(&second), [b, a]);
        assert!(!second.members()[1].passes_probes(), "its health is known");
        assert_eq!((second.members()[1].plan.weight, first.members()[0].plan.weight), (5, 1));
        assert!(second.leaving().is_empty());
        let third = view(&format!("{A_ELSEWHERE}, {B_RENAMED}"), Some(&second));
        assert!(ids(&third).iter().all(|id| *id != a && *id != b));
        assert!(third.members().iter().all(|member| member.passes_probes()));
        let left: Vec<_> = third.leaving().iter().map(|member| member.id()).collect();
        assert_eq!(left, [b, a]);
    }

    /// Catches: numbers of one model that are another one's after a reload.
    #[test]
    fn a_model_keeps_its_label() {
        let first = of("metrics: {models: [x, y]}", None);
        let second = of("metrics: {models: [y, z]}", Some(&first));
        assert_eq!(second.labelled_models(), ["x", "y", "z"]);
        let many: Vec<String> = (0..METRICS_MODELS_MAX).map(|n| format!("m{n}")).collect();
        let third = of(&format!("metrics: {{models: [{}]}}", many.join(", ")), Some(&second));
        assert_eq!(third.labelled_models().len(), METRICS_MODELS_MAX);
        assert_eq!(third.labelled_models()[..3], ["x", "y", "z"]);
    }

    /// Catches: a list of backends of the past that grows with each reload, and one that comes back
    /// while its requests are under way and is taken for another one.
    #[test]
    fn who_left_is_known_for_as_long_as_somebody_uses_it() {
        let first = view(&format!("{A}, {B}"), None);
        let b = Arc::clone(&first.members()[1]);
        let second = view(A, Some(&first));
        drop(first);
        let third = view(A, Some(&second));
        drop(second);
        assert_eq!(third.leaving()[0].id(), b.id(), "in use");
        let fourth = view(&format!("{A}, {B}"), Some(&third));
        assert_eq!((fourth.members()[1].id(), fourth.leaving().len()), (b.id(), 0), "it is back");
        let fifth = view(A, Some(&fourth));
        drop((b, third, fourth));
        assert_eq!(fifth.leaving().len(), 1, "one that just left may still be picked");
        let sixth = view(A, Some(&fifth));
        assert!(view(A, Some(&sixth)).leaving().is_empty());
    }

    /// Catches: a backend with requests in flight that is forgotten because reloads came quicker
    /// than its worker looked: what the worker has is an older form of it.
    #[test]
    fn who_is_used_in_an_older_form_is_used() {
        let first = view(&format!("{A}, {B}"), None);
        let (b, id) = (Arc::clone(&first.members()[1]), first.members()[1].id());
        let second = view(&format!("{A}, {B}"), Some(&first));
        let third = view(A, Some(&second));
        drop((first, second));
        let fourth = view(A, Some(&third));
        drop(third);
        assert_eq!(fourth.leaving().len(), 1);
        assert!(b.enter());
        assert!(fourth.in_use(id).is_some());
        b.leave();
        assert!(fourth.in_use(id).is_none(), "nobody waits there");
        drop(b);
        let fifth = view(A, Some(&fourth));
        drop(fourth);
        assert!(fifth.leaving().is_empty());
    }
}
