//! What requests and responses share: spans into the buffer, fields, the version.

/// A range of the buffer that a head was parsed from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// The bytes of the span. `bytes` must be the buffer (or a longer one) that was parsed.
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
    /// True when nothing is in it.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// One field line.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Name as sent (any case).
    pub name: Span,
    /// Value without the white space around it.
    pub value: Span,
    /// Which field it is, when the proxy treats it specially.
    pub known: super::field::Known,
}

/// HTTP version of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
}

/// Progress of a parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parse {
    /// The head is not complete; read more and call again with the longer buffer.
    Partial,
    /// The head is complete: `len` bytes of the buffer (blank line included).
    Done {
        /// Bytes that belong to the head.
        len: usize,
    },
}
