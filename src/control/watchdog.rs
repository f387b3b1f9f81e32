//! Notices a worker that stands still. Its listener would go on taking connections that nobody
//! serves, so after five seconds the process ends and the service manager starts it anew.

use crate::state::pulse::{Look, Pulse};
use crossbeam_channel::{bounded, RecvTimeoutError};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks. Workers sweep every 100 ms, or sleep where they have nothing open.
const LOOK: Duration = Duration::from_millis(500);
/// The same while all workers sleep. A worker that wakes and stands still at once is found so much
/// later.
const LOOK_AT_SLEEPERS: Duration = Duration::from_secs(5);
/// A worker that sleeps is called so often, and must beat then like one that is awake.
const CALL_EVERY: Duration = Duration::from_secs(60);
/// Looks without a beat that are worth a warning.
const WARN_AFTER: u32 = 2;
/// Looks without a beat that end the process: five seconds.
const ABORT_AFTER: u32 = 10;

/// Starts the thread that looks after the workers.
pub fn start(pulses: Vec<Arc<Pulse>>) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let (_alive, clock) = bounded::<()>(0);
        let mut watches: Vec<_> = pulses.iter().map(|_| Watch::default()).collect();
        let (mut last_look, mut last_call) = (Instant::now(), Instant::now());
        let mut pause = LOOK;
        while clock.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // When this thread stood still as well, the whole process did (SIGSTOP, a paused
            // machine), and the workers are not to blame.
            let late = last_look.elapsed() > pause + LOOK;
            last_look = Instant::now();
            let calls = last_call.elapsed() >= CALL_EVERY;
            if calls {
                last_call = Instant::now();
            }
            let mut all_sleep = true;
            for (worker, (pulse, watch)) in pulses.iter().zip(&mut watches).enumerate() {
                let seen = pulse.look();
                match watch.look(seen, late) {
                    Verdict::Fine => {}
                    Verdict::Slow => tracing::warn!(worker, "worker is slow"),
                    Verdict::Dead => abort(worker),
                }
                if calls && matches!(seen, Look::Asleep(_)) {
                    watch.called = true;
                    pulse.call();
                }
                all_sleep &= !matches!(seen, Look::Awake(_)) && !watch.called;
            }
            pause = if all_sleep { LOOK_AT_SLEEPERS } else { LOOK };
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
    beats: u64,
    missed: u32,
    /// It slept and was called, and has not beaten since.
    called: bool,
}

impl Watch {
    fn look(&mut self, look: Look, late: bool) -> Verdict {
        let (beats, is_expected) = match look {
            Look::Awake(beats) => (beats, true),
            Look::Asleep(beats) => (beats, self.called),
            Look::Finished => (self.beats, false),
        };
        if beats != self.beats || late || !is_expected {
            let called = self.called && beats == self.beats;
            *self = Watch { beats, missed: 0, called };
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
    use Look::{Asleep, Awake, Finished};

    #[test]
    fn only_a_worker_that_misses_every_look_is_dead() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(Awake(1), false), Verdict::Fine);
        let verdicts: Vec<_> = (0..10).map(|_| watch.look(Awake(1), false)).collect();
        assert_eq!(verdicts[1], Verdict::Slow);
        assert!(verdicts[..9].iter().all(|v| *v != Verdict::Dead));
        assert_eq!(verdicts[9], Verdict::Dead);
        let mut watch = Watch::default();
        for _ in 0..100 {
            assert_ne!(watch.look(Awake(0), false), Verdict::Dead);
            assert_eq!(watch.look(Awake(0), true), Verdict::Fine, "the process was paused");
        }
    }

    /// Catches: a watchdog that ends an idle process, or that never finds a sleeper which does not
    /// wake.
    #[test]
    fn a_sleeper_need_not_beat_until_it_is_called() {
        let mut watch = Watch::default();
        for _ in 0..100 {
            assert_eq!(watch.look(Asleep(3), false), Verdict::Fine);
        }
        watch.called = true;
        assert_eq!(watch.look(Asleep(3), false), Verdict::Fine, "the first look after the call");
        assert_eq!(watch.look(Asleep(3), false), Verdict::Slow);
        assert_eq!(watch.look(Asleep(4), false), Verdict::Fine, "it answered");
        for _ in 0..100 {
            assert_eq!(watch.look(Asleep(4), false), Verdict::Fine);
        }
        watch.called = true;
        let dead = (0..10).any(|_| watch.look(Asleep(4), false) == Verdict::Dead);
        assert!(dead, "it did not answer");
        assert_eq!(watch.look(Finished, false), Verdict::Fine);
    }

    /// Catches: a worker that stands still as soon as a client has woken it, and passes for one
    /// that sleeps.
    #[test]
    fn who_was_woken_must_beat() {
        let mut watch = Watch::default();
        assert_eq!(watch.look(Asleep(7), false), Verdict::Fine);
        let dead = (0..10).any(|_| watch.look(Awake(7), false) == Verdict::Dead);
        assert!(dead);
    }
}
