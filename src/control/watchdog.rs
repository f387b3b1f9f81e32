//! Notices a worker that stands still. Its listener would go on taking connections that nobody
//! serves, so after five seconds the process ends and the service manager starts it anew. A manager
//! that wants signs of life (systemd's `WatchdogSec=`) has them from here, while no worker is late.

use super::notify::Notifier;
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
pub fn start(pulses: Vec<Arc<Pulse>>, notifier: Arc<Notifier>) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let (_alive, clock) = bounded::<()>(0);
        let mut watches: Vec<_> = pulses.iter().map(|_| Watch::default()).collect();
        let (mut last_look, mut last_call) = (Instant::now(), Instant::now());
        let mut signs = Signs { life: notifier.life(), last: Instant::now() };
        let mut pause = signs.soon(LOOK);
        while clock.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            // When this thread stood still as well, the whole process did (SIGSTOP, a paused
            // machine), and the workers are not to blame.
            let late = last_look.elapsed() > pause + LOOK;
            last_look = Instant::now();
            let calls = last_call.elapsed() >= CALL_EVERY;
            if calls {
                last_call = Instant::now();
            }
            let (mut all_sleep, mut all_turn) = (true, true);
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
                all_turn &= watch.missed < WARN_AFTER;
                all_sleep &= !matches!(seen, Look::Awake(_)) && !watch.called;
            }
            pause = signs.soon(if all_sleep { LOOK_AT_SLEEPERS } else { LOOK });
            if all_turn && signs.is_due(pause) {
                notifier.alive();
            }
        }
    })?;
    Ok(())
}

/// Signs of life for a service manager.
struct Signs {
    /// It wants one within so long.
    life: Option<Duration>,
    last: Instant,
}

impl Signs {
    /// This pause, or one that leaves time for a sign.
    fn soon(&self, pause: Duration) -> Duration {
        self.life.map_or(pause, |life| pause.min(life / 4))
    }

    /// Whether one must be given now, since half of the time will be over behind the next pause.
    fn is_due(&mut self, pause: Duration) -> bool {
        let is_due = self.life.is_some_and(|life| self.last.elapsed() + pause >= life / 2);
        if is_due {
            self.last = Instant::now();
        }
        is_due
    }
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

    /// Catches: signs of life that come too late for a manager that wants many, or all the time for
    /// one that wants few.
    #[test]
    fn signs_of_life_come_in_half_of_the_time() {
        let mut signs = Signs { life: None, last: Instant::now() };
        assert!(signs.soon(LOOK) == LOOK && !signs.is_due(LOOK));
        signs.life = Some(Duration::from_secs(1));
        let pause = signs.soon(LOOK_AT_SLEEPERS);
        assert!(2 * pause <= Duration::from_millis(500), "{pause:?}");
        signs.life = Some(Duration::from_secs(3600));
        assert!(signs.soon(LOOK_AT_SLEEPERS) == LOOK_AT_SLEEPERS && !signs.is_due(pause));
        signs.last = Instant::now() - Duration::from_secs(1795);
        assert!(signs.is_due(LOOK_AT_SLEEPERS) && !signs.is_due(LOOK_AT_SLEEPERS));
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
