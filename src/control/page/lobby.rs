//! The places at a listener. Whoever has not shown yet that it may ask, or does not take the page
//! that anybody may have, holds its place only until somebody new needs it: connections that send
//! nothing, or read nothing, lock nobody out.

use crate::rt::moment::Moment;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// See above.
pub struct Lobby {
    places: usize,
    taken: Cell<usize>,
    /// Those who may be put out, whoever is to go first in front.
    loose: RefCell<VecDeque<Loose>>,
}

/// One who may be put out.
struct Loose {
    leaves: Rc<Moment>,
    /// Looks whether it has shown meanwhile that it may ask; `None`: that does not help it.
    may_ask: Option<Rc<MayAsk>>,
}

/// Looks whether somebody has shown by now that it may ask.
pub type MayAsk = dyn Fn() -> bool;

/// One who has a place, until this goes away.
pub struct Visitor {
    lobby: Rc<Lobby>,
    /// Comes when its place is somebody else's.
    leaves: Rc<Moment>,
}

impl Lobby {
    /// With so many places.
    pub fn new(places: usize) -> Rc<Lobby> {
        Rc::new(Lobby { places, taken: Cell::default(), loose: RefCell::default() })
    }

    /// One more comes. Where all places are taken, the oldest of those who may be put out is, of
    /// which the second part tells. `None`: there is no place. Several may come in one turn, before
    /// anybody had the time to read what those before them sent: that is looked at now.
    pub fn enter(self: &Rc<Self>, may_ask: Rc<MayAsk>) -> Option<(Visitor, bool)> {
        let is_full = self.taken.get() >= self.places;
        if is_full {
            let oldest = self.next_to_leave()?;
            self.taken.set(self.taken.get() - 1);
            oldest.come();
        }
        self.taken.set(self.taken.get() + 1);
        let leaves = Rc::<Moment>::default();
        let loose = Loose { leaves: Rc::clone(&leaves), may_ask: Some(may_ask) };
        self.loose.borrow_mut().push_back(loose);
        Some((Visitor { lobby: Rc::clone(self), leaves }, is_full))
    }

    /// Whoever turns out to be one who may ask is not loose any more.
    fn next_to_leave(&self) -> Option<Rc<Moment>> {
        loop {
            let oldest = self.loose.borrow_mut().pop_front()?;
            if !oldest.may_ask.is_some_and(|may_ask| may_ask()) {
                return Some(oldest.leaves);
            }
        }
    }

    fn hold(&self, leaves: &Rc<Moment>) {
        self.loose.borrow_mut().retain(|other| !Rc::ptr_eq(&other.leaves, leaves));
    }
}

impl Visitor {
    /// When it has to leave.
    pub fn leaves(&self) -> Rc<Moment> {
        Rc::clone(&self.leaves)
    }

    /// It may ask: nobody takes its place from now on.
    pub fn let_in(&self) {
        self.lobby.hold(&self.leaves);
    }

    /// It does not take what anybody may have: from now on it may be put out, after those who could
    /// be before, until it is let in again.
    pub fn is_slow(&self) {
        self.lobby.hold(&self.leaves);
        if !self.leaves.has_come() {
            let loose = Loose { leaves: Rc::clone(&self.leaves), may_ask: None };
            self.lobby.loose.borrow_mut().push_back(loose);
        }
    }

