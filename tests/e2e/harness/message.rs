//! HTTP messages read by the simplest means: enough for well-formed input, strict about framing,
//! and nothing of it shared with the product.

use super::stream::Stream;
use std::io;
use std::time::{Duration, Instant};

/// A head, of a request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Request line or status line.
    pub first_line: String,
    /// Names and values as they came, in order.
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// Reads the text up to and without the blank line.
    pub fn parse(text: &[u8]) -> Head {
        let text = String::from_utf8_lossy(text).into_owned();
        let mut lines = text.split("\r\n").filter(|line| !line.is_empty());
        let first_line = lines.next().unwrap_or_default().to_owned();
        let fields = lines
            .map(|line| {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line:?}"));
                (name.to_owned(), value.trim().to_owned())
            })
            .collect();
        Head { first_line, fields }
    }

    /// Status of a response.
    pub fn status(&self) -> u16 {
        let code = self.first_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("not a status line: {:?}", self.first_line))
    }

    /// Method of a request.
    pub fn method(&self) -> &str {
        self.first_line.split(' ').next().unwrap_or_default()
    }

    /// Target of a request.
    pub fn target(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }

    /// All values of a field, whatever the case of its name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let same = |field: &&(String, String)| field.0.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that must not stand twice.
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times: {:?}", all.len(), self.fields);
        all.first().copied()
    }
}

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As its framing promised.
    Whole,
    /// By the close, which is how its framing ends (and which says nothing of wholeness).
    Closed,
    /// The connection was closed or reset before the end that the framing promised.
    Cut,
}

/// Bytes of a body that came in one piece.
#[derive(Debug, Clone)]
pub struct Piece {
    /// When they were read.
    pub at: Instant,
    /// The bytes, chunk framing taken off.
    pub bytes: Vec<u8>,
}

/// The framing of the body that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body, or its end was reached.
    Done,
    /// So many bytes are left.
    Length(u64),
    /// Chunks; so many bytes are left of the current one.
    Chunked(u64),
    /// To the close.
    Close,
}

/// Reads messages from a stream.
pub struct Reader {
    pending: Vec<u8>,
    /// The framing of the body that comes.
    pub framing: Framing,
    /// The deadline of each read.
    pub patience: Duration,
}

impl Reader {
    /// An empty one that waits at most `patience` for each read.
    pub fn new(patience: Duration) -> Reader {
        Reader { pending: Vec::new(), framing: Framing::Done, patience }
    }

    /// Bytes that were read and not asked for.
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// Drops line ends at the start of what was read; true when nothing else was.
    pub fn skip_empty_lines(&mut self) -> bool {
        let ends = self.pending.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.pending.drain(..ends);
        self.pending.is_empty()
    }

