//! The side of the successor: a process that was started to take another one's place.

use super::activation::{self, ManagerSockets};
use super::listeners::{ListenGroup, HANDED_SOCKETS_MAX};
use super::upgrades;
use super::wire::{HandoverWord, Wire};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// All listeners come within so long.
const LISTENERS_WAIT: Duration = Duration::from_secs(10);
/// The word to go on is waited for so long. Beyond: this process ends.
const GO_WAIT: Duration = Duration::from_secs(10);

/// What a start finds open already.
#[derive(Default)]
pub struct Inheritance {
    /// Listeners.
    pub groups: Vec<ListenGroup>,
    /// In whose place this process starts.
    pub predecessor: Option<Predecessor>,
}

/// The process in whose place this one starts.
pub struct Predecessor {
    /// Its number.
    pub process: u32,
    wire: Wire,
}

/// What the process that started this one has for it, or else `taken` of a service manager.
///
/// # Errors
/// A predecessor hands over its listeners, and does not come to an end with that.
pub fn inherit(taken: ManagerSockets) -> Result<Inheritance, String> {
    let Some(predecessor) = Predecessor::find() else {
        return Ok(Inheritance { groups: activation::groups(taken), predecessor: None });
    };
    let (process, groups) = (predecessor.process, predecessor.listeners()?);
    tracing::info!(process, addresses = groups.len(), "in the place of a process that serves");
    Ok(Inheritance { groups, predecessor: Some(predecessor) })
}

impl Predecessor {
    /// The process that started this one, if it says so and has left its end of a wire.
    fn find() -> Option<Predecessor> {
        let process = std::env::var(upgrades::VARIABLE).ok()?.parse().ok()?;
        // A variable that came from further above means nothing.
        let parent = rustix::process::getppid()?.as_raw_nonzero().get();
        if u32::try_from(parent) != Ok(process) {
            return None;
        }
        let wire = Wire::of(std::io::stdin().as_fd().try_clone_to_owned().ok()?)?;
        Some(Predecessor { process, wire })
    }

    fn listeners(&self) -> Result<Vec<ListenGroup>, String> {
        let due = Instant::now() + LISTENERS_WAIT;
        let (mut groups, mut sockets) = (Vec::<ListenGroup>::new(), 0);
        loop {
            let mut fresh = match self.hear(due)? {
                HandoverWord::Sockets(group) => group,
                HandoverWord::NoMore => return Ok(groups),
                _ => continue,
            };
            sockets += fresh.sockets.len();
            if sockets > HANDED_SOCKETS_MAX {
                return Err(format!("more than {HANDED_SOCKETS_MAX} sockets are handed over"));
            }
            match groups.last_mut().filter(|last| last.address == fresh.address) {
                Some(last) => last.sockets.append(&mut fresh.sockets),
                None => groups.push(fresh),
            }
        }
    }

    /// Everything has started but the workers: waits for the word to go on.
    ///
    /// # Errors
    /// The predecessor is gone, or has thought better of it. It serves; this process must end.
    pub fn await_go(&self) -> Result<(), String> {
        self.say(&HandoverWord::Ready)?;
        let due = Instant::now() + GO_WAIT;
        while !matches!(self.hear(due)?, HandoverWord::Go) {}
        Ok(())
    }

    /// The workers take clients in.
    pub fn tell_serving(&self) {
        // One that has gone meanwhile has left its place in any case.
        let _ = self.say(&HandoverWord::Serving);
    }

    /// This process cannot start.
    pub fn tell_failed(&self, why: &str) {
        let _ = self.say(&HandoverWord::Failed(why.to_owned()));
    }

    fn say(&self, word: &HandoverWord) -> Result<(), String> {
        self.wire.send(word).map_err(|error| format!("the process before this one: {error}"))
    }

    fn hear(&self, due: Instant) -> Result<HandoverWord, String> {
        let heard = self.wire.hear(due.saturating_duration_since(Instant::now()));
        match heard {
            Ok(Some(word)) => Ok(word),
            Ok(None) => Err("the process before this one says nothing".into()),
            Err(_) => Err("the process before this one is gone, or serves on".into()),
        }
    }
}
