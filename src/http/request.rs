//! Request heads: bytes of a client become a [`RequestHead`] that cannot be read in two ways, or
//! a refusal.

use std::ops::Range;

use super::fault::HttpFault;
use super::field::Known;
use super::framing::{Framing, FramingFields};
use super::head::{slots, syntax_fault, Field, Parse, Span, Version};
use super::hop::ConnectionOptions;
use super::plain;
use super::scan::{HeadScan, ScanProgress};
use super::target::{is_authority, Target};
use crate::base::limits::{FIELD_LINE_BYTES_MAX, METHOD_BYTES_MAX, TARGET_BYTES_MAX};
use crate::base::refusal::Refusal;

/// Methods the proxy tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// GET
    #[default]
    Get,
    /// HEAD
    Head,
    /// POST
    Post,
    /// PUT
    Put,
    /// PATCH
    Patch,
    /// DELETE
    Delete,
    /// OPTIONS
    Options,
}

impl Method {
    /// Reads a method token. A gateway tunnels nothing and echoes no credentials, so CONNECT and
    /// TRACE are refused. No engine has any of the other methods that are registered (PROPFIND,
    /// LOCK, ...), and a word that is none may mean something to a server behind us (PRI).
    fn parse(token: &[u8]) -> Result<Method, HttpFault> {
        Ok(match token {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"PATCH" => Method::Patch,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"CONNECT" | b"TRACE" => return Err(HttpFault::MethodNotAllowed),
            _ => return Err(HttpFault::MethodNotImplemented),
        })
    }

    /// The method as text.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
        }
    }

    /// True when a body of the request has a meaning (RFC 9110 §9.3). Elsewhere servers disagree
    /// whether they read one.
    pub fn takes_body(self) -> bool {
        !matches!(self, Method::Get | Method::Head | Method::Delete | Method::Options)
    }
}

/// A parsed request head; reused from request to request of a connection (its vectors keep their
/// capacity).
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The method as sent.
    pub method_span: Span,
    /// The method.
    pub method: Method,
    /// Path without the query (of absolute-form the part after the authority, which may be empty
    /// and then means `/`); shorter than it was sent once it was brought into its plainest spelling
    /// ([`shorten_path`](Self::shorten_path)).
    pub path: Span,
    /// The query with its `?`; empty when there is none.
    pub query: Span,
    /// Authority: the Host field, or that of an absolute-form target.
    pub host: Option<Span>,
    /// The version of the client.
    pub version: Version,
    /// Body framing.
    pub framing: Framing,
    /// The connection may live on: the client allows it, and the body has a defined meaning.
    pub keep_alive: bool,
    /// `Expect: 100-continue` was sent and a body follows: it is ours to answer.
    pub expect_continue: bool,
    /// All field lines, also those that end here (`Field::stays`).
    pub fields: Vec<Field>,
    /// Authority of an absolute-form target.
    authority: Option<Span>,
    scan: HeadScan,
}

/// What the lines of a head say together.
#[derive(Debug, Default)]
struct Said {
    framing: FramingFields,
    connection: ConnectionOptions,
}

impl RequestHead {
    /// Parses the head at the start of `bytes`, which may hold more than the head. On `Partial`
    /// call again with the same bytes and more behind them. Call [`reset`](Self::reset) before
    /// each new request. `head_bytes_max`: beyond it 431.
    pub fn parse(&mut self, bytes: &[u8], head_bytes_max: usize) -> Result<Parse, Refusal> {
        self.try_parse(bytes, head_bytes_max).map_err(HttpFault::refusal)
    }

