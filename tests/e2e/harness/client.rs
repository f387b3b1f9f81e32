//! A raw client: sends the bytes it is given, reads answers by their framing, piece by piece.

use super::message::{Ended, Framing, Head, Piece, Reader};
use super::stream::{Place, Stream};
use super::SOON;
use rustls::ClientConfig;
use serde_json::Value;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection of a client.
pub struct Conn {
    stream: Stream,
    reader: Reader,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its final head.
    pub head: Head,
    /// Interim heads that came before.
    pub interim: Vec<Head>,
    /// Its body, chunk framing taken off.
    pub body: Vec<u8>,
    /// The same in the pieces that arrived.
    pub pieces: Vec<Piece>,
    /// How the body ended.
    pub ended: Ended,
}

impl Response {
    /// Its status.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Asserts that it is a refusal of the proxy's own, in the shape that OpenAI clients read,
    /// with this status and code, and that it carries a request id.
    pub fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!(self.status(), status, "{}", self.text());
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error: {json}"));
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "message", "param", "type"], "{json}");
        assert_eq!(error["code"], code, "{json}");
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{json}");
        let is_kind = |kind: &str| kind.ends_with("_error") || kind == "insufficient_quota";
        assert!(error["type"].as_str().is_some_and(is_kind), "{json}");
        assert_eq!(self.head.get("content-type"), Some("application/json"));
        assert!(self.head.get("x-request-id").is_some_and(|id| !id.is_empty()), "{:?}", self.head);
    }
}

impl Conn {
    /// Connects.
    pub fn open(place: impl Into<Place>) -> Conn {
        let place = place.into();
        let stream = Stream::connect(&place).unwrap_or_else(|e| panic!("connect {place:?}: {e}"));
        Conn { stream, reader: Reader::new(super::SOON) }
    }

    /// Connects over TLS.
    pub fn open_tls(address: SocketAddr, config: Arc<ClientConfig>) -> Conn {
        let stream = Stream::connect_tls(address, config).expect("a connection");
        Conn { stream, reader: Reader::new(super::SOON) }
    }

    /// Connects over TLS to what calls itself so.
    pub fn open_tls_to(name: &str, address: SocketAddr, config: Arc<ClientConfig>) -> Conn {
        let stream = Stream::connect_tls_to(name, address, config).expect("a connection");
        Conn { stream, reader: Reader::new(super::SOON) }
    }

    /// Makes the handshake now, where it is over TLS.
    pub fn shake_hands(mut self) -> Conn {
        self.stream.shake_hands(super::SOON);
        self
    }

    /// Speaks over what is connected already.
    pub fn over(stream: Stream) -> Conn {
        Conn { stream, reader: Reader::new(super::SOON) }
    }

    /// Its TLS session.
    pub fn tls_session(&self) -> &rustls::ClientConnection {
        match &self.stream {
            Stream::TlsClient(stream) => &stream.conn,
            _ => panic!("not over TLS"),
        }
    }

