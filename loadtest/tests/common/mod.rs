//! Set-up shared by the end-to-end tests: an engine of its own for each test, and a client of
//! plain sockets.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loadtest::load::codec::Answer;
use serde_json::Value;

/// A running mock engine; it ends with this value.
pub struct Engine {
    child: Child,
    /// Where it listens
    pub address: String,
}

impl Engine {
    /// Starts one on a free port and waits for its first line.
    pub fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mock-engine"));
        command.args(args).stdout(Stdio::piped());
        let mut child = command.spawn().expect("mock-engine starts");
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).expect("a first line");
        let address = line.trim().strip_prefix("listening on ").expect("the announcement");
        Engine { address: address.to_string(), child }
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).expect("it accepts");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        socket
    }

    /// GETs a control path.
    pub fn get(&self, path: &str) -> String {
        let mut socket = self.connect();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        String::from_utf8(read_answer(&mut socket).1).expect("text")
    }

    /// POSTs to a control path.
    pub fn post(&self, path: &str) -> u16 {
        let mut socket = self.connect();
        write!(socket, "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            .expect("sent");
        read_answer(&mut socket).0
    }

    /// The log, oldest first.
    pub fn log(&self) -> Vec<Value> {
        let lines = self.get("/mock/log");
        lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Waits until the newest log entry satisfies `is_so`, and gives it.
    pub fn await_log(&self, is_so: impl Fn(&Value) -> bool) -> Value {
        let begun = Instant::now();
        loop {
            let newest = self.log().pop().unwrap_or(Value::Null);
            if is_so(&newest) {
                return newest;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "the log stays at {newest}");
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a chat request with further fields, each with its CRLF.
pub fn send_chat(socket: &mut impl Write, fields: &str, body: &str) {
    let length = body.len();
    write!(
        socket,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{fields}content-length: {length}\r\n\r\n{body}"
    )
    .expect("sent");
}

/// Reads one whole answer: status and body.
pub fn read_answer(socket: &mut impl Read) -> (u16, Vec<u8>) {
    let (mut answer, mut body) = (Answer::default(), Vec::new());
    let mut bytes = [0; 4096];
    while !answer.is_done() {
        let count = socket.read(&mut bytes).expect("readable");
        if count == 0 {
            answer.end().expect("complete");
            break;
        }
        answer.feed(&bytes[..count], |part| body.extend_from_slice(part)).expect("valid");
    }
    (answer.head().expect("a head").status, body)
}

/// Reads until `what` has come; gives all that came.
pub fn read_until(socket: &mut impl Read, what: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(what.as_bytes()) {
        assert_eq!(socket.read(&mut byte).expect("readable"), 1, "ended before {what:?}");
        text.push(byte[0]);
    }
    String::from_utf8(text).expect("text")
}
