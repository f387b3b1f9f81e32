//! The listeners of this process: those that it was handed, and those that it opens itself.

use crate::rt::listen::{self, Place};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An address that is in use is looked at again for so long, and so often.
const FREE_WAIT: Duration = Duration::from_secs(2);
const FREE_LOOK: Duration = Duration::from_millis(10);

/// Sockets that one process hands to another, or a service manager to the one that it starts.
/// Beyond: the start is refused, or goes without those that are too many of the manager's.
pub const HANDED_SOCKETS_MAX: usize = 4096;

/// Who is served at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenPurpose {
    /// Clients: `server.listen`.
    Clients,
    /// Scrapers: `metrics.listen`.
    Metrics,
    /// The admin API: `admin.listen`.
    Admin,
    /// Those who come without TLS: `server.tls.acme.http_listen`.
    PlainHttp,
}

/// All sockets that listen at one address.
#[derive(Debug)]
pub struct ListenGroup {
    /// What for; `None`: whoever opened them did not say.
    pub purpose: Option<ListenPurpose>,
    /// The address that was asked for, whose port may be 0.
    pub asked: SocketAddr,
    /// The address.
    pub address: SocketAddr,
    /// The sockets, at least one.
    pub sockets: Vec<OwnedFd>,
}

impl ListenGroup {
    fn is_for(&self, purpose: ListenPurpose, wanted: SocketAddr) -> bool {
        let is_there = self.address == wanted || self.asked == wanted;
        is_there && self.purpose.is_none_or(|is| is == purpose)
    }

    fn try_clone(&self) -> io::Result<ListenGroup> {
        let sockets = self.sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(ListenGroup { sockets, ..*self })
    }
}

/// All listeners of this process once more, to be given to its successor. As long as they are here
/// the addresses take connections, whoever accepts them or does not.
#[derive(Debug, Default)]
pub struct Spares(Mutex<Vec<ListenGroup>>);

impl Spares {
    /// Copies of all of them.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn copies(&self) -> io::Result<Vec<ListenGroup>> {
        self.groups().iter().map(ListenGroup::try_clone).collect()
    }

    /// Nobody takes our place any more: nothing listens when the workers have stopped.
    pub fn close(&self) {
        self.groups().clear();
    }

    fn groups(&self) -> MutexGuard<'_, Vec<ListenGroup>> {
        // A list that is copied or cleared is never half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listeners in the making.
pub struct OpeningListeners {
    handed: Vec<ListenGroup>,
    open: Vec<ListenGroup>,
}

impl OpeningListeners {
    /// With those that this process was handed.
    pub fn new(handed: Vec<ListenGroup>) -> OpeningListeners {
        OpeningListeners { handed, open: Vec::new() }
    }

    /// Listens at all addresses: the listeners of each worker, and the addresses. With port 0 all
    /// workers share the port that the first got.
    ///
    /// # Errors
    /// A line for a person.
    pub fn clients(
        &mut self,
        wanted: &[SocketAddr],
        workers: usize,
    ) -> Result<(Vec<Vec<OwnedFd>>, Vec<SocketAddr>), String> {
        let mut of_workers: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
        let mut addresses = Vec::new();
        for place in Place::all(wanted) {
            let group = self.at(place, ListenPurpose::Clients, &mut of_workers);
            addresses.push(group.map_err(|e| format!("listen on {}: {e}", place.address))?);
        }
        Ok((of_workers, addresses))
    }

    /// Listens at an address of the control plane's own, if there is one.
    ///
    /// # Errors
    /// A line for a person.
    pub fn own(
        &mut self,
        wanted: Option<SocketAddr>,
        purpose: ListenPurpose,
    ) -> Result<Option<OwnedFd>, String> {
        let Some(wanted) = wanted else { return Ok(None) };
        let mut only = [Vec::new()];
        for place in Place::all(&[wanted]) {
            let group = self.at(place, purpose, &mut only);
            let address = group.map_err(|e| format!("listen on {wanted}: {e}"))?;
            let whose = match purpose {
                ListenPurpose::Clients => "clients",
                ListenPurpose::Metrics => "metrics",
                ListenPurpose::Admin => "admin API",
                ListenPurpose::PlainHttp => "plain HTTP",
            };
            tracing::info!(addr = %address, "{whose}");
        }
        let [mut only] = only;
        Ok(only.pop())
    }

    /// All that listens, once more. What was handed and is not wanted is closed, and told.
    pub fn finish(self) -> Spares {
        for group in self.handed {
            let (addr, sockets) = (group.address, group.sockets.len());
            let message = "a listener was handed over that the configuration does not name: closed";
            tracing::warn!(%addr, sockets, "{message}");
        }
        Spares(Mutex::new(self.open))
    }

    /// Gives each of the workers a listener at a place, or more.
    fn at(
        &mut self,
        place: Place,
        purpose: ListenPurpose,
        of_workers: &mut [Vec<OwnedFd>],
    ) -> io::Result<SocketAddr> {
        let handed = self.handed.iter().position(|group| group.is_for(purpose, place.address));
        let group = match handed {
            // It keeps what it is called by whoever asks for port 0.
            Some(at) => ListenGroup { purpose: Some(purpose), ..self.handed.remove(at) },
            None => fresh(place, purpose, of_workers.len())?,
        };
        share_out(&group.sockets, of_workers)?;
        let address = group.address;
        self.open.push(group);
        Ok(address)
    }
}

