//! Response heads: bytes of a backend become a [`ResponseHead`], or a reason to answer 502.

use std::ops::Range;
use std::time::Duration;

use super::date;
use super::fault::HttpFault;
use super::field::Known;
use super::framing::{FramingFields, ResponseFraming};
use super::head::{slots, syntax_fault, Field, Parse, Span, Version};
use super::hop::ConnectionOptions;
use super::plain;
use super::request::Method;
use super::scan::{HeadScan, ScanProgress};

/// Why the bytes of a backend are not a response. All of them mean 502 before the first byte.
/// The text is stable, machine-readable snake case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadResponse(pub &'static str);

/// When a backend wants to be asked again. Small, as all that is kept of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryAfter {
    /// In so many seconds.
    In(u32),
    /// At this time, in seconds since 1970.
    At(u32),
}

impl RetryAfter {
    fn read(value: &[u8]) -> Option<RetryAfter> {
        let at = || date::unix_seconds(value).map(RetryAfter::At);
        parse_seconds(value).map(RetryAfter::In).or_else(at)
    }

    /// How long that is from now, which is a time in milliseconds since 1970.
    pub fn wait(self, now_unix_ms: u64) -> Duration {
        match self {
            RetryAfter::In(seconds) => Duration::from_secs(seconds.into()),
            RetryAfter::At(time) => {
                Duration::from_millis((u64::from(time) * 1000).saturating_sub(now_unix_ms))
            }
        }
    }
}

/// A parsed response head; reused like a request head.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// Status code, 100 to 599.
    pub status: u16,
    /// Reason phrase as sent; may be empty.
    pub reason: Span,
    /// The version of the backend.
    pub version: Version,
    /// Framing of the body.
    pub framing: ResponseFraming,
    /// Content-Length as sent, also where there is no body: a HEAD answer echoes it.
    pub content_length: Option<u64>,
    /// The backend lets the connection live on (after a complete body).
    pub keep_alive: bool,
    /// Content-Type is text/event-stream, with or without parameters.
    pub event_stream: bool,
    /// Content-Type is application/x-ndjson: a stream of a JSON value per line.
    pub ndjson: bool,
    /// Content-Type is application/json or ends in `+json`, with or without parameters.
    pub json: bool,
    /// Content-Encoding is there and not `identity`: the bytes cannot be read as they pass.
    pub encoded: bool,
    /// What Retry-After says, when it can be read.
    pub retry_after: Option<RetryAfter>,
    /// All field lines, also those that end here (`Field::stays`).
    pub fields: Vec<Field>,
    scan: HeadScan,
}

/// What the lines of a head say together.
#[derive(Debug, Default)]
struct Said {
    framing: FramingFields,
    connection: ConnectionOptions,
}

impl ResponseHead {
    /// Parses the head at the start of `bytes`; interim (1xx) ones included: the caller looks at
    /// `status` and resets before the next. `request` is the method that is answered. 101 is bad,
    /// since an upgrade is never asked for.
    pub fn parse(
        &mut self,
        bytes: &[u8],
        request: Method,
        head_bytes_max: usize,
    ) -> Result<Parse, BadResponse> {
        self.try_parse(bytes, request, head_bytes_max).map_err(|fault| BadResponse(fault.code()))
    }

    /// Forgets the last response, keeps capacity.
    pub fn reset(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = ResponseHead { fields, ..ResponseHead::default() };
    }

