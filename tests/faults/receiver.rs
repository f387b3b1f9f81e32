//! A receiver of usage records that keeps nothing but ids, and can be down.

use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// A running receiver. Its thread ends with the test's process.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    is_down: AtomicBool,
    seen: Mutex<HashMap<String, Got>>,
    /// The clients' own ids, as they came.
    arrived: Mutex<Vec<String>>,
}

/// What came for one request.
#[derive(Debug, Clone, Default)]
pub struct Got {
    /// How often.
    pub times: u32,
    /// How it ended.
    pub status: String,
    /// `engine`, `counted` or `missing`.
    pub source: String,
    /// Data events of the stream.
    pub events: u64,
    /// Tokens of the completion.
    pub completion: Option<u64>,
    /// It came again, and said something else.
    pub differs: bool,
}

impl Receiver {
    /// Starts one that takes everything.
    pub fn start() -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || state.serve(&stream));
            }
        });
        Receiver { address, state }
    }

    /// Where records are to be sent.
    pub fn url(&self) -> String {
        format!("http://{}/usage", self.address)
    }

    /// From now on connections are closed without an answer, or not.
    pub fn set_down(&self, is_down: bool) {
        self.state.is_down.store(is_down, Ordering::SeqCst);
    }

    /// What came so far.
    pub fn seen(&self) -> HashMap<String, Got> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The ids that clients gave their requests, in the order in which their records came.
    pub fn arrived(&self) -> Vec<String> {
        self.state.arrived.lock().unwrap().clone()
    }

    /// Forgets it.
    pub fn forget(&self) {
        self.state.seen.lock().unwrap().clear();
    }
}

impl State {
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                if line == "\r\n" {
                    break;
                }
                let (name, value) = line.split_once(':').unwrap_or((&line, ""));
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            if self.is_down.load(Ordering::SeqCst) {
                return None;
            }
            self.take(&serde_json::from_slice(&body).unwrap());
            let mut out: &TcpStream = stream;
            out.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok()?;
        }
    }

    fn take(&self, body: &Value) {
        let one = std::slice::from_ref(body);
        let records = body.as_array().map_or(one, Vec::as_slice);
        let mut seen = self.seen.lock().unwrap();
        for record in records {
            let got = seen.entry(record["request_id"].as_str().unwrap().to_owned()).or_default();
            if let Some(id) = record["client_request_id"].as_str() {
                self.arrived.lock().unwrap().push(id.to_owned());
            }
            let before = got.clone();
            got.times += 1;
            got.status = record["status"].as_str().unwrap().to_owned();
            got.source = record["usage_source"].as_str().unwrap().to_owned();
            got.events = record["events"].as_u64().unwrap();
            got.completion = record["completion_tokens"].as_u64();
            let is_other = before.status != got.status || before.completion != got.completion;
            got.differs = before.differs || (before.times > 0 && is_other);
        }
    }
}
