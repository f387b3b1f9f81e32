//! Fields of a JSON request body, found without a full parse (contract).

/// What a request says of itself. Borrowed from the body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestFacts<'a> {
    /// Top-level `model`, without escapes (a model name with escapes is refused).
    pub model: Option<&'a str>,
    /// Top-level `stream`; `None` when absent.
    pub stream: Option<bool>,
    /// `stream_options.include_usage` is true.
    pub include_usage: bool,
    /// `max_tokens`, else `max_completion_tokens`, else `max_output_tokens`.
    pub max_tokens: Option<u64>,
}

/// Why a body is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScanFault { /// not JSON, and where
 Malformed { /// byte offset
  offset: usize }, /// a watched key stands twice
 Duplicate(&'static str), /// a key or a watched value is written with escapes
 Escaped, /// nested too deep
 TooDeep, /// invalid UTF-8 or BOM
 NotUtf8, /// `model` is longer than the limit
 ModelTooLong, /// a watched key has a value of the wrong type
 WrongType(&'static str) }

/// Scans a whole body.
pub fn scan(body: &[u8]) -> Result<RequestFacts<'_>, ScanFault> { let _ = body; todo!() }
