//! Answers that are read on though their clients have left (`on_client_abort: drain`, and usage
//! that is still to come): how many there may be, and who gives way. Clients come and go at no cost
//! to themselves, and each of these takes a connection to an engine for minutes.

use super::worker::Worker;
use crate::rt::moment::Moment;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Those of one worker, the oldest first.
#[derive(Default)]
pub struct Drains {
    going: RefCell<BTreeMap<u64, Rc<Moment>>>,
    begun: Cell<u64>,
}

/// One of them, counted until it is dropped.
pub struct Drain {
    w: Rc<Worker>,
    number: u64,
    cut: Rc<Moment>,
}

impl Drains {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.going.borrow().len()
    }

    /// Cuts the oldest; false when there is none.
    fn cut_oldest(&self) -> bool {
        let oldest = self.going.borrow_mut().pop_first();
        oldest.as_ref().inspect(|(_, cut)| cut.come()).is_some()
    }
}

impl Drain {
    /// Begins one. Where there are as many as there may be, the oldest of this worker is cut for
    /// it; `None` when the worker has none.
    pub fn begin(w: &Rc<Worker>) -> Option<Drain> {
        let drains = &w.drains;
        if !w.has_room_for_drain() {
            w.meters.borrow_mut().crowded_closed[3] += 1;
            if !drains.cut_oldest() {
                return None;
            }
        }
        let (number, cut) = (drains.begun.get(), Rc::new(Moment::default()));
        drains.begun.set(number + 1);
        drains.going.borrow_mut().insert(number, Rc::clone(&cut));
        w.enter_drain();
        Some(Drain { w: Rc::clone(w), number, cut })
    }

    /// Comes when it has to give way.
    pub fn cut(&self) -> &Moment {
        &self.cut
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.w.drains.going.borrow_mut().remove(&self.number);
        self.w.leave_drain();
    }
}
