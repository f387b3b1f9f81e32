//! What tells where a request is better off than elsewhere, from its body to the pick: the
//! milestones of its prompt, or its session. None of it is kept with the request: it lies in one
//! place of the worker, from the moment in which the body was read to the pick, which follows at
//! once. Whoever comes later (a retry) reads the body again.

use super::WorkerView;
use crate::base::fnv;
use crate::base::id::RequestId;
use crate::base::limits::SESSION_BYTES_MAX;
use crate::http::head::named;
use crate::llm::request::prompt::{Milestones, PromptSpans};
use crate::proxy::receive::Request;
use crate::proxy::route::affinity::{self, Hints, Taught};
use crate::proxy::route::tiers::Picked;
use crate::proxy::upstream::pool::{InFlight, LocalMember};
use crate::state::engine_cache::{CacheOf, ExpectedPrefix};
use crate::state::member::{self, Member};
use crate::state::meters::Affinity;
use crate::state::models::GroupId;
use crate::usage::flight::picked::PickedBy;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Of one worker, for all of its views.
#[derive(Default)]
pub struct Leads {
    lead: RefCell<Lead>,
    /// What the last pick went by.
    expected: Cell<ExpectedPrefix>,
    /// What the last try that began has taught of its backend.
    taught: Cell<Taught>,
    counts: Cell<Affinity>,
    /// Why the backend of the last try that began got it.
    picked_by: Cell<PickedBy>,
}

/// What one request brings.
struct Lead {
    /// Whose it is.
    of: RequestId,
    milestones: Milestones,
    /// The cache that its prompt may stand in.
    cache: CacheOf,
    /// Its engine uses nothing of what it has in its cache.
    is_read_anew: bool,
    session: Option<u64>,
}

impl Default for Lead {
    fn default() -> Lead {
        Lead {
            of: RequestId::default(),
            milestones: Milestones::NONE,
            cache: CacheOf::default(),
            is_read_anew: false,
            session: None,
        }
    }
}

impl WorkerView {
    /// Whether anything in a request can tell where it is better off.
    pub fn wants_lead(&self) -> bool {
        self.shared.prefixes.is_some() || self.plan.routing.session_affinity.is_some()
    }

    /// Whether that may be something in its body.
    pub fn wants_prompt(&self) -> bool {
        let sessions = &self.plan.routing.session_affinity;
        self.shared.prefixes.is_some() || sessions.as_ref().is_some_and(|by| !by.body.is_empty())
    }

    /// True when the pick knows of this request what there is to know.
    pub fn has_lead(&self, request: &Request) -> bool {
        !self.wants_lead() || self.leads.lead.borrow().of == request.unique_id
    }

    /// Takes in what a request brings: its head and body stand in `inbox`, and in the body the
    /// prompt, if it has one.
    pub fn take_lead(&self, request: &Request, inbox: &[u8], prompt: Option<&PromptSpans>) {
        let mut lead = self.leads.lead.borrow_mut();
        lead.of = request.unique_id;
        let body = request.body(inbox);
        lead.session = self.session_of(request, inbox, prompt);
        let group = self.shared.models.choose(request.served_model()).group;
        // Of one backend nobody has to ask what it has read.
        let is_choice = self.shared.models.members_of(group).len() > 1;
        let is_prompt = is_choice && request.dialect.generates();
        let table = self.shared.prefixes.as_ref().filter(|_| is_prompt);
        lead.cache =
            table.map_or_else(CacheOf::default, |_| CacheOf::model(request.served_model()));
        lead.is_read_anew = table.and(prompt).is_some_and(|spans| spans.is_read_anew(body));
        lead.milestones = match table.zip(prompt) {
            Some((table, spans)) => spans.milestones(body, request.served_model(), table.key()),
            None => Milestones::NONE,
        };
    }

    /// The hash of the session's name; `None`: it names none.
    fn session_of(
        &self,
        request: &Request,
        inbox: &[u8],
        prompt: Option<&PromptSpans>,
    ) -> Option<u64> {
        let by = self.plan.routing.session_affinity.as_ref()?;
        let fields = &request.head.fields;
        let in_head = by.header.iter().filter_map(|name| named(fields, inbox, name));
        let body = request.body(inbox);
        let in_body = by.body.iter().filter_map(|key| prompt?.session(body, key.name()));
        let is_name = |name: &&[u8]| !name.is_empty() && name.len() <= SESSION_BYTES_MAX;
        let name = in_head.chain(in_body).find(is_name)?;
        Some(fnv::hash(name.iter().copied()))
    }

    /// What the pick may know of a request; `None`: nothing.
    pub(super) fn hints(&self, id: &RequestId) -> Option<Hints> {
        // First of all: what the last pick went by is of another request, maybe of another view.
        self.leads.expected.take();
        self.leads.taught.take();
        if !self.wants_lead() {
            return None;
        }
        let lead = self.leads.lead.borrow();
        if lead.of != *id {
            return None;
        }
        let mut hints = match lead.is_read_anew {
            true => Hints::NONE,
            false => Hints::find((&lead.milestones, lead.cache), &self.shared, member::now()),
        };
        hints.session = lead.session;
        Some(hints)
    }

