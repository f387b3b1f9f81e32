//! Work that only so many tasks of a ring do at a time: the others wait in line for their turn, in
//! the order in which they came.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// The turns of one kind of work, and who waits for one.
pub struct Turns {
    most: usize,
    taken: Cell<usize>,
    /// Places in the line that were ever given.
    places: Cell<u64>,
    line: RefCell<BTreeMap<u64, Waker>>,
    waited: Cell<u64>,
}

/// One of them; it is over when this is dropped.
pub struct Turn<'a>(&'a Turns);

/// A place in the line. Who gives up leaves it.
struct Place<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// So many at a time.
    pub fn new(most: usize) -> Turns {
        Turns {
            most,
            taken: Cell::new(0),
            places: Cell::new(0),
            line: RefCell::default(),
            waited: Cell::new(0),
        }
    }

    /// How many there are now.
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// How many had to wait until now.
    pub fn waited(&self) -> u64 {
        self.waited.get()
    }

    /// Waits for a turn.
    pub async fn take(&self) -> Turn<'_> {
        let place = Place { turns: self, number: self.places.get() };
        self.places.set(place.number + 1);
        poll_fn(|cx| {
            let mut line = self.line.borrow_mut();
            let is_first = line.keys().next().is_none_or(|first| *first >= place.number);
            if is_first && self.taken.get() < self.most {
                self.taken.set(self.taken.get() + 1);
                return Poll::Ready(Turn(self));
            }
            if line.insert(place.number, cx.waker().clone()).is_none() {
                self.waited.set(self.waited.get() + 1);
            }
            Poll::Pending
        })
        .await
    }

    fn call_first(&self) {
        if self.taken.get() < self.most {
            self.line.borrow().values().next().into_iter().for_each(Waker::wake_by_ref);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.line.borrow_mut().remove(&self.number);
        self.turns.call_first();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get().saturating_sub(1));
        self.0.call_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;
    use crate::rt::ring::Ring;
    use std::future::Future;
    use std::rc::Rc;

    /// Catches: more at a time than there may be, a line that is not one, and a turn that nobody
    /// gets because who was called for it had left.
    #[test]
    fn who_waits_comes_in_order_and_may_leave() {
        const ALL: usize = 20;
        let (turns, came) = (Rc::new(Turns::new(2)), Rc::<RefCell<Vec<usize>>>::default());
        Ring::build().unwrap().block_on(async {
            let mut leaving = Box::pin(turns.take());
            let first = (turns.take().await, turns.take().await);
            assert!(poll_fn(|cx| Poll::Ready(leaving.as_mut().poll(cx))).await.is_pending());
            let work = |number| {
                let (turns, came) = (Rc::clone(&turns), Rc::clone(&came));
                rt::spawn(async move {
                    let _turn = turns.take().await;
                    assert!(turns.taken() <= 2);
                    came.borrow_mut().push(number);
                    rt::sleep(std::time::Duration::ZERO).await;
                })
            };
            let all: Vec<_> = (0..ALL).map(work).collect();
            rt::sleep(std::time::Duration::ZERO).await;
            assert_eq!((came.borrow().len(), turns.waited()), (0, 1 + ALL as u64));
            drop(first);
            drop(leaving);
            for one in all {
                one.await;
            }
        });
        assert_eq!(*came.borrow(), (0..ALL).collect::<Vec<_>>());
        assert!(turns.taken() == 0 && turns.line.borrow().is_empty());
    }
}
