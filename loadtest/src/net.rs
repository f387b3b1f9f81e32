//! Sockets of both kinds behind one type.
//!
//! Readiness style: wait for `readable` or `writable`, then a system call that never waits. An
//! idle connection holds no buffer, and a wait may be dropped at any moment without losing bytes.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnix;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use monoio::net::UnixStream;
use socket2::{Domain, SockAddr, SockRef, Type};

use crate::tls::Session;

/// Where a listener is: `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and port
    Tcp(SocketAddr),
    /// The same, behind TLS: for clients alone
    Tls(SocketAddr),
    /// A path of the file system
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Address::Unix(path.into()));
        }
        let secure = text.strip_prefix("https://");
        let plain = text.strip_prefix("http://").unwrap_or(text);
        let authority = secure.unwrap_or(plain).trim_end_matches('/');
        let found = authority.to_socket_addrs().map_err(|e| format!("{text}: {e}"))?.next();
        let address = if secure.is_some() { Address::Tls } else { Address::Tcp };
        found.map(address).ok_or_else(|| format!("{text}: no address"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr) => write!(f, "{addr}"),
            Address::Tls(addr) => write!(f, "https://{addr}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    fn socket(&self) -> io::Result<(socket2::Socket, SockAddr)> {
        let (domain, addr) = match self {
            Address::Tcp(addr) | Address::Tls(addr) => {
                (Domain::for_address(*addr), SockAddr::from(*addr))
            }
            Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
        };
        Ok((socket2::Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?, addr))
    }
}

/// A listening socket, not yet on any ring, so that it can be handed to a thread.
pub struct Listener(OwnedFd);

impl Listener {
    /// Binds and listens; TCP ports are shared between the listeners of this process.
    ///
    /// # Errors
    /// What bind or listen answered; nobody listens with TLS here. A stale socket file is removed
    /// first.
    pub fn bind(address: &Address) -> io::Result<(Self, Address)> {
        let (socket, addr) = address.socket()?;
        match address {
            Address::Tcp(_) => {
                socket.set_reuse_address(true)?;
                socket.set_reuse_port(true)?;
            }
            // Only a socket nobody listens on may be taken over.
            Address::Unix(path) if path.exists() && StdUnix::connect(path).is_err() => {
                std::fs::remove_file(path)?;
            }
            Address::Unix(_) => {}
            Address::Tls(_) => return Err(io::ErrorKind::Unsupported.into()),
        }
        socket.bind(&addr)?;
        socket.listen(4096)?;
        let bound = match socket.local_addr()?.as_socket() {
            Some(addr) => Address::Tcp(addr),
            None => address.clone(),
        };
        Ok((Listener(socket.into()), bound))
    }

    /// A second handle on the same queue, for another thread.
    ///
    /// # Errors
    /// What dup answered.
    pub fn share(&self) -> io::Result<Self> {
        Ok(Listener(self.0.try_clone()?))
    }

    /// Accepts for ever and gives each connection to `take`.
    ///
    /// # Errors
    /// Only when the listener itself cannot be waited for.
    pub async fn accept_loop(self, mut take: impl FnMut(Socket)) -> io::Result<()> {
        // Only `readable` is ever called on it; the descriptor closes with this value.
        let waiter = UnixStream::from_std(StdUnix::from(self.0))?;
        loop {
            waiter.readable(false).await?;
            let lent = Fd(&waiter);
            let listener = SockRef::from(&lent);
            // Bounded, so that a flood of connects does not starve the streams.
            for _ in 0..64 {
                match listener.accept() {
                    Ok((socket, _)) => {
                        if let Ok(socket) = Socket::adopt(socket) {
                            take(socket);
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                        monoio::time::sleep(Duration::from_millis(50)).await;
                        break;
                    }
                    Err(_) => {}
                }
            }
        }
    }
}

/// Lends monoio's raw descriptor in the form that socket2 takes.
struct Fd<'a>(&'a UnixStream);

impl AsFd for Fd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        crate::sys::borrow_fd(self.0)
    }
}

/// A connected stream socket. monoio's UnixStream carries either family, because only its
/// readiness calls are used.
pub struct Socket {
    plain: UnixStream,
    tls: Option<Box<RefCell<Session>>>,
}

