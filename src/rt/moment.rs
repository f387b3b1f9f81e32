//! Something that comes once on this thread, and that any number of tasks wait for beside their
//! own matter: a drain, the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{poll_fn, Future};
use std::pin::pin;
use std::task::{Poll, Waker};

/// See above. It has not come yet when it is made.
#[derive(Default)]
pub struct Moment {
    has_come: Cell<bool>,
    /// Of those who wait, by their places.
    wakers: RefCell<BTreeMap<u64, Waker>>,
    /// Places that were ever taken.
    places: Cell<u64>,
}

/// A place among those who wait.
struct Place<'a> {
    moment: &'a Moment,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.moment.wakers.borrow_mut().remove(&self.number);
    }
}

impl Moment {
    /// It comes, and wakes all who wait.
    pub fn come(&self) {
        self.has_come.set(true);
        self.wakers.take().into_values().for_each(Waker::wake);
    }

    /// True once it came.
    pub fn has_come(&self) -> bool {
        self.has_come.get()
    }

    /// The future's result, or `None` when the moment comes first.
    pub async fn unless<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let place = Place { moment: self, number: self.places.get() };
        self.places.set(place.number + 1);
        poll_fn(|cx| {
            if self.has_come.get() {
                return Poll::Ready(None);
            }
            self.wakers.borrow_mut().insert(place.number, cx.waker().clone());
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    /// Catches: a listener that goes on, or an engine that is read on, because only the last of
    /// those who wait is woken; places that pile up.
    #[test]
    fn all_who_wait_are_woken() {
        let moment = Rc::new(Moment::default());
        let woken = crate::rt::ring::Ring::build().unwrap().block_on(async {
            let wait = |_| {
                let moment = Rc::clone(&moment);
                crate::rt::spawn(async move { moment.unless(std::future::pending::<()>()).await })
            };
            let waiting: Vec<_> = (0..3).map(wait).collect();
            assert_eq!(moment.unless(async { 7 }).await, Some(7));
            crate::rt::sleep(std::time::Duration::ZERO).await;
            assert_eq!(moment.wakers.borrow().len(), 3, "who is done has no place");
            moment.come();
            let mut woken = 0;
            for waiting in waiting {
                woken += usize::from(waiting.await.is_none());
            }
            woken
        });
        assert_eq!((woken, moment.has_come()), (3, true));
    }
}
