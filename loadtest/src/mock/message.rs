//! Scripts as HTTP messages: heads as each server writes them, chunk framing, and when each
//! write is due.

use std::fmt::Write as _;

use super::knobs::{Close, ErrorAt, HeadTime, Knobs};
use crate::script::errors::in_stream;
use crate::script::{answer_body, metadata, stream_pieces, Api, Ask, Dialect, Piece};

/// When a write leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// As soon as the request is in
    AtOnce,
    /// ttft + step × gap after the request
    Step(u32),
}

/// One write: the bytes of the message from the end of the one before up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// Offset behind the last byte
    pub end: usize,
    /// When
    pub due: Due,
    /// Events that are complete with it
    pub events: u32,
}

/// A whole answer, ready to be played.
#[derive(Debug, Default)]
pub struct Message {
    /// Every byte, head and framing included
    pub bytes: Vec<u8>,
    /// The writes, in order
    pub units: Vec<Unit>,
    /// The connection closes afterwards
    pub closes: bool,
    /// It is an event stream
    pub is_stream: bool,
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// text/event-stream
    Events,
    /// application/x-ndjson
    Lines,
    /// application/json
    Json,
    /// application/octet-stream
    Bytes,
    /// text/plain
    Text,
    /// No type at all, as Starlette's empty answers
    Untyped,
}

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delimiter {
    /// Content-Length
    Length(usize),
    /// Transfer-Encoding: chunked
    Chunked,
    /// The end of the connection
    Close,
}

/// Properties of a head that do not follow from the body.
#[derive(Debug, Clone, Copy)]
pub struct HeadStyle<'a> {
    /// Whose server
    pub dialect: Dialect,
    /// The status
    pub status: u16,
    /// Whether `Connection: close` is announced
    pub closes: bool,
    /// Further field lines, each with its CRLF
    pub extra: &'a str,
}

/// A response head with the fields, order and letter case of the dialect's server.
pub fn head(style: HeadStyle<'_>, kind: Kind, delimiter: Delimiter) -> String {
    let HeadStyle { dialect, status, closes, extra } = style;
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    let title = matches!(dialect, Dialect::Llamacpp | Dialect::Ollama);
    let mut field = |name: &str, value: &str| {
        let _ = if title {
            write!(head, "{}: {value}\r\n", title_case(name))
        } else {
            write!(head, "{name}: {value}\r\n")
        };
    };
    let is_stream = matches!(kind, Kind::Events | Kind::Lines);
    match dialect {
        Dialect::Vllm | Dialect::Sglang => {
            field("date", DATE);
            field("server", "uvicorn");
        }
        Dialect::Llamacpp => {
            field("server", "llama.cpp");
            field("access-control-allow-origin", "");
            if is_stream {
                field("x-accel-buffering", "no");
            }
            if !closes {
                field("keep-alive", "timeout=5, max=100");
            }
        }
        Dialect::Tgi | Dialect::Ollama => {}
    }
    let content_type = match (kind, dialect) {
        (Kind::Events, Dialect::Vllm | Dialect::Sglang) => "text/event-stream; charset=utf-8",
        (Kind::Events, _) => "text/event-stream",
        (Kind::Lines, _) => "application/x-ndjson",
        (Kind::Json, Dialect::Llamacpp | Dialect::Ollama) => "application/json; charset=utf-8",
        (Kind::Json, _) => "application/json",
        (Kind::Bytes, _) => "application/octet-stream",
        (Kind::Text, _) => "text/plain; charset=utf-8",
        (Kind::Untyped, _) => "",
    };
    if !content_type.is_empty() {
        field("content-type", content_type);
    }
    if dialect == Dialect::Tgi {
        field("x-compute-type", "1-mock");
        if is_stream {
            field("cache-control", "no-cache");
            field("x-accel-buffering", "no");
        }
    }
    match delimiter {
        Delimiter::Length(length) => field("content-length", &length.to_string()),
        Delimiter::Chunked => field("transfer-encoding", "chunked"),
        Delimiter::Close => {}
    }
    if matches!(dialect, Dialect::Tgi | Dialect::Ollama) {
        field("date", DATE);
    }
    if closes {
        field("connection", "close");
    }
    head + extra + "\r\n"
}

/// A constant, because answers are compared byte by byte.
const DATE: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

fn title_case(name: &str) -> String {
    let mut up = true;
    name.chars()
        .map(|c| {
            let shown = if up { c.to_ascii_uppercase() } else { c };
            up = c == '-';
            shown
        })
        .collect()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        413 => "Payload Too Large",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Other",
    }
}

/// A message with a known body, in one write or two as the dialect does it.
pub fn whole(style: HeadStyle<'_>, kind: Kind, delimiter: Delimiter, body: &[u8]) -> Message {
    let mut message = Message { closes: style.closes, ..Message::default() };
    message.push(head(style, kind, delimiter).as_bytes(), Due::Step(0), 0);
    // uvicorn writes head and body apart; the others join what is there.
    let joined = !matches!(style.dialect, Dialect::Vllm | Dialect::Sglang);
    match delimiter {
        Delimiter::Chunked => message.push_chunk(body, style.dialect, Due::Step(0), 0),
        _ => message.push(body, Due::Step(0), 0),
    }
    if delimiter == Delimiter::Chunked {
        message.push(b"0\r\n\r\n", Due::Step(0), 0);
    }
    if joined {
        message.join_first();
    }
    message
}

