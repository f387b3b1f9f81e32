//! A backend that does what a test tells it to, byte by byte: for all that a well-behaved mock
//! cannot do.

use super::message::{Ended, Head, Reader};
use super::stream::{Stream, TlsStream};
use rustls::{ServerConfig, ServerConnection};
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A request that a backend received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Its head.
    pub head: Head,
    /// Its body, chunk framing taken off.
    pub body: Vec<u8>,
    /// Number of the connection that it came on, from 0.
    pub conn: usize,
}

/// A listening backend. Each connection is served by the script on a thread of its own.
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// While it is there, nothing answers who connects.
    door: Mutex<Option<Sender<()>>>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicUsize,
    requests: Mutex<Vec<Received>>,
    stopped: AtomicBool,
}

impl Backend {
    /// Starts one. The script runs once for each connection; when it returns, that one closes.
    pub fn start(script: impl Fn(&mut Served) + Send + Sync + 'static) -> Backend {
        Backend::listen(TcpListener::bind("127.0.0.1:0").unwrap(), None, script)
    }

    /// The same at this address; `None` when somebody else has it.
    pub fn start_at(
        place: SocketAddr,
        script: impl Fn(&mut Served) + Send + Sync + 'static,
    ) -> Option<Backend> {
        Some(Backend::listen(TcpListener::bind(place).ok()?, None, script))
    }

    /// The same behind a closed door: whoever connects hears nothing until [`Backend::open`], as
    /// from a machine that has too much to do. (Linux drops what does not fit into the queue of a
    /// listener, and the other side tries again after a second.)
    pub fn start_closed(script: impl Fn(&mut Served) + Send + Sync + 'static) -> Backend {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let place = SocketAddr::from(([127, 0, 0, 1], 0));
        socket.bind(&place.into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_millis(200);
        let fill = || TcpStream::connect_timeout(&address, limit).ok();
        let queue: Vec<TcpStream> = std::iter::from_fn(fill).collect();
        let (door, closed) = channel();
        let accepting = listener.try_clone().unwrap();
        let backend = Backend::listen_when(listener, None, script, move || {
            let _ = closed.recv();
            queue.iter().for_each(|_| drop(accepting.accept()));
        });
        *backend.door.lock().unwrap() = Some(door);
        backend
    }

    /// From now on those who connect are served.
    pub fn open(&self) {
        self.door.lock().unwrap().take();
    }

    /// The same over TLS. A connection whose handshake fails is closed when the script reads.
    pub fn start_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&mut Served) + Send + Sync + 'static,
    ) -> Backend {
        Backend::listen(TcpListener::bind("127.0.0.1:0").unwrap(), Some(config), script)
    }

    fn listen(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Served) + Send + Sync + 'static,
    ) -> Backend {
        Backend::listen_when(listener, tls, script, || {})
    }

    fn listen_when(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        script: impl Fn(&mut Served) + Send + Sync + 'static,
        ready: impl FnOnce() + Send + 'static,
    ) -> Backend {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (script, inner) = (Arc::new(script), Arc::clone(&shared));
        std::thread::spawn(move || {
            ready();
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                if inner.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let number = inner.connections.fetch_add(1, Ordering::Relaxed);
                let (script, inner) = (Arc::clone(&script), Arc::clone(&inner));
                let tls = tls.clone();
                std::thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    script(&mut Served::new(dress(stream, tls), number, inner));
                });
            }
        });
        Backend { address, shared, door: Mutex::default() }
    }

    /// One that answers every request with these bytes and keeps the connection.
    pub fn answering(bytes: impl Into<Vec<u8>>) -> Backend {
        let bytes = bytes.into();
        Backend::start(move |served| {
            while served.request().is_some() {
                served.send(&bytes);
            }
        })
    }

    /// Its address.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// What stands in `backends[].url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same by another name, and with another scheme.
    pub fn url_as(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}", self.address.port())
    }

    /// Connections that were accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Requests that were read, in the order of their ends.
    pub fn requests(&self) -> Vec<Received> {
        self.shared.lock().clone()
    }
}

fn dress(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Stream {
    match tls {
        None => Stream::Tcp(stream),
        Some(config) => {
            let session = ServerConnection::new(config).unwrap();
            Stream::Tls(Box::new(TlsStream::new(session, stream)))
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.open();
        // Wakes the listener, which sees the flag; the port is free again.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Received>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection of a backend.
pub struct Served {
    /// Number of the connection, from 0.
    pub number: usize,
    stream: Stream,
    reader: Reader,
    shared: Arc<Shared>,
}

impl Served {
    fn new(stream: Stream, number: usize, shared: Arc<Shared>) -> Served {
        let reader = Reader::new(Duration::from_secs(30));
        Served { number, stream, reader, shared }
    }

    /// Reads a request and notes it; `None` when the peer closed instead.
    pub fn request(&mut self) -> Option<Received> {
        let head = self.head()?;
        self.body_of(head)
    }

    /// Reads the body behind a head and notes the request; `None` when it breaks off.
    pub fn body_of(&mut self, head: Head) -> Option<Received> {
        self.reader.begin_body(&head, false);
        let mut body = Vec::new();
        loop {
            match self.reader.next_piece(&mut self.stream) {
                Ok(piece) => body.extend_from_slice(&piece.bytes),
                Err(Ended::Whole) => break,
                Err(_) => return None,
            }
        }
        let received = Received { head, body, conn: self.number };
        self.shared.lock().push(received.clone());
        Some(received)
    }

    /// Reads a request's head only; its body stays in the kernel. Empty lines before it are passed
    /// over, as servers do.
    pub fn head(&mut self) -> Option<Head> {
        while self.reader.skip_empty_lines() {
            if !self.reader.fill(&mut self.stream) {
                return None;
            }
        }
        self.reader.head(&mut self.stream)
    }

    /// Sends bytes; false when the peer is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends one chunk of a chunked body.
    pub fn chunk(&mut self, data: &str) -> bool {
        self.send(format!("{:x}\r\n{data}\r\n", data.len()))
    }

    /// Sends a chunked answer's head.
    pub fn begin_events(&mut self) -> bool {
        self.send(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
             transfer-encoding: chunked\r\n\r\n",
        )
    }

    /// Waits until the peer closes or resets; false when it did not within `limit`.
    pub fn left_within(&mut self, limit: Duration) -> bool {
        let mut buffer = [0; 1024];
        match self.stream.read_within(&mut buffer, limit) {
            Ok(0) => true,
            Ok(n) => {
                panic!("bytes instead of a close: {:?}", String::from_utf8_lossy(&buffer[..n]))
            }
            Err(e) => e.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Closes with a reset instead of an end.
    pub fn reset(&self) {
        socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Ends one direction, or both.
    pub fn shutdown(&self, how: Shutdown) {
        self.stream.shutdown(how);
    }

    /// The stream, for socket options.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }
}
