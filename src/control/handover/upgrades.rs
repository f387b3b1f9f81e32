//! The side of the process that serves: starts its successor, and leaves once that serves.

use super::listeners::{ListenGroup, Spares};
use super::note::{Notepad, UpgradeNote, UpgradeState};
use super::program::Program;
use super::wire::{HandoverWord, Wire};
use crate::control::notify::Notifier;
use crate::control::pid_file;
use crate::control::signals::DelaysInUse;
use crate::state::stop::{Phase, Stop};
use crossbeam_channel::{bounded, Receiver};
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Says to a successor which process started it.
pub(super) const VARIABLE: &str = "LLMPROXY_PREDECESSOR";
/// A successor has so long to start all but its workers. Beyond: it is ended, this process serves
/// on, and counts it.
pub const READY_WAIT: Duration = Duration::from_secs(60);
/// Its workers have so long to start then. Beyond: it is ended, as above.
pub const SERVING_WAIT: Duration = Duration::from_secs(10);
/// So often it is looked whether a successor is to be given up, and later whether it lives.
const LOOK: Duration = Duration::from_millis(100);
/// One that came to nothing has so long to end by itself.
const END_WAIT: Duration = Duration::from_millis(500);
/// The end of this process waits for that, and a bit longer on a busy machine.
const SLACK: Duration = Duration::from_secs(3);
const END_LOOK: Duration = Duration::from_millis(10);
/// A connection on which nothing is asked closes so long after the successor serves, or after half
/// of `server.drain_timeout`, where that is less. Until then whoever asks over it is answered, and
/// told to connect anew: a close might cross a request.
const IDLE_GRACE: Duration = Duration::from_secs(10);

/// What an upgrade needs of the process.
pub struct Upgrades {
    program: Program,
    spares: Arc<Spares>,
    stop: Arc<Stop>,
    delays: DelaysInUse,
    notifier: Arc<Notifier>,
    /// A successor writes its own number there, before it serves.
    pid_file: Option<PathBuf>,
    notepad: Option<Notepad>,
    asked: AtomicU64,
    failed: Arc<AtomicU64>,
    does_serve: AtomicBool,
    is_under_way: AtomicBool,
    has_lost_successor: AtomicBool,
}

impl Upgrades {
    /// None yet.
    pub fn new(
        program: Program,
        spares: Arc<Spares>,
        (stop, delays): (Arc<Stop>, DelaysInUse),
        (notifier, pid_file): (Arc<Notifier>, Option<PathBuf>),
    ) -> Upgrades {
        let notepad = Notepad::new().inspect_err(|error| {
            tracing::warn!(%error, "`llmproxy upgrade` cannot find out what becomes of an upgrade");
        });
        Upgrades {
            program,
            spares,
            stop,
            delays,
            notifier,
            pid_file,
            notepad: notepad.ok(),
            asked: AtomicU64::new(0),
            failed: Arc::default(),
            does_serve: AtomicBool::new(false),
            is_under_way: AtomicBool::new(false),
            has_lost_successor: AtomicBool::new(false),
        }
    }

    /// The workers run: there is a place to give away.
    pub fn allow(&self) {
        self.does_serve.store(true, Ordering::Release);
    }

