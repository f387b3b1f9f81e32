//! The listeners of this process: those that it was handed, and those that it opens itself.

use crate::config::plan::{ClientListener, ListenPlace};
use crate::control::socket_file::{self, SocketFile};
use crate::rt::listen::{self, Place};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An address that is in use is looked at again for so long, and so often.
const FREE_WAIT: Duration = Duration::from_secs(2);
const FREE_LOOK: Duration = Duration::from_millis(10);
/// A Unix socket so often, since whoever has it sees each look as a client that leaves at once.
const UNIX_FREE_LOOK: Duration = Duration::from_millis(100);

/// Sockets that one process hands to another, or a service manager to the one that it starts.
/// Beyond: the start is refused, or goes without those that are too many of the manager's.
pub const HANDED_SOCKETS_MAX: usize = 4096;

/// Who is served at a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenPurpose {
    /// Clients: `server.listen`, `server.listeners`.
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
    /// The place that was asked for, whose port may be 0.
    pub asked: ListenPlace,
    /// The place.
    pub address: ListenPlace,
    /// The sockets, at least one.
    pub sockets: Vec<OwnedFd>,
    /// A service manager's, who keeps them when we end, and their files.
    pub is_lent: bool,
    /// Device and number of the file of a Unix socket that we, or one before us, made.
    pub file: Option<(u64, u64)>,
}

impl ListenGroup {
    fn is_for(&self, purpose: ListenPurpose, wanted: &ListenPlace) -> bool {
        let is_there = self.address == *wanted || self.asked == *wanted;
        is_there && self.purpose.is_none_or(|is| is == purpose)
    }

    fn try_clone(&self) -> io::Result<ListenGroup> {
        let sockets = self.sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        let (asked, address) = (self.asked.clone(), self.address.clone());
        Ok(ListenGroup { asked, address, sockets, ..*self })
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
            let (addr, sockets) = (&group.address, group.sockets.len());
            let message = "a listener was handed over that the configuration does not name: closed";
            tracing::warn!(%addr, sockets, "{message}");
        }
        Spares(Mutex::new(self.open))
    }

    /// Listens at a Unix socket, all workers at one. Gives their listeners, and its file, which
    /// goes away with it: where it was handed over, only if the caller says so.
    ///
    /// # Errors
    /// A line for a person.
    pub fn unix(
        &mut self,
        wanted: &ClientListener,
        workers: usize,
    ) -> Result<(Vec<Vec<OwnedFd>>, Option<SocketFile>), String> {
        let failed = |e: io::Error| format!("listen on {}: {e}", wanted.listen);
        let mut of_workers: Vec<Vec<OwnedFd>> = (0..workers).map(|_| Vec::new()).collect();
        let (group, file) = match self.handed(ListenPurpose::Clients, &wanted.listen) {
            Some(group) if is_found(&wanted.listen, group.file) => {
                let file = found(wanted, group.is_lent).map_err(failed)?;
                (ListenGroup { purpose: Some(ListenPurpose::Clients), ..group }, file)
            }
            // Who waits in the queue of one whose file is gone is served by those who have it. In
            // the place of a file that another process listens at none is made.
            _ => fresh_unix(wanted).map_err(failed)?,
        };
        share_out(&group.sockets, &mut of_workers).map_err(failed)?;
        self.open.push(group);
        Ok((of_workers, file))
    }

    /// Gives each of the workers a listener at a place, or more.
    fn at(
        &mut self,
        place: Place,
        purpose: ListenPurpose,
        of_workers: &mut [Vec<OwnedFd>],
    ) -> io::Result<SocketAddr> {
        let group = match self.handed(purpose, &ListenPlace::Tcp(place.address)) {
            // It keeps what it is called by whoever asks for port 0.
            Some(group) => ListenGroup { purpose: Some(purpose), ..group },
            None => fresh(place, purpose, of_workers.len())?,
        };
        share_out(&group.sockets, of_workers)?;
        let ListenPlace::Tcp(address) = group.address else { return Ok(place.address) };
        self.open.push(group);
        Ok(address)
    }

    /// Takes out what was handed over for a place.
    fn handed(&mut self, purpose: ListenPurpose, wanted: &ListenPlace) -> Option<ListenGroup> {
        let at = self.handed.iter().position(|group| group.is_for(purpose, wanted))?;
        Some(self.handed.remove(at))
    }
}

/// Binds to a place, once for each worker.
fn fresh(mut place: Place, purpose: ListenPurpose, workers: usize) -> io::Result<ListenGroup> {
    let asked = ListenPlace::Tcp(place.address);
    await_free(FREE_LOOK, || listen::check_free(place))?;
    let mut sockets = Vec::with_capacity(workers);
    for index in 0..workers {
        let listener = listen::bind(place)?;
        if index == 0 {
            place = place.on_port_of(&listener)?;
        }
        sockets.push(listener);
    }
    let address = ListenPlace::Tcp(place.address);
    Ok(ListenGroup { purpose: Some(purpose), asked, address, sockets, is_lent: false, file: None })
}