    /// The value of the first field with a name, in any case.
    pub fn named<'b>(&self, bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
        super::head::named(&self.fields, bytes, name)
    }

    fn try_parse(
        &mut self,
        bytes: &[u8],
        request: Method,
        head_bytes_max: usize,
    ) -> Result<Parse, HttpFault> {
        if self.scan.is_fresh() {
            if let Some(len) = self.read_plain(bytes, request, head_bytes_max)? {
                return Ok(Parse::Done { len });
            }
        }
        let progress = self.scan.advance(bytes, head_bytes_max)?;
        if self.scan.start() > 0 {
            // Only a server has a reason to be patient with empty lines.
            return Err(HttpFault::EmptyLines);
        }
        match progress {
            ScanProgress::Partial(lines) => {
                check_early(bytes, lines)?;
                Ok(Parse::Partial)
            }
            ScanProgress::Done(range) => {
                let len = range.end;
                self.read(bytes.get(range).unwrap_or_default(), request)?;
                Ok(Parse::Done { len })
            }
        }
    }

    /// Reads a head that is whole and plain; gives its length.
    fn read_plain(
        &mut self,
        bytes: &[u8],
        request: Method,
        max: usize,
    ) -> Result<Option<usize>, HttpFault> {
        let Some(line) = plain::status_line(bytes) else { return Ok(None) };
        let end = plain::fields(bytes, line.end, &mut self.fields).filter(|len| *len <= max);
        if end.is_none() {
            self.fields.clear();
            return Ok(None);
        }
        self.take_status(line.status)?;
        self.version = line.version;
        self.reason = reason_of(bytes);
        let mut said = Said::default();
        let fields = std::mem::take(&mut self.fields);
        for field in &fields {
            self.take_field(field, bytes, &mut said)?;
        }
        self.fields = fields;
        self.judge(bytes, request, &said)?;
        Ok(end)
    }

    fn take_status(&mut self, status: u16) -> Result<(), HttpFault> {
        self.status = status;
        match status {
            101 => Err(HttpFault::UnexpectedSwitch),
            100..=599 => Ok(()),
            _ => Err(HttpFault::BadStatusLine),
        }
    }

    /// Reads a complete head.
    fn read(&mut self, head: &[u8], request: Method) -> Result<(), HttpFault> {
        let mut slots = slots();
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            head,
            &mut slots,
        );
        match parsed.map_err(|e| syntax_fault(e, HttpFault::BadStatusLine))? {
            httparse::Status::Complete(len) if len == head.len() => {}
            _ => return Err(HttpFault::BadFieldLine),
        }
        self.take_status(response.code.unwrap_or_default())?;
        self.version = Version::from_minor(response.version);
        self.reason = reason_of(head);
        let mut said = Said::default();
        self.fields.reserve(response.headers.len());
        for line in response.headers.iter() {
            let field = Field::locate(line, head)?;
            self.take_field(&field, head, &mut said)?;
            self.fields.push(field);
        }
        self.judge(head, request, &said)
    }

    /// The rules of one line.
    fn take_field(
        &mut self,
        field: &Field,
        bytes: &[u8],
        said: &mut Said,
    ) -> Result<(), HttpFault> {
        let value = field.value.of(bytes);
        match field.known {
            Known::ContentLength => said.framing.length(value)?,
            Known::TransferEncoding => said.framing.coding(value)?,
            Known::Connection => said.connection.read(value)?,
            Known::ContentType => self.take_type(value),
            Known::ContentEncoding => self.encoded |= !value.eq_ignore_ascii_case(b"identity"),
            Known::RetryAfter => self.retry_after = RetryAfter::read(value),
            Known::FramingLookAlike => return Err(HttpFault::FramingLookAlike),
            _ => {}
        }
        Ok(())
    }

    /// The rules between the lines.
    fn judge(&mut self, bytes: &[u8], request: Method, said: &Said) -> Result<(), HttpFault> {
        said.connection.mark(&mut self.fields, bytes, false)?;
        let (length, chunked) = said.framing.judge(self.version)?;
        self.content_length = length;
        self.framing = framing_of(self.status, request, length, chunked);
        self.keep_alive =
            said.connection.keep_alive(self.version) && self.framing != ResponseFraming::UntilClose;
        Ok(())
    }

    fn take_type(&mut self, value: &[u8]) {
        let media = value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        let json_suffix = media.len().checked_sub(5).and_then(|at| media.get(at..));
        self.event_stream = media.eq_ignore_ascii_case(b"text/event-stream");
        self.ndjson = media.eq_ignore_ascii_case(b"application/x-ndjson");
        self.json = media.eq_ignore_ascii_case(b"application/json")
            || json_suffix.is_some_and(|s| s.eq_ignore_ascii_case(b"+json"));
    }
}

/// Judges lines that became complete while the head is not, each once.
fn check_early(bytes: &[u8], lines: Range<usize>) -> Result<(), HttpFault> {
    let fresh = bytes.get(lines.clone()).unwrap_or_default();
    if fresh.is_empty() {
        return Ok(());
    }
    let mut slots = [httparse::EMPTY_HEADER; crate::base::limits::HEAD_FIELDS_MAX];
    if lines.start == 0 {
        let parsed = httparse::Response::new(&mut slots).parse(fresh).map(drop);
        parsed.map_err(|e| syntax_fault(e, HttpFault::BadStatusLine))
    } else {
        let parsed = httparse::parse_headers(fresh, &mut slots).map(drop);
        parsed.map_err(|e| syntax_fault(e, HttpFault::BadFieldLine))
    }
}

/// The body of a final response (RFC 9112 §6.3, in its order).
fn framing_of(status: u16, request: Method, length: Option<u64>, chunked: bool) -> ResponseFraming {
    if request == Method::Head || matches!(status, 100..=199 | 204 | 304) {
        return ResponseFraming::None;
    }
    match (chunked, length) {
        (true, _) => ResponseFraming::Chunked,
        (false, Some(length)) => ResponseFraming::Length(length),
        (false, None) => ResponseFraming::UntilClose,
    }
}

/// The reason phrase, byte by byte as sent: `httparse` gives none when it has 8-bit bytes.
fn reason_of(head: &[u8]) -> Span {
    let line = memchr::memchr(b'\r', head).unwrap_or(head.len());
    let start = "HTTP/1.1 200 ".len().min(line);
    Span { start: start as u32, end: line as u32 }
}

/// Delta-seconds of RFC 9110 §10.2.3; nine digits cannot overflow.
fn parse_seconds(value: &[u8]) -> Option<u32> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u32, digit: &u8| sum.saturating_mul(10).saturating_add((digit - b'0').into());
    Some(value.iter().fold(0, add))
}

#[cfg(test)]
mod tests;
