//! The backends of one worker: the view that requests begin with, and what is left of earlier ones.

use super::route::{tiers, TriedMembers};
use super::upstream::pool::LocalMember;
use super::view::WorkerView;
use crate::rt::patrol::Patrol;
use crate::state::board::{Board, View};
use crate::state::hash::QuickMap;
use crate::state::member::MemberId;
use crate::state::meters::Meters;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

/// Of one worker.
pub struct Upstreams {
    board: Arc<Board>,
    /// The configuration in use, for requests that begin now.
    view: RefCell<Rc<WorkerView>>,
    /// Backends that are not in it any more, and that requests of this worker may still use.
    leaving: RefCell<Vec<Rc<LocalMember>>>,
}

impl Upstreams {
    /// Those of the view that hangs on the board now, for worker number `index`.
    pub fn new(board: Arc<Board>, index: usize) -> Upstreams {
        let view = RefCell::new(Rc::new(WorkerView::first(board.view(), index)));
        Upstreams { board, view, leaving: RefCell::default() }
    }

    /// The configuration in use now.
    pub fn view(&self) -> Rc<WorkerView> {
        Rc::clone(&self.view.borrow())
    }

    /// Takes in a new view, if there is one.
    pub fn look_at_the_board(&self) {
        if !self.board.shows(&self.view.borrow().shared) {
            self.take_view(&self.view());
        }
    }

    fn take_view(&self, old: &Rc<WorkerView>) {
        let mut leaving = self.leaving.borrow_mut();
        let new = old.next(self.board.view(), &leaving);
        new.members.iter().for_each(|member| member.revive());
        let is_gone = |old: &Rc<LocalMember>| new.member(old.id()).is_none();
        leaving.retain(is_gone);
        leaving.extend(old.members.iter().filter(|old| is_gone(old)).cloned());
        leaving.iter().for_each(|gone| gone.retire());
        drop(leaving);
        self.view.replace(Rc::new(new));
        // By now they find the new one.
        old.close_queues();
    }

    /// What was counted of a backend that is gone is forgotten when the last request there is over,
    /// whichever worker's it is, or goes on under its name. As long as one worker has a request
    /// there, the page shows the backend, and must not miss the counts of the others.
    pub fn let_go(&self, meters: &RefCell<Meters>) {
        let view = self.view();
        self.leaving.borrow_mut().retain(|gone| {
            let is_used = gone.inflight() > 0 || LocalMember::is_used_beside(gone);
            if !is_used {
                let heir = view.members.iter().find(|member| member.name == gone.name);
                meters.borrow_mut().hand_over(gone.id(), heir.map(|member| member.id()));
                heir.into_iter().for_each(|heir| heir.inherit(gone));
            }
            is_used
        });
    }

    /// Calls off who waits at backends that went out of service: those in use, and those that are
    /// leaving with requests in flight.
    pub fn see_departures(&self, patrol: &Patrol) {
        let view = self.view();
        let leaving = self.leaving.borrow();
        for gone in departed(view.members.iter().chain(&*leaving)) {
            // Looked up once for each rule: thousands may wait there for the same model.
            let known = RefCell::new(HashMap::new());
            let is_meant = |rule| {
                let ask = || has_another(&view.shared, gone, rule);
                *known.borrow_mut().entry(rule).or_insert_with(ask)
            };
            patrol.call_off(gone.number(), is_meant);
        }
    }

    /// Closes what idled too long, at this tick; gives how many.
    pub fn sweep(&self, now: u32) -> u64 {
        self.view.borrow().look_for_room();
        self.view.borrow().members.iter().map(|member| member.sweep(now)).sum()
    }

    /// Closes all that is kept: the worker drains.
    pub fn clear(&self) {
        self.view.borrow().members.iter().for_each(|member| member.clear());
    }

    /// Requests that went past the first tier of their group.
    pub fn spilled(&self) -> u64 {
        self.view.borrow().spilled()
    }

