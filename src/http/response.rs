//! Response heads (contract).
use super::head::{Field, Parse, Span, Version};
use super::framing::ResponseFraming;
use super::request::Method;

/// Why the bytes of a backend are not a response. All of them mean 502 before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadResponse(pub &'static str);

/// A parsed response head.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// status
    pub status: u16,
    /// reason phrase
    pub reason: Span,
    /// version
    pub version: Version,
    /// Framing of the body.
    pub framing: ResponseFraming,
    /// The backend lets the connection live on (after a complete body).
    pub keep_alive: bool,
    /// Content-Type is text/event-stream.
    pub event_stream: bool,
    /// All field lines.
    pub fields: Vec<Field>,
}

impl ResponseHead {
    /// Parses the head at the start of `bytes`; interim (1xx) ones included: the caller looks at `status`.
    pub fn parse(&mut self, bytes: &[u8], request: Method, head_bytes_max: usize) -> Result<Parse, BadResponse> { let _ = (bytes, request, head_bytes_max); todo!() }
    /// Forgets the last response, keeps capacity.
    pub fn reset(&mut self) { todo!() }
}
