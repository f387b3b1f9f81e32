//! How a body is delimited: nothing else exists.

/// Framing of a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// No body.
    #[default]
    None,
    /// So many bytes (may be 0).
    Length(u64),
    /// Chunks.
    Chunked,
}

/// Framing of a response body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResponseFraming {
    /// No body, whatever the fields say (HEAD, 204, 304).
    #[default]
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection closes.
    UntilClose,
}
