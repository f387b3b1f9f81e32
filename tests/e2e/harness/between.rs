//! Stands between a gateway and a Redis server: passes on what both say, at once or late, or says
//! in the server's place that it is still loading.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{mpsc, Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What becomes of what the gateway says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// It is passed on at once.
    AtOnce,
    /// It is passed on so much later: a server that is slow.
    Late(Duration),
    /// Each command is answered as by a server that reads its file.
    Loading,
}

/// The one between. Its threads end with their connections.
pub struct Between {
    place: SocketAddr,
    passing: Arc<Mutex<Passing>>,
}

impl Between {
    /// Before the server at this address, which may stop and start again there.
    pub fn before(server: SocketAddr) -> Between {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = listener.local_addr().unwrap();
        let passing = Arc::new(Mutex::new(Passing::AtOnce));
        let now = Arc::clone(&passing);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let now = Arc::clone(&now);
                thread::spawn(move || serve(&client, server, &now));
            }
        });
        Between { place, passing }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.place
    }

    /// From now on, also on connections that are open.
    pub fn set(&self, passing: Passing) {
        *self.passing.lock().unwrap_or_else(PoisonError::into_inner) = passing;
    }
}

fn serve(mut client: &TcpStream, server: SocketAddr, passing: &Mutex<Passing>) {
    let mut upstream = TcpStream::connect(server).ok();
    let back = upstream.as_ref().and_then(|upstream| upstream.try_clone().ok());
    if let (Some(mut back), Ok(mut client)) = (back, client.try_clone()) {
        thread::spawn(move || {
            let _ = std::io::copy(&mut back, &mut client);
            let _ = client.shutdown(Shutdown::Both);
        });
    }
    let (_silent, never) = mpsc::channel::<()>();
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = client.read(&mut bytes) {
        let said = &bytes[..count];
        let now = *passing.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match (now, &mut upstream) {
            (Passing::Loading, _) => {
                // Each command is an array: its first line begins with a star.
                let commands = said.split(|byte| *byte == b'\n').filter(|it| it.starts_with(b"*"));
                let loading = b"-LOADING Redis is loading the dataset in memory\r\n";
                client.write_all(&loading.repeat(commands.count()))
            }
            (_, None) => break,
            (Passing::Late(late), Some(upstream)) => {
                // Nobody says anything there.
                let _ = never.recv_timeout(late);
                upstream.write_all(said)
            }
            (Passing::AtOnce, Some(upstream)) => upstream.write_all(said),
        };
        if done.is_err() {
            break;
        }
    }
    let ends = [Some(client), upstream.as_ref()];
    ends.into_iter().flatten().for_each(|end| drop(end.shutdown(Shutdown::Both)));
}
