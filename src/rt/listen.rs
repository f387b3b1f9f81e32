//! A listening socket of one worker, and its accept loop.

use super::patrol::Patrol;
use super::socket::Socket as Client;
use super::sys::descriptor;
use crate::base::limits::{ACCEPTS_PER_TURN_MAX, CLIENT_UNSENT_BYTES_MAX};
use monoio::net::TcpListener;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Connections that the kernel queues before it drops new ones, or of a Unix socket lets them wait
/// (capped by `somaxconn`).
pub const BACKLOG: i32 = 4096;
/// Accepting stops for so long when descriptors or memory have run out.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// An address to listen on, as this machine can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The address.
    pub address: SocketAddr,
    /// Of `[::]`: IPv4 is left to another listener. Otherwise its socket takes both.
    only_v6: bool,
}

impl Place {
    /// The places of a list of addresses. Where the kernel has no IPv6, `[::]` is `0.0.0.0`.
    pub fn all(addresses: &[SocketAddr]) -> Vec<Place> {
        let any_v4 = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let mut places: Vec<Place> = Vec::new();
        let kernel_has_v6 = Socket::new(Domain::IPV6, Type::STREAM.cloexec(), None).is_ok();
        for mut address in addresses.iter().copied() {
            if address.ip() == Ipv6Addr::UNSPECIFIED && !kernel_has_v6 {
                address = any_v4(address.port());
            }
            let only_v6 = address.is_ipv6() && addresses.contains(&any_v4(address.port()));
            let place = Place { address, only_v6 };
            // Both forms of every address, where the kernel has only one family.
            if address.port() == 0 || !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }

    /// The same with the port that a listener got.
    pub fn on_port_of(self, listener: &OwnedFd) -> io::Result<Place> {
        let address = SockRef::from(listener).local_addr()?;
        let address = address.as_socket().ok_or_else(|| io::Error::other("no internet address"))?;
        Ok(Place { address, ..self })
    }

    fn socket(self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.address), kind, None)?;
        if self.address.is_ipv6() {
            // Said, since the default is a setting of the machine.
            socket.set_only_v6(self.only_v6)?;
        }
        // Connections that linger from a process that ended are no reason to wait.
        socket.set_reuse_address(true)?;
        Ok(socket)
    }
}

/// Binds one listener with `SO_REUSEPORT`, so that each worker can have its own on one address.
pub fn bind(place: Place) -> io::Result<OwnedFd> {
    let socket = place.socket(Type::STREAM.nonblocking().cloexec())?;
    socket.set_reuse_port(true)?;
    prepare(&socket)?;
    socket.bind(&place.address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Makes a listener that another process opened as one of ours. Gives its address.
///
/// # Errors
/// It is no TCP or Unix socket that listens, or cannot be made so.
pub fn adopt(listener: &OwnedFd) -> io::Result<SockAddr> {
    let socket = SockRef::from(listener);
    let address = socket.local_addr()?;
    let is_stream = socket.r#type()? == Type::STREAM && socket.is_listener().unwrap_or(false);
    let is_inet = address.as_socket().is_some();
    if !is_stream || !(is_inet || address.is_unix()) {
        return Err(io::Error::other("is no TCP or Unix socket that listens"));
    }
    socket.set_nonblocking(true)?;
    if is_inet {
        prepare(&socket)?;
    }
    // Whoever opened it may have asked for a short queue.
    socket.listen(BACKLOG)?;
    Ok(address)
}

/// Accepted sockets inherit these (Linux), which saves a system call each per client.
fn prepare(socket: &Socket) -> io::Result<()> {
    // Tokens are small writes: Nagle would hold each back for the ACK of the one before it.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&super::connect::keepalive())?;
    // Without it the kernel takes megabytes for a client that does not read, and ten thousand of
    // those are all of memory.
    socket.set_tcp_notsent_lowat(CLIENT_UNSENT_BYTES_MAX)
}

/// An error when somebody listens there already. `SO_REUSEPORT`, which our own workers need, would
/// let a second process of the same user share the port without a word.
pub fn check_free(place: Place) -> io::Result<()> {
    place.socket(Type::STREAM.cloexec())?.bind(&place.address.into())
}

/// What an accept loop tells its owner.
pub enum Arrival {
    /// A client, and the address it comes from: 0.0.0.0 of one that comes by a Unix socket.
    Client(Client, IpAddr),
    /// The process is out of descriptors or memory; accepting pauses.
    Exhausted,
}

/// Accepts until `patrol` says that the worker takes no more clients. Nothing is lost when it ends:
/// what the kernel had queued by then is accepted first.
pub async fn accept_loop(listener: OwnedFd, patrol: &Patrol, mut arrive: impl FnMut(Arrival)) {
    let listener = match TcpListener::from_std(listener.into()) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "listener cannot join the ring"),
    };
    loop {
        let stopping = patrol.until_parting(listener.readable(false)).await.is_none();
        let turns = if stopping { BACKLOG as usize } else { ACCEPTS_PER_TURN_MAX };
        for _ in 0..turns {
            match accept(&listener) {
                Ok((socket, peer)) => arrive(Arrival::Client(socket, peer)),
                // The client gave up while it was queued.
                Err(Errno::CONNABORTED | Errno::INTR | Errno::PROTO | Errno::PERM) => {}
                // The error would come back at once, a million times a second.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    arrive(Arrival::Exhausted);
                    monoio::time::sleep(EXHAUSTED_PAUSE).await;
                    break;
                }
                Err(Errno::AGAIN) => break,
                // Whatever it is, it would come again at once.
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    arrive(Arrival::Exhausted);
                    monoio::time::sleep(EXHAUSTED_PAUSE).await;
                    break;
                }
            }
        }
        if stopping {
            return;
        }
    }
}

fn accept(listener: &TcpListener) -> Result<(Client, IpAddr), Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = rustix::net::acceptfrom_with(descriptor::of(listener), flags)?;
    let peer = peer.and_then(|p| SocketAddr::try_from(p).ok());
    let address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |p| p.ip().to_canonical());
    let socket = Client::from_fd(socket).map_err(|_| Errno::NOMEM)?;
    Ok((socket, address))
}
