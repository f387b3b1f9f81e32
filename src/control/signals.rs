//! Signals become phases: the first TERM, INT or QUIT lets the process end in order, a second one
//! ends it at once. What has no meaning here is named in the log and does nothing: most signals
//! would end a process that does not hear them.

use super::log::Reopen;
use crate::state::stop::{Phase, Stop};
use crossbeam_channel::bounded;
use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM,
    SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Those without a meaning: whoever sends one is told so. (A job's control by the terminal stays
/// with the kernel, and so do signals that say that this process is broken.)
const MEANINGLESS: [i32; 7] = [SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGXFSZ];

/// How long the end may take.
#[derive(Debug, Clone, Copy)]
pub struct Delays {
    /// From the first signal on we are not ready and serve on for so long.
    pub shutdown: Duration,
    /// Then what runs has so long to finish, before it is cut; `None` waits for ever.
    pub drain: Option<Duration>,
}

/// Starts the thread that hears signals.
pub fn start(stop: Arc<Stop>, delays: Delays, reopen: Vec<Reopen>) -> io::Result<()> {
    let heard = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1];
    let mut signals = Signals::new(heard.iter().chain(&MEANINGLESS))?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for number in signals.forever() {
            let signal = signal_name(number).unwrap_or("unnamed");
            match number {
                SIGUSR1 => reopen.iter().for_each(Reopen::ask),
                SIGHUP => tracing::warn!("SIGHUP: reload is not built yet; nothing changes"),
                SIGTERM | SIGINT | SIGQUIT if stop.phase() == Phase::Running => {
                    begin(&stop, signal, delays);
                }
                SIGTERM | SIGINT | SIGQUIT => end_now(number),
                _ => tracing::warn!("{signal} means nothing to llmproxy and is ignored"),
            }
        }
    })?;
    Ok(())
}

/// From the first signal on.
fn begin(stop: &Arc<Stop>, signal: &str, delays: Delays) {
    if delays.shutdown.is_zero() {
        drain(stop, signal, delays.drain);
    } else {
        let serving_for_s = delays.shutdown.as_secs_f64();
        tracing::info!(signal, serving_for_s, "not ready any more; draining follows");
        stop.advance(Phase::Leaving);
    }
    let timer = std::thread::Builder::new().name("drain".into()).spawn({
        let (stop, signal) = (Arc::clone(stop), signal.to_owned());
        move || {
            let (_alive, clock) = bounded::<()>(0);
            if !delays.shutdown.is_zero() {
                let _ = clock.recv_timeout(delays.shutdown);
                drain(&stop, &signal, delays.drain);
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

fn drain(stop: &Stop, signal: &str, limit: Option<Duration>) {
    let limit_s = limit.map(|limit| limit.as_secs_f64());
    tracing::info!(signal, limit_s, "draining");
    stop.advance(Phase::Draining);
}

#[allow(clippy::disallowed_methods, reason = "the operator asked twice: nothing is waited for")]
fn end_now(signal: i32) -> ! {
    // The shell's convention for a process that a signal ended.
    std::process::exit(128 + signal)
}
