//! The backends of one worker: the view that requests begin with, and what is left of earlier ones.

use super::repute;
use super::upstream::pool::LocalMember;
use super::view::WorkerView;
use crate::state::board::Board;
use crate::state::member::MemberId;
use crate::state::meters::Meters;
use std::cell::RefCell;
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

    /// Takes in a new view, if there is one, and lets go of backends that it does not have.
    pub fn look_at_the_board(&self, meters: &RefCell<Meters>) {
        let old = self.view();
        if !self.board.shows(&old.shared) {
            self.take_view(&old);
        }
        if !self.leaving.borrow().is_empty() {
            self.let_go(meters);
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
        self.view.replace(Rc::new(new));
    }

    /// What was counted of a backend that is gone is forgotten when the last request there is over,
    /// whichever worker's it is, or goes on under its name. As long as one worker has a request
    /// there, the page shows the backend, and the counts of the others must not be missing from it.
    fn let_go(&self, meters: &RefCell<Meters>) {
        let view = self.view();
        self.leaving.borrow_mut().retain(|gone| {
            let is_used = gone.inflight() > 0 || LocalMember::is_used_beside(gone);
            if !is_used {
                let heir = view.members.iter().find(|member| member.name == gone.name);
                meters.borrow_mut().hand_over(gone.id(), heir.map(|member| member.id()));
            }
            is_used
        });
    }

    /// Calls the backends that went out of service since the last time and are not back, if there is
    /// another one that is well: those in use, and those that are leaving with requests in flight.
    pub fn see_departures(&self, call_off: impl Fn(MemberId)) {
        let view = self.view();
        let leaving = self.leaving.borrow();
        repute::see_departures(&view.members, &leaving, call_off);
    }

    /// Closes what idled too long, at this tick; gives how many.
    pub fn sweep(&self, now: u32) -> u64 {
        self.view.borrow().members.iter().map(|member| member.sweep(now)).sum()
    }

    /// Closes all that is kept: the worker drains.
    pub fn clear(&self) {
        self.view.borrow().members.iter().for_each(|member| member.clear());
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