/// Listens at a Unix socket.
fn fresh_unix(wanted: &ClientListener) -> io::Result<(ListenGroup, Option<SocketFile>)> {
    let place = &wanted.listen;
    let mode = wanted.mode.unwrap_or_default();
    let (socket, file) =
        await_free(UNIX_FREE_LOOK, || socket_file::listen(place, mode, listen::BACKLOG))?;
    let (asked, address) = (place.clone(), place.clone());
    let (purpose, sockets) = (Some(ListenPurpose::Clients), vec![socket]);
    let id = file.as_ref().map(SocketFile::id);
    Ok((ListenGroup { purpose, asked, address, sockets, is_lent: false, file: id }, file))
}

/// Whether a Unix socket is where clients look for it. `known`: by this its file is known, if it
/// is not a service manager's.
fn is_found(place: &ListenPlace, known: Option<(u64, u64)>) -> bool {
    let is_it = |file: std::fs::Metadata| {
        file.file_type().is_socket() && known.is_none_or(|id| id == (file.dev(), file.ino()))
    };
    place.file().is_none_or(|path| std::fs::symlink_metadata(path).is_ok_and(is_it))
}

/// The file of a Unix socket that was handed over. A service manager has its own mind about it.
fn found(wanted: &ClientListener, is_lent: bool) -> io::Result<Option<SocketFile>> {
    let file = wanted.listen.file().filter(|_| !is_lent);
    file.map(|path| SocketFile::found(path, wanted.mode)).transpose()
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
fn await_free<T>(look: Duration, mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let since = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse && since.elapsed() < FREE_WAIT => {
                std::thread::park_timeout(look);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::os::unix::fs::PermissionsExt;

    const ANY: &str = "127.0.0.1:0";

    fn handed(purpose: Option<ListenPurpose>, sockets: usize) -> ListenGroup {
        let place = Place::all(&[ANY.parse().unwrap()]).remove(0);
        ListenGroup { purpose, ..fresh(place, ListenPurpose::Clients, sockets).unwrap() }
    }

    fn tcp(group: &ListenGroup) -> SocketAddr {
        let ListenPlace::Tcp(address) = group.address else { panic!("{group:?}") };
        address
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
            let (all, address) = (cookies(&group.sockets), tcp(&group));
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
        let wanted = groups.each_ref().map(tcp);
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
        let address = tcp(&unnamed);
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

    fn unix(path: &std::path::Path, mode: u32) -> ClientListener {
        let listen = ListenPlace::Unix(path.to_str().unwrap().to_owned());
        ClientListener { listen, tls: None, mode: Some(mode) }
    }

    /// Catches: a Unix socket that is made anew though it was handed over, whose file goes with a
    /// successor that does not serve in the end, whose mode stays that of an old configuration; the
    /// file of a service manager that is changed or taken away; a socket that nobody finds.
    #[test]
    fn unix_sockets_are_handed_over_with_their_files() {
        let folder = format!("llmproxy-handed-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.sock");
        let mode = || std::fs::metadata(&path).map(|f| f.permissions().mode() & 0o777).ok();
        let mut first = OpeningListeners::new(Vec::new());
        let (of_workers, file) = first.unix(&unix(&path, 0o600), 2).unwrap();
        let all = cookies(&of_workers[0]);
        assert_eq!(cookies(&of_workers[1]), all);
        let spares = first.finish();
        // One that comes to nothing.
        let mut second = OpeningListeners::new(spares.copies().unwrap());
        drop(second.unix(&unix(&path, 0o660), 1).unwrap());
        assert_eq!(mode(), Some(0o600));
        let mut third = OpeningListeners::new(spares.copies().unwrap());
        let (of_workers, handed) = third.unix(&unix(&path, 0o660), 1).unwrap();
        assert_eq!(cookies(&of_workers[0]), all);
        let (mut old, mut new) = (file.unwrap(), handed.unwrap());
        new.take().unwrap();
        old.leave();
        drop(old);
        assert_eq!(mode(), Some(0o660));
        // A manager's own.
        let mut lent = spares.copies().unwrap();
        lent[0].is_lent = true;
        let (_of_workers, file) = OpeningListeners::new(lent).unix(&unix(&path, 0o666), 1).unwrap();
        assert!(file.is_none());
        assert_eq!(mode(), Some(0o660));
        // Another process has put its own there: it is left alone, and no listener is made.
        std::fs::rename(&path, folder.join("b.sock")).unwrap();
        let foreign = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let before = mode();
        let mut refused = OpeningListeners::new(spares.copies().unwrap());
        assert!(refused.unix(&unix(&path, 0o600), 1).is_err());
        drop(foreign);
        assert_eq!(mode(), before);
        std::fs::rename(folder.join("b.sock"), &path).unwrap();
        drop(new);
        assert_eq!(mode(), None);
        let mut lost = OpeningListeners::new(spares.copies().unwrap());
        let (of_workers, file) = lost.unix(&unix(&path, 0o600), 1).unwrap();
        assert_ne!(cookies(&of_workers[0]), all);
        assert!(file.is_some() && mode() == Some(0o600));
        drop(file);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
