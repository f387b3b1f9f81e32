//! One panic closes one connection, not the worker with its thousands of streams.

use pin_project_lite::pin_project;
use std::future::Future;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Runs `future`; false when it panicked. A panic in a monoio task unwinds through `block_on` and
/// ends the worker while its listener still takes connections, hence the guard (monoio#314).
///
/// The future is dropped afterwards either way, which closes its sockets; state that outlives it
/// sits in cells that are never left half-written across a poll.
pub fn guarded<F: Future<Output = ()>>(future: F) -> Guarded<F> {
    Guarded { future }
}

pin_project! {
    /// See [`guarded`]. A type of its own: an async function would hold the future twice.
    pub struct Guarded<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = bool;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        let future = self.project().future;
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll.map(|()| true),
            Err(_) => Poll::Ready(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn a_panic_ends_its_task_and_drops_what_the_task_held() {
        let held = Rc::new(Cell::new(0));
        let theirs = Rc::clone(&held);
        let mut ring = crate::rt::ring::Ring::build().unwrap();
        let survived = ring.block_on(async move {
            let bad = monoio::spawn(guarded(async move {
                theirs.set(1);
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                panic!("as a test");
            }));
            let good = monoio::spawn(guarded(async {}));
            (bad.await, good.await)
        });
        assert_eq!(survived, (false, true));
        assert_eq!((held.get(), Rc::strong_count(&held)), (1, 1), "a socket would leak");
    }
}
