//! Signals become phases: the first TERM or INT drains, a second one ends the process at once.

use super::log::Reopen;
use crate::state::stop::{Phase, Stop};
use crossbeam_channel::bounded;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Starts the thread that hears signals. `drain` bounds the time from the first signal to the
/// moment when what still runs is cut; `None` waits for ever.
pub fn start(stop: Arc<Stop>, drain: Option<Duration>, reopen: Vec<Reopen>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGUSR1 => reopen.iter().for_each(Reopen::ask),
                SIGHUP => tracing::warn!("SIGHUP: reload is not built yet; nothing changes"),
                _ if stop.phase() == Phase::Running => {
                    tracing::info!(signal, drain_timeout = ?drain, "draining");
                    stop.advance(Phase::Draining);
                    cut_after(Arc::clone(&stop), drain);
                }
                _ => end_now(signal),
            }
        }
    })?;
    Ok(())
}

fn cut_after(stop: Arc<Stop>, drain: Option<Duration>) {
    let Some(drain) = drain else { return };
    let timer = std::thread::Builder::new().name("drain".into()).spawn({
        let stop = Arc::clone(&stop);
        move || {
            let (_alive, clock) = bounded::<()>(0);
            let _ = clock.recv_timeout(drain);
            stop.advance(Phase::Ending);
        }
    });
    if timer.is_err() {
        // Without a timer nothing would ever end what hangs.
        stop.advance(Phase::Ending);
    }
}

#[allow(clippy::disallowed_methods, reason = "the operator asked twice: nothing is waited for")]
fn end_now(signal: i32) -> ! {
    // The shell's convention for a process that a signal ended.
    std::process::exit(128 + signal)
}
