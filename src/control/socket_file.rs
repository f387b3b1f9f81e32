//! Unix sockets on which this process listens, and their files.

use crate::config::plan::ListenPlace;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Another process that changes a folder is waited for so long, and looked at so often.
const LOCK_WAIT: Duration = Duration::from_secs(1);
const LOCK_LOOK: Duration = Duration::from_millis(5);

/// The file of a socket. It goes away with this where it is ours, unless another process has put
/// its own there.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and number of the file.
    id: (u64, u64),
    is_ours: bool,
    /// The permissions that it is to have once it is ours.
    mode: Option<u32>,
}

impl SocketFile {
    /// One that this process has made.
    ///
    /// # Errors
    /// There is none.
    pub fn made(path: &Path) -> io::Result<SocketFile> {
        let id = id(&fs::symlink_metadata(path)?);
        Ok(SocketFile { path: path.to_owned(), id, is_ours: true, mode: None })
    }

    /// One that another process has made, and has until [`SocketFile::take`].
    ///
    /// # Errors
    /// There is none.
    pub fn found(path: &Path, mode: Option<u32>) -> io::Result<SocketFile> {
        let mut found = SocketFile::made(path)?;
        (found.is_ours, found.mode) = (false, mode);
        Ok(found)
    }

    /// It is ours from now on.
    ///
    /// # Errors
    /// Its permissions stay as they are.
    pub fn take(&mut self) -> io::Result<()> {
        self.is_ours = true;
        let Some(mode) = self.mode.take() else { return Ok(()) };
        if id(&fs::symlink_metadata(&self.path)?) != self.id {
            return Err(io::Error::other("another file is in its place: its permissions stay"));
        }
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }

    /// Another process has it from now on.
    pub fn leave(&mut self) {
        self.is_ours = false;
    }

    /// False when it is gone, or another file is in its place. What cannot be told is no reason to
    /// make a new one.
    pub fn is_there(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(found) => id(&found) == self.id,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Device and number of the file: by them it is known again.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let _lock = lock_folder_of(&self.path);
        if fs::symlink_metadata(&self.path).is_ok_and(|found| id(&found) == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Listens at a Unix socket, with so many who may wait to be let in. The file of a process that is
/// gone is replaced.
///
/// # Errors
/// `AddrInUse`: a process listens there. Or something else is there, or the system does not let us.
pub fn listen(
    place: &ListenPlace,
    mode: u32,
    backlog: i32,
) -> io::Result<(OwnedFd, Option<SocketFile>)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    let Some(path) = place.file() else {
        socket.bind(&address(place)?)?;
        socket.listen(backlog)?;
        return Ok((socket.into(), None));
    };
    // Of two that find the file of one that is gone, the second must find that of the first.
    let _lock = lock_folder_of(path);
    if see(path)? {
        fs::remove_file(path)?;
    }
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::made(path)?;
    // Before it listens nobody can connect, whatever the permissions were.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok((socket.into(), Some(file)))
}

/// The address of a Unix socket.
///
/// # Errors
/// It is too long, or the place is none.
pub fn address(place: &ListenPlace) -> io::Result<SockAddr> {
    match place {
        ListenPlace::Unix(name) => match name.strip_prefix('@') {
            Some(name) => SockAddr::unix(format!("\0{name}")),
            None => SockAddr::unix(name),
        },
        ListenPlace::Tcp(_) => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Looks at what is at a path: true for the socket of a process that is gone, false for nothing.
fn see(path: &Path) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other("something else is there, and is not replaced"));
    }
    match is_served(path)? {
        true => {
            let message = "address in use: another process listens there";
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
        false => Ok(true),
    }
}

/// Until the result is dropped, no other process of ours changes sockets in the folder of a path.
/// Where the folder cannot be read, or others have it for long, we do without.
fn lock_folder_of(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    let due = Instant::now() + LOCK_WAIT;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() < due => std::thread::park_timeout(LOCK_LOOK),
            Err(_) => return None,
        }
    }
}

/// Whether a process listens at a socket. Never waits.
///
/// # Errors
/// It cannot be told.
pub fn is_served(path: &Path) -> io::Result<bool> {
    let probe = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // Its queue is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn folder(name: &str) -> PathBuf {
        let name = format!("llmproxy-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn at(path: &Path) -> ListenPlace {
        ListenPlace::Unix(path.to_str().unwrap().to_owned())
    }

    /// Catches: a file of somebody else's that is replaced or taken away, one that others may open,
    /// one that stays behind, and one that goes though another process has the listener.
    #[test]
    fn a_file_goes_with_whoever_has_it() {
        let folder = folder("socket-file");
        let path = folder.join("a@b.sock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let (stale, file) = listen(&at(&path), 0o600, 8).unwrap();
        let mut file = file.unwrap();
        assert_eq!(mode(), 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        let taken = listen(&at(&path), 0o600, 8).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        file.leave();
        drop(file);
        assert!(path.exists(), "another process has it");
        drop(stale);
        assert!(UnixStream::connect(&path).is_err());
        let (_fresh, file) = listen(&at(&path), 0o666, 8).unwrap();
        assert_eq!(mode(), 0o666);
        drop(SocketFile::found(&path, Some(0o600)).unwrap());
        assert_eq!(mode(), 0o666);
        drop(file);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(listen(&at(&path), 0o600, 8).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_dir_all(folder).unwrap();
    }

    /// Catches: of several that start at the same time and find the file of one that was killed,
    /// one that takes away what another has just made, and two that think they have the place.
    #[test]
    fn of_many_at_one_time_one_has_the_place() {
        let folder = folder("socket-race");
        let path = folder.join("a.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let begin = std::sync::Barrier::new(4);
            let start = || {
                begin.wait();
                listen(&at(&path), 0o600, 8)
            };
            let all = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(start)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(all.iter().filter(|one| one.is_ok()).count(), 1, "{all:?}");
            assert!(UnixStream::connect(&path).is_ok());
            drop(all);
            assert!(!path.exists());
        }
        fs::remove_dir_all(folder).unwrap();
    }

    /// Catches: a name of the kernel's own that becomes a file, or that two have.
    #[test]
    fn a_name_without_a_file_is_the_kernels() {
        let place = ListenPlace::Unix(format!("@llmproxy-test-{}", std::process::id()));
        let (listener, file) = listen(&place, 0, 8).unwrap();
        assert!(file.is_none());
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.connect(&address(&place).unwrap()).unwrap();
        assert_eq!(listen(&place, 0, 8).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(listen(&place, 0, 8).is_ok());
    }
}
