//! Heads for the other side. Nothing of the framing that arrived is passed on: a head is written
//! anew from what was understood, with at most one framing field. Lines that arrived exactly as
//! they would be written are copied, neighbours together.
//!
//! Names and values come from parsed heads, which hold no control characters, or from the plan
//! and the program, which were checked when they were made; so no line can be injected here.

use super::field::Known;
use super::head::{Field, Span, Version};
pub use super::number::{chunk_header, CHUNK_HEADER_BYTES_MAX};
use super::path::base_of;
use super::reason;
use super::request::RequestHead;
use super::response::ResponseHead;
use super::traceparent::TRACEPARENT_BYTES;
use crate::base::digits::push_decimal;
use crate::base::secret::Secret;

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// What ends a chunked body; we send no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What the writer adds to, and leaves out of, a client's head.
pub struct ForwardRequest<'a> {
    /// Put before the path ("" or "/base", without a slash at its end); a `/v1` at its end only
    /// before some ([`base_of`]).
    pub base_path: &'a str,
    /// Host of the backend.
    pub host: &'a str,
    /// Length of the buffered body; `None` = the request has no body and no Content-Length.
    pub body_len: Option<u64>,
    /// x-request-id to send.
    pub request_id: &'a str,
    /// Names of the client's fields that stay here (gateway credentials), in any case.
    pub drop: &'a [String],
    /// Fields that replace the client's of the same name.
    pub set: &'a [(String, Secret)],
    /// Lines that tell whose the request is, each with its end.
    pub identity: &'a [u8],
    /// Address of the client, appended to X-Forwarded-For if `trust_forwarded`, else replacing it.
    pub client_ip: &'a str,
    /// Our name in `Via`, behind those of the proxies before us (RFC 9110 section 7.6.3).
    pub via: &'a str,
    /// `http` or `https`: how the client reached us.
    pub client_scheme: &'a str,
    /// The answer is to be read on its way: the client's Accept-Encoding stays here.
    pub plain_answer: bool,
    /// The peer is a trusted proxy: what it says of the client's origin is passed on.
    pub trust_forwarded: bool,
    /// The span that the engine's are children of, in place of the client's.
    pub trace: Option<TraceField>,
}

/// A `traceparent` of ours.
#[derive(Debug, Clone, Copy)]
pub struct TraceField {
    /// Its value.
    pub value: [u8; TRACEPARENT_BYTES],
    /// The trace is not the client's: its `tracestate` stays here (Trace Context, section 3.3).
    pub is_new: bool,
}

/// How the body goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutFraming {
    /// No body and no framing field.
    None,
    /// Content-Length: of a body, or of the body that a HEAD answer stands for.
    Length(u64),
    /// Transfer-Encoding: chunked
    Chunked,
    /// The end of the connection delimits it (HTTP/1.0 clients).
    UntilClose,
}

/// What the writer adds to a backend's head.
pub struct ForwardResponse<'a> {
    /// Version of the client: 1.0 must be told that a connection lives on.
    pub client: Version,
    /// Framing of the body.
    pub framing: OutFraming,
    /// The connection closes after this response.
    pub close: bool,
    /// x-request-id to send instead of the backend's.
    pub request_id: &'a str,
    /// Of a reference that names a backend: its path here, without the slash at its start.
    pub at_ours: &'a dyn Fn(&[u8]) -> Option<&[u8]>,
    /// Further fields, in place of any of the same name, but for `Vary`, of which there may be
    /// many: visible ASCII. One of an empty value only takes the others out.
    pub fields: &'a [(&'a str, &'a str)],
}

/// A head that is ours from the first byte.
pub struct OwnResponse<'a> {
    /// Status code.
    pub status: u16,
    /// Content-Type; "" = none.
    pub content_type: &'a str,
    /// Bytes of the body that follows.
    pub body_len: u64,
    /// Further fields.
    pub fields: &'a [(&'a str, &'a str)],
    /// Version of the client.
    pub client: Version,
    /// The connection closes after this response.
    pub close: bool,
    /// x-request-id to send; "" = none.
    pub request_id: &'a str,
}

/// Writes the request head for a backend (always HTTP/1.1, keep-alive). `bytes` is the buffer
/// that `head` was parsed from.
pub fn request(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], how: &ForwardRequest<'_>) {
    match first_as_written(head, bytes, how) {
        Some(line) => out.extend_from_slice(line),
        None => request_line(out, head, bytes, how),
    }
    line_of(out, b"Host: ", how.host.as_bytes());
    pass_on(out, Span::default(), &head.fields, bytes, |field| travels_on(field, bytes, how));
    if let Some(len) = how.body_len {
        content_length(out, len);
    }
    line_of(out, b"x-request-id: ", how.request_id.as_bytes());
    forwarded(out, head, bytes, how);
    match head.version {
        Version::Http10 => line_of(out, b"Via: 1.0 ", how.via.as_bytes()),
        Version::Http11 => line_of(out, b"Via: 1.1 ", how.via.as_bytes()),
    }
    for (name, value) in how.set {
        line(out, name.as_bytes(), value.reveal().as_bytes());
    }
    let is_set = || how.set.iter().any(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
    if let Some(trace) = how.trace.filter(|_| !is_set()) {
        line_of(out, b"traceparent: ", &trace.value);
    }
    out.extend_from_slice(how.identity);
    out.extend_from_slice(b"\r\n");
}