/// The answer to `ask`, complete.
pub fn answer(ask: &Ask, knobs: &Knobs, closes: bool) -> Message {
    let extra = extra_fields(ask, knobs);
    let style = HeadStyle { dialect: ask.dialect, status: 200, closes, extra: &extra };
    let delimited = knobs.close == Close::Delimited;
    if !ask.stream {
        let body = answer_body(ask);
        let body = knobs.encoding.map_or_else(|| body.clone(), |packing| packing.body(&body));
        let raw = ask.raw && ask.api == Api::Embeddings;
        let delimiter = match delimited {
            true => Delimiter::Close,
            false if raw => Delimiter::Chunked,
            false => Delimiter::Length(body.len()),
        };
        return whole(style, if raw { Kind::Bytes } else { Kind::Json }, delimiter, &body);
    }
    let kind = match ask.api {
        Api::OllamaChat | Api::OllamaGenerate => Kind::Lines,
        _ => Kind::Events,
    };
    let delimiter = if delimited { Delimiter::Close } else { Delimiter::Chunked };
    let mut message = Message { closes, is_stream: true, ..Message::default() };
    let early = match knobs.head {
        HeadTime::Early => true,
        HeadTime::Late => false,
        // uvicorn and axum send the head before the generation; the others wait for a token.
        HeadTime::Dialect => !matches!(ask.dialect, Dialect::Llamacpp | Dialect::Ollama),
    };
    let due = if early { Due::AtOnce } else { Due::Step(0) };
    message.push(head(style, kind, delimiter).as_bytes(), due, 0);
    let (mut pieces, is_cut) = failing(ask, knobs, stream_pieces(ask));
    if let Some(packing) = knobs.encoding {
        pieces = packing.pieces(pieces);
    }
    for piece in pieces {
        let due = Due::Step(piece.step);
        match delimited {
            true => message.push(&piece.bytes, due, piece.events),
            false => message.push_chunk(&piece.bytes, ask.dialect, due, piece.events),
        }
    }
    if ask.dialect == Dialect::Ollama && !early {
        message.join_first(); // Go flushes the head with the first chunk
    }
    message.finish_stream(ask.dialect, delimited, is_cut);
    message
}

/// Ends the pieces where the generation is to fail, with the dialect's error; also gives whether
/// the body is cut instead of ended.
fn failing(ask: &Ask, knobs: &Knobs, mut pieces: Vec<Piece>) -> (Vec<Piece>, bool) {
    if knobs.error != Some(ErrorAt::InStream) {
        return (pieces, knobs.error == Some(ErrorAt::After));
    }
    pieces.truncate(knobs.error_after as usize);
    let step = pieces.last().map_or(0, |piece| piece.step);
    let mut error = in_stream(ask.dialect, ask.api, step);
    let is_cut = error.is_empty();
    pieces.append(&mut error);
    (pieces, is_cut)
}

fn extra_fields(ask: &Ask, knobs: &Knobs) -> String {
    let mut extra = String::new();
    if let Some(seconds) = knobs.retry_after {
        let _ = write!(extra, "retry-after: {seconds}\r\n");
    }
    if let Some(packing) = knobs.encoding {
        let _ = write!(extra, "content-encoding: {}\r\n", packing.name());
    }
    if ask.raw && ask.api == Api::Embeddings {
        let _ = write!(extra, "metadata: {}\r\n", metadata(ask));
    }
    // TGI's native route reports its counts in fields, unstreamed only.
    if ask.dialect == Dialect::Tgi && ask.api == Api::Generate && !ask.stream {
        let (prompt, completion) = (ask.usage.prompt, ask.usage.completion);
        let _ = write!(
            extra,
            "x-prompt-tokens: {prompt}\r\nx-generated-tokens: {completion}\r\nx-total-time: 5\r\n\
             x-validation-time: 1\r\nx-queue-time: 1\r\nx-inference-time: 3\r\n\
             x-time-per-token: 1\r\n"
        );
    }
    extra
}

impl Message {
    /// Adds one write.
    pub fn push(&mut self, bytes: &[u8], due: Due, events: u32) {
        self.bytes.extend_from_slice(bytes);
        self.units.push(Unit { end: self.bytes.len(), due, events });
    }

    fn push_chunk(&mut self, bytes: &[u8], dialect: Dialect, due: Due, events: u32) {
        let size = match dialect {
            Dialect::Tgi => format!("{:X}\r\n", bytes.len()), // hyper writes capitals
            _ => format!("{:x}\r\n", bytes.len()),
        };
        self.bytes.extend_from_slice(size.as_bytes());
        self.bytes.extend_from_slice(bytes);
        self.push(b"\r\n", due, events);
    }

