//! Reading requests: lenient, because the engine is not what is tested.

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use memchr::memmem;

use crate::net::Socket;

/// Heads and bodies beyond this end the connection.
const HEAD_BYTES_MAX: usize = 8 << 20;
const BODY_BYTES_MAX: usize = 1 << 30;
/// A buffer that grew beyond this is given back between requests.
const KEEP_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 256 << 10;
/// A longer body is searched at its ends only.
const EDGE_BYTES: usize = 4 << 10;
const EDGES_BYTES: usize = 2 * EDGE_BYTES;
const KNOB_PREFIX: &str = "x-mock-";
const FIELDS_MAX: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// One request. The bytes stay in the connection's buffer until [`Inbox::take_body`].
pub struct Request {
    /// `GET`
    pub method: String,
    /// Path and query
    pub target: String,
    /// HTTP/1.0
    pub is_http10: bool,
    /// `Connection: close` or HTTP/1.0 without keep-alive
    pub wants_close: bool,
    /// `Expect: 100-continue`
    pub expects_continue: bool,
    /// The `x-mock-` fields, prefix taken off, lower case
    pub knobs: Vec<(String, String)>,
    /// Bytes of the head, its empty line included
    pub head_len: usize,
    /// How the body is framed
    pub framing: Framing,
}

/// How a request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes, none included
    Length(usize),
    /// Chunks
    Chunked,
}

/// The received bytes of one connection, consumed from the front.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    used: usize,
}

impl Inbox {
    /// What was received and not consumed.
    pub fn pending(&self) -> &[u8] {
        self.bytes.get(self.used..).unwrap_or_default()
    }

    /// Consumes `count` bytes.
    pub fn consume(&mut self, count: usize) {
        self.used += count;
        if self.used >= self.bytes.len() {
            self.bytes.clear();
            self.used = 0;
            if self.bytes.capacity() > KEEP_BYTES {
                self.bytes = Vec::new();
            }
        }
    }

