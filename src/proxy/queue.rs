//! The requests of one worker that wait because everybody who could take them has as many as they
//! may. Which of all workers' requests is next is told by `state::queues`.

use crate::base::limits::QUEUE_COUNTED_MAX;
use crate::state::member::MemberId;
use crate::state::queues::{Claim, FairQueue, Queues, StartTag};
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
    claim: Claim,
    number: u64,
    is_served: Cell<bool>,
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

    /// Whether anybody waits, at any worker, for a backend of this group: who comes now must not
    /// come first.
    pub fn is_waited(&self) -> bool {
        self.queues.is_waited(&self.shared)
    }

    /// What a request of a key has here that is likely to cost so much.
    pub fn claim(&self, key: u64, tokens: u32) -> Claim {
        self.queues.claim(&self.shared, key, tokens)
    }

    /// The request with this claim does not wait after all.
    pub fn take_back(&self, claim: &Claim) {
        self.queues.take_back(claim);
    }

    /// A request begins to wait, if no more than `max` do. Else it takes the place of one that
    /// comes later: the last of this worker's here, or of another's if it is the first of all.
    pub fn enter(self: &Rc<Self>, claim: Claim, max: u32) -> Option<Waiter> {
        if !self.queues.enter(max) {
            let last = self.waiting.borrow().keys().next_back().copied();
            let is_first = last.is_none() && self.shared.workers_before(claim.tag).0 == 0;
            if last.is_some_and(|last| last.0 > claim.tag) {
                self.displace(1);
            } else if !is_first || !self.shared.displace_another() {
                return None;
            }
            self.queues.enter_for_another();
        }
        Some(self.join(claim))
    }

    fn join(self: &Rc<Self>, claim: Claim) -> Waiter {
        let number = self.queues.next_number();
        self.waiting.borrow_mut().insert((claim.tag, number), None);
        self.count();
        Waiter { queue: Rc::clone(self), claim, number, is_served: Cell::new(false) }
    }

    fn count(&self) {
        self.shared.set_waiting(self.worker, self.waiting.borrow().len());
    }

    /// So many of those that come last make room.
    fn displace(&self, count: u32) {
        for _ in 0..count {
            let Some((_, waker)) = self.waiting.borrow_mut().pop_last() else { break };
            self.queues.leave();
            waker.into_iter().for_each(Waker::wake);
        }
        self.count();
    }

    /// How many of all that wait here are likely to come before this tag.
    pub fn ahead(&self, tag: StartTag) -> u32 {
        let waiting = self.waiting.borrow();
        let all = self.shared.waiting() as usize;
        let ours = waiting.range(..(tag, 0)).take(QUEUE_COUNTED_MAX).count();
        // Those of other workers are likely to be as ours are; where none of ours waits, as their
        // first ones.
        let likely = ours.saturating_mul(all).checked_div(waiting.len()).unwrap_or_else(|| {
            let (before, workers) = self.shared.workers_before(tag);
            (before as usize).saturating_mul(all).checked_div(workers as usize).unwrap_or_default()
        });
        u32::try_from(likely).unwrap_or(u32::MAX)
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
            let first = first.and_then(|(at, waker)| Some((at.0, waker.as_ref()?)));
            self.shared.show(self.worker, first);
        }
        self.queues.pass_on(&self.shared);
    }
}

impl Waiter {
    /// Its place in the order.
    pub fn tag(&self) -> StartTag {
        self.claim.tag
    }

    /// The queue that it waits in.
    pub fn queue(&self) -> &Rc<LocalQueue> {
        &self.queue
    }

    fn place(&self) -> Place {
        (self.claim.tag, self.number)
    }

    /// Takes what the request waits for, if it is its turn and that is there. `take` is asked only
    /// then, and told which backends have room for somebody else alone; nothing is awaited between
    /// its success and the end of the waiting.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[MemberId]) -> Option<T>,
    ) -> Poll<Called<T>> {
        let queue = &*self.queue;
        if !queue.is_closed.get() {
            queue.displace(queue.shared.take_displaced(queue.worker));
        }
        {
            let mut waiting = queue.waiting.borrow_mut();
            let Some(waker) = waiting.get_mut(&self.place()) else {
                return Poll::Ready(Called::Displaced);
            };
            if queue.is_closed.get() {
                return Poll::Ready(Called::Moved);
            }
            *waker = Some(cx.waker().clone());
            if waiting.keys().next() != Some(&self.place()) {
                return Poll::Pending;
            }
        }
        // Before the look for room: what comes free from now on calls us.
        queue.shared.show(queue.worker, Some((self.claim.tag, cx.waker())));
        if !queue.shared.is_first(queue.worker) {
            return Poll::Pending;
        }
        match take(&queue.queues.barred(&queue.shared, self.claim.tag)) {
            None => Poll::Pending,
            Some(taken) => {
                self.is_served.set(true);
                queue.queues.give(self.claim.tag);
                Poll::Ready(Called::Served(taken))
            }
        }
    }

    /// Goes on in the queue of another view.
    pub fn move_to(&mut self, queue: &Rc<LocalQueue>) {
        if self.leave() {
            // What was promised stays so: by its tag it has been waiting since then.
            let moved = queue.join(self.claim);
            self.is_served.set(true);
            *self = moved;
        }
    }

    /// False: it had no place any more.
    fn leave(&self) -> bool {
        let was_there = self.queue.waiting.borrow_mut().remove(&self.place()).is_some();
        if was_there {
            self.queue.count();
        }
        was_there
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.leave() {
            self.queue.queues.leave();
        }
        if !self.is_served.get() {
            self.queue.queues.take_back(&self.claim);
        }
        self.queue.pass_on();
    }
}

#[cfg(test)]
mod tests;
