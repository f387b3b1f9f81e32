//! Request heads (contract; see the module's text).
use super::head::{Field, Parse, Span, Version};
use super::framing::Framing;
use crate::base::refusal::Refusal;

/// Methods the proxy tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method { /// GET
    #[default] Get, /// HEAD
    Head, /// POST
    Post, /// PUT
    Put, /// PATCH
    Patch, /// DELETE
    Delete, /// OPTIONS
    Options, /// any other token that is not refused
    Other }

/// A parsed request head; reused from request to request of a connection (its vectors keep their capacity).
#[derive(Debug, Default)]
pub struct RequestHead {
    /// method token
    pub method_span: Span,
    /// method
    pub method: Method,
    /// Path and query as sent (origin form; of absolute-form the part after the authority).
    pub target: Span,
    /// Path without the query.
    pub path: Span,
    /// Authority: the Host field, or that of an absolute-form target.
    pub host: Option<Span>,
    /// version
    pub version: Version,
    /// Body framing.
    pub framing: Framing,
    /// The client lets the connection live on.
    pub keep_alive: bool,
    /// `Expect: 100-continue` was sent.
    pub expect_continue: bool,
    /// All field lines, hop-by-hop ones included (the writer leaves those out).
    pub fields: Vec<Field>,
    scanned: usize,
}

impl RequestHead {
    /// Parses the head at the start of `bytes`. Call `reset` before each new request.
    /// `head_bytes_max`: beyond it 431.
    pub fn parse(&mut self, bytes: &[u8], head_bytes_max: usize) -> Result<Parse, Refusal> { let _ = (bytes, head_bytes_max); todo!() }
    /// Forgets the last request, keeps capacity.
    pub fn reset(&mut self) { todo!() }
}