    /// The count of those that came to nothing.
    pub fn failures(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.failed)
    }

    /// True when the process that took our place ended before this one: nobody serves.
    pub fn has_lost_successor(&self) -> bool {
        self.has_lost_successor.load(Ordering::Acquire)
    }

    /// Starts a successor, on a thread of its own. One at a time.
    pub fn ask(self: &Arc<Self>) {
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            let why = match self.stop.is_succeeded() {
                true => "another process has the place of this one already",
                false => "one is under way",
            };
            return tracing::warn!(why, "an upgrade is refused");
        }
        let me = Arc::clone(self);
        let body = move || {
            // Whatever happens in there, another one may be asked for.
            super::super::survive("upgrade", || me.run());
            me.is_under_way.store(false, Ordering::Release);
        };
        if let Err(error) = std::thread::Builder::new().name("upgrade".into()).spawn(body) {
            self.is_under_way.store(false, Ordering::Release);
            self.note(UpgradeState::Failed(format!("no thread can be started: {error}")));
        }
    }

    /// Waits until a successor is ended that is not ready: one that hangs would keep the listeners
    /// open, with nobody to take clients in. To be called when the workers have ended.
    pub fn await_end(&self) {
        let (_alive, clock): (_, Receiver<()>) = bounded(0);
        let due = Instant::now() + END_WAIT + SLACK;
        let is_at_work = || self.is_under_way.load(Ordering::Acquire) && !self.stop.is_succeeded();
        while is_at_work() && Instant::now() < due {
            let _ = clock.recv_timeout(END_LOOK);
        }
    }

    fn run(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.note(UpgradeState::UnderWay);
        match self.attempt() {
            Ok(successor) => {
                let process = successor.id();
                tracing::info!(process, "upgraded: the successor serves, and this process leaves");
                self.notifier.succeeded_by(process);
                self.stop.succeed();
                self.spares.close();
                self.note(UpgradeState::Succeeded(process));
                self.leave(successor);
            }
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "not upgraded: this process serves on");
                self.note(UpgradeState::Failed(error));
            }
        }
    }

    fn note(&self, state: UpgradeState) {
        let number = self.asked.load(Ordering::Relaxed);
        let Some(notepad) = &self.notepad else { return };
        if let Err(error) = notepad.write(&UpgradeNote { number, state }) {
            tracing::warn!(%error, "what became of an upgrade cannot be written down");
        }
    }

    /// A successor that serves. Otherwise there is none, and why.
    fn attempt(&self) -> Result<Child, String> {
        if std::process::id() == 1 {
            let why = "this is the first process of its container, which would end with it: \
                       start another container";
            return Err(why.into());
        }
        self.may_go_on()?;
        let said = |error: std::io::Error| error.to_string();
        let groups = self.spares.copies().map_err(said)?;
        let (wire, end) = Wire::pair().map_err(said)?;
        let mut successor = self.program.start(end, VARIABLE).map_err(said)?;
        let process = successor.id();
        tracing::info!(process, "a successor is started");
        match self.hand_over(&wire, groups) {
            Ok(()) => Ok(successor),
            Err(error) => {
                let how = end_one(&mut successor);
                if let Some(Err(error)) = self.pid_file.as_deref().map(pid_file::keep) {
                    tracing::error!("{error}");
                }
                Err(format!("{error}{how}"))
            }
        }
    }

    /// Gives a successor what it needs, and waits until it serves.
    fn hand_over(&self, wire: &Wire, groups: Vec<ListenGroup>) -> Result<(), String> {
        let gone = |_| "the successor ended; its log says why".to_owned();
        for group in groups {
            wire.send(&HandoverWord::Sockets(group)).map_err(gone)?;
        }
        wire.send(&HandoverWord::NoMore).map_err(gone)?;
        let due = Instant::now() + READY_WAIT;
        loop {
            self.may_go_on()?;
            match wire.hear(LOOK).map_err(gone)? {
                Some(HandoverWord::Ready) => break,
                Some(HandoverWord::Failed(why)) => {
                    return Err(format!("the successor cannot start: {why}"));
                }
                _ if Instant::now() >= due => {
                    let limit_s = READY_WAIT.as_secs();
                    return Err(format!("the successor was not ready within {limit_s} s"));
                }
                _ => {}
            }
        }
        self.may_go_on()?;
        wire.send(&HandoverWord::Go).map_err(gone)?;
        // From here on an end of this process is no reason to give up: the successor goes on.
        let due = Instant::now() + SERVING_WAIT;
        loop {
            match wire.hear(LOOK).map_err(gone)? {
                Some(HandoverWord::Serving) => return Ok(()),
                Some(HandoverWord::Failed(why)) => {
                    return Err(format!("the successor failed: {why}"))
                }
                _ if Instant::now() >= due => {
                    let limit_s = SERVING_WAIT.as_secs();
                    return Err(format!(
                        "the successor's workers did not start within {limit_s} s"
                    ));
                }
                _ => {}
            }
        }
    }

    fn may_go_on(&self) -> Result<(), String> {
        match self.stop.phase() {
            Phase::Running if self.does_serve.load(Ordering::Acquire) => Ok(()),
            Phase::Running => Err("this process does not serve yet".into()),
            Phase::Succeeded => Err("another process has the place of this one already".into()),
            Phase::Leaving | Phase::Draining | Phase::Ending => Err("this process ends".into()),
        }
    }

    /// Sees to the end of this process, and to the successor while it is our child.
    fn leave(&self, mut successor: Child) {
        let drain = self.delays.lock().unwrap_or_else(PoisonError::into_inner).drain;
        let grace = drain.map_or(IDLE_GRACE, |drain| IDLE_GRACE.min(drain / 2));
        let (_alive, clock): (_, Receiver<()>) = bounded(0);
        let begun = Instant::now();
        let mut has_ended = false;
        // The process ends when its workers have.
        loop {
            let _ = clock.recv_timeout(LOOK);
            if begun.elapsed() >= grace && self.stop.phase() == Phase::Succeeded {
                tracing::info!("idle connections are closed now");
                self.stop.advance(Phase::Draining);
            }
            if drain.is_some_and(|drain| begun.elapsed() >= drain) {
                self.stop.advance(Phase::Ending);
            }
            if has_ended {
                continue;
            }
            if let Ok(Some(status)) = successor.try_wait() {
                has_ended = true;
                self.note_end(status);
            }
        }
    }

    fn note_end(&self, status: ExitStatus) {
        if is_in_order(status) {
            return tracing::info!(%status, "the successor has ended, too");
        }
        tracing::error!(%status, "the successor has died: nobody serves any more");
        self.has_lost_successor.store(true, Ordering::Release);
        self.notifier.bereaved();
    }
}

/// Whether a process ended as it should: by a signal that asked for it, or because another one had
/// its place. (Its codes are those of `main`.)
fn is_in_order(status: ExitStatus) -> bool {
    const DRAINED: i32 = 0;
    const CUT: i32 = 3;
    const AT_ONCE: i32 = 128;
    status.code().is_some_and(|code| matches!(code, DRAINED | CUT) || code > AT_ONCE)
}

/// Ends a successor that came to nothing. Says how it ended, if it did so by itself.
fn end_one(successor: &mut Child) -> String {
    let (_alive, clock): (_, Receiver<()>) = bounded(0);
    let due = Instant::now() + END_WAIT;
    loop {
        match successor.try_wait() {
            Ok(Some(status)) => return format!(" ({status})"),
            Ok(None) if Instant::now() < due => drop(clock.recv_timeout(LOOK)),
            _ => break,
        }
    }
    let _ = successor.kill();
    let _ = successor.wait();
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    /// Catches: a process that takes the place back because its successor has given it on, or was
    /// told to end; one that takes a crash for an end in order.
    #[test]
    fn an_end_in_order_is_told_from_a_crash() {
        let code = |code: i32| ExitStatus::from_raw(code << 8);
        assert!([0, 3, 143, 130].into_iter().all(|fine| is_in_order(code(fine))));
        assert!(![1, 2, 101].into_iter().any(|bad| is_in_order(code(bad))));
        assert!(!is_in_order(ExitStatus::from_raw(9)) && !is_in_order(ExitStatus::from_raw(6)));
    }
}