    /// The end of a chunked body: a write of its own, in cpp-httplib two.
    fn finish_stream(&mut self, dialect: Dialect, delimited: bool, cut: bool) {
        let due = self.units.last().map_or(Due::AtOnce, |unit| unit.due);
        match (delimited || cut, dialect) {
            (true, _) => self.closes = true,
            (false, Dialect::Llamacpp) => {
                self.push(b"0\r\n", due, 0);
                self.push(b"\r\n", due, 0);
            }
            (false, _) => self.push(b"0\r\n\r\n", due, 0),
        }
    }

    fn join_first(&mut self) {
        if self.units.len() > 1 {
            self.units.remove(0);
        }
    }

    /// Leaves only the head, as an answer to HEAD.
    pub fn drop_body(&mut self) {
        let end = memchr::memmem::find(&self.bytes, b"\r\n\r\n").map_or(0, |at| at + 4);
        self.bytes.truncate(end);
        self.units.truncate(1);
        if let Some(unit) = self.units.first_mut() {
            unit.end = end;
        }
    }

    /// Joins every run of writes that are due together.
    pub fn merge(&mut self) {
        let mut merged: Vec<Unit> = Vec::with_capacity(self.units.len());
        for unit in self.units.drain(..) {
            match merged.last_mut() {
                Some(last) if last.due == unit.due => {
                    last.end = unit.end;
                    last.events += unit.events;
                }
                _ => merged.push(unit),
            }
        }
        self.units = merged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::pack::Packing;

    fn writes(ask: &Ask, knobs: &Knobs) -> Vec<String> {
        let message = answer(ask, knobs, false);
        let mut at = 0;
        message
            .units
            .iter()
            .map(|unit| {
                let bytes = message.bytes[at..unit.end].to_vec();
                at = unit.end;
                String::from_utf8(bytes).expect("UTF-8")
            })
            .collect()
    }

    #[test]
    fn writes_are_cut_as_each_server_cuts_them() {
        let knobs = Knobs::default();
        let ask = |dialect| Ask { dialect, tokens: 1, event_bytes: 300, ..Ask::default() };
        let uvicorn = writes(&ask(Dialect::Vllm), &knobs);
        assert!(uvicorn[0].ends_with("\r\n\r\n") && uvicorn[0].contains("server: uvicorn"));
        assert_eq!(uvicorn.last().map(String::as_str), Some("0\r\n\r\n"));
        assert!(uvicorn[2].starts_with("1") && uvicorn[2].ends_with("\n\n\r\n"));

        let httplib = writes(&ask(Dialect::Llamacpp), &knobs);
        assert_eq!(httplib[httplib.len() - 2..], ["0\r\n", "\r\n"]);
        assert!(httplib[0].contains("Keep-Alive: timeout=5, max=100\r\n"));

        let go = writes(&ask(Dialect::Ollama), &knobs);
        assert!(go[0].starts_with("HTTP/1.1 200 OK\r\n") && go[0].contains("data: {"));

        // hyper writes chunk sizes in capitals.
        let hyper = writes(&Ask { event_bytes: 2550, ..ask(Dialect::Tgi) }, &knobs);
        let size = hyper[1].split("\r\n").next().expect("a line");
        assert!(size.chars().any(|c| c.is_ascii_uppercase()), "{size}");
        assert_eq!(size, size.to_uppercase());
    }

    /// Catches: a packed answer that does not say so, or has the length of the plain one.
    #[test]
    fn a_packed_answer_is_packed_whole_and_announced() {
        use std::io::Read;
        let knobs = Knobs { encoding: Some(Packing::Gzip), ..Knobs::default() };
        let ask = Ask { stream: false, ..Ask::default() };
        let message = answer(&ask, &knobs, false);
        let head_end = message.bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        let (head, body) = message.bytes.split_at(head_end);
        let head = String::from_utf8(head.to_vec()).unwrap();
        assert!(head.contains("content-encoding: gzip\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(body).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, answer_body(&ask));
    }

    #[test]
    fn an_unstreamed_uvicorn_answer_is_two_writes() {
        let ask = Ask { stream: false, ..Ask::default() };
        let parts = writes(&ask, &Knobs::default());
        assert_eq!(parts.len(), 2);
        assert!(parts[0].contains(&format!("content-length: {}\r\n", parts[1].len())));
        assert_eq!(writes(&Ask { dialect: Dialect::Tgi, ..ask }, &Knobs::default()).len(), 1);
    }

    #[test]
    fn merging_joins_what_is_due_together_and_loses_nothing() {
        let ask = Ask { tokens: 3, ..Ask::default() };
        let mut message = answer(&ask, &Knobs::default(), false);
        let (length, events) = (message.bytes.len(), 6);
        message.merge();
        let dues: Vec<Due> = message.units.iter().map(|unit| unit.due).collect();
        assert_eq!(dues, [Due::AtOnce, Due::Step(0), Due::Step(1), Due::Step(2)]);
        assert_eq!(message.units.iter().map(|unit| unit.events).sum::<u32>(), events);
        assert_eq!(message.units.last().map(|unit| unit.end), Some(length));
    }
}
