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
