//! The admin socket: a Unix socket on which a gateway that runs tells its operator how its backends
//! are. Whoever may open it (mode 0600: the user that runs the gateway, and root) speaks HTTP/1.1
//! over it: `GET /backends`, `GET /requests`, `GET /metrics`, and the admin API where that is on.
//! The commands `llmproxy backends`, `llmproxy explain` and `llmproxy keys` do.

use super::admin_door::{AdminNumbers, AdminQuestion, ApiDoor};
use super::page::{self, Outlet};
use super::socket_file::{is_served, SocketFile};
use crate::base::id::RequestId;
use crate::base::limits::FLIGHT_LISTED_MAX;
use crate::config::plan::Plan;
use crate::rt;
use crate::rt::moment::Moment;
use crate::rt::patrol::Patrol;
use crate::state::pulse::Pulse;
use crate::state::scrape::{AskPage, Page};
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Its name in the folder of the spool that is this process' own.
pub const NAME: &str = "admin.sock";
/// What stands in the place of a pid file's extension.
const BESIDE: &str = "admin.sock";
/// Those who ask at a time. Beyond: as at other addresses of pages. Others than those of the
/// metrics' own address, so that nobody here keeps a scraper out.
const VISITORS_MAX: usize = 4;
/// Stories that are told where nobody says how many.
const LISTED: u16 = 100;
/// Those who wait to be let in. Beyond: connecting fails, or waits.
const BACKLOG: i32 = 8;
/// How often it is looked whether the socket is where it was made.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So long is waited at the end until the file is gone: the disk may hang.
const END_WAIT: Duration = Duration::from_secs(1);

/// Where the socket of a process is that has no spool on a disk: beside its pid file.
pub fn beside(pid_file: &Path) -> PathBuf {
    pid_file.with_extension(BESIDE)
}

/// Where the socket of a process is that has neither: beside its store of keys.
pub fn beside_store(db: &Path) -> PathBuf {
    let mut name = db.as_os_str().to_owned();
    name.push(".");
    name.push(BESIDE);
    PathBuf::from(name)
}

/// Makes the socket of this process: in its own folder of the spool, `home`, if it has one, else
/// beside its pid file, else beside its store of keys, else not at all. That it cannot be made is a
/// warning: nobody is served any less for it. `replaces`: that of the process in whose place this
/// one starts is replaced.
pub fn open_for(plan: &Plan, home: Option<&Path>, replaces: bool) -> Option<(OwnedFd, SocketFile)> {
    let beside = plan.server.pid_file.as_deref().map(beside);
    let beside_store = plan.admin.as_ref().map(|admin| beside_store(&admin.db_path));
    let places = home.map(|home| home.join(NAME)).into_iter().chain(beside).chain(beside_store);
    for path in places {
        match open(&path, replaces) {
            Ok(opened) => {
                tracing::info!(path = %path.display(), "admin socket");
                return Some(opened);
            }
            Err(error) => {
                let message = "no admin socket here, by which `llmproxy backends` finds a process";
                tracing::warn!(path = %path.display(), %error, "{message}");
            }
        }
    }
    None
}

/// Whoever answers at the socket, on the current ring. When it was made anew, at the new one alone.
pub struct Door {
    closes: Rc<Moment>,
    /// Who answers for the admin API, where that is on.
    questions: Option<Sender<AdminQuestion>>,
    /// What became of those who asked it.
    numbers: Arc<AdminNumbers>,
}

impl Door {
    /// At no socket yet.
    pub fn new(questions: Option<Sender<AdminQuestion>>, numbers: Arc<AdminNumbers>) -> Door {
        Door { closes: Rc::default(), questions, numbers }
    }

    /// Answers at this listener from now on.
    pub fn serve(&mut self, listener: OwnedFd, patrol: &Rc<Patrol>, pages: &AskPage) {
        std::mem::take(&mut self.closes).come();
        let (closes, patrol, pages) = (Rc::clone(&self.closes), Rc::clone(patrol), pages.clone());
        let outlet = outlet(listener, self.questions.clone(), &self.numbers);
        rt::spawn(async move {
            let _ = closes.unless(page::serve(outlet, patrol, pages)).await;
        });
    }
}

/// A thread that makes the socket anew when its file is gone: somebody has deleted or replaced the
/// folder of the spool while the process runs. A thread of its own, since a disk may hang. The file
/// goes away with this.
pub struct SocketKeeper {
    /// Never sent to: its end ends the thread.
    running: Option<Sender<()>>,
    ended: Receiver<()>,
}

impl Drop for SocketKeeper {
    fn drop(&mut self) {
        drop(self.running.take());
        let _ = self.ended.recv_timeout(END_WAIT);
    }
}

/// Keeps the socket's file. A new listener goes to `listeners`, and `heard` is called. `None`:
/// there can be no thread, and the file is gone.
pub fn keep(
    file: SocketFile,
    listeners: Sender<OwnedFd>,
    heard: Arc<Pulse>,
) -> Option<SocketKeeper> {
    let (running, until) = bounded::<()>(0);
    let (at_end, ended) = bounded::<()>(0);
    let body = move || {
        let (_at_end, mut file) = (at_end, file);
        super::survive("admin", || watch(&mut file, &until, (&listeners, &heard)));
    };
    let thread = std::thread::Builder::new().name("admin".into()).spawn(body);
    thread.ok().map(|_| SocketKeeper { running: Some(running), ended })
}

