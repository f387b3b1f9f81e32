//! A look at each destination when the gateway starts, on a thread of its own: a receiver that is
//! not there is told of at once, and not with the first record.

use crate::config::plan;
use crate::usage::counters::UsageCounters;
use crate::usage::reporter;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Between two looks at first, doubled up to the second.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Looks until the destination is reached, or a record tells how it is, or `stop` is disconnected.
/// Nobody waits for the thread.
///
/// # Errors
/// It could not be created.
pub fn start(
    plan: &plan::Reporter,
    (counters, index): (Arc<UsageCounters>, usize),
    stop: Receiver<Infallible>,
) -> io::Result<()> {
    let plan = plan.clone();
    let look = move || {
        let Some(counters) = counters.reporters.get(index) else { return };
        let limit = reporter::shape(&plan).timeout;
        let (mut wait, mut told) = (WAIT_MIN, false);
        loop {
            let found = reporter::probe(&plan, limit);
            if counters.batches.load(Relaxed) > 0 {
                return;
            }
            counters.down.store(found.is_err(), Relaxed);
            let reporter = &plan.name;
            match found {
                Ok(()) if told => return tracing::info!(reporter, "the reporter can be reached"),
                Ok(()) => return,
                Err(cause) if !told => {
                    let message = "the reporter cannot be reached: its records will wait";
                    tracing::warn!(reporter, cause, "{message}");
                    told = true;
                }
                Err(_) => {}
            }
            if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            wait = (wait * 2).min(WAIT_MAX);
        }
    };
    thread::Builder::new().name(format!("usage-look-{index}")).spawn(look).map(drop)
}
