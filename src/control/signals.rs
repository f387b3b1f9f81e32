//! Signals become phases: the first that asks for the end lets the process end in order, one later
//! ends it at once. What has no meaning here is named in the log and does nothing: most signals
//! would end a process that does not hear them.

use super::handover::listeners::Spares;
use super::handover::upgrades::Upgrades;
use super::log::{Last, Reopen};
use super::notify::Notifier;
use super::reload::Cause;
use super::supervisor::Event;
use crate::config::plan::Server;
use crate::state::stop::{Phase, Stop};
use crossbeam_channel::{bounded, Sender};
use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;
use std::borrow::Cow;
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// By these two the managers of containers ask the first process of one to end: LXC by the first,
/// whoever expects systemd there (systemd-nspawn, Podman, LXD) by `SIGRTMIN+3`.
const SIGPWR: i32 = 30;
const SIGRTMIN_3: i32 = *REAL_TIME.start() + 3;
/// The real-time signals that the C library leaves to programs (`SIGRTMIN` to `SIGRTMAX`).
const REAL_TIME: RangeInclusive<i32> = 34..=64;
const SIGSTKFLT: i32 = 16;

/// Those that ask for the end.
const ENDING: [i32; 5] = [SIGTERM, SIGINT, SIGQUIT, SIGPWR, SIGRTMIN_3];
/// Those without a meaning, as the other real-time ones: whoever sends one is told so. (A job's
/// control by the terminal stays with the kernel, and so do signals that say that this process is
/// broken.)
const MEANINGLESS: [i32; 7] = [SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGXFSZ, SIGSTKFLT];

/// Signals that ask for the end so soon after the first are the first once more: `timeout` of the
/// coreutils sends one to the process and another to its group, which is the same process again.
const SAME: Duration = Duration::from_secs(1);

/// How long the end may take.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// From the first signal on we are not ready and serve on for so long.
    pub shutdown: Duration,
    /// Then what runs has so long to finish, before it is cut; `None` waits for ever.
    pub drain: Option<Duration>,
}

impl Delays {
    /// As a configuration has them.
    pub fn of(server: &Server) -> Delays {
        Delays { shutdown: server.shutdown_delay, drain: server.drain_timeout }
    }
}

/// The delays of the configuration in use: a reload sets them, and the first signal reads them.
pub type DelaysInUse = Arc<Mutex<Delays>>;

/// What signals do.
pub struct Heard {
    /// Ends the process.
    pub stop: Arc<Stop>,
    /// Its listeners once more: they close with the first of the others.
    pub spares: Arc<Spares>,
    /// Starts another process in its place.
    pub upgrades: Arc<Upgrades>,
    /// Told when the process ends.
    pub notifier: Arc<Notifier>,
    /// How long that may take.
    pub delays: DelaysInUse,
    /// Files that are opened anew.
    pub reopen: Vec<Reopen>,
    /// Reads the configuration anew.
    pub supervisor: Sender<Event>,
    /// The log's, for a line before an end at once.
    pub last: Last,
}

/// Starts the thread that hears signals.
pub fn start(heard: Heard) -> io::Result<()> {
    let mut signals =
        Signals::new([SIGHUP, SIGUSR1, SIGUSR2].iter().chain(&ENDING).chain(&MEANINGLESS))?;
    let handle = signals.handle();
    // Some C libraries keep one more of them for themselves, and refuse it.
    REAL_TIME.for_each(|number| drop(handle.add_signal(number)));
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut first: Option<Instant> = None;
        for number in signals.forever() {
            let signal = name(number);
            match number {
                SIGUSR1 => heard.reopen.iter().for_each(Reopen::ask),
                SIGUSR2 => heard.upgrades.ask(),
                SIGHUP => Event::Reload(Cause::Signal).tell(&heard.supervisor),
                _ if ENDING.contains(&number) => match first {
                    None => {
                        first = Some(Instant::now());
                        let delays = heard.delays.lock();
                        let delays = *delays.unwrap_or_else(PoisonError::into_inner);
                        heard.notifier.stopping();
                        begin((&heard.stop, &heard.spares), &signal, delays);
                    }
                    Some(first) if first.elapsed() < SAME => {
                        tracing::info!("{signal} within 1 s of the first: it counts as the same");
                    }
                    Some(_) => {
                        tracing::warn!("{signal} once more: ending at once, without a drain");
                        heard.last.flush();
                        end_now(number)
                    }
                },
                _ => tracing::warn!("{signal} means nothing to llmproxy and is ignored"),
            }
        }
    })?;
    Ok(())
}

/// As `kill -l` calls it.
fn name(signal: i32) -> Cow<'static, str> {
    match signal {
        SIGPWR => "SIGPWR".into(),
        SIGSTKFLT => "SIGSTKFLT".into(),
        _ if signal == *REAL_TIME.start() => "SIGRTMIN".into(),
        _ if REAL_TIME.contains(&signal) => {
            format!("SIGRTMIN+{}", signal - REAL_TIME.start()).into()
        }
        _ => signal_name(signal).unwrap_or("an unnamed signal").into(),
    }
}

/// From the first signal on.
fn begin((stop, spares): (&Arc<Stop>, &Arc<Spares>), signal: &str, mut delays: Delays) {
    if stop.is_succeeded() {
        // Nobody has to find out: another process serves.
        delays.shutdown = Duration::ZERO;
    }
    if delays.shutdown.is_zero() {
        drain((stop, spares), signal, delays.drain);
    } else {
        let serving_for_s = delays.shutdown.as_secs_f64();
        tracing::info!(signal, serving_for_s, "not ready any more; draining follows");
        stop.advance(Phase::Leaving);
    }
    let timer = std::thread::Builder::new().name("drain".into()).spawn({
        let (stop, spares, signal) = (Arc::clone(stop), Arc::clone(spares), signal.to_owned());
        move || {
            let (_alive, clock) = bounded::<()>(0);
            if !delays.shutdown.is_zero() {
                let _ = clock.recv_timeout(delays.shutdown);
                drain((&stop, &spares), &signal, delays.drain);
            }
            if let Some(limit) = delays.drain {
                let _ = clock.recv_timeout(limit);
                stop.advance(Phase::Ending);
            }
        }
    });
    if timer.is_err() {
        // Without a timer nothing would ever end what hangs.
        stop.advance(Phase::Ending);
    }
}

fn drain((stop, spares): (&Stop, &Spares), signal: &str, limit: Option<Duration>) {
    let limit_s = limit.map(|limit| limit.as_secs_f64());
    tracing::info!(signal, limit_s, "draining");
    spares.close();
    stop.advance(Phase::Draining);
}

#[allow(clippy::disallowed_methods, reason = "the operator asked twice: no request is waited for")]
fn end_now(signal: i32) -> ! {
    // The shell's convention for a process that a signal ended.
    std::process::exit(128 + signal)
}