    /// A request goes to a backend: what that has read from now on is noted, and what the pick went
    /// by is counted, of the first one.
    pub(super) fn follow(&self, hints: &Hints, picked: Picked, is_first: bool) {
        if let Some(member) = self.shared.members().get(picked.place) {
            self.teach(hints, picked.place, member);
        }
        if is_first {
            self.count(hints, picked);
        }
    }

    /// A backend has read all of the prompt from now on.
    fn teach(&self, hints: &Hints, place: usize, member: &Member) {
        let lead = self.leads.lead.borrow();
        let held = hints.of(place as u32);
        if let Some(held) = held {
            self.leads.expected.set(affinity::expected(&lead.milestones, held));
        }
        let known = held.map_or(0, |held| held.bytes);
        let to = (&*self.shared, member);
        let taught = affinity::learn(&lead.milestones, known, to, member::now());
        // Of such a prompt nobody has looked what the backend had read before: that must stay.
        if !lead.is_read_anew {
            self.leads.taught.set(taught);
        }
    }

    fn count(&self, hints: &Hints, picked: Picked) {
        let lead = self.leads.lead.borrow();
        let mut counts = self.leads.counts.get();
        if hints.session.is_some() {
            counts.session.hits += u64::from(!picked.is_stray);
            counts.session.spilled += u64::from(picked.is_stray);
        } else if self.plan.routing.session_affinity.is_some() {
            counts.session.misses += 1;
        }
        let is_asked = !lead.milestones.all().is_empty() && !lead.is_read_anew;
        let held = hints.of(picked.place as u32);
        let longest = hints.held().first().filter(|held| !hints.is_weak(held));
        match longest {
            _ if !is_asked || hints.session.is_some() => {}
            None => counts.prefix.misses += 1,
            Some(longest) if held.is_some_and(|held| held.bytes == longest.bytes) => {
                counts.prefix.hits += 1;
            }
            Some(_) => counts.prefix.spilled += 1,
        }
        self.leads.counts.set(counts);
    }

    /// The next try of a request, in flight at a backend that nobody picked: a rule names it, or it
    /// had the last one. It has read the prompt from now on, as one that is picked has.
    pub fn enter(
        &self,
        (id, by): (&RequestId, PickedBy),
        member: &Rc<LocalMember>,
    ) -> Option<InFlight> {
        let inflight = InFlight::enter(member)?;
        self.leads.picked_by.set(by);
        let hints = self.hints(id);
        if let Some((hints, place)) = hints.zip(self.shared.place(member.id())) {
            self.teach(&hints, place, member);
        }
        Some(inflight)
    }

    /// A try that began so long ago brought no answer: its backend has not read the prompt.
    pub fn unlearn(&self, request: &Request, taught: Taught, member: &Member, age: Duration) {
        let lead = self.leads.lead.borrow();
        if lead.of == request.unique_id {
            taught.unlearn(&lead.milestones, (&self.shared, member), age, member::now());
        }
    }

    /// Notes why a backend was picked.
    pub(super) fn note_why(&self, group: GroupId, hints: &Hints, picked: Picked) {
        let is_weak = |held| hints.is_weak(held);
        let by = match hints.of(picked.place as u32) {
            _ if self.shared.models.members_of(group).len() == 1 => PickedBy::OnlyOne,
            _ if hints.session.is_some() && !picked.is_stray => PickedBy::Session,
            _ if picked.is_spilled => PickedBy::Spilled,
            Some(held) if hints.session.is_none() && !is_weak(held) => PickedBy::Prefix,
            _ => PickedBy::strategy(self.plan.routing.load_balance),
        };
        self.leads.picked_by.set(by);
    }

    /// Why the backend of the last try that began got it.
    pub fn picked_by(&self) -> PickedBy {
        self.leads.picked_by.get()
    }

    /// What the last try that began has taught of its backend.
    pub fn taught(&self) -> Taught {
        self.leads.taught.get()
    }

    /// What the last pick of the worker went by.
    pub fn expected(&self) -> ExpectedPrefix {
        self.leads.expected.get()
    }

    /// What came of what requests brought, in all views of the worker.
    pub fn affinity(&self) -> Affinity {
        self.leads.counts.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::route::TriedMembers;
    use crate::state::board::Board;
    use std::time::Duration;

    /// Catches: a request whose answer is held against what an earlier pick went by, because no
    /// later one wanted to know anything.
    #[test]
    fn what_a_pick_went_by_is_forgotten_by_the_next_one() {
        const BACKENDS: &str = "backends: [{url: 'http://192.0.2.1'}, {url: 'http://192.0.2.2'}]";
        let with = |routing| Board::of(&format!("{BACKENDS}\nrouting: {{{routing}}}")).view();
        let before = WorkerView::first(with("load_balance: prefix_affinity"), 0);
        for routing in ["load_balance: prefix_affinity", "load_balance: round_robin"] {
            let view = before.next(with(routing), &[]);
            let some = ExpectedPrefix::new((8_000, 10_000), 7, Duration::from_secs(60));
            view.leads.expected.set(some);
            let group = view.shared.models.choose("m").group;
            let of = (group, &RequestId::default());
            assert!(view.pick(of, &TriedMembers::default()).is_ok());
            assert_eq!(view.expected(), ExpectedPrefix::default(), "{routing}");
        }
    }
}
