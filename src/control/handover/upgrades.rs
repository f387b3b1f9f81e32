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
use rustix::process::{kill_process, Pid, Signal};
use std::fs;
use std::io;
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

/// First processes of containers that end when the one process that they have started does
/// (`docker run --init`, say).
const INITS: [&str; 6] =
    ["tini", "tini-static", "docker-init", "podman-init", "catatonit", "dumb-init"];

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
    /// [`READY_WAIT`] and [`SERVING_WAIT`], but for tests.
    waits: (Duration, Duration),
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
            waits: (READY_WAIT, SERVING_WAIT),
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

    /// True when another process has taken our place.
    pub fn have_given_place(&self) -> bool {
        self.stop.is_succeeded()
    }

    /// True when the process that took our place ended before this one: nobody serves.
    pub fn has_lost_successor(&self) -> bool {
        self.has_lost_successor.load(Ordering::Acquire)
    }

    /// Starts a successor, on a thread of its own. One at a time.
    pub fn ask(self: &Arc<Self>) {
        self.ask_on(|body| {
            std::thread::Builder::new().name("upgrade".into()).spawn(body).map(drop)
        });
    }

    fn ask_on(self: &Arc<Self>, spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<()>) {
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            let why = match self.stop.is_succeeded() {
                true => "another process has the place of this one already",
                false => "one is under way",
            };
            return tracing::warn!(why, "an upgrade is refused");
        }
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.note(UpgradeState::UnderWay);
        let me = Arc::clone(self);
        let body = Box::new(move || {
            // Whatever happens in there, another one may be asked for.
            super::super::survive("upgrade", || me.run());
            me.is_under_way.store(false, Ordering::Release);
        });
        if let Err(error) = spawn(body) {
            self.fail(format!("no thread can be started: {error}"));
            self.is_under_way.store(false, Ordering::Release);
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
            Err(error) => self.fail(error),
        }
    }

    fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        tracing::error!(%error, "not upgraded: this process serves on");
        self.note(UpgradeState::Failed(error));
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
        may_leave()?;
        self.may_go_on()?;
        let said = |error: io::Error| error.to_string();
        let groups = self.spares.copies().map_err(said)?;
        let (wire, end) = Wire::pair().map_err(said)?;
        let mut successor = self.program.start(end, VARIABLE).map_err(said)?;
        let process = successor.id();
        tracing::info!(process, "a successor is started");
        match self.hand_over(&wire, groups, &mut |signal| send(&successor, signal)) {
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
    fn hand_over(
        &self,
        wire: &Wire,
        groups: Vec<ListenGroup>,
        successor: &mut dyn FnMut(Signal),
    ) -> Result<(), String> {
        for group in groups {
            wire.send(&HandoverWord::Sockets(group)).map_err(gone)?;
        }
        wire.send(&HandoverWord::NoMore).map_err(gone)?;
        self.await_ready(wire)?;
        wire.send(&HandoverWord::Go).map_err(gone)?;
        self.await_serving(wire, successor)
    }

    fn await_ready(&self, wire: &Wire) -> Result<(), String> {
        let limit = self.waits.0;
        let due = Instant::now() + limit;
        loop {
            self.may_go_on()?;
            match wire.hear(LOOK).map_err(gone)? {
                Some(HandoverWord::Ready) => break,
                Some(HandoverWord::Failed(why)) => {
                    return Err(format!("the successor cannot start: {why}"));
                }
                _ if Instant::now() >= due => {
                    let limit_s = limit.as_secs_f64();
                    return Err(format!("the successor was not ready within {limit_s} s"));
                }
                _ => {}
            }
        }
        self.may_go_on()
    }

    /// From here on the successor cannot be called back: it may have taken clients in. Where this
    /// process is told to end, so is the successor, which sees to its clients.
    fn await_serving(&self, wire: &Wire, successor: &mut dyn FnMut(Signal)) -> Result<(), String> {
        let limit = self.waits.1;
        let due = Instant::now() + limit;
        let mut is_told = false;
        let mut pass_on = || {
            if self.stop.phase() != Phase::Running && !std::mem::replace(&mut is_told, true) {
                tracing::info!("this process ends: the successor is told to end, too");
                successor(Signal::TERM);
            }
        };
        loop {
            pass_on();
            match wire.hear(LOOK).map_err(gone)? {
                Some(HandoverWord::Serving) => {
                    pass_on();
                    return Ok(());
                }
                Some(HandoverWord::Failed(why)) => {
                    return Err(format!("the successor failed: {why}"))
                }
                _ if Instant::now() >= due => {
                    let limit_s = limit.as_secs_f64();
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

/// Whether a successor would outlive this process: not where a container ends with it.
fn may_leave() -> Result<(), String> {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_nonzero().get());
    let first = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let whose = match parent {
        _ if std::process::id() == 1 => "this is the first process of its container, which".into(),
        Some(1) if INITS.contains(&first.trim_end()) => {
            let first = first.trim_end();
            format!("`{first}`, the first process of this container, follows this one, and both")
        }
        _ => return Ok(()),
    };
    Err(format!("{whose} would end with it: start another container"))
}

fn gone(_: io::Error) -> String {
    "the successor ended; its log says why".to_owned()
}

fn send(successor: &Child, signal: Signal) {
    // It is ours and not waited for: its number is nobody else's.
    let number = i32::try_from(successor.id()).ok().and_then(Pid::from_raw);
    if let Some(Err(error)) = number.map(|number| kill_process(number, signal)) {
        tracing::warn!(%error, "the successor is not told to end");
    }
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
    use crate::control::handover::note::ForeignNote;
    use crate::control::signals::Delays;
    use std::os::unix::process::ExitStatusExt;
    use std::sync::Mutex;

    const SOON: Duration = Duration::from_secs(30);

    fn upgrades(waits: (Duration, Duration)) -> Upgrades {
        let (program, spares) = (Program::of_this_process(), Arc::<Spares>::default());
        let delays = Arc::new(Mutex::new(Delays { shutdown: Duration::ZERO, drain: None }));
        let of = (Arc::<Stop>::default(), delays);
        let upgrades = Upgrades::new(program, spares, of, (Arc::<Notifier>::default(), None));
        upgrades.allow();
        Upgrades { waits, ..upgrades }
    }

    /// What comes of a hand-over to a successor that does this with its end of the wire, and the
    /// signals that it was sent.
    fn handed_over(
        upgrades: &Upgrades,
        successor: impl FnOnce(Wire) + Send,
    ) -> (Result<(), String>, Vec<Signal>) {
        let (wire, end) = Wire::pair().unwrap();
        let mut signals = Vec::new();
        let ended = std::thread::scope(|scope| {
            scope.spawn(move || successor(Wire::of(end).unwrap()));
            let ended = upgrades.hand_over(&wire, Vec::new(), &mut |signal| signals.push(signal));
            drop(wire);
            ended
        });
        (ended, signals)
    }

    /// Hears until that word, or the end.
    fn until(wire: &Wire, is_it: impl Fn(&HandoverWord) -> bool) {
        while wire.hear(SOON).is_ok_and(|word| !word.as_ref().is_some_and(&is_it)) {}
    }

    fn until_end(wire: &Wire) {
        until(wire, |_| false);
    }

    fn until_go(wire: &Wire) {
        wire.send(&HandoverWord::Ready).unwrap();
        until(wire, |word| matches!(word, HandoverWord::Go));
    }

    /// Catches: a successor that hangs and is waited for without an end, and one that is taken for
    /// one that serves because it said that it could.
    #[test]
    fn a_successor_has_so_long_and_no_longer() {
        let short = Duration::from_millis(150);
        let (ended, _) = handed_over(&upgrades((short, SOON)), |wire| until_end(&wire));
        assert_eq!(ended.unwrap_err(), "the successor was not ready within 0.15 s");
        let (ended, signals) = handed_over(&upgrades((SOON, short)), |wire| {
            until_go(&wire);
            until_end(&wire);
        });
        assert_eq!(ended.unwrap_err(), "the successor's workers did not start within 0.15 s");
        assert!(signals.is_empty());
        // One that dies between the two.
        let (ended, _) = handed_over(&upgrades((SOON, SOON)), |wire| until_go(&wire));
        assert!(ended.unwrap_err().starts_with("the successor ended"));
        let (ended, _) = handed_over(&upgrades((SOON, SOON)), |wire| {
            until_go(&wire);
            wire.send(&HandoverWord::Serving).unwrap();
        });
        ended.unwrap();
    }

    /// Catches: a process that is told to end while its successor takes its place, and leaves that
    /// behind as a service that nobody asked for any more.
    #[test]
    fn an_end_in_the_middle_is_that_of_the_successor_too() {
        let upgrades = upgrades((SOON, SOON));
        let (ended, signals) = handed_over(&upgrades, |wire| {
            until_go(&wire);
            upgrades.stop.advance(Phase::Draining);
            // Longer than it takes to look, as a start of many workers does.
            assert!(wire.hear(3 * LOOK).unwrap().is_none());
            wire.send(&HandoverWord::Serving).unwrap();
        });
        ended.unwrap();
        assert_eq!(signals, [Signal::TERM]);
        let (ended, signals) = handed_over(&upgrades, |wire| until_end(&wire));
        assert_eq!((ended.unwrap_err().as_str(), signals.len()), ("this process ends", 0));
    }

    /// Catches: `llmproxy upgrade` that waits for what will never be said, because there is no
    /// thread that could say it.
    #[test]
    fn one_that_cannot_begin_is_told() {
        let upgrades = Arc::new(upgrades((SOON, SOON)));
        for times in 1..=2 {
            upgrades.ask_on(|_| Err(io::ErrorKind::WouldBlock.into()));
            assert_eq!(upgrades.failures().load(Ordering::Relaxed), times);
            let note = ForeignNote::own(upgrades.notepad.as_ref().unwrap()).read().unwrap();
            assert_eq!(note.number, times);
            let UpgradeState::Failed(why) = note.state else { panic!("{note:?}") };
            assert!(why.starts_with("no thread can be started"), "{why}");
        }
    }

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
