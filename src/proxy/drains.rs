//! Answers that are not done with though their clients are: those that are read on for clients that
//! have left (`on_client_abort: drain`, and usage that is still to come), and packed ones whose
//! records wait until they are unpacked. How many there may be, and who gives way. Clients come and
//! go at no cost to themselves, and some of these take a connection to an engine for minutes.

use crate::rt::moment::Moment;
use crate::state::connections::Connections;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Those of one worker, the oldest first.
#[derive(Default)]
pub struct Drains {
    /// Those that may be told to give way.
    going: RefCell<BTreeMap<u64, Rc<Moment>>>,
    begun: Cell<u64>,
    /// Those that are not over, the ones that were told to give way among them.
    count: Cell<usize>,
}

/// One of them, counted until it is dropped.
pub struct Drain {
    drains: Rc<Drains>,
    connections: Arc<Connections>,
    number: u64,
    cut: Rc<Moment>,
}

/// A record that waits until its packed answer is unpacked, counted until it is dropped. It holds
/// neither a connection nor an engine, so that it takes no place and gives way to nobody: how many
/// wait is bounded by the unpacker's queue.
pub struct LateRecord(Rc<Drains>);

impl Drains {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// One more is not over.
    fn enter(&self) {
        self.count.set(self.count.get() + 1);
    }

    /// One is over.
    fn leave(&self) {
        self.count.set(self.count.get().saturating_sub(1));
    }

    /// Counts one more, and gives its number and what cuts it.
    fn begin(&self) -> (u64, Rc<Moment>) {
        let (number, cut) = (self.begun.get(), Rc::new(Moment::default()));
        self.begun.set(number + 1);
        self.enter();
        self.going.borrow_mut().insert(number, Rc::clone(&cut));
        (number, cut)
    }

    /// This one is over.
    fn end(&self, number: u64) {
        self.leave();
        self.going.borrow_mut().remove(&number);
    }

    /// Cuts the oldest; false when there is none.
    fn cut_oldest(&self) -> bool {
        let oldest = self.going.borrow_mut().pop_first();
        oldest.as_ref().inspect(|(_, cut)| cut.come()).is_some()
    }

    /// Sees to it that there is room for one more: where there are as many as there may be, the
    /// oldest of this worker is cut, and counted. False when it has none.
    fn make_room(&self, connections: &Connections, cut: &mut u64) -> bool {
        if connections.have_room_for_drain() {
            return true;
        }
        let is_made = self.cut_oldest();
        *cut += u64::from(is_made);
        is_made
    }
}

impl Drain {
    /// Begins one. Where there are as many as there may be, the oldest of this worker is cut for
    /// it, and counted in `cut`; `None` when the worker has none.
    pub fn begin(
        drains: &Rc<Drains>,
        connections: &Arc<Connections>,
        cut: &mut u64,
    ) -> Option<Drain> {
        if !drains.make_room(connections, cut) {
            return None;
        }
        let (number, cut) = drains.begin();
        connections.enter_drain();
        let (drains, connections) = (Rc::clone(drains), Arc::clone(connections));
        Some(Drain { drains, connections, number, cut })
    }

    /// Comes when it has to give way.
    pub fn cut(&self) -> &Moment {
        &self.cut
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.drains.end(self.number);
        self.connections.leave_drain();
    }
}

impl LateRecord {
    /// One more waits.
    pub fn begin(drains: &Rc<Drains>) -> LateRecord {
        drains.enter();
        LateRecord(Rc::clone(drains))
    }
}

impl Drop for LateRecord {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a cut that is counted though nothing was cut, or not counted; and a record that
    /// waits for its packed answer and is taken for an answer that can give way.
    #[test]
    fn only_what_was_cut_is_counted_as_cut() {
        let (connections, drains) = (Connections::new(4), Drains::default());
        let mut cut = 0;
        assert!(drains.make_room(&connections, &mut cut), "there is room");
        // Of another worker.
        connections.enter_drain();
        drains.enter();
        assert!(!drains.make_room(&connections, &mut cut), "nothing here can give way");
        assert_eq!((cut, drains.count()), (0, 1));
        let (_, moment) = drains.begin();
        assert!(drains.make_room(&connections, &mut cut) && moment.has_come());
        assert_eq!((cut, drains.count()), (1, 2));
        drains.leave();
        assert_eq!(drains.count(), 1);
    }

    /// Catches: one that was told to give way, counted as a client until it is over.
    #[test]
    fn what_is_cut_counts_until_it_is_over() {
        let drains = Drains::default();
        let ((first, cut), (second, _)) = (drains.begin(), drains.begin());
        assert!(drains.cut_oldest() && cut.has_come());
        assert_eq!(drains.count(), 2);
        drains.end(first);
        assert_eq!(drains.count(), 1);
        drains.end(second);
        assert!(drains.count() == 0 && !drains.cut_oldest());
    }
}
