//! A connection over TCP, a Unix socket or TLS, blocking, with a deadline on every read.

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// An address and port.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Place {
        Place::Tcp(address)
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Place {
        Place::Unix(path.to_owned())
    }
}

/// The server's side of a TLS connection.
pub type TlsStream = StreamOwned<ServerConnection, TcpStream>;

/// The client's side of one.
pub type TlsClient = StreamOwned<ClientConnection, TcpStream>;

/// Any kind of stream.
pub enum Stream {
    /// TCP
    Tcp(TcpStream),
    /// Unix
    Unix(UnixStream),
    /// TLS
    Tls(Box<TlsStream>),
    /// TLS, as a client
    TlsClient(Box<TlsClient>),
}

/// Reads what came, whatever became of what was to be sent: a server that refuses a request may
/// close before it has taken all of it, and its answer is there to be read.
fn read_tls(stream: &mut TlsClient, into: &mut [u8]) -> io::Result<usize> {
    if stream.conn.is_handshaking() {
        return stream.read(into);
    }
    loop {
        match stream.conn.reader().read(into) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            got => return got,
        }
        stream.conn.read_tls(&mut stream.sock)?;
        if let Err(error) = stream.conn.process_new_packets() {
            // The server is told why.
            let _ = stream.conn.write_tls(&mut stream.sock);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
}

impl Stream {
    /// Connects.
    pub fn connect(place: &Place) -> io::Result<Stream> {
        Ok(match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                Stream::Tcp(stream)
            }
            Place::Unix(path) => Stream::Unix(UnixStream::connect(path)?),
        })
    }

    /// Connects over TLS to what calls itself localhost. The handshake goes with the first bytes.
    pub fn connect_tls(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Stream> {
        Stream::connect_tls_to("localhost", address, config)
    }

    /// The same, to what calls itself so.
    pub fn connect_tls_to(
        name: &str,
        address: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> io::Result<Stream> {
        let Stream::Tcp(tcp) = Stream::connect(&Place::Tcp(address))? else { unreachable!() };
        Stream::tls_over(tcp, name, config)
    }

    /// The same, over a connection over which something was said before.
    pub fn tls_over(tcp: TcpStream, name: &str, config: Arc<ClientConfig>) -> io::Result<Stream> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Stream::TlsClient(Box::new(StreamOwned::new(session, tcp))))
    }

    /// Reads what is there within `limit`. `Ok(0)` is the end, `WouldBlock` that nothing came.
    pub fn read_within(&mut self, into: &mut [u8], limit: Duration) -> io::Result<usize> {
        let started = Instant::now();
        loop {
            // Zero would mean for ever.
            let left = limit.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
            let got = match self {
                Stream::Tcp(s) => s.set_read_timeout(Some(left)).and_then(|()| s.read(into)),
                Stream::Unix(s) => s.set_read_timeout(Some(left)).and_then(|()| s.read(into)),
                Stream::Tls(s) => s.sock.set_read_timeout(Some(left)).and_then(|()| s.read(into)),
                Stream::TlsClient(s) => {
                    s.sock.set_read_timeout(Some(left)).and_then(|()| read_tls(s, into))
                }
            };
            match got {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    return Err(io::ErrorKind::WouldBlock.into())
                }
                other => return other,
            }
        }
    }

    /// Makes the handshake now, rather than with the first bytes. One that fails is found out by
    /// them.
    pub fn shake_hands(&mut self, limit: Duration) {
        let Stream::TlsClient(stream) = self else { return };
        stream.sock.set_read_timeout(Some(limit)).unwrap();
        let _ = stream.conn.complete_io(&mut stream.sock);
    }

    /// Writes all bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Tcp(s) => s.write_all(bytes),
            Stream::Unix(s) => s.write_all(bytes),
            Stream::Tls(s) => s.write_all(bytes).and_then(|()| s.flush()),
            Stream::TlsClient(s) => s.write_all(bytes).and_then(|()| s.flush()),
        }
    }

    /// Says over TLS that no more will come. The connection stays.
    pub fn say_goodbye(&mut self) {
        let Stream::TlsClient(stream) = self else { panic!("not over TLS") };
        stream.conn.send_close_notify();
        stream.flush().unwrap();
    }

    /// Ends one direction or both.
    pub fn shutdown(&self, how: Shutdown) {
        let _ = match self {
            Stream::Tcp(s) => s.shutdown(how),
            Stream::Unix(s) => s.shutdown(how),
            Stream::Tls(s) => s.sock.shutdown(how),
            Stream::TlsClient(s) => s.sock.shutdown(how),
        };
    }

    /// The TCP stream, for socket options.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
            Stream::TlsClient(stream) => &stream.sock,
            Stream::Unix(_) => panic!("not a TCP stream"),
        }
    }
}
