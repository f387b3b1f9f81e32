//! Who may send, and when.
//!
//! Closed loop: so many exchanges at a time, given out in turn to all connections. Open loop: a
//! pacer puts starts in at the rate asked for, whether or not anyone is free to take them.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

/// A connection's place in the queue.
#[derive(Default)]
struct Place {
    start: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
}

/// Gives out the right to send one request.
pub struct Gate {
    is_open_loop: bool,
    /// Closed loop: exchanges that may begin now
    free: Cell<usize>,
    /// Open loop: starts that nobody took yet
    due: RefCell<VecDeque<Instant>>,
    waiting: RefCell<VecDeque<Rc<Place>>>,
    /// Requests that may still begin
    left: Cell<u64>,
    is_over: Cell<bool>,
}

impl Gate {
    /// At most `active` exchanges at a time and `requests` in all.
    pub fn closed_loop(active: usize, requests: u64) -> Self {
        Gate {
            is_open_loop: false,
            free: Cell::new(active),
            due: RefCell::default(),
            waiting: RefCell::default(),
            left: Cell::new(requests),
            is_over: Cell::new(requests == 0),
        }
    }

    /// Starts come from [`Gate::put`] only.
    pub fn open_loop(requests: u64) -> Self {
        Gate { is_open_loop: true, ..Gate::closed_loop(0, requests) }
    }

    /// Waits for the right to send, and gives the moment the exchange is meant to start. None:
    /// the run is over.
    pub async fn enter(&self) -> Option<Instant> {
        if self.is_over.get() {
            return None;
        }
        if let Some(start) = self.take() {
            self.count();
            return Some(start);
        }
        let place = Rc::new(Place::default());
        self.waiting.borrow_mut().push_back(place.clone());
        poll_fn(|cx| {
            if let Some(start) = place.start.take() {
                return Poll::Ready(Some(start));
            }
            if self.is_over.get() {
                return Poll::Ready(None);
            }
            place.waker.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn take(&self) -> Option<Instant> {
        if self.is_open_loop {
            return self.due.borrow_mut().pop_front();
        }
        let free = self.free.get().checked_sub(1)?;
        self.free.set(free);
        Some(Instant::now())
    }

    /// The exchange that `enter` began is over; the next in the queue may begin.
    pub fn leave(&self) {
        if !self.is_open_loop && !self.hand_over(Instant::now()) {
            self.free.set(self.free.get() + 1);
        }
    }

    /// Open loop: an exchange is meant to start at `start`. Gives false when nobody was waiting.
    pub fn put(&self, start: Instant) -> bool {
        let taken = self.hand_over(start);
        if !taken && !self.is_over.get() {
            self.due.borrow_mut().push_back(start);
        }
        taken
    }

    fn hand_over(&self, start: Instant) -> bool {
        if self.is_over.get() {
            return false;
        }
        let Some(place) = self.waiting.borrow_mut().pop_front() else { return false };
        self.count();
        place.start.set(Some(start));
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
        true
    }

    fn count(&self) {
        let left = self.left.get().saturating_sub(1);
        self.left.set(left);
        if left == 0 {
            self.close();
        }
    }

    /// Ends the run: everyone who waits, or comes later, gets None.
    pub fn close(&self) {
        self.is_over.set(true);
        for place in self.waiting.borrow_mut().drain(..) {
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether the run is over.
    pub fn is_over(&self) -> bool {
        self.is_over.get()
    }
}