/// Binds to a place, once for each worker.
fn fresh(mut place: Place, purpose: ListenPurpose, workers: usize) -> io::Result<ListenGroup> {
    let asked = place.address;
    await_free(place)?;
    let mut sockets = Vec::with_capacity(workers);
    for index in 0..workers {
        let listener = listen::bind(place)?;
        if index == 0 {
            place = place.on_port_of(&listener)?;
        }
        sockets.push(listener);
    }
    Ok(ListenGroup { purpose: Some(purpose), asked, address: place.address, sockets })
}

/// Gives all sockets out: the kernel puts clients into the queue of each, so none may be left
/// without a worker. Where there are more workers than sockets, several take clients out of one.
fn share_out(sockets: &[OwnedFd], of_workers: &mut [Vec<OwnedFd>]) -> io::Result<()> {
    let turns = sockets.len().max(of_workers.len());
    let workers = of_workers.len();
    for turn in 0..turns {
        let socket = sockets.get(turn % sockets.len().max(1));
        let worker = of_workers.get_mut(turn % workers.max(1));
        if let (Some(socket), Some(worker)) = (socket, worker) {
            worker.push(socket.try_clone()?);
        }
    }
    Ok(())
}

/// Waits for an address for a moment: the kernel ends the ring of a process that was killed, and
/// with it the listeners, some time after the process itself is gone. Whoever starts us again at
/// once should not have to try twice.
fn await_free(wanted: Place) -> io::Result<()> {
    let since = Instant::now();
    loop {
        match listen::check_free(wanted) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && since.elapsed() < FREE_WAIT => {
                std::thread::park_timeout(FREE_LOOK);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;

    const ANY: &str = "127.0.0.1:0";

    fn handed(purpose: Option<ListenPurpose>, sockets: usize) -> ListenGroup {
        let place = Place::all(&[ANY.parse().unwrap()]).remove(0);
        ListenGroup { purpose, ..fresh(place, ListenPurpose::Clients, sockets).unwrap() }
    }

    /// The sockets that somebody has, each by a number of the kernel's.
    fn cookies(sockets: &[OwnedFd]) -> Vec<u64> {
        sockets.iter().map(|socket| SockRef::from(socket).cookie().unwrap()).collect()
    }

    /// Catches: a socket in whose queue clients wait for nobody, because the successor has fewer
    /// workers; a worker without one, because it has more.
    #[test]
    fn every_socket_has_a_worker_and_every_worker_a_socket() {
        for (sockets, workers) in [(1, 1), (1, 4), (4, 1), (5, 3), (3, 5), (2, 2)] {
            let group = handed(Some(ListenPurpose::Clients), sockets);
            let (all, address) = (cookies(&group.sockets), group.address);
            let mut opening = OpeningListeners::new(vec![group]);
            let (of_workers, addresses) = opening.clients(&[address], workers).unwrap();
            assert_eq!(addresses, [address]);
            let mut had: Vec<u64> = of_workers.iter().flat_map(|own| cookies(own)).collect();
            assert!(of_workers.iter().all(|own| !own.is_empty()), "{sockets} {workers}");
            assert_eq!(had.len(), sockets.max(workers));
            had.sort_unstable();
            had.dedup();
            assert_eq!(had.len(), sockets, "{sockets} {workers}");
            // The next successor gets each of them once.
            let spares = opening.finish().copies().unwrap();
            assert_eq!(cookies(&spares[0].sockets), all);
        }
    }

    /// Catches: the clients' listener that is taken for the metrics', or one of two with port 0
    /// that is opened anew; spares that keep an address in use when the process drains.
    #[test]
    fn each_listener_is_found_by_what_it_is_for() {
        let any: SocketAddr = ANY.parse().unwrap();
        let groups = [
            ListenPurpose::Metrics,
            ListenPurpose::Clients,
            ListenPurpose::Clients,
            ListenPurpose::Admin,
        ];
        let groups = groups.map(|purpose| handed(Some(purpose), 1));
        let wanted = groups.each_ref().map(|group| group.address);
        let mut opening = OpeningListeners::new(groups.into());
        let (_of_workers, clients) = opening.clients(&[any, any], 1).unwrap();
        assert!(clients.contains(&wanted[1]) && clients.contains(&wanted[2]), "{clients:?}");
        let [metrics, admin] = [(any, ListenPurpose::Metrics), (wanted[3], ListenPurpose::Admin)]
            .map(|(asked, purpose)| opening.own(Some(asked), purpose).unwrap().unwrap());
        let at = |socket| SockRef::from(socket).local_addr().unwrap().as_socket().unwrap();
        assert_eq!([at(&metrics), at(&admin)], [wanted[0], wanted[3]]);
        assert!(opening.handed.is_empty());
        // Of a manager that does not say what for.
        let unnamed = handed(None, 1);
        let address = unnamed.address;
        let mut opening = OpeningListeners::new(vec![unnamed]);
        let only = opening.own(Some(address), ListenPurpose::Metrics).unwrap();
        let spares = opening.finish();
        assert_eq!(spares.copies().unwrap()[0].purpose, Some(ListenPurpose::Metrics));
        drop(only);
        assert!(std::net::TcpStream::connect(address).is_ok());
        spares.close();
        assert!(std::net::TcpStream::connect(address).is_err());
        assert!(spares.copies().unwrap().is_empty());
    }
}
