//! Sockets that a service manager opened for this process (systemd's socket activation). They stay
//! open while the service is down: whoever connects then waits, and is served by the next start.

use super::listeners::{ListenGroup, HANDED_SOCKETS_MAX};
use crate::config::plan::ListenPlace;
use crate::rt::listen;
use crate::rt::sys::inherited;
use socket2::SockAddr;
use std::io;
use std::os::fd::OwnedFd;

/// For which process they are, how many, and what they are called.
pub(super) const VARIABLES: [&str; 3] = [PROCESS, COUNT, NAMES];
const PROCESS: &str = "LISTEN_PID";
const COUNT: &str = "LISTEN_FDS";
const NAMES: &str = "LISTEN_FDNAMES";

/// Sockets that are not looked at yet, each with its name.
pub type ManagerSockets = Vec<(String, OwnedFd)>;

/// Those that the variables of this process say. To be called before it opens anything.
pub fn take() -> ManagerSockets {
    let var = |name: &str| std::env::var(name).ok();
    // They may be for a process that started us, and mean nothing here.
    if var(PROCESS) != Some(std::process::id().to_string()) {
        return Vec::new();
    }
    let count = var(COUNT).and_then(|count| count.parse().ok()).unwrap_or(0);
    let names = var(NAMES).unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    names.zip(inherited::from_third_on(HANDED_SOCKETS_MAX.min(count))).collect()
}

/// Those of them that listen, by their addresses.
pub fn groups(taken: ManagerSockets) -> Vec<ListenGroup> {
    let mut groups: Vec<ListenGroup> = Vec::new();
    for (name, socket) in taken {
        let address = match listen::adopt(&socket).and_then(|address| place(&address)) {
            Ok(address) => address,
            Err(error) => {
                tracing::warn!(name, %error, "a socket of the service manager is not used");
                continue;
            }
        };
        tracing::info!(name, addr = %address, "a socket of the service manager");
        match groups.iter_mut().find(|group| group.address == address) {
            // With ReusePort=yes there may be several.
            Some(group) => group.sockets.push(socket),
            None => {
                let (purpose, sockets) = (None, vec![socket]);
                let asked = address.clone();
                groups.push(ListenGroup {
                    purpose,
                    asked,
                    address,
                    sockets,
                    is_lent: true,
                    file: None,
                });
            }
        }
    }
    groups
}

/// What a socket is bound to, as a configuration names it.
fn place(bound: &SockAddr) -> io::Result<ListenPlace> {
    let path = bound.as_pathname().map(|path| path.to_str().map(str::to_owned));
    let name = || bound.as_abstract_namespace().map(|name| std::str::from_utf8(name).ok());
    let unix = path.or_else(|| name().map(|name| name.map(|name| format!("@{name}"))));
    let tcp = bound.as_socket().map(ListenPlace::Tcp);
    let place = tcp.or_else(|| unix.flatten().map(ListenPlace::Unix));
    place.ok_or_else(|| io::Error::other("has no name that a configuration could have"))
}
