//! What requests and responses share: spans into the buffer, fields, the version.

use std::mem::MaybeUninit;

use super::fault::HttpFault;
use super::field::Known;
use crate::base::limits::{FIELD_NAME_BYTES_MAX, HEAD_FIELDS_MAX};

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
    /// Where `part`, a slice of `bytes`, lies in it. Heads are far below 4 GiB.
    pub(super) fn locate(part: &[u8], bytes: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
        debug_assert!(start + part.len() <= bytes.len(), "not a part of the buffer");
        Span { start: start as u32, end: (start + part.len()) as u32 }
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
    pub known: Known,
    /// It ends here and is not forwarded: framing, hop-by-hop, or nominated by Connection.
    pub stays: bool,
}

impl Field {
    /// Bytes of the line from its name to its CRLF.
    pub(super) fn line_len(&self) -> usize {
        (self.value.end.saturating_sub(self.name.start)) as usize + "\r\n".len()
    }

    /// Takes over a line that `httparse` found in `bytes`.
    pub(super) fn locate(line: &httparse::Header<'_>, bytes: &[u8]) -> Result<Field, HttpFault> {
        let name = line.name.as_bytes();
        if name.len() > FIELD_NAME_BYTES_MAX {
            return Err(HttpFault::NameTooLong);
        }
        let (name, known) = (Span::locate(name, bytes), Known::of(name));
        Ok(Field::new(name, Span::locate(line.value, bytes), known))
    }

    /// The line with this name and value.
    pub(super) fn new(name: Span, value: Span, known: Known) -> Field {
        Field { name, value, known, stays: known.stays() }
    }
}

/// The value of the first field of a kind. `bytes` is the buffer that was parsed.
pub fn first<'b>(fields: &[Field], bytes: &'b [u8], known: Known) -> Option<&'b [u8]> {
    fields.iter().find(|f| f.known == known).map(|f| f.value.of(bytes))
}

/// The value of the first field with a name, in any case. `bytes` is the buffer that was parsed.
pub fn named<'b>(fields: &[Field], bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
    let wanted = name.as_bytes();
    fields.iter().find(|f| f.name.of(bytes).eq_ignore_ascii_case(wanted)).map(|f| f.value.of(bytes))
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

impl Version {
    /// From the minor digit that `httparse` gives.
    pub(super) fn from_minor(minor: Option<u8>) -> Version {
        if minor == Some(0) {
            Version::Http10
        } else {
            Version::Http11
        }
    }
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

/// Room on the stack for the lines that `httparse` finds; nothing of it is written in advance.
pub(super) type Slots<'b> = [MaybeUninit<httparse::Header<'b>>; HEAD_FIELDS_MAX];

/// Fresh room.
pub(super) fn slots<'b>() -> Slots<'b> {
    [const { MaybeUninit::uninit() }; HEAD_FIELDS_MAX]
}

/// The rule behind what `httparse` says, but for the first line, which each side knows better.
pub(super) fn syntax_fault(error: httparse::Error, first_line: HttpFault) -> HttpFault {
    match error {
        httparse::Error::HeaderName => HttpFault::BadFieldLine,
        httparse::Error::HeaderValue | httparse::Error::NewLine => HttpFault::ControlCharacter,
        httparse::Error::TooManyHeaders => HttpFault::TooManyFields,
        _ => first_line,
    }
}
