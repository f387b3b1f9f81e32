//! Clients that go on whatever happens, and note each request that they had an answer to.

use crate::harness::{await_until, pause};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long clients may need until they had a few answers.
const LOADED: Duration = Duration::from_secs(60);

/// What a client saw of one request.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// All of it came, to its last byte.
    pub is_whole: bool,
    /// Completion tokens of the usage that it was shown.
    pub completion: Option<u64>,
}

/// Clients at work.
pub struct Load {
    running: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<HashMap<String, Answer>>>,
}

/// A chat that is answered at once.
pub const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"Count."}]}"#;
/// One that is streamed, and asks for its usage.
pub const STREAM: &str = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Count."}]}"#;

/// One kind of clients: how many, what they ask, and how long a request and the pause behind it
/// should take together.
pub struct Kind {
    /// Clients.
    pub count: usize,
    /// JSON body.
    pub body: &'static str,
    /// Further fields, each with its line end.
    pub fields: &'static str,
    /// From request to request.
    pub period: Duration,
}

impl Load {
    /// Starts clients of a proxy.
    pub fn start(proxy: SocketAddr, kinds: &[Kind]) -> Load {
        let running = Arc::new(AtomicBool::new(true));
        let seen = Arc::default();
        let mut clients = Vec::new();
        for kind in kinds {
            for number in 0..kind.count {
                let (body, fields, period) = (kind.body, kind.fields, kind.period);
                let client = Client {
                    proxy,
                    request: format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\n{fields}\
                         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ),
                    period,
                    running: Arc::clone(&running),
                    seen: Arc::clone(&seen),
                };
                // Spread over the period instead of all at once.
                let delay = period * number as u32 / kind.count as u32;
                let thread = thread::Builder::new().stack_size(256 * 1024);
                clients.push(thread.spawn(move || client.run(delay)).unwrap());
            }
        }
        Load { running, clients, seen }
    }

    /// Waits until clients had that many answers more, or their beginnings, however slow the
    /// machine is: a test of what a load meets needs one.
    pub fn await_answers(&self, count: usize) {
        let seen = || self.seen.lock().unwrap().len();
        let goal = seen() + count;
        await_until("clients had answers", LOADED, || seen() >= goal);
    }

    /// Lets every client finish its request, and gives what they saw, by our request ids.
    pub fn stop(self) -> HashMap<String, Answer> {
        self.running.store(false, Ordering::SeqCst);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

struct Client {
    proxy: SocketAddr,
    request: String,
    period: Duration,
    running: Arc<AtomicBool>,
    seen: Arc<Mutex<HashMap<String, Answer>>>,
}

impl Client {
    fn run(&self, delay: Duration) {
        pause(delay);
        let mut kept = None;
        while self.running.load(Ordering::SeqCst) {
            let begun = Instant::now();
            kept = self.connect(kept).and_then(|stream| self.ask(stream));
            // While the proxy is away, nobody should burn the processor that it starts on.
            let least = Duration::from_millis(20);
            pause(self.period.saturating_sub(begun.elapsed()).max(least));
        }
    }

    fn connect(&self, kept: Option<TcpStream>) -> Option<TcpStream> {
        let connect = || TcpStream::connect_timeout(&self.proxy, Duration::from_secs(2)).ok();
        let stream = kept.or_else(connect)?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(stream)
    }

    /// One request; gives the connection back when it can carry another.
    fn ask(&self, mut stream: TcpStream) -> Option<TcpStream> {
        stream.write_all(self.request.as_bytes()).ok()?;
        let mut bytes = Vec::new();
        let mut id = None;
        let mut piece = [0; 16 * 1024];
        let is_whole = loop {
            let got = match stream.read(&mut piece) {
                Ok(0) => break false,
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break false,
            };
            bytes.extend_from_slice(&piece[..got]);
            if id.is_none() {
                id = seen_id(&bytes);
                // Noted at once: it was seen, whatever comes.
                id.iter().for_each(|id| self.note(id, Answer::default()));
            }
            if is_whole(&bytes) {
                break true;
            }
        };
        if let (Some(id), true) = (id, is_whole) {
            self.note(&id, Answer { is_whole, completion: completion(&bytes) });
        }
        is_whole.then_some(stream)
    }

    fn note(&self, id: &str, answer: Answer) {
        self.seen.lock().unwrap().insert(id.to_owned(), answer);
    }
}

/// The id of an answer of an engine: those of our own refusals need no record.
fn seen_id(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes.get(..head_end(bytes)?)?).unwrap();
    let is_good = text.starts_with("HTTP/1.1 200");
    let field = text.lines().find_map(|line| line.strip_prefix("x-request-id: "));
    field.filter(|_| is_good).map(str::to_owned)
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = head_end(bytes) else { return false };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    match head.lines().find_map(|line| line.strip_prefix("content-length: ")) {
        Some(length) => bytes.len() - end >= length.parse::<usize>().unwrap(),
        None => bytes.ends_with(b"0\r\n\r\n"),
    }
}

/// The completion tokens that an answer shows, in its body or its last event with usage.
fn completion(bytes: &[u8]) -> Option<u64> {
    let at = memchr::memmem::rfind(bytes, b"\"usage\":")? + b"\"usage\":".len();
    let mut values = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<Value>();
    values.next()?.ok()?["completion_tokens"].as_u64()
}
