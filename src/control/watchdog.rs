//! Notices a worker that stands still. Its listener would go on taking connections that nobody
//! serves, so after five seconds the process ends and the service manager starts it anew.

use crate::state::stop::HEARTBEAT_DONE;
use crossbeam_channel::{bounded, RecvTimeoutError};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks. Workers sweep every 100 ms.
const LOOK: Duration = Duration::from_millis(500);
/// Looks without a beat that are worth a warning.
const WARN_AFTER: u32 = 2;
/// Looks without a beat that end the process: five seconds.
const ABORT_AFTER: u32 = 10;

/// Starts the thread that looks after the workers' heartbeats.
pub fn start(heartbeats: Vec<Arc<AtomicU64>>) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let (_alive, clock) = bounded::<()>(0);
        let mut watches: Vec<_> = heartbeats.iter().map(|_| Watch::default()).collect();
        let mut last_look = Instant::now();
        while clock.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            // When this thread stood still as well, the whole process did (SIGSTOP, a paused
            // machine), and the workers are not to blame.
            let late = last_look.elapsed() > LOOK * 2;
            last_look = Instant::now();
            for (worker, (beat, watch)) in heartbeats.iter().zip(&mut watches).enumerate() {
                let beat = beat.load(Ordering::Relaxed);
                if beat == HEARTBEAT_DONE {
                    continue;
                }
                match watch.look(beat, late) {
                    Verdict::Fine => {}
                    Verdict::Slow => tracing::warn!(worker, "worker is slow"),
                    Verdict::Dead => abort(worker),
                }
            }
        }
    })?;
    Ok(())
}

fn abort(worker: usize) -> ! {
    // Not by the log, whose thread would die before it wrote this.
    let _ = writeln!(io::stderr(), "llmproxy: worker {worker} stands still: aborting");
    std::process::abort()
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Slow,
    Dead,
}

/// What was seen of one worker.
#[derive(Debug, Default)]
struct Watch {
    beat: u64,
    missed: u32,
}

impl Watch {
    fn look(&mut self, beat: u64, late: bool) -> Verdict {
        if beat != self.beat || late {
            *self = Watch { beat, missed: 0 };
            return Verdict::Fine;
        }
        self.missed += 1;
        match self.missed {
            WARN_AFTER => Verdict::Slow,
            ABORT_AFTER.. => Verdict::Dead,
            _ => Verdict::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_that_misses_every_look_is_dead() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(1, false), Verdict::Fine);
        let verdicts: Vec<_> = (0..10).map(|_| watch.look(1, false)).collect();
        assert_eq!(verdicts[1], Verdict::Slow);
        assert!(verdicts[..9].iter().all(|v| *v != Verdict::Dead));
        assert_eq!(verdicts[9], Verdict::Dead);
        let mut watch = Watch::default();
        for _ in 0..100 {
            assert_ne!(watch.look(0, false), Verdict::Dead);
            assert_eq!(watch.look(0, true), Verdict::Fine, "the process was paused");
        }
    }
}
