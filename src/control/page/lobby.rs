//! The places at a listener. Whoever has not shown yet that it may ask holds its place only until
//! somebody new needs it, so that connections that send nothing lock nobody out.

use crate::rt::moment::Moment;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// See above.
pub struct Lobby {
    places: usize,
    taken: Cell<usize>,
    /// Those who may be put out, whoever is to go first in front.
    loose: RefCell<VecDeque<Rc<Moment>>>,
}

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
    /// which the second part tells. `None`: there is no place.
    pub fn enter(self: &Rc<Self>) -> Option<(Visitor, bool)> {
        let is_full = self.taken.get() >= self.places;
        if is_full {
            let oldest = self.loose.borrow_mut().pop_front()?;
            self.taken.set(self.taken.get() - 1);
            oldest.come();
        }
        self.taken.set(self.taken.get() + 1);
        let leaves = Rc::<Moment>::default();
        self.loose.borrow_mut().push_back(Rc::clone(&leaves));
        Some((Visitor { lobby: Rc::clone(self), leaves }, is_full))
    }

    fn hold(&self, leaves: &Rc<Moment>) {
        self.loose.borrow_mut().retain(|other| !Rc::ptr_eq(other, leaves));
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

    /// It has its answer: it goes before all others when somebody needs a place.
    pub fn is_served(&self) {
        self.lobby.hold(&self.leaves);
        if !self.leaves.has_come() {
            self.lobby.loose.borrow_mut().push_front(Rc::clone(&self.leaves));
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
        lobby.enter().unwrap()
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
        assert!(lobby.enter().is_none(), "all of them may ask");
        assert_eq!(gone(), [false, true, false]);
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