fn request_line(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], how: &ForwardRequest<'_>) {
    let path = head.path(bytes);
    out.extend_from_slice(head.method_span.of(bytes));
    out.push(b' ');
    if path == b"*" {
        out.extend_from_slice(path);
    } else {
        out.extend_from_slice(base_of(how.base_path, path).as_bytes());
        out.extend_from_slice(path);
    }
    out.extend_from_slice(head.query.of(bytes));
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// The request line as it came, when [`request_line`] would write it so.
fn first_as_written<'b>(
    head: &RequestHead,
    bytes: &'b [u8],
    how: &ForwardRequest<'_>,
) -> Option<&'b [u8]> {
    const END: &[u8] = b" HTTP/1.1\r\n";
    let (method, target) = (head.method_span, head.target());
    let between = Span { start: method.end, end: target.start };
    let behind = Span { start: target.end, end: target.end + END.len() as u32 };
    // A path that was rewritten is shorter than it came, and ends before the query begins.
    let whole = head.path.end == head.query.start;
    let origin = whole && target.of(bytes).first() == Some(&b'/') && how.base_path.is_empty();
    let same = origin && between.of(bytes) == b" " && behind.of(bytes) == END;
    same.then(|| Span { start: method.start, end: behind.end }.of(bytes))
}

/// Writes the fields that travel on. Neighbours that came as they are written here, as nearly all
/// do, are copied together, and with the line before them when that is `run`.
fn pass_on(
    out: &mut Vec<u8>,
    mut run: Span,
    fields: &[Field],
    bytes: &[u8],
    travels: impl Fn(&Field) -> bool,
) {
    for field in fields.iter().filter(|field| travels(field)) {
        let lines = as_written(field, bytes);
        if lines.start == run.end && !lines.is_empty() {
            run.end = lines.end;
            continue;
        }
        out.extend_from_slice(run.of(bytes));
        run = lines;
        if lines.is_empty() {
            line(out, field.name.of(bytes), field.value.of(bytes));
        }
    }
    out.extend_from_slice(run.of(bytes));
}

/// The span of a line that stands in `bytes` as [`line`] writes it; empty for one that does not.
fn as_written(field: &Field, bytes: &[u8]) -> Span {
    let between = Span { start: field.name.end, end: field.value.start };
    let behind = Span { start: field.value.end, end: field.value.end + 2 };
    match between.of(bytes) == b": " && behind.of(bytes) == b"\r\n" {
        true => Span { start: field.name.start, end: behind.end },
        false => Span::default(),
    }
}

/// The span of a status line that stands in `bytes` as [`status_line`] writes it; empty for one
/// that does not.
fn status_as_written(head: &ResponseHead, bytes: &[u8]) -> Span {
    const START: &[u8] = b"HTTP/1.1 ";
    let blank = Span { start: START.len() as u32 + 3, end: head.reason.start };
    let behind = Span { start: head.reason.end, end: head.reason.end + 2 };
    match bytes.starts_with(START) && blank.of(bytes) == b" " && behind.of(bytes) == b"\r\n" {
        true => Span { start: 0, end: behind.end },
        false => Span::default(),
    }
}

/// Whether a client's field goes to the backend as it is.
fn travels_on(field: &Field, bytes: &[u8], how: &ForwardRequest<'_>) -> bool {
    let ours = match field.known {
        Known::XRequestId | Known::XForwardedFor => true,
        // A body goes on as it was read, which is unpacked.
        Known::ContentEncoding => true,
        Known::XForwardedProto | Known::Origin => !how.trust_forwarded,
        _ => false,
    };
    if field.stays || ours {
        return false;
    }
    let name = field.name.of(bytes);
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    if how.plain_answer && is("accept-encoding") {
        return false;
    }
    if how.trace.is_some_and(|trace| is("traceparent") || (trace.is_new && is("tracestate"))) {
        return false;
    }
    !how.drop.iter().any(|dropped| is(dropped)) && !how.set.iter().any(|(set, _)| is(set))
}

/// Says where the request came from: a trusted peer's word and then ours, or ours alone.
fn forwarded(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], how: &ForwardRequest<'_>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    if how.trust_forwarded {
        for field in head.fields.iter().filter(|f| f.known == Known::XForwardedFor) {
            if !field.value.is_empty() {
                out.extend_from_slice(field.value.of(bytes));
                out.extend_from_slice(b", ");
            }
        }
    }
    out.extend_from_slice(how.client_ip.as_bytes());
    out.extend_from_slice(b"\r\n");
    if !(how.trust_forwarded && head.first(bytes, Known::XForwardedProto).is_some()) {
        line_of(out, b"X-Forwarded-Proto: ", how.client_scheme.as_bytes());
    }
    let says_host = || super::head::named(&head.fields, bytes, "X-Forwarded-Host").is_some();
    if let (Some(host), false) = (head.host, how.trust_forwarded && says_host()) {
        line_of(out, b"X-Forwarded-Host: ", host.of(bytes));
    }
}