    /// Forgets the last request, keeps capacity.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = RequestHead { fields, ..RequestHead::default() };
    }

    /// The path, `/` for an absolute-form target without one.
    pub fn path<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        if self.path.is_empty() {
            b"/"
        } else {
            self.path.of(bytes)
        }
    }

    /// Path and query, as they were sent.
    pub fn target(&self) -> Span {
        Span { start: self.path.start, end: self.query.end }
    }

    /// Where the path stands in the buffer that was parsed.
    pub fn path_range(&self) -> Range<usize> {
        self.path.start as usize..self.path.end as usize
    }

    /// The path was rewritten in its place and has only so many bytes now.
    pub fn shorten_path(&mut self, len: usize) {
        let end = self.path.start.saturating_add(len as u32);
        self.path.end = self.path.end.min(end);
    }

    /// The request has a body of at least a byte, or one of unknown length.
    pub fn has_content(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// The request has no body whose meaning servers disagree about. A connection does not outlive
    /// the doubt whether such a one was read.
    pub fn is_clear(&self) -> bool {
        self.method.takes_body() || !self.has_content()
    }

    /// The value of the first field of a kind.
    pub fn first<'b>(&self, bytes: &'b [u8], known: Known) -> Option<&'b [u8]> {
        super::head::first(&self.fields, bytes, known)
    }

    /// The value of the first field with a name, in any case.
    pub fn named<'b>(&self, bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
        super::head::named(&self.fields, bytes, name)
    }

    fn try_parse(&mut self, bytes: &[u8], head_bytes_max: usize) -> Result<Parse, HttpFault> {
        if self.scan.is_fresh() {
            if let Some(len) = self.read_plain(bytes, head_bytes_max)? {
                return Ok(Parse::Done { len });
            }
        }
        let progress = self.scan.advance(bytes, head_bytes_max).map_err(|fault| match fault {
            HttpFault::HeadTooLarge if !self.scan.has_first_line() => HttpFault::TargetTooLong,
            other => other,
        })?;
        match progress {
            ScanProgress::Partial(lines) => {
                self.check_early(bytes, lines)?;
                Ok(Parse::Partial)
            }
            ScanProgress::Done(range) => {
                self.read(bytes, range.clone())?;
                Ok(Parse::Done { len: range.end })
            }
        }
    }

    /// Judges lines that became complete while the head is not, each once.
    fn check_early(&self, bytes: &[u8], lines: Range<usize>) -> Result<(), HttpFault> {
        let start = self.scan.start();
        if !self.scan.has_first_line() {
            let longest = METHOD_BYTES_MAX + TARGET_BYTES_MAX + " HTTP/1.1\r\n".len() + 1;
            let too_long = bytes.len() - start.min(bytes.len()) > longest;
            return if too_long { Err(HttpFault::TargetTooLong) } else { Ok(()) };
        }
        let fresh = bytes.get(lines.clone()).unwrap_or_default();
        if fresh.is_empty() {
            return Ok(());
        }
        let mut slots = slots();
        if lines.start == start {
            let mut request = httparse::Request::new(&mut []);
            let parsed = request.parse_with_uninit_headers(fresh, &mut slots);
            parsed.map_err(|e| syntax_fault(e, first_line_fault(fresh)))?;
            read_request_line(&request).map(drop)
        } else {
            let mut lines = [httparse::EMPTY_HEADER; crate::base::limits::HEAD_FIELDS_MAX];
            let parsed = httparse::parse_headers(fresh, &mut lines);
            parsed.map(drop).map_err(|e| syntax_fault(e, HttpFault::BadFieldLine))
        }
    }

    /// Reads a head that is whole and plain; gives its length.
    fn read_plain(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, HttpFault> {
        let Some(line) = plain::request_line(bytes) else { return Ok(None) };
        let end = plain::fields(bytes, line.end, &mut self.fields).filter(|len| *len <= max);
        if end.is_none() {
            self.fields.clear();
            return Ok(None);
        }
        self.take_first_line(bytes, line.method, line.target)?;
        self.version = line.version;
        let mut said = Said::default();
        let mut fields = std::mem::take(&mut self.fields);
        for field in &mut fields {
            self.take_field(field, bytes, &mut said)?;
        }
        self.fields = fields;
        self.judge(bytes, &said)?;
        Ok(end)
    }

    /// The rules of the request line that do not concern its syntax.
    fn take_first_line(
        &mut self,
        bytes: &[u8],
        method: Span,
        whole: Span,
    ) -> Result<(), HttpFault> {
        self.method = Method::parse(method.of(bytes))?;
        self.method_span = method;
        let target = Target::parse(whole.of(bytes), self.method)?;
        let part = |range: Range<usize>| Span {
            start: whole.start + range.start as u32,
            end: whole.start + range.end as u32,
        };
        self.query = part(target.path.end..target.path_and_query.end);
        self.path = part(target.path);
        self.authority = target.authority.map(part);
        Ok(())
    }

    /// Reads a complete head.
    fn read(&mut self, bytes: &[u8], range: Range<usize>) -> Result<(), HttpFault> {
        let head = bytes.get(range).unwrap_or_default();
        let mut slots = slots();
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(head, &mut slots);
        match parsed.map_err(|e| syntax_fault(e, first_line_fault(head)))? {
            httparse::Status::Complete(len) if len == head.len() => {}
            // The scanner and httparse must agree where the head ends; that they do not is a
            // doubt about framing like any other.
            _ => return Err(HttpFault::BadFieldLine),
        }
        let method = Span::locate(request.method.unwrap_or_default().as_bytes(), bytes);
        let target = Span::locate(request.path.unwrap_or_default().as_bytes(), bytes);
        self.take_first_line(bytes, method, target)?;
        self.version = Version::from_minor(request.version);
        let mut said = Said::default();
        self.fields.reserve(request.headers.len());
        for line in request.headers.iter() {
            let mut field = Field::locate(line, bytes)?;
            self.take_field(&mut field, bytes, &mut said)?;
            self.fields.push(field);
        }
        self.judge(bytes, &said)
    }

    /// The rules of one line.
    fn take_field(
        &mut self,
        field: &mut Field,
        bytes: &[u8],
        said: &mut Said,
    ) -> Result<(), HttpFault> {
        if field.line_len() > FIELD_LINE_BYTES_MAX {
            return Err(HttpFault::FieldTooLong);
        }
        let value = field.value.of(bytes);
        match field.known {
            Known::ContentLength => said.framing.length(value)?,
            Known::TransferEncoding => said.framing.coding(value)?,
            Known::Connection => said.connection.read(value)?,
            Known::Host => self.take_host(*field)?,
            Known::Expect => self.take_expectation(value)?,
            Known::FramingLookAlike => return Err(HttpFault::FramingLookAlike),
            Known::Underscored => field.stays = true,
            _ => {}
        }
        Ok(())
    }

    /// The rules between the lines.
    fn judge(&mut self, bytes: &[u8], said: &Said) -> Result<(), HttpFault> {
        let Said { framing, connection } = said;
        if self.host.is_some_and(|host| !is_authority(host.of(bytes))) {
            return Err(HttpFault::BadHost);
        }
        if self.host.is_none() && self.version == Version::Http11 {
            return Err(HttpFault::MissingHost);
        }
        connection.mark(&mut self.fields, bytes, true)?;
        self.framing = match framing.judge(self.version)? {
            (_, true) => Framing::Chunked,
            (Some(length), false) => Framing::Length(length),
            (None, false) => Framing::None,
        };
        let has_body = self.has_content();
        // RFC 9110 §10.1.1: the expectation of an HTTP/1.0 client is to be ignored.
        self.expect_continue &= has_body && self.version == Version::Http11;
        self.keep_alive = self.is_clear() && connection.keep_alive(self.version);
        // What Host says was judged, and does not count beside an absolute-form target.
        self.host = self.authority.or(self.host);
        Ok(())
    }

    fn take_host(&mut self, field: Field) -> Result<(), HttpFault> {
        match self.host.replace(field.value) {
            Some(_) => Err(HttpFault::DuplicateHost),
            None => Ok(()),
        }
    }

    fn take_expectation(&mut self, value: &[u8]) -> Result<(), HttpFault> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HttpFault::UnknownExpectation);
        }
        self.expect_continue = true;
        Ok(())
    }
}

/// The rules of the request line that `httparse` does not know.
fn read_request_line(request: &httparse::Request<'_, '_>) -> Result<(Method, Target), HttpFault> {
    let method = Method::parse(request.method.unwrap_or_default().as_bytes())?;
    let target = Target::parse(request.path.unwrap_or_default().as_bytes(), method)?;
    Ok((method, target))
}

/// Why `httparse` does not take a first line: another version of HTTP, or no request at all.
fn first_line_fault(head: &[u8]) -> HttpFault {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut parts = line.split(|b| *b == b' ');
    let (Some(_), Some(_), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return HttpFault::BadRequestLine;
    };
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() && *major != b'1' =>
        {
            HttpFault::VersionNotSupported
        }
        _ => HttpFault::BadRequestLine,
    }
}

#[cfg(test)]
mod tests;
