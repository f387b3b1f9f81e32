//! Names of backends become addresses here, off the workers: at start, and again and again. An
//! error keeps the last good set.

use crate::config::plan::{Endpoint, Plan};
use crate::state::fleet::Fleet;
use crossbeam_channel::{bounded, Receiver};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two resolutions of all names.
const REFRESH: Duration = Duration::from_secs(30);
/// The same while a name has no address at all.
const REFRESH_UNRESOLVED: Duration = Duration::from_secs(1);

/// A name that goes on failing is told again after so long, then after twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// Sets the addresses of IP literals at once and starts the thread that resolves names, if there
/// are any. The receiver hears when all names were tried for the first time.
pub fn start(plan: Arc<Plan>, fleet: Arc<Fleet>) -> io::Result<Receiver<()>> {
    let (tried, first_pass) = bounded(1);
    let mut names = Vec::new();
    for (index, backend) in plan.backends.iter().enumerate() {
        let Endpoint::Tcp { host, port } = &backend.endpoint else { continue };
        match (host.parse::<IpAddr>(), fleet.get(index)) {
            (Ok(ip), Some(member)) => member.set_addresses(vec![SocketAddr::new(ip, *port)]),
            _ => names.push(Name { index, host: host.clone(), port: *port, failing: None }),
        }
    }
    if names.is_empty() {
        let _ = tried.send(());
        return Ok(first_pass);
    }
    std::thread::Builder::new().name("resolver".into()).spawn(move || {
        // The sender lives with the loop: nobody ever sends, the wait is the clock.
        let (_alive, clock) = bounded::<()>(0);
        loop {
            let mut missing = 0;
            super::survive("resolver", || {
                let resolved = |name: &mut Name| resolve(&fleet, name, Instant::now(), ask_system);
                missing = names.iter_mut().map(resolved).filter(|resolved| !resolved).count();
            });
            let _ = tried.try_send(());
            let wait = if missing > 0 { REFRESH_UNRESOLVED } else { REFRESH };
            let _ = clock.recv_timeout(wait);
        }
    })?;
    Ok(first_pass)
}

/// A name of a backend.
struct Name {
    /// Index of the backend.
    index: usize,
    host: String,
    port: u16,
    /// Since it does not resolve.
    failing: Option<Failing>,
}

/// A name that does not resolve is told at once, and again after pauses that double.
struct Failing {
    since: Instant,
    told: Instant,
    pause: Duration,
}

/// Resolves one name; true when the backend has an address afterwards.
fn resolve(
    fleet: &Fleet,
    name: &mut Name,
    now: Instant,
    look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> bool {
    let Some(member) = fleet.get(name.index) else { return true };
    let known = !member.addresses().is_empty();
    let host = &name.host;
    match look_up(host, name.port) {
        Ok(found) if !found.is_empty() => {
            if let Some(failing) = name.failing.take() {
                let away_s = now.saturating_duration_since(failing.since).as_secs();
                tracing::info!(%host, away_s, "the name resolves again");
            }
            if **member.addresses() != found {
                let list: Vec<String> = found.iter().map(SocketAddr::to_string).collect();
                tracing::info!(%host, addresses = list.join(", "), "resolved");
                member.set_addresses(found);
            }
            true
        }
        Ok(_) => {
            name.fail(now, known, "the name server knows no address for it");
            known
        }
        Err(error) => {
            name.fail(now, known, &error.to_string());
            known
        }
    }
}

impl Name {
    /// Tells a failure, unless it was told lately.
    fn fail(&mut self, now: Instant, stale: bool, why: &str) {
        let Some(again_in) = self.is_news(now) else { return };
        let (host, next_line_s) = (&self.host, again_in.as_secs());
        tracing::warn!(%host, %why, stale, next_line_s, "the name does not resolve");
    }

    /// When a failure is to be told now: after which pause the next one will be.
    fn is_news(&mut self, now: Instant) -> Option<Duration> {
        match &mut self.failing {
            None => {
                self.failing = Some(Failing { since: now, told: now, pause: FIRST_PAUSE });
                Some(FIRST_PAUSE)
            }
            Some(failing) if now.saturating_duration_since(failing.told) >= failing.pause => {
                failing.told = now;
                failing.pause = (failing.pause * 2).min(LONGEST_PAUSE);
                Some(failing.pause)
            }
            Some(_) => None,
        }
    }
}

/// Blocks for as long as the system's resolver takes.
fn ask_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Vec::from_iter)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses of a backend that had `before`, once its name was looked up with this outcome,
    /// and what `resolve` said.
    fn after(before: &[&str], answer: Result<&[&str], io::ErrorKind>) -> (Vec<String>, bool) {
        let parse = |text: &[&str]| text.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let fleet = Fleet::new(vec![None, None]);
        let member = fleet.get(1).unwrap();
        member.set_addresses(parse(before));
        let resolved = resolve(&fleet, &mut name(), Instant::now(), |host, port| {
            assert_eq!((host, port), ("gpu.test", 8000));
            answer.map(parse).map_err(io::Error::from)
        });
        assert!(fleet.get(0).unwrap().addresses().is_empty(), "of another backend");
        (member.addresses().iter().map(SocketAddr::to_string).collect(), resolved)
    }

    fn name() -> Name {
        Name { index: 1, host: "gpu.test".into(), port: 8000, failing: None }
    }

    /// Catches: a line each second for as long as a name server is away.
    #[test]
    fn a_failure_is_told_at_once_and_then_after_growing_pauses() {
        let (mut name, start) = (name(), Instant::now());
        let told = (0..=1_000)
            .filter(|second| name.is_news(start + Duration::from_secs(*second)).is_some());
        assert_eq!(told.collect::<Vec<_>>(), [0, 60, 180, 420, 900]);
        let mut last = start + Duration::from_secs(1_000);
        for _ in 0..10 {
            last += LONGEST_PAUSE;
            assert!(name.is_news(last).is_some_and(|pause| pause <= LONGEST_PAUSE));
        }
        name.failing = None;
        assert_eq!(name.is_news(last), Some(FIRST_PAUSE), "it resolved in between");
    }

    const OLD: &str = "192.0.2.1:8000";
    const NEW: [&str; 2] = ["192.0.2.2:8000", "[2001:db8::2]:8000"];

    #[test]
    fn what_is_found_replaces_what_was_known() {
        for before in [&[OLD][..], &[], &[OLD, NEW[0]], &NEW] {
            let (addresses, resolved) = after(before, Ok(&NEW));
            assert_eq!((addresses.as_slice(), resolved), (&NEW.map(String::from)[..], true));
        }
    }

    /// A name server that is away, or that has lost a name, must not take the backends with it.
    #[test]
    fn a_failure_and_an_empty_answer_keep_what_was_known() {
        for answer in [Err(io::ErrorKind::TimedOut), Ok(&[][..])] {
            assert_eq!(after(&[OLD], answer), (vec![OLD.to_owned()], true));
            // Never known: the caller asks again soon.
            assert_eq!(after(&[], answer), (vec![], false));
        }
    }
}
