//! The proxy without sockets: what the connection loop does with the bytes of a client.

use llmproxy::base::limits::HEAD_BYTES_MAX;
use llmproxy::http::chunked::{ChunkDecoder, Piece};
use llmproxy::http::framing::Framing;
use llmproxy::http::head::Parse;
use llmproxy::http::request::RequestHead;
use llmproxy::http::write::{self, ForwardRequest};

/// One request as it would reach a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarded {
    pub method: String,
    pub target: Vec<u8>,
    /// End-to-end fields of the client.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    pub body: Vec<u8>,
    /// What the writer makes of it.
    pub bytes: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// All bytes are used up and the connection is open.
    Open,
    /// Closed after a response: bytes behind the last request are not read.
    Closed,
    /// Refused with a status and a code.
    Refused(u16, &'static str),
    /// The last request is not complete; the proxy waits, up to a deadline.
    Waiting,
}

/// Feeds a client's bytes in reads of at most `step` bytes.
pub fn relay(input: &[u8], step: usize) -> (Vec<Forwarded>, End) {
    relay_reads(input.chunks(step.max(1)))
}

/// Feeds a client's bytes in the given reads.
pub fn relay_reads<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Forwarded>, End) {
    let mut done = Vec::new();
    let mut head = RequestHead::default();
    let mut buffer = Vec::new();
    let mut reads = reads.into_iter();
    loop {
        head.reset();
        let len = loop {
            match head.parse(&buffer, HEAD_BYTES_MAX) {
                Ok(Parse::Done { len }) => break len,
                Ok(Parse::Partial) => match reads.next() {
                    Some(read) => buffer.extend_from_slice(read),
                    None if buffer.is_empty() => return (done, End::Open),
                    None => return (done, End::Waiting),
                },
                Err(refusal) => {
                    assert!(refusal.close);
                    return (done, End::Refused(refusal.status, refusal.code));
                }
            }
        };
        let bytes: Vec<u8> = buffer.drain(..len).collect();
        let body = match read_body(head.framing, &mut buffer, &mut reads) {
            Ok(body) => body,
            Err(end) => return (done, end),
        };
        done.push(forward(&head, &bytes, body));
        if !head.keep_alive {
            return (done, End::Closed);
        }
    }
}

fn read_body<'a>(
    framing: Framing,
    buffer: &mut Vec<u8>,
    reads: &mut impl Iterator<Item = &'a [u8]>,
) -> Result<Vec<u8>, End> {
    let mut body = Vec::new();
    let mut decoder = ChunkDecoder::new(HEAD_BYTES_MAX);
    loop {
        match framing {
            Framing::None => return Ok(body),
            Framing::Length(length) => {
                let here = buffer.len().min(length as usize - body.len());
                body.extend(buffer.drain(..here));
                if body.len() as u64 == length {
                    return Ok(body);
                }
            }
            Framing::Chunked => loop {
                match decoder.decode(buffer).map_err(|bad| End::Refused(400, bad.0))? {
                    Piece::Data { start, end } => {
                        body.extend_from_slice(&buffer[start..end]);
                        buffer.drain(..end);
                    }
                    Piece::NeedMore => {
                        buffer.clear();
                        break;
                    }
                    Piece::End { consumed } => {
                        buffer.drain(..consumed);
                        return Ok(body);
                    }
                }
            },
        }
        buffer.extend_from_slice(reads.next().ok_or(End::Waiting)?);
    }
}

fn forward(head: &RequestHead, bytes: &[u8], body: Vec<u8>) -> Forwarded {
    let how = ForwardRequest {
        base_path: "",
        host: "backend.test:8000",
        body_len: (head.framing != Framing::None).then_some(body.len() as u64),
        request_id: "0123456789abcdef",
        drop: &[],
        set: &[],
        identity: &[],
        client_ip: "192.0.2.1",
        via: "hop",
        client_scheme: "http",
        plain_answer: false,
        trust_forwarded: false,
        trace: None,
    };
    let mut out = Vec::new();
    write::request(&mut out, head, bytes, &how);
    out.extend_from_slice(&body);
    let field =
        |f: &llmproxy::http::head::Field| (f.name.of(bytes).to_vec(), f.value.of(bytes).to_vec());
    Forwarded {
        method: String::from_utf8(head.method_span.of(bytes).to_vec()).unwrap(),
        target: head.target().of(bytes).to_vec(),
        fields: head.fields.iter().filter(|f| !f.stays).map(field).collect(),
        body,
        bytes: out,
    }
}
