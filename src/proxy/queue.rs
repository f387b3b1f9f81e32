//! The requests of one worker that wait because everybody who could take them has as many as they
//! may. Which of all workers' requests is next is told by `state::queues`.

use crate::base::limits::QUEUE_COUNTED_MAX;
use crate::state::queues::{FairQueue, Queues, StartTag};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// One group's queue, as one worker has it.
pub struct LocalQueue {
    shared: Arc<FairQueue>,
    queues: Arc<Queues>,
    worker: usize,
    /// Another view is in use: who waits here goes on there.
    is_closed: Cell<bool>,
    /// Those that wait, in their order. None has a waker before it is first polled.
    waiting: RefCell<BTreeMap<Place, Option<Waker>>>,
}

/// A tag, and a number that no other request has.
type Place = (StartTag, u64);

/// A request that waits, until it is dropped.
pub struct Waiter {
    queue: Rc<LocalQueue>,
    place: Place,
}

/// How waiting ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Called<T> {
    /// It was the request's turn, and it got this.
    Served(T),
    /// Somebody who sent less came when there was no more room to wait.
    Displaced,
    /// The queue is of an earlier view.
    Moved,
}

impl LocalQueue {
    /// An empty one.
    pub fn new(shared: &Arc<FairQueue>, queues: &Arc<Queues>, worker: usize) -> LocalQueue {
        let (shared, queues) = (Arc::clone(shared), Arc::clone(queues));
        let (is_closed, waiting) = (Cell::new(false), RefCell::default());
        LocalQueue { shared, queues, worker, is_closed, waiting }
    }

    /// What it shares with all others.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Whether a request of any worker waits here: who comes now must not come first.
    pub fn has_waiting(&self) -> bool {
        self.queues.waiting() > 0 && self.shared.waiting() > 0
    }

    /// A request begins to wait, if no more than `max` do. Else it takes the place of the one that
    /// would be the last of this worker's here, if it comes before that itself.
    pub fn enter(self: &Rc<Self>, tag: StartTag, max: u32) -> Option<Waiter> {
        if !self.queues.enter(max) {
            let mut waiting = self.waiting.borrow_mut();
            let last = waiting.last_entry().filter(|last| last.key().0 > tag)?;
            // Its place among those that may wait is ours now.
            self.shared.count(false);
            last.remove().into_iter().for_each(Waker::wake);
        }
        Some(self.join((tag, self.queues.next_number())))
    }

    fn join(self: &Rc<Self>, place: Place) -> Waiter {
        self.shared.count(true);
        self.waiting.borrow_mut().insert(place, None);
        Waiter { queue: Rc::clone(self), place }
    }

    /// How many of all that wait here are likely to come before this tag.
    pub fn ahead(&self, tag: StartTag) -> u32 {
        let waiting = self.waiting.borrow();
        let ours = waiting.range(..(tag, 0)).take(QUEUE_COUNTED_MAX).count();
        // Those of other workers are likely to be as ours are.
        let (all, here) = (self.shared.waiting() as usize, waiting.len());
        let likely = ours.saturating_mul(all).checked_div(here);
        u32::try_from(likely.unwrap_or(all)).unwrap_or(u32::MAX)
    }

    /// Lets the first one look whether there is room: backends change in other ways than by
    /// requests that leave them.
    pub fn look(&self) {
        if let Some(Some(first)) = self.waiting.borrow().values().next() {
            first.wake_by_ref();
        }
    }

    /// Sends all that wait to the view in use.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.shared.show(self.worker, None);
        self.waiting.borrow().values().flatten().for_each(Waker::wake_by_ref);
    }

    /// One of those that waited does not any more; whoever is next is called.
    fn pass_on(&self) {
        if !self.is_closed.get() {
            let waiting = self.waiting.borrow();
            let first = waiting.first_key_value();
            self.shared
                .show(self.worker, first.and_then(|(at, waker)| Some((at.0, waker.as_ref()?))));
        }
        self.shared.call_first();
    }
}

impl Waiter {
    /// Takes what the request waits for, if it is its turn and that is there. `take` is asked only
    /// then; nothing is awaited between its success and the end of the waiting.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce() -> Option<T>,
    ) -> Poll<Called<T>> {
        let LocalQueue { shared, waiting, worker, is_closed, .. } = &*self.queue;
        {
            let mut waiting = waiting.borrow_mut();
            let Some(waker) = waiting.get_mut(&self.place) else {
                return Poll::Ready(Called::Displaced);
            };
            if is_closed.get() {
                return Poll::Ready(Called::Moved);
            }
            *waker = Some(cx.waker().clone());
            if waiting.keys().next() != Some(&self.place) {
                return Poll::Pending;
            }
        }
        // Before the look for room: what comes free from now on calls us.
        shared.show(*worker, Some((self.place.0, cx.waker())));
        if !shared.is_first(*worker) {
            return Poll::Pending;
        }
        match take() {
            None => Poll::Pending,
            Some(taken) => {
                self.queue.queues.give(self.place.0);
                Poll::Ready(Called::Served(taken))
            }
        }
    }

    /// Goes on in the queue of another view.
    pub fn move_to(&mut self, queue: &Rc<LocalQueue>) {
        if self.leave() {
            *self = queue.join(self.place);
        }
    }

    /// False: it had no place any more.
    fn leave(&self) -> bool {
        let was_there = self.queue.waiting.borrow_mut().remove(&self.place).is_some();
        if was_there {
            self.queue.shared.count(false);
        }
        was_there
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.leave() {
            self.queue.queues.leave();
        }
        self.queue.pass_on();
    }
}

#[cfg(test)]
mod tests;