    /// Every read panics after so long without a byte ([`SOON`] unless set).
    pub fn patience(mut self, limit: Duration) -> Conn {
        self.reader.patience = limit;
        self
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Conn {
        self.stream.write_all(bytes.as_ref()).expect("the connection takes the bytes");
        self
    }

    /// Sends as much as the other side takes before it closes; false when it did.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// Sends a request without a body.
    pub fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).response()
    }

    /// Posts JSON with further fields (each with its CRLF) and reads the answer.
    pub fn post(&mut self, path: &str, fields: &str, body: impl AsRef<[u8]>) -> Response {
        self.start_post(path, fields, body).response()
    }

    /// Posts JSON with further fields (each with its CRLF), without reading the answer.
    pub fn start_post(&mut self, path: &str, fields: &str, body: impl AsRef<[u8]>) -> &mut Conn {
        self.send(post_bytes(path, fields, body))
    }

    /// Reads a head, be it interim or final.
    pub fn any_head(&mut self) -> Option<Head> {
        self.reader.head(&mut self.stream)
    }

    /// Reads the final head of an answer and prepares for its body.
    pub fn head(&mut self) -> Head {
        loop {
            let head = self.any_head().expect("an answer, not a close");
            if head.status() >= 200 {
                self.reader.begin_body(&head, true);
                if matches!(head.status(), 204 | 304) {
                    self.reader.framing = Framing::Done;
                }
                return head;
            }
        }
    }

    /// The next bytes of the body as they come; `Err` says how it ended.
    pub fn next_piece(&mut self) -> Result<Piece, Ended> {
        self.reader.next_piece(&mut self.stream)
    }

    /// Reads the body until it contains `needle`, and gives what was read.
    pub fn read_until(&mut self, needle: &str) -> String {
        let mut text = Vec::new();
        loop {
            let piece = self.next_piece().unwrap_or_else(|ended| {
                panic!("{ended:?} before {needle:?}: {}", String::from_utf8_lossy(&text))
            });
            text.extend_from_slice(&piece.bytes);
            if super::message::find(&text, needle.as_bytes()).is_some() {
                return String::from_utf8_lossy(&text).into_owned();
            }
        }
    }

    /// Reads the rest of the body.
    pub fn rest(&mut self) -> (Vec<Piece>, Ended) {
        let mut pieces = Vec::new();
        loop {
            match self.next_piece() {
                Ok(piece) => pieces.push(piece),
                Err(ended) => return (pieces, ended),
            }
        }
    }

    /// Reads a whole answer.
    pub fn response(&mut self) -> Response {
        self.response_with(false)
    }

    /// Reads the answer to a HEAD.
    pub fn response_to_head(&mut self) -> Response {
        self.response_with(true)
    }

    fn response_with(&mut self, bodiless: bool) -> Response {
        let mut interim = Vec::new();
        let head = loop {
            let head = self.any_head().expect("an answer, not a close");
            if head.status() >= 200 {
                break head;
            }
            interim.push(head);
        };
        self.reader.begin_body(&head, true);
        if bodiless || matches!(head.status(), 204 | 304) {
            self.reader.framing = Framing::Done;
        }
        let (pieces, ended) = self.rest();
        let body = pieces.iter().flat_map(|piece| piece.bytes.clone()).collect();
        Response { head, interim, body, pieces, ended }
    }

    /// Asserts that the other side closes within `limit`, without another byte.
    pub fn assert_closes_within(&mut self, limit: Duration) {
        assert_eq!(self.reader.pending(), b"", "bytes that nobody asked for");
        let mut byte = [0; 64];
        match self.stream.read_within(&mut byte, limit) {
            Ok(0) => {}
            Ok(n) => panic!("not a close: {:?}", String::from_utf8_lossy(&byte[..n])),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => panic!("open after {limit:?}"),
            Err(_) => {}
        }
    }

    /// Asserts that the other side ends the connection soon, by an end and not by a reset, which
    /// can destroy what was not read yet.
    pub fn assert_ends(&mut self) {
        assert_eq!(self.reader.pending(), b"", "bytes that nobody asked for");
        let got = self.stream.read_within(&mut [0; 64], SOON);
        assert!(matches!(got, Ok(0)), "{got:?}");
    }

    /// Waits for bytes of an answer; true when some are there (they stay), or the end is.
    pub fn arrives_within(&mut self, limit: Duration) -> bool {
        self.reader.poll(&mut self.stream, limit)
    }

    /// Asserts that the other side closes soon.
    pub fn assert_closes(&mut self) {
        self.assert_closes_within(SOON);
    }

    /// Asserts that nothing arrives for so long: no byte, no close.
    pub fn assert_silent(&mut self, time: Duration) {
        let started = Instant::now();
        let mut byte = [0; 64];
        match self.stream.read_within(&mut byte, time) {
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            other => panic!("{other:?} after {:?}", started.elapsed()),
        }
    }

    /// Ends the sending direction, or all.
    pub fn shutdown(&mut self, how: Shutdown) {
        self.stream.shutdown(how);
    }

    /// The stream, for socket options.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }
}

/// The bytes of a POST of JSON with further fields (each with its CRLF).
pub fn post_bytes(path: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n\
         {fields}Content-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The bytes in chunks of these sizes (repeated to the end), with the last chunk.
pub fn in_chunks(bytes: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (chunk, after) = rest.split_at((*size).min(rest.len()));
        if chunk.is_empty() {
            break;
        }
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = after;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}
