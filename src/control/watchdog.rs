//! Notices a worker that stands still. Its listener would go on taking connections that nobody
//! serves, so after five seconds the process ends and the service manager starts it anew.

use crate::state::stop::{Phase, Stop};
use crossbeam_channel::{bounded, RecvTimeoutError};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks. Workers sweep every 100 ms.
const LOOK: Duration = Duration::from_millis(500);
/// A worker silent for so long is worth a warning.
const WARN_AFTER: Duration = Duration::from_secs(1);
/// A worker silent for so long ends the process.
const ABORT_AFTER: Duration = Duration::from_secs(5);

/// Starts the thread that looks after the workers' heartbeats.
pub fn start(heartbeats: Vec<Arc<AtomicU64>>, stop: Arc<Stop>) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let (_alive, clock) = bounded::<()>(0);
        let now = Instant::now();
        let mut seen: Vec<_> = heartbeats.iter().map(|_| (0, now, false)).collect();
        // A drained worker stands still for good: the watch ends with the first signal.
        while stop.phase() == Phase::Running
            && clock.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
        {
            for (worker, (beat, last)) in heartbeats.iter().zip(&mut seen).enumerate() {
                look(worker, beat.load(Ordering::Relaxed), last);
            }
        }
    })?;
    Ok(())
}

/// `last`: the beat seen last, when it changed, whether a warning was given.
fn look(worker: usize, beat: u64, last: &mut (u64, Instant, bool)) {
    if beat != last.0 {
        *last = (beat, Instant::now(), false);
        return;
    }
    let silent = last.1.elapsed();
    if silent > ABORT_AFTER {
        tracing::error!(worker, ?silent, "worker stands still: aborting");
        std::process::abort();
    }
    if silent > WARN_AFTER && !last.2 {
        last.2 = true;
        tracing::warn!(worker, ?silent, "worker is slow");
    }
}