/// Looks at the file until that is to end.
fn watch(
    file: &mut SocketFile,
    until: &Receiver<()>,
    (listeners, heard): (&Sender<OwnedFd>, &Pulse),
) {
    let mut is_told = false;
    while until.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if file.is_there() {
            continue;
        }
        let path = file.path().display();
        match open(file.path(), false) {
            Ok((listener, fresh)) => {
                tracing::warn!(%path, "the admin socket was gone: it is made anew");
                let _ = listeners.try_send(listener);
                heard.call();
                (*file, is_told) = (fresh, false);
            }
            // A process that starts in our place: if it does not, the socket is made anew.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            // Its folder may be made anew in a moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if !is_told => {
                tracing::warn!(%path, %error, "the admin socket is gone and cannot be made anew");
                is_told = true;
            }
            Err(_) => {}
        }
    }
}

/// What is to be had there.
fn outlet(
    listener: OwnedFd,
    questions: Option<Sender<AdminQuestion>>,
    numbers: &Arc<AdminNumbers>,
) -> Outlet {
    // Whoever gets here owns the gateway: no token is asked for.
    let numbers = Arc::clone(numbers);
    let door = questions.map(|questions| ApiDoor { questions, guard: None, numbers });
    Outlet { listener, visitors_max: VISITORS_MAX, page_of: Box::new(page_of), door }
}

/// The page under a path, with this query.
fn page_of(path: &[u8], query: &[u8]) -> Option<Page> {
    match path {
        b"/backends" => Some(Page::Backends),
        b"/metrics" => Some(Page::Metrics),
        b"/requests" => {
            let most = match query.strip_prefix(b"?limit=") {
                None if query.is_empty() => LISTED,
                limit => std::str::from_utf8(limit?).ok()?.parse().ok()?,
            };
            (most <= FLIGHT_LISTED_MAX as u16).then_some(Page::Requests(most))
        }
        other => {
            let id = other.strip_prefix(b"/requests/")?;
            RequestId::from_client(id).map(Page::RequestsOf)
        }
    }
}

/// Listens at a path. What a process left there that is gone is replaced; with `replaces`, what any
/// process has there.
fn open(path: &Path, replaces: bool) -> io::Result<(OwnedFd, SocketFile)> {
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::other("something else is there, and is not replaced"));
        }
        if !replaces && is_served(path)? {
            let message = "another process listens there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
    }
    // Nobody can connect before it listens, and nobody finds it before it has its name: at no
    // moment may others than its owner open it.
    let fresh = path.with_extension(std::process::id().to_string());
    let _ = fs::remove_file(&fresh);
    let listener = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    listener.bind(&SockAddr::unix(&fresh)?)?;
    let made = || -> io::Result<SocketFile> {
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        listener.listen(BACKLOG)?;
        fs::rename(&fresh, path)?;
        SocketFile::made(path)
    };
    let file = made().inspect_err(|_| drop(fs::remove_file(&fresh)))?;
    Ok((listener.into(), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    /// Catches: a socket that others may open, one that stays behind, one of a process that was
    /// killed and that keeps its successor from making its own, and a file of somebody else's, or
    /// the socket of a process that runs, that is replaced.
    #[test]
    fn it_is_ours_while_we_run_and_nobody_else_s_file() {
        let folder = std::env::temp_dir().join(format!("llmproxy-admin-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(NAME);
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as one leaves it that was killed");
        let (listener, file) = open(&path, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(open(&path, false).unwrap_err().to_string().contains("another process listens"));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing half made is left");
        let successors = open(&path, true).unwrap();
        drop((listener, file));
        UnixStream::connect(&path).expect("the one of a successor stays");
        drop(successors);
        assert!(!path.exists());
        let (_listener, file) = open(&path, false).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(file);
        assert!(open(&path, false).unwrap_err().to_string().contains("something else"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(
            open(&folder.join("a/b"), false).is_err()
                && open(&folder.join("x".repeat(200)), false).is_err()
        );
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Catches: a page that is another one's, a number of stories beyond what is told at a time,
    /// what is no id of a request and is looked for all the same.
    #[test]
    fn each_page_has_its_path() {
        let at = |target: &str| {
            let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
            page_of(path.as_bytes(), query.as_bytes())
        };
        assert_eq!((at("/backends"), at("/metrics")), (Some(Page::Backends), Some(Page::Metrics)));
        assert_eq!(at("/requests"), Some(Page::Requests(LISTED)));
        assert_eq!(at("/requests?limit=1000"), Some(Page::Requests(1000)));
        let id = RequestId::from_client(b"a.b-c_9").unwrap();
        assert_eq!(at("/requests/a.b-c_9"), Some(Page::RequestsOf(id)));
        for nowhere in
            ["/", "/requests?limit=1001", "/requests?limit=x", "/requests?x", "/requests/"]
        {
            assert_eq!(at(nowhere), None, "{nowhere}");
        }
        assert_eq!((at("/requests/a/b"), at("/requests/%41")), (None, None));
    }

    #[test]
    fn a_pid_file_has_its_socket_beside_it() {
        assert_eq!(beside("/run/llmproxy.pid".as_ref()), Path::new("/run/llmproxy.admin.sock"));
        assert_eq!(beside("/run/proxy".as_ref()), Path::new("/run/proxy.admin.sock"));
    }
}