    /// Reads once. False at the end of the stream (closed or reset).
    pub fn fill(&mut self, stream: &mut Stream) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        match stream.read_within(&mut buffer, self.patience) {
            Ok(0) => false,
            Ok(n) => {
                self.pending.extend_from_slice(&buffer[..n]);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                panic!("nothing was received for {:?}; have {:?}", self.patience, self.shown())
            }
            Err(_) => false,
        }
    }

    /// Reads once, if something comes within `limit`; false when nothing did.
    pub fn poll(&mut self, stream: &mut Stream, limit: Duration) -> bool {
        let mut buffer = vec![0; 64 * 1024];
        match stream.read_within(&mut buffer, limit) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            got => {
                self.pending.extend_from_slice(&buffer[..got.unwrap_or(0)]);
                true
            }
        }
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.pending[..self.pending.len().min(300)]).into_owned()
    }

    /// Reads a head; `None` when the stream ends before its first byte.
    pub fn head(&mut self, stream: &mut Stream) -> Option<Head> {
        loop {
            if let Some(end) = find(&self.pending, b"\r\n\r\n") {
                let text: Vec<u8> = self.pending.drain(..end + 4).collect();
                return Some(Head::parse(&text));
            }
            if !self.fill(stream) {
                assert!(self.pending.is_empty(), "closed inside a head: {:?}", self.shown());
                return None;
            }
        }
    }

    /// Prepares for the body of a message. `open_ended`: without a framing field it lasts to the
    /// close (responses), else there is none (requests).
    pub fn begin_body(&mut self, head: &Head, open_ended: bool) {
        let coding = head.get("transfer-encoding");
        let length = head.get("content-length");
        self.framing = match (coding, length) {
            (Some("chunked"), None) => Framing::Chunked(0),
            (None, Some(length)) => Framing::Length(length.parse().expect("Content-Length")),
            (None, None) if open_ended => Framing::Close,
            (None, None) => Framing::Done,
            both => panic!("framing in doubt: {both:?}"),
        };
    }

    /// The next bytes of the body as they come; `Err` says how it ended.
    pub fn next_piece(&mut self, stream: &mut Stream) -> Result<Piece, Ended> {
        loop {
            let got = match self.framing {
                Framing::Done | Framing::Length(0) => return Err(self.done()),
                Framing::Length(left) => self.take(left).inspect(|bytes| {
                    self.framing = Framing::Length(left - bytes.len() as u64);
                }),
                Framing::Close => self.take(u64::MAX),
                Framing::Chunked(0) => match self.chunk_size() {
                    Some(0) => return self.after_last_chunk(stream),
                    Some(size) => {
                        self.framing = Framing::Chunked(size);
                        continue;
                    }
                    None => None,
                },
                Framing::Chunked(left) => self.chunk_data(left),
            };
            if let Some(bytes) = got {
                return Ok(Piece { at: Instant::now(), bytes });
            }
            if !self.fill(stream) {
                let closes = self.framing == Framing::Close;
                self.framing = Framing::Done;
                return Err(if closes { Ended::Closed } else { Ended::Cut });
            }
        }
    }

    fn done(&mut self) -> Ended {
        self.framing = Framing::Done;
        Ended::Whole
    }

    fn take(&mut self, most: u64) -> Option<Vec<u8>> {
        let n = self.pending.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        (n > 0).then(|| self.pending.drain(..n).collect())
    }

    fn chunk_size(&mut self) -> Option<u64> {
        let end = find(&self.pending, b"\r\n")?;
        let line: Vec<u8> = self.pending.drain(..end + 2).collect();
        let text = std::str::from_utf8(&line[..end]).expect("a chunk size");
        let fine = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(fine, "not a chunk size: {text:?}");
        Some(u64::from_str_radix(text, 16).unwrap())
    }

    /// What is there of a chunk's data; with its last byte the line end must follow.
    fn chunk_data(&mut self, left: u64) -> Option<Vec<u8>> {
        let have = self.pending.len() as u64;
        if have > left && have < left + 2 {
            return None;
        }
        let data = self.take(left)?;
        let left = left - data.len() as u64;
        self.framing = Framing::Chunked(left);
        if left == 0 && self.pending.is_empty() {
            // The line end is still on its way: hand out all but the last byte.
            let (head, last) = data.split_at(data.len() - 1);
            self.pending.extend_from_slice(last);
            self.framing = Framing::Chunked(1);
            return (!head.is_empty()).then(|| head.to_vec());
        }
        if left == 0 {
            let line_end: Vec<u8> = self.pending.drain(..2).collect();
            assert_eq!(line_end, b"\r\n", "behind a chunk");
        }
        Some(data)
    }

    fn after_last_chunk(&mut self, stream: &mut Stream) -> Result<Piece, Ended> {
        while self.pending.len() < 2 {
            if !self.fill(stream) {
                self.framing = Framing::Done;
                return Err(Ended::Cut);
            }
        }
        let end: Vec<u8> = self.pending.drain(..2).collect();
        assert_eq!(end, b"\r\n", "trailers are never forwarded");
        Err(self.done())
    }
}

/// The first place of `needle`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