/// Writes the response head for the client: status, reason and fields as sent, but for hop-by-hop
/// fields and references to backends; our x-request-id, at most one framing field, and what the
/// client's version needs to be told of the connection. `bytes` is the buffer that `head` was
/// parsed from.
pub fn response(out: &mut Vec<u8>, head: &ResponseHead, bytes: &[u8], how: &ForwardResponse<'_>) {
    let first = status_as_written(head, bytes);
    if first.is_empty() {
        status_line(out, head.status, head.reason.of(bytes));
    }
    let ours = |field: &Field| match field.known {
        Known::Location if !field.stays => (how.at_ours)(field.value.of(bytes)),
        _ => None,
    };
    let is_ours = |field: &Field| {
        let named = |(name, _): &(&str, &str)| {
            *name != "Vary" && field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes())
        };
        how.fields.iter().any(named)
    };
    let is_kept =
        |field: &Field| !field.stays && field.known != Known::XRequestId && !is_ours(field);
    pass_on(out, first, &head.fields, bytes, |field| is_kept(field) && ours(field).is_none());
    for (field, path) in head.fields.iter().filter_map(|field| Some((field, ours(field)?))) {
        out.extend_from_slice(field.name.of(bytes));
        line_of(out, b": /", path);
    }
    line_of(out, b"x-request-id: ", how.request_id.as_bytes());
    for (name, value) in how.fields.iter().filter(|(_, value)| !value.is_empty()) {
        line(out, name.as_bytes(), value.as_bytes());
    }
    let close = how.close || how.framing == OutFraming::UntilClose;
    finish(out, how.framing, how.client, close);
}

/// Writes the head of an answer of our own.
pub fn own(out: &mut Vec<u8>, how: &OwnResponse<'_>) {
    status_line(out, how.status, reason::phrase(how.status).as_bytes());
    if !how.content_type.is_empty() {
        line(out, b"Content-Type", how.content_type.as_bytes());
    }
    for (name, value) in how.fields {
        line(out, name.as_bytes(), value.as_bytes());
    }
    if !how.request_id.is_empty() {
        line(out, b"x-request-id", how.request_id.as_bytes());
    }
    // RFC 9110 §8.6: these two have no body and must not claim one.
    let bare = matches!(how.status, 204 | 304);
    let framing = if bare { OutFraming::None } else { OutFraming::Length(how.body_len) };
    finish(out, framing, how.client, how.close);
}

/// Writes the head of an event stream that is ours from the first byte, and gives the framing of
/// what follows. `close`: the connection closes behind it.
pub fn own_stream(
    out: &mut Vec<u8>,
    (client, close): (Version, bool),
    request_id: &str,
    fields: &[(&'static str, String)],
) -> OutFraming {
    let framing = match client {
        Version::Http10 => OutFraming::UntilClose,
        Version::Http11 => OutFraming::Chunked,
    };
    status_line(out, 200, reason::phrase(200).as_bytes());
    line(out, b"Content-Type", b"text/event-stream");
    line(out, b"Cache-Control", b"no-cache");
    for (name, value) in fields {
        line(out, name.as_bytes(), value.as_bytes());
    }
    line(out, b"x-request-id", request_id.as_bytes());
    finish(out, framing, client, close || framing == OutFraming::UntilClose);
    framing
}

fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    push_decimal(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// The last lines of a final response.
fn finish(out: &mut Vec<u8>, framing: OutFraming, client: Version, close: bool) {
    match framing {
        OutFraming::Length(len) => content_length(out, len),
        OutFraming::Chunked => line(out, b"Transfer-Encoding", b"chunked"),
        OutFraming::None | OutFraming::UntilClose => {}
    }
    if close {
        line(out, b"Connection", b"close");
    } else if client == Version::Http10 {
        line(out, b"Connection", b"keep-alive");
    }
    out.extend_from_slice(b"\r\n");
}

fn content_length(out: &mut Vec<u8>, len: u64) {
    out.extend_from_slice(b"Content-Length: ");
    push_decimal(out, len);
    out.extend_from_slice(b"\r\n");
}

/// A line of which the beginning is known.
fn line_of<const N: usize>(out: &mut Vec<u8>, start: &[u8; N], value: &[u8]) {
    debug_assert!(value.iter().all(|b| *b == b'\t' || !b.is_ascii_control()));
    out.extend_from_slice(start);
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    debug_assert!(!name.is_empty() && name.iter().all(|b| super::hop::is_token(*b)));
    debug_assert!(value.iter().all(|b| *b == b'\t' || !b.is_ascii_control()));
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