    /// It has its answer: it goes before all others when somebody needs a place.
    pub fn is_served(&self) {
        self.lobby.hold(&self.leaves);
        if !self.leaves.has_come() {
            let loose = Loose { leaves: Rc::clone(&self.leaves), may_ask: None };
            self.lobby.loose.borrow_mut().push_front(loose);
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if !self.leaves.has_come() {
            self.lobby.hold(&self.leaves);
            self.lobby.taken.set(self.lobby.taken.get() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(lobby: &Rc<Lobby>) -> (Visitor, bool) {
        lobby.enter(Rc::new(|| false)).unwrap()
    }

    /// Catches: silent ones who keep somebody out, one that is put out though it may ask or though
    /// there is room, one with its answer that stays before one who waits for it.
    #[test]
    fn who_may_not_ask_yet_makes_room() {
        let lobby = Lobby::new(3);
        let visitors: Vec<_> = (0..3).map(|_| enter(&lobby)).collect();
        assert!(visitors.iter().all(|(_, put_out)| !put_out));
        let gone = || visitors.iter().map(|(v, _)| v.leaves().has_come()).collect::<Vec<_>>();
        visitors[0].0.let_in();
        let (fourth, put_out) = enter(&lobby);
        assert!(put_out);
        assert_eq!(gone(), [false, true, false], "the oldest who may not ask");
        fourth.let_in();
        fourth.is_served();
        let fifth = enter(&lobby);
        assert!(fourth.leaves().has_come() && fifth.1);
        assert_eq!(gone(), [false, true, false]);
        visitors[2].0.let_in();
        fifth.0.let_in();
        assert!(lobby.enter(Rc::new(|| true)).is_none(), "all of them may ask");
        assert_eq!(gone(), [false, true, false]);
    }

    /// Catches: one that is put out though it may ask, since nobody has read yet that it may; one
    /// that stays though it may not, since others may.
    #[test]
    fn who_is_to_leave_is_heard_first() {
        let lobby = Lobby::new(3);
        let may = [true, false, true].map(Cell::new).map(Rc::new);
        let visitors: Vec<_> = (0..3)
            .map(|n| {
                let may = Rc::clone(&may[n]);
                lobby.enter(Rc::new(move || may.get())).unwrap().0
            })
            .collect();
        let gone = || visitors.iter().map(|visitor| visitor.leaves().has_come());
        let silent = enter(&lobby);
        assert!(gone().eq([false, true, false]) && silent.1);
        assert!(enter(&lobby).1 && silent.0.leaves().has_come(), "the others may ask");
        may.iter().for_each(|may| may.set(false));
        let last = enter(&lobby).0;
        last.let_in();
        assert!(lobby.enter(Rc::new(|| true)).is_none(), "who was heard is not asked again");
        assert!(gone().eq([false, true, false]));
    }

    /// Catches: one that does not read and holds its place, or that leaves before one who has been
    /// silent for longer; one that reads on and is put out all the same.
    #[test]
    fn who_does_not_take_a_page_makes_room() {
        let lobby = Lobby::new(3);
        let visitors: Vec<_> = (0..3).map(|_| enter(&lobby).0).collect();
        let gone = || visitors.iter().map(|visitor| visitor.leaves().has_come());
        visitors.iter().for_each(Visitor::let_in);
        visitors[1].is_slow();
        visitors[0].is_slow();
        visitors[1].let_in();
        let fourth = enter(&lobby);
        assert!(fourth.1 && gone().eq([true, false, false]));
        fourth.0.let_in();
        visitors[0].is_slow();
        assert!(lobby.enter(Rc::new(|| true)).is_none(), "who was put out has no place");
        visitors[1].is_slow();
        assert!(enter(&lobby).1 && gone().eq([true, true, false]));
    }

    /// Catches: a place that is lost, or is there twice, when who held it goes, put out or not.
    #[test]
    fn each_place_is_given_back_once() {
        let lobby = Lobby::new(2);
        for _ in 0..3 {
            let visitors: Vec<_> = (0..5).map(|_| enter(&lobby).0).collect();
            assert_eq!(lobby.taken.get(), 2);
            assert_eq!(lobby.loose.borrow().len(), 2);
            visitors[0].is_served();
            assert_eq!(lobby.loose.borrow().len(), 2, "who was put out does not come back");
            drop(visitors);
            assert_eq!((lobby.taken.get(), lobby.loose.borrow().len()), (0, 0));
        }
    }
}