    /// Tries that each backend got.
    pub fn picked(&self) -> QuickMap<MemberId, u64> {
        let (view, leaving) = (self.view.borrow(), self.leaving.borrow());
        let known = view.members.iter().chain(&*leaving);
        known.map(|member| (member.id(), member.picked())).filter(|(_, n)| *n > 0).collect()
    }

    /// Idle connections to backends.
    pub fn idle(&self) -> usize {
        self.view.borrow().members.iter().map(|member| member.idle()).sum()
    }

    /// True when a sweep has nothing to see to.
    pub fn is_settled(&self) -> bool {
        self.idle() == 0 && self.leaving.borrow().is_empty()
    }
}

/// The backends that went out of service since the last time, and are not back.
fn departed<'a>(members: impl Iterator<Item = &'a Rc<LocalMember>>) -> Vec<MemberId> {
    let gone = members.filter(|backend| backend.has_departed() && !backend.is_healthy());
    gone.map(|backend| backend.id()).collect()
}

/// True when another backend is well to which this rule leads.
fn has_another(view: &View, gone: MemberId, rule: u32) -> bool {
    let group = view.models.of_rule(rule);
    group.is_some_and(|group| tiers::has_other(view.group(group), &TriedMembers::only(gone)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: requests that are called off again and again, or from a backend that is back.
    #[test]
    fn each_departure_is_seen_once() {
        let view = WorkerView::sample(2);
        let set_passes = |index: usize, passes| view.members[index].set_passes_probes(passes);
        let seen = || {
            let place = |id| view.members.iter().position(|member| member.id() == id).unwrap();
            departed(view.members.iter()).into_iter().map(place).collect::<Vec<_>>()
        };
        assert!(seen().is_empty());
        set_passes(1, false);
        assert_eq!((seen(), seen()), (vec![1], vec![]));
        set_passes(1, true);
        assert!(seen().is_empty(), "it is back");
        set_passes(1, false);
        set_passes(1, true);
        assert!(seen().is_empty(), "it is back already");
        set_passes(0, false);
        set_passes(1, false);
        assert_eq!(seen(), [0, 1]);
    }

    /// Catches: a request that is called off though nobody else has its model, or whose model
    /// nobody knows any more.
    #[test]
    fn another_is_one_that_is_well_and_serves_the_same() {
        let text = "backends: [{url: 'http://192.0.2.1', models: [a]}, \
                    {url: 'http://192.0.2.2', models: ['a*', b]}, {url: 'http://192.0.2.3', models: [b]}]";
        let board = Board::of(text);
        let view = board.view();
        let ids: Vec<_> = view.members().iter().map(|member| member.id()).collect();
        let rule = |model| view.models.choose(model).rule;
        assert!(has_another(&view, ids[0], rule("a")));
        assert!(!has_another(&view, ids[1], rule("ab")), "the only one");
        assert!(has_another(&view, ids[0], 0), "no model was asked for");
        assert!(!has_another(&view, ids[0], 77), "a rule of the past");
        view.members()[1].set_passes_probes(false);
        assert!(!has_another(&view, ids[0], rule("a")));
        assert!(has_another(&view, ids[1], rule("b")));
    }

    /// Catches: a request that waits out its whole timeout at a hung backend because that was taken
    /// out of the configuration, which is what people do with one.
    #[test]
    fn who_waits_at_a_backend_that_is_leaving_is_called_off_too() {
        let (view, old) = (WorkerView::sample(1), WorkerView::sample(1));
        let gone = old.members[0].id();
        old.members[0].set_passes_probes(false);
        let all = view.members.iter().chain(&old.members);
        assert_eq!(departed(all), [gone]);
        assert!(has_another(&view.shared, gone, 0));
        view.members[0].set_passes_probes(false);
        assert!(!has_another(&view.shared, gone, 0));
    }
}
