//! One panic closes one connection, not the worker with its thousands of streams.

use std::future::{poll_fn, Future};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::pin::pin;
use std::task::Poll;

/// Runs `future`; false when it panicked. A panic in a monoio task unwinds through `block_on` and
/// ends the worker while its listener still takes connections, hence the guard (monoio#314).
///
/// The future is dropped afterwards either way, which closes its sockets; state that outlives it
/// sits in cells that are never left half-written across a poll.
pub async fn guarded<F: Future<Output = ()>>(future: F) -> bool {
    let mut future = pin!(future);
    poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(|()| true),
        Err(_) => Poll::Ready(false),
    })
    .await
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