    /// Adds bytes that were received elsewhere.
    pub fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Waits for bytes and appends them; false at the end of the stream.
    async fn fill(&mut self, socket: &Socket, wanted: usize) -> io::Result<bool> {
        loop {
            socket.readable().await?;
            // One scratch buffer per thread: an idle connection holds no memory for reading.
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let count = socket.try_read(scratch)?;
                self.bytes.reserve(wanted.max(count));
                self.bytes.extend_from_slice(scratch.get(..count).unwrap_or_default());
                Ok(count)
            });
            match read {
                Ok(count) => return Ok(count > 0),
                Err(e) if io::Error::kind(&e) == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Reads the next head. None: the client left, or stayed idle for `idle`, between requests.
    ///
    /// # Errors
    /// A broken connection, or bytes that are no HTTP.
    pub async fn head(
        &mut self,
        socket: &Socket,
        idle: Option<Duration>,
    ) -> io::Result<Option<Request>> {
        loop {
            if let Some(request) = parse(self.pending())? {
                return Ok(Some(request));
            }
            if self.pending().len() > HEAD_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let more = match idle.filter(|_| self.pending().is_empty()) {
                None => self.fill(socket, 0).await?,
                Some(idle) => match monoio::time::timeout(idle, self.fill(socket, 0)).await {
                    Ok(more) => more?,
                    Err(_) => return Ok(None),
                },
            };
            if !more {
                let clean = self.pending().is_empty();
                return if clean { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    /// Reads the body of a request whose head was consumed; chunk framing is taken off.
    ///
    /// # Errors
    /// A broken connection, bad chunks, or a body beyond all reason.
    pub async fn body(&mut self, socket: &Socket, framing: Framing) -> io::Result<Body> {
        match framing {
            Framing::Length(length) if length > BODY_BYTES_MAX => {
                Err(io::ErrorKind::InvalidData.into())
            }
            Framing::Length(length) => {
                while self.pending().len() < length {
                    self.need(socket, length - self.pending().len()).await?;
                }
                Ok(Body::Length(length))
            }
            Framing::Chunked => self.chunks(socket).await.map(Body::Chunks),
        }
    }

    /// The bytes of a body; they must be consumed by [`Inbox::consume_body`] afterwards.
    pub fn body_bytes<'a>(&'a self, body: &'a Body) -> &'a [u8] {
        match body {
            Body::Length(length) => self.pending().get(..*length).unwrap_or_default(),
            Body::Chunks(bytes) => bytes,
        }
    }

    /// Drops the bytes of a body.
    pub fn consume_body(&mut self, body: Body) {
        if let Body::Length(length) = body {
            self.consume(length);
        }
    }

    async fn need(&mut self, socket: &Socket, count: usize) -> io::Result<()> {
        if self.fill(socket, count).await? {
            return Ok(());
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn chunks(&mut self, socket: &Socket) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let (line, size) = loop {
                match httparse::parse_chunk_size(self.pending()) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) => self.need(socket, 0).await?,
                    Err(_) => return Err(io::ErrorKind::InvalidData.into()),
                }
            };
            let size = size as usize;
            if body.len().saturating_add(size) > BODY_BYTES_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // Data and its CRLF; the last chunk has none, but an empty trailer part.
            while self.pending().len() < line + size + 2 {
                self.need(socket, size).await?;
            }
            body.extend_from_slice(self.pending().get(line..line + size).unwrap_or_default());
            self.consume(line + size + 2);
            if size == 0 {
                return Ok(body);
            }
        }
    }
}

/// A received body.
pub enum Body {
    /// It is the first bytes of the inbox
    Length(usize),
    /// It was gathered from chunks
    Chunks(Vec<u8>),
}

fn parse(bytes: &[u8]) -> io::Result<Option<Request>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let httparse::Status::Complete(head_len) = head.parse(bytes).map_err(|_| bad())? else {
        return Ok(None);
    };
    let is_http10 = head.version == Some(0);
    let mut request = Request {
        method: head.method.unwrap_or_default().to_string(),
        target: head.path.unwrap_or_default().to_string(),
        is_http10,
        wants_close: is_http10,
        expects_continue: false,
        knobs: Vec::new(),
        head_len,
        framing: Framing::Length(0),
    };
    for field in head.headers.iter() {
        let value = String::from_utf8_lossy(field.value);
        match field.name {
            name if name.eq_ignore_ascii_case("content-length") => {
                let length = value.trim().parse().map_err(|_| bad())?;
                request.framing = Framing::Length(length);
            }
            name if name.eq_ignore_ascii_case("transfer-encoding") => {
                request.framing = Framing::Chunked;
            }
            name if name.eq_ignore_ascii_case("connection") => {
                let value = value.to_ascii_lowercase();
                request.wants_close =
                    value.contains("close") || (is_http10 && !value.contains("keep-alive"));
            }
            name if name.eq_ignore_ascii_case("expect") => request.expects_continue = true,
            name => {
                if let Some((prefix, knob)) = name.split_at_checked(KNOB_PREFIX.len()) {
                    if prefix.eq_ignore_ascii_case(KNOB_PREFIX) {
                        request.knobs.push((knob.to_ascii_lowercase(), value.into_owned()));
                    }
                }
            }
        }
    }
    Ok(Some(request))
}

/// What the body says about the answer, found without parsing it: an unescaped `"key":` cannot
/// stand inside a JSON string, so a search of the raw bytes is safe and stays cheap at 200 KB.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `stream`
    pub stream: Option<bool>,
    /// `stream_options.include_usage`
    pub include_usage: bool,
    /// `stream_options.continuous_usage_stats`
    pub continuous_usage: bool,
    /// `parameters.details`
    pub details: bool,
    /// `encoding_format` is `bytes`
    pub raw: bool,
    /// `model`, as it stands between its quotes
    pub model: Option<String>,
    /// `max_tokens`, `max_completion_tokens` or `max_new_tokens`
    pub max_tokens: Option<u32>,
}

impl Wishes {
    /// Reads them from a body.
    pub fn read(body: &[u8]) -> Self {
        // Long prompts stand in the middle; what is wanted stands at one of the ends.
        let (first, last) = match body.len() {
            0..=EDGES_BYTES => (body, &body[..0]),
            long => (body.split_at(EDGE_BYTES).0, body.split_at(long - EDGE_BYTES).1),
        };
        let value_of = |key| value_of(first, key).or_else(|| value_of(last, key));
        let truth = |key| value_of(key).map(is_true);
        let number = |key| {
            let value = value_of(key)?;
            let end = value.iter().position(|b| !b.is_ascii_digit()).unwrap_or(value.len());
            std::str::from_utf8(value.get(..end)?).ok()?.parse().ok()
        };
        let text = |key| {
            let value = value_of(key)?.strip_prefix(b"\"")?;
            let end = memchr::memchr(b'"', value)?;
            Some(String::from_utf8_lossy(value.get(..end)?).into_owned())
        };
        Wishes {
            stream: truth("\"stream\""),
            include_usage: truth("\"include_usage\"").unwrap_or(false),
            continuous_usage: truth("\"continuous_usage_stats\"").unwrap_or(false),
            details: truth("\"details\"").unwrap_or(false),
            raw: text("\"encoding_format\"").is_some_and(|format| format == "bytes"),
            model: text("\"model\""),
            max_tokens: number("\"max_tokens\"")
                .or_else(|| number("\"max_completion_tokens\""))
                .or_else(|| number("\"max_new_tokens\"")),
        }
    }
}

/// What pydantic, and by that vLLM and SGLang, take for true, at the start of the bytes.
fn is_true(value: &[u8]) -> bool {
    let is_end = |byte: &u8| byte.is_ascii_whitespace() || b",]}".contains(byte);
    let end = value.iter().position(is_end).unwrap_or(value.len());
    let word = value.get(..end).unwrap_or_default();
    let texts: [&[u8]; 6] = [b"\"true\"", b"\"1\"", b"\"yes\"", b"\"on\"", b"\"t\"", b"\"y\""];
    let is_text = texts.iter().any(|text| word.eq_ignore_ascii_case(text));
    is_text || [&b"true"[..], b"1", b"1.0"].contains(&word)
}

/// The bytes after `key :`, the key not being part of a string.
fn value_of<'a>(body: &'a [u8], key: &str) -> Option<&'a [u8]> {
    memmem::find_iter(body, key).find_map(|at| {
        let value = body.get(at + key.len()..)?.trim_ascii_start().strip_prefix(b":")?;
        (at == 0 || body.get(at - 1) != Some(&b'\\')).then(|| value.trim_ascii_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_past_spaces_and_not_out_of_strings() {
        let body = br#"{"messages":[{"content":"say \"stream\": true, \"model\":\"evil\""}],
            "model" : "meta/llama","stream" : true, "stream_options":{"include_usage": true},
            "max_tokens":7}"#;
        let wishes = Wishes::read(body);
        assert_eq!(wishes.model.as_deref(), Some("meta/llama"));
        assert_eq!((wishes.stream, wishes.include_usage), (Some(true), true));
        assert_eq!(wishes.max_tokens, Some(7));
        assert_eq!(Wishes::read(b"{}"), Wishes::default());
        for (value, truth) in [("1", true), ("\"Yes\"", true), ("10", false), ("\"no\"", false)] {
            let body = format!("{{\"stream\":{value}}}");
            assert_eq!(Wishes::read(body.as_bytes()).stream, Some(truth), "{value}");
        }
    }

    #[test]
    fn wishes_are_read_at_both_ends_of_a_long_body() {
        let prompt = "word ".repeat(40_000);
        let first = format!(r#"{{"model":"a","stream":true,"prompt":"{prompt}"}}"#);
        let last = format!(r#"{{"prompt":"{prompt}","model":"a","stream":true}}"#);
        for body in [first, last] {
            let wishes = Wishes::read(body.as_bytes());
            assert_eq!((wishes.model.as_deref(), wishes.stream), (Some("a"), Some(true)));
        }
    }
}
