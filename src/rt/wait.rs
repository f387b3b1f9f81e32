//! Waits for a peer that a clock bounds, where there is no post on the patrol's round.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

/// In so long the loop looks at sockets once, and runs the tasks that they wake, before a timer
/// fires.
pub(super) const ONE_TURN: Duration = Duration::from_millis(1);

/// The future's result; `None` when the peer takes longer than `limit`. A clock that comes late
/// means that this thread stood still (a busy machine, SIGSTOP): what came meanwhile has not been
/// seen, and what comes next could not be asked for. So the peer gets as much longer as the clock
/// was late, `limit` at most, and in any case one more look at its socket.
pub async fn await_peer<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let due = Instant::now() + limit;
    if let Ok(done) = monoio::time::timeout(limit, future.as_mut()).await {
        return Some(done);
    }
    let late = due.elapsed().min(limit).max(ONE_TURN);
    monoio::time::timeout(late, future).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt::ring::Ring;
    use crate::rt::sleep;

    /// Catches: a peer that is given up because this thread stood still while its time ran.
    #[test]
    fn a_thread_that_stood_still_gives_its_peer_more_time() {
        const LIMIT: Duration = Duration::from_millis(300);
        let waited = Ring::build().unwrap().block_on(async {
            // What the peer needs behind what came while nobody looked.
            let peer = async {
                sleep(Duration::from_millis(10)).await;
                let began = Instant::now();
                while began.elapsed() < 2 * LIMIT {
                    std::thread::park_timeout(2 * LIMIT);
                }
                sleep(Duration::from_millis(10)).await;
            };
            let never = std::future::pending::<()>();
            (await_peer(LIMIT, peer).await, await_peer(ONE_TURN, never).await)
        });
        assert_eq!(waited, (Some(()), None));
    }
}
