//! `llmproxy upgrade`: has a process that runs start a successor, and says what came of it.

use super::reload::{by_pid_file, not_found, pid_file_of, valid};
use crate::config::cli::{Printout, UpgradeAsk, FINE};
use crate::config::origin::{ConfigSource, Refused};
use crate::control::handover::note::{ForeignNote, UpgradeState};
use crate::control::handover::upgrades::{READY_WAIT, SERVING_WAIT};
use crate::control::process::Serving;
use crossbeam_channel::bounded;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// So often it is looked what came of it.
const LOOK: Duration = Duration::from_millis(50);
/// Beyond what the process gives its successor: its own limits should come first, since it knows
/// why.
const SLACK: Duration = Duration::from_secs(10);

/// Does it, and says what was done.
pub fn run(ask: &UpgradeAsk) -> Printout {
    match upgrade(ask) {
        Ok(stdout) => Printout { stdout, stderr: String::new(), code: FINE },
        Err(Refused { lines, code }) => Printout { stdout: String::new(), stderr: lines, code },
    }
}

fn upgrade(ask: &UpgradeAsk) -> Result<String, Refused> {
    let process = find(ask)?;
    // With --backend there is no file that could have changed.
    let has_file = |process: &Serving| {
        process.origin().is_none_or(|origin| matches!(origin.source, ConfigSource::File(_)))
    };
    if has_file(&process) {
        valid(&process, ask.config.as_deref())?;
    }
    let pid = process.number();
    let refused = |why: String| not_found(format!("process {pid}: {why}"));
    let note = ForeignNote::of(pid).map_err(|error| {
        let why = "run this as root, or as the user that runs the gateway, which does where the \
                   gateway has no rights beyond its user's (low-ports.conf gives it one)";
        refused(format!("what becomes of it cannot be read: {error}: {why}"))
    })?;
    let Some(note) = note else {
        return Err(refused("is of a version that knows no upgrades: restart it".into()));
    };
    let before = note.read().map_or(0, |note| {
        // One that comes to an end between here and there is found by its number.
        note.number
    });
    match note.read().map(|note| note.state) {
        Some(UpgradeState::UnderWay) => return Err(refused("an upgrade is under way".into())),
        Some(UpgradeState::Succeeded(successor)) => {
            return Err(refused(format!("process {successor} has its place already")));
        }
        _ => {}
    }
    process.ask_to_upgrade().map_err(not_found)?;
    match outcome(&process, &note, before) {
        Ok(successor) => Ok(format!("process {successor} serves in the place of {pid}\n")),
        Err(why) => Err(refused(why)),
    }
}

fn find(ask: &UpgradeAsk) -> Result<Serving, Refused> {
    if let Some(pid) = ask.pid {
        return Serving::find(pid).map_err(not_found);
    }
    let path = match &ask.pid_file {
        Some(path) => path.clone(),
        None => pid_file_of(&ask.config.clone().unwrap_or_else(|| PathBuf::from("config.yaml")))?,
    };
    by_pid_file(&path).map_err(not_found)
}

/// The number of the process that serves now, or why there is none.
fn outcome(process: &Serving, note: &ForeignNote, before: u64) -> Result<u32, String> {
    let (_alive, clock) = bounded::<()>(0);
    let due = Instant::now() + READY_WAIT + SERVING_WAIT + SLACK;
    while Instant::now() < due {
        // Before the note, which outlives the process.
        let is_there = process.is_there();
        match note.read().filter(|note| note.number > before).map(|note| note.state) {
            Some(UpgradeState::Succeeded(successor)) => return Ok(successor),
            Some(UpgradeState::Failed(why)) => return Err(format!("{why}; it serves on")),
            _ if !is_there => return Err("it ended before that came to something".into()),
            _ => drop(clock.recv_timeout(LOOK)),
        }
    }
    Err("it has not said what became of it; see its log".into())
}
