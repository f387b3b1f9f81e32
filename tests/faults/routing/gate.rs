//! Ways to an engine that fail: one that can be shut, so that whoever connects then is let in, and
//! reset at once; one that carries a single request for each connection.

use std::io::{copy, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Leads to one engine. Its threads end with the test's process.
pub struct Gate {
    address: SocketAddr,
    is_shut: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// One that is open.
    pub fn before(engine: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (is_shut, open) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<_>>>::default());
        let (shut, kept) = (Arc::clone(&is_shut), Arc::clone(&open));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shut.load(Ordering::SeqCst) {
                    reset(&client);
                    continue;
                }
                let server = TcpStream::connect(engine).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    from.set_nodelay(true).unwrap();
                    thread::spawn(move || {
                        let _ = copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Write);
                    });
                }
                kept.lock().unwrap().push(client);
            }
        });
        Gate { address, is_shut, open }
    }

    /// One that resets each connection when it is used for a second request, of which the engine
    /// gets nothing.
    pub fn for_one_request(engine: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(engine).unwrap();
                let [from, to] = [&client, &server].map(|stream| stream.try_clone().unwrap());
                let is_answered = Arc::<AtomicBool>::default();
                let answered = Arc::clone(&is_answered);
                thread::spawn(move || {
                    carry((&from, &to), || !answered.load(Ordering::SeqCst));
                    reset(&from);
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                });
                thread::spawn(move || {
                    carry((&server, &client), || {
                        is_answered.store(true, Ordering::SeqCst);
                        true
                    });
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        let (is_shut, open) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<_>>>::default());
        Gate { address, is_shut, open }
    }

    /// Shuts it; what went through is cut. Or opens it.
    pub fn set_shut(&self, is_shut: bool) {
        self.is_shut.store(is_shut, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            reset(&stream);
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// What stands in `backends[].url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Carries bytes on for as long as they may pass.
fn carry((mut from, mut to): (&TcpStream, &TcpStream), may_pass: impl Fn() -> bool) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut bytes) {
        if !may_pass() || to.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
}

/// The end of the connection is a reset.
fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}
