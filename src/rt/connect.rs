//! Outgoing connections. Names are resolved elsewhere: this takes addresses.

use super::socket::Socket;
use crate::base::limits::ENGINE_UNREAD_BYTES_MAX;
use socket2::{Domain, SockAddr, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A peer that vanished without a FIN is noticed after 30 + 3 × 10 s of silence. There is no
/// TCP_USER_TIMEOUT: it would also end a peer that lives and does not read, before the timeout that
/// is configured for it, and under another name.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Between two tries of a Unix socket whose queue is full.
const UNIX_QUEUE_RETRY: Duration = Duration::from_millis(5);

/// Connects to an address. The caller bounds the time; dropping it closes the socket.
pub async fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking().cloexec(),
        None,
    )?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    // Left to itself the kernel lets it grow to megabytes while a client reads fast, and fills it
    // when that client stops.
    socket.set_recv_buffer_size(ENGINE_UNREAD_BYTES_MAX)?;
    start(socket, &address.into()).await
}

/// Probes of a silent peer, on both sides of the proxy.
pub(super) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES)
}

/// Connects to a Unix stream socket.
pub async fn unix(path: &Path) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking().cloexec();
    loop {
        let socket = socket2::Socket::new(Domain::UNIX, kind, None)?;
        match start(socket, &SockAddr::unix(path)?).await {
            // The engine's queue is full: there is no SYN to be repeated by the kernel.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                Box::pin(monoio::time::sleep(UNIX_QUEUE_RETRY)).await;
            }
            done => return done,
        }
    }
}

async fn start(socket: socket2::Socket, address: &SockAddr) -> io::Result<Socket> {
    match socket.connect(address) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {
            return Err(e)
        }
        _ => {}
    }
    let socket = Socket::from_fd(socket.into())?;
    socket.writable().await?;
    match socket.take_error()? {
        Some(error) => Err(error),
        None => Ok(socket),
    }
}
