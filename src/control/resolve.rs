//! Names of backends become addresses here, off the workers: at start, and again and again. An
//! error keeps the last good set.

use crate::config::plan::{Endpoint, Plan};
use crate::state::fleet::Fleet;
use crossbeam_channel::{bounded, Receiver};
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

/// Between two resolutions of all names.
const REFRESH: Duration = Duration::from_secs(30);
/// The same while a name has no address at all.
const REFRESH_UNRESOLVED: Duration = Duration::from_secs(1);

/// Sets the addresses of IP literals at once and starts the thread that resolves names, if there
/// are any. The receiver hears when all names were tried for the first time.
pub fn start(plan: Arc<Plan>, fleet: Arc<Fleet>) -> io::Result<Receiver<()>> {
    let (tried, first_pass) = bounded(1);
    let mut names = Vec::new();
    for (index, backend) in plan.backends.iter().enumerate() {
        let Endpoint::Tcp { host, port } = &backend.endpoint else { continue };
        match (host.parse::<IpAddr>(), fleet.get(index)) {
            (Ok(ip), Some(member)) => member.set_addresses(vec![SocketAddr::new(ip, *port)]),
            _ => names.push((index, host.clone(), *port)),
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
                missing = names.iter().filter(|name| !resolve(&fleet, name, ask_system)).count();
            });
            let _ = tried.try_send(());
            let wait = if missing > 0 { REFRESH_UNRESOLVED } else { REFRESH };
            let _ = clock.recv_timeout(wait);
        }
    })?;
    Ok(first_pass)
}

/// Index of a backend, its name and its port.
type Name = (usize, String, u16);

/// Resolves one name; true when the backend has an address afterwards.
fn resolve(
    fleet: &Fleet,
    (index, host, port): &Name,
    look_up: impl Fn(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> bool {
    let Some(member) = fleet.get(*index) else { return true };
    let known = !member.addresses().is_empty();
    match look_up(host, *port) {
        Ok(found) if !found.is_empty() => {
            if **member.addresses() != found {
                tracing::info!(%host, addresses = ?found, "resolved");
                member.set_addresses(found);
            }
            true
        }
        Ok(_) => known,
        Err(error) => {
            tracing::warn!(%host, %error, stale = known, "name does not resolve");
            known
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
        let resolved = resolve(&fleet, &(1, "gpu.test".to_owned(), 8000), |host, port| {
            assert_eq!((host, port), ("gpu.test", 8000));
            answer.map(parse).map_err(io::Error::from)
        });
        assert!(fleet.get(0).unwrap().addresses().is_empty(), "of another backend");
        (member.addresses().iter().map(SocketAddr::to_string).collect(), resolved)
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