impl Socket {
    fn adopt(socket: socket2::Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        // Unix sockets have no Nagle and answer with an error; TCP always takes it.
        let _ = socket.set_tcp_nodelay(true);
        let plain = UnixStream::from_std(StdUnix::from(OwnedFd::from(socket)))?;
        Ok(Socket { plain, tls: None })
    }

    /// Connects within `limit`, the handshake of TLS included.
    ///
    /// # Errors
    /// What connect or the handshake answered, or TimedOut.
    pub async fn connect(address: &Address, limit: Duration) -> io::Result<Self> {
        let (socket, addr) = address.socket()?;
        match socket.connect(&addr) {
            Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => return Err(e),
            _ => {}
        }
        let mut socket = Socket::adopt(socket)?;
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        monoio::time::timeout(limit, socket.plain.writable(false)).await.map_err(late)??;
        if let Some(e) = socket.raw(|s| s.take_error())? {
            return Err(e);
        }
        if let Address::Tls(_) = address {
            socket.tls = Some(Box::new(RefCell::new(Session::new()?)));
            monoio::time::timeout(limit, socket.shake_hands()).await.map_err(late)??;
        }
        Ok(socket)
    }

    fn raw<R>(&self, work: impl FnOnce(&socket2::Socket) -> R) -> R {
        let lent = Fd(&self.plain);
        work(&SockRef::from(&lent))
    }

    async fn shake_hands(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        while tls.borrow().is_handshaking() {
            self.flush().await?;
            if !tls.borrow().is_handshaking() {
                break;
            }
            self.plain.readable(false).await?;
            match self.raw(|mut s| tls.borrow_mut().receive(&mut s)) {
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(e),
                _ => {}
            }
        }
        self.flush().await
    }

    /// Waits until the socket has taken what TLS made of all that was written.
    async fn flush(&self) -> io::Result<()> {
        let Some(tls) = &self.tls else { return Ok(()) };
        while tls.borrow().wants_write() {
            match self.raw(|mut s| tls.borrow_mut().send(&mut s)) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Reads what is there; `WouldBlock` when nothing is, 0 at the peer's FIN.
    ///
    /// # Errors
    /// What recv answered.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.raw(|mut s| match &self.tls {
            None => s.read(into),
            Some(tls) => tls.borrow_mut().read(&mut s, into),
        })
    }

    /// Writes what fits; `WouldBlock` when nothing does.
    ///
    /// # Errors
    /// What send answered.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.raw(|mut s| match &self.tls {
            None => s.write(bytes),
            Some(tls) => tls.borrow_mut().write(&mut s, bytes),
        })
    }

    /// Writes what fits of two buffers, in one call where it can.
    ///
    /// # Errors
    /// What sendmsg answered.
    pub fn try_write_two(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        if self.tls.is_some() {
            // One record for both.
            return self.try_write(&[first, second].concat());
        }
        self.raw(|mut s| s.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]))
    }

    /// Ends both directions; whoever waits for the socket wakes up.
    pub fn shutdown(&self) {
        let _ = self.raw(|s| s.shutdown(Shutdown::Both));
    }

    /// The error that the kernel holds for this socket, once.
    pub fn take_error(&self) -> Option<io::Error> {
        self.raw(|s| s.take_error()).unwrap_or_else(Some)
    }

    /// Resolves when a read would not wait.
    pub async fn readable(&self) -> io::Result<()> {
        match &self.tls {
            Some(tls) if tls.borrow_mut().has_read() => Ok(()),
            _ => self.plain.readable(false).await,
        }
    }

    /// Resolves when a write would not wait.
    pub fn writable(&self) -> impl Future<Output = io::Result<()>> + '_ {
        self.plain.writable(false)
    }

    /// Writes all of `bytes`, waiting as often as needed.
    ///
    /// # Errors
    /// What send answered.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(e) => return Err(e),
            }
        }
        self.flush().await
    }

    /// Closes so that the peer gets a reset instead of an orderly end.
    pub fn reset(self) {
        let _ = self.raw(|s| s.set_linger(Some(Duration::ZERO)));
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.plain.as_raw_fd()
    }
}
