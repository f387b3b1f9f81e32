//! Names of hosts, looked up in time.

use super::Trouble;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// The addresses of a host, one at least. The system's look-up has no time limit: it runs on a
/// thread of its own, which is left behind when it takes too long.
///
/// # Errors
/// The host is not known, or was not found in time.
pub fn addresses(host: &str, port: u16, limit: Duration) -> Result<Vec<SocketAddr>, Trouble> {
    let (answer, found) = crossbeam_channel::bounded(1);
    let place = (host.to_owned(), port);
    let look_up = move || {
        let _ = answer.send(place.to_socket_addrs().map(Vec::from_iter));
    };
    let thread = std::thread::Builder::new().name("store-names".to_owned());
    thread.spawn(look_up).map_err(|error| Trouble::Later(format!("no thread: {error}")))?;
    match found.recv_timeout(limit) {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        Ok(Ok(_)) => Err(Trouble::Later(format!("the host {host} has no address"))),
        Ok(Err(error)) => Err(Trouble::Later(format!("the host {host}: {error}"))),
        Err(_) => Err(Trouble::Later(format!("the host {host} was not found in time"))),
    }
}
