//! Clients that know what they are to get, to the byte, and say of each request what became of it.

use crate::harness::pause;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The longest that a client waits for a byte.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of a request, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Every byte as it was sent.
    Good,
    /// An error of this status; 0: no byte at all.
    Failed(u16),
    /// An answer that had begun broke off, or told of an error.
    Cut,
    /// An answer that is whole, and another one than was sent.
    Wrong,
}

/// One kind of clients.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// How many.
    pub count: u32,
    /// What they ask.
    pub body: &'static str,
    /// From the end of one request to the next.
    pub rest: Duration,
}

/// Clients at work.
pub struct Crowd {
    running: Arc<AtomicBool>,
    fates: Arc<Mutex<Vec<Fate>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    /// Starts them. What each of them is to get is asked of an engine first.
    pub fn start(proxy: SocketAddr, engine: SocketAddr, groups: &[Group]) -> Crowd {
        let (running, fates) = (Arc::new(AtomicBool::new(true)), Arc::<Mutex<Vec<_>>>::default());
        let mut threads = Vec::new();
        for group in groups.iter().copied() {
            let wanted = Arc::new(wanted(engine, group.body));
            for number in 0..group.count {
                let (running, fates) = (Arc::clone(&running), Arc::clone(&fates));
                let wanted = Arc::clone(&wanted);
                threads.push(thread::spawn(move || {
                    // Not all at the same moment.
                    pause(group.rest * number / group.count);
                    let mut kept = None;
                    while running.load(Ordering::SeqCst) {
                        let fate = ask(proxy, &mut kept, group.body, &wanted);
                        fates.lock().unwrap().push(fate);
                        pause(group.rest);
                    }
                }));
            }
        }
        Crowd { running, fates, threads }
    }

    /// Requests that are over.
    pub fn count(&self) -> usize {
        self.fates.lock().unwrap().len()
    }

    /// Lets every client finish its request; gives what became of all.
    pub fn stop(self) -> Vec<Fate> {
        self.running.store(false, Ordering::SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut *self.fates.lock().unwrap())
    }
}

/// The body of a good answer, chunk framing taken off.
fn wanted(engine: SocketAddr, body: &str) -> Vec<u8> {
    let answer = exchange(&mut TcpStream::connect(engine).unwrap(), body);
    match answer {
        Answer { status: 200, body, is_whole: true } => body,
        odd => panic!("{odd:?}"),
    }
}

fn ask(proxy: SocketAddr, kept: &mut Option<TcpStream>, body: &str, wanted: &[u8]) -> Fate {
    let Some(mut stream) = kept.take().or_else(|| TcpStream::connect(proxy).ok()) else {
        return Fate::Failed(0);
    };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let answer = exchange(&mut stream, body);
    if answer.is_whole {
        *kept = Some(stream);
    }
    match answer {
        Answer { status: 200, body, is_whole: true } if body == wanted => Fate::Good,
        Answer { status: 200, body, is_whole } => {
            let is_told = memchr::memmem::find(&body, b"\"error\"").is_some();
            if is_whole && !is_told {
                Fate::Wrong
            } else {
                Fate::Cut
            }
        }
        Answer { status, .. } => Fate::Failed(status),
    }
}

/// What came.
#[derive(Debug)]
struct Answer {
    /// 0: no head.
    status: u16,
    body: Vec<u8>,
    is_whole: bool,
}

fn exchange(stream: &mut TcpStream, body: &str) -> Answer {
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(request.as_bytes());
    let (mut bytes, mut piece) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let read = read(&bytes);
        if read.is_whole {
            return read;
        }
        match stream.read(&mut piece) {
            Ok(got) if got > 0 => bytes.extend_from_slice(&piece[..got]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return read,
        }
    }
}

/// As much of an answer as there is.
fn read(bytes: &[u8]) -> Answer {
    let none = Answer { status: 0, body: Vec::new(), is_whole: false };
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else { return none };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    let rest = &bytes[end + 4..];
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let (body, is_whole) = match length.map(|length| length.parse::<usize>().unwrap()) {
        Some(length) => (rest.get(..length).unwrap_or(rest).to_vec(), rest.len() >= length),
        None => dechunked(rest),
    };
    Answer { status, body, is_whole }
}

fn dechunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = memchr::memmem::find(rest, b"\r\n") else { return (body, false) };
        let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..line]), 16).unwrap();
        let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else { return (body, false) };
        if size == 0 {
            return (body, true);
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[line + 2 + size + 2..];
    }
}
