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
                missing = names.iter().filter(|name| !resolve(&fleet, name)).count();
            });
            let _ = tried.try_send(());
            let wait = if missing > 0 { REFRESH_UNRESOLVED } else { REFRESH };
            let _ = clock.recv_timeout(wait);
        }
    })?;
    Ok(first_pass)
}

/// Resolves one name; true when the backend has an address afterwards.
fn resolve(fleet: &Fleet, (index, host, port): &(usize, String, u16)) -> bool {
    let Some(member) = fleet.get(*index) else { return true };
    let known = !member.addresses().is_empty();
    match (host.as_str(), *port).to_socket_addrs().map(Vec::from_iter) {
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
