//! What a service manager is told of this process, in the way of systemd (`sd_notify`): that it is
//! ready, reads its configuration anew, ends, lives, and that another process has taken its place.
//! Where nobody asked to be told (no `NOTIFY_SOCKET`), nothing of it is done.

use crate::config::plan::ListenPlace;
use rustix::time::{clock_gettime, ClockId};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A manager whose queue is full is waited for so long.
const TELL_WAIT: Duration = Duration::from_secs(1);
/// The variables by which a manager asks: where it is told, how often it wants a sign of life, and
/// of which process.
const SOCKET: &str = "NOTIFY_SOCKET";
const WATCHDOG: &str = "WATCHDOG_USEC";
pub(super) const WATCHDOG_PROCESS: &str = "WATCHDOG_PID";

/// The way to the manager, if there is one. Used by control threads alone: it may wait.
#[derive(Default)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Within so long it wants a sign of life.
    life: Option<Duration>,
    /// Another process has our place: what we do is no news any more.
    is_succeeded: AtomicBool,
}

impl Notifier {
    /// As the variables of this process say.
    pub fn of_this_process() -> Notifier {
        let var = |name: &str| std::env::var(name).ok();
        let Some(name) = var(SOCKET) else { return Notifier::default() };
        // The process that the manager started, or one that took its place, which has no such line.
        let own = std::process::id().to_string();
        let is_meant = var(WATCHDOG_PROCESS).is_none_or(|process| process == own);
        let life = var(WATCHDOG).filter(|_| is_meant).and_then(|usec| usec.parse().ok());
        let life = life.filter(|usec| *usec > 0).map(Duration::from_micros);
        Notifier::at(&name, life).unwrap_or_else(|error| {
            tracing::warn!(socket = %name, %error, "the service manager cannot be told anything");
            Notifier::default()
        })
    }

    /// Of the manager that listens there: at a path, or, with an `@`, under an abstract name.
    fn at(name: &str, life: Option<Duration>) -> io::Result<Notifier> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name.as_bytes())?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TELL_WAIT))?;
        Ok(Notifier { manager: Some((socket, address)), life, is_succeeded: false.into() })
    }

    /// Clients are served, at these places.
    pub fn ready(&self, places: &[ListenPlace]) {
        let all: Vec<String> = places.iter().map(ListenPlace::to_string).collect();
        self.tell(&format!("READY=1\nSTATUS=Serving at {}", all.join(", ")));
    }

    /// The configuration is read anew. [`Notifier::reloaded`] must follow.
    pub fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = now.tv_sec.unsigned_abs().saturating_mul(1_000_000);
        let usec = seconds.saturating_add(now.tv_nsec.unsigned_abs() / 1_000);
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
    }

    /// That is over.
    pub fn reloaded(&self, succeeded: bool) {
        let status = match succeeded {
            true => "Serving, with the configuration read anew",
            false => "Serving; the configuration could not be read anew, see the log",
        };
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// The process ends.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=Finishing requests");
    }

    /// Within so long, and better in half of that, the manager wants a sign of life.
    pub fn life(&self) -> Option<Duration> {
        self.life.filter(|_| self.manager.is_some())
    }

    /// The sign.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// The process with this number has our place, and speaks for itself from now on.
    pub fn succeeded_by(&self, process: u32) {
        self.tell(&format!("MAINPID={process}"));
        self.is_succeeded.store(true, Ordering::Relaxed);
    }

    /// The process that had our place is gone, and we finish what we have.
    pub fn bereaved(&self) {
        if self.is_succeeded.swap(false, Ordering::Relaxed) {
            let own = std::process::id();
            self.tell(&format!("MAINPID={own}\nSTATUS=Finishing requests; the successor is gone"));
        }
    }

    fn tell(&self, message: &str) {
        let Some((socket, manager)) = &self.manager else { return };
        if self.is_succeeded.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = socket.send_to_addr(message.as_bytes(), manager) {
            tracing::warn!(%error, "the service manager was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was told by this, at both kinds of sockets.
    fn told(kind: &str, tell: impl Fn(&Notifier)) -> Vec<String> {
        let own = std::process::id();
        let path = std::env::temp_dir().join(format!("llmproxy-notify-{own}-{kind}"));
        let (manager, name) = match kind {
            "abstract" => {
                let name = format!("llmproxy-notify-{own}");
                let address = SocketAddr::from_abstract_name(&name).unwrap();
                (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}"))
            }
            _ => (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
        };
        manager.set_nonblocking(true).unwrap();
        tell(&Notifier::at(&name, None).unwrap());
        let _ = std::fs::remove_file(path);
        let mut bytes = [0; 1024];
        let next = || {
            let len = manager.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
        };
        std::iter::from_fn(next).collect()
    }

    /// Catches: a manager that is not found, a time that it cannot use, and a process that has lost
    /// its place and tells the manager that the service ends.
    #[test]
    fn a_manager_is_told_by_whoever_has_the_place() {
        for kind in ["file", "abstract"] {
            let all = told(kind, |notifier| {
                notifier.ready(&["[::]:8000".parse().unwrap(), "unix:/a".parse().unwrap()]);
                notifier.reloading();
                notifier.reloaded(false);
                notifier.bereaved();
                notifier.succeeded_by(7);
                notifier.stopping();
                notifier.alive();
                notifier.bereaved();
                notifier.stopping();
            });
            assert_eq!(all[0], "READY=1\nSTATUS=Serving at [::]:8000, unix:/a");
            let usec = all[1].strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(usec.parse::<u64>().unwrap() > 0);
            assert!(all[2].starts_with("READY=1\nSTATUS="));
            assert_eq!(all[3], "MAINPID=7");
            assert!(all[4].starts_with(&format!("MAINPID={}\n", std::process::id())));
            assert!(all[5].starts_with("STOPPING=1\n") && all.len() == 6, "{all:?}");
        }
    }

    #[test]
    fn without_a_manager_nobody_is_told() {
        let nobody = Notifier::default();
        nobody.ready(&[]);
        assert_eq!(nobody.life(), None);
        assert!(Notifier::at(&"x".repeat(200), None).is_err());
        // One that has gone.
        Notifier::at("/nonexistent/socket", Some(TELL_WAIT)).unwrap().alive();
    }
}
