//! A mock engine, as a process of its own.

use super::client::{Conn, Response};
use super::process::{program, Process};
use super::scratch::Scratch;
use super::stream::Place;
use super::SOON;
use serde_json::Value;
use std::net::SocketAddr;

/// A running mock engine.
pub struct Engine {
    /// Its process.
    pub process: Process,
    place: Place,
    _scratch: Option<Scratch>,
}

impl Engine {
    /// Starts one on a free port with further arguments, for example `["--dialect", "tgi"]`.
    pub fn start(args: &[&str]) -> Engine {
        let process = Process::start(&program("mock-engine"), args);
        let address = process.await_line(SOON, |line| {
            line.strip_prefix("listening on ").and_then(|address| address.parse().ok())
        });
        Engine { process, place: Place::Tcp(address), _scratch: None }
    }

    /// Starts one on a Unix socket.
    pub fn start_unix(args: &[&str]) -> Engine {
        let scratch = Scratch::new();
        let path = scratch.file("engine.sock");
        let listen = format!("unix:{}", path.display());
        let process =
            Process::start(&program("mock-engine"), &[&["--listen", &listen], args].concat());
        process.await_line(SOON, |line| line.starts_with("listening on ").then_some(()));
        Engine { process, place: Place::Unix(path), _scratch: Some(scratch) }
    }

    /// Its address. Panics for one on a Unix socket.
    pub fn addr(&self) -> SocketAddr {
        match &self.place {
            Place::Tcp(address) => *address,
            Place::Unix(path) => panic!("at {}", path.display()),
        }
    }

    /// What stands in `backends[].url`.
    pub fn url(&self) -> String {
        match &self.place {
            Place::Tcp(address) => format!("http://{address}"),
            Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// A direct connection to it.
    pub fn connect(&self) -> Conn {
        Conn::open(self.place.clone())
    }

    /// What it received, oldest first (probes of health included). Fields: id, conn, method, path,
    /// head, body_len, body_hash, body_chunked, body_start, events_sent, ended, …
    pub fn log(&self) -> Vec<Value> {
        let answer = self.control("GET", "/mock/log");
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The entries of [`Engine::log`] that are POSTs: generations.
    pub fn posts(&self) -> Vec<Value> {
        self.log().into_iter().filter(|entry| entry["method"] == "POST").collect()
    }

    /// Its counters: requests, probes, streams, cancelled, half_closed, broken,
    /// connections_accepted, connections_open. This very question is one more connection.
    pub fn stats(&self) -> Value {
        self.control("GET", "/mock/stats").json()
    }

    /// One counter of [`Engine::stats`].
    pub fn stat(&self, name: &str) -> u64 {
        self.stats()[name].as_u64().unwrap_or_else(|| panic!("no counter {name}"))
    }

    /// Sets knobs for all requests from now on: `tokens=3&gap-ms=10`.
    pub fn set(&self, knobs: &str) {
        self.control("POST", &format!("/mock/knobs?{knobs}"));
    }

    /// Sets the status of its health paths.
    pub fn set_health(&self, status: u16) {
        self.control("POST", &format!("/mock/health?status={status}"));
    }

    /// Forgets log, counters and knobs.
    pub fn reset(&self) {
        self.control("POST", "/mock/reset");
    }

    fn control(&self, method: &str, target: &str) -> Response {
        let mut conn = self.connect();
        conn.send(format!(
            "{method} {target} HTTP/1.1\r\nHost: mock\r\nConnection: close\r\n\
             Content-Length: 0\r\n\r\n"
        ));
        let answer = conn.response();
        assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
        answer
    }
}
