//! What a request body says of itself. Read once, strictly; routing, limits and records all go by
//! this one reading.

use crate::base::refusal::Refusal;
use crate::http::field::Known;
use crate::http::request::RequestHead;
use crate::llm::dialect::Dialect;
use crate::llm::inflate::Coding;
use crate::llm::request::{RequestFacts, Scan, ScanFault};

/// How a body is packed; `None` when it is not. `Content-Encoding`, and SGLang's own field of the
/// same meaning, say so; 415 for what we do not unpack: what nobody reads, nobody counts.
pub fn coding(head: &RequestHead, head_bytes: &[u8]) -> Result<Option<Coding>, Refusal> {
    let mut found = None;
    for field in head.fields.iter().filter(|field| field.known == Known::ContentEncoding) {
        let name = field.value.of(head_bytes).trim_ascii();
        if name.is_empty() || name.eq_ignore_ascii_case(b"identity") {
            continue;
        }
        match (Coding::of(name), found) {
            (Some(coding), None) => found = Some(coding),
            _ => return Err(UNKNOWN_CODING),
        }
    }
    Ok(found)
}

/// A body on the way to its facts; it has none when it is not JSON.
///
/// Engines read JSON whatever it is called, so every body is looked at, whatever its method and
/// type. One that is no JSON to any parser goes on all the same: the engine's error is the one that
/// its clients know, and no policy needs a body yet. One that does (a list of allowed models)
/// refuses here what it cannot read.
pub struct Reading<'a> {
    body: &'a [u8],
    is_json: bool,
    scan: Scan<'a>,
}

impl<'a> Reading<'a> {
    /// Of a body that has not been read yet.
    pub fn new(
        head: &RequestHead,
        head_bytes: &[u8],
        body: &'a [u8],
        dialect: Dialect,
    ) -> Reading<'a> {
        let declared = head.first(head_bytes, Known::ContentType).unwrap_or_default();
        // Elsewhere a body may be a form or a file.
        let is_json = !matches!(dialect, Dialect::Other | Dialect::Transcriptions)
            || declared.is_empty()
            || says_json(declared);
        Reading { body, is_json, scan: Scan::new(body) }
    }

    /// Reads about so many bytes more; `None`: there is still more to be read.
    pub fn step(&mut self, bytes: usize) -> Option<Result<RequestFacts<'a>, Refusal>> {
        if self.body.is_empty() {
            return Some(Ok(RequestFacts::default()));
        }
        Some(match self.scan.step(bytes)? {
            Ok(facts) => Ok(facts),
            Err(_) if self.is_json && is_packed(self.body) => Err(UNDECLARED_CODING),
            Err(ScanFault::Malformed { .. }) => Ok(RequestFacts::default()),
            Err(ScanFault::NotUtf8 | ScanFault::Trailing { .. }) if !self.is_json => {
                Ok(RequestFacts::default())
            }
            Err(fault) => Err(fault.refusal()),
        })
    }
}

/// By its first bytes gzip or zstd: a server that looks at them would unpack what we did not read.
fn is_packed(body: &[u8]) -> bool {
    body.starts_with(b"\x1f\x8b") || body.starts_with(b"\x28\xb5\x2f\xfd")
}

fn says_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}

/// RFC 9110 section 12.5.3: a 415 names the codings that there are.
const CODINGS: (&str, &str) = ("Accept-Encoding", "gzip, deflate, zstd, br");
const UNKNOWN_CODING: Refusal = Refusal::new(
    415,
    "unsupported_content_encoding",
    "The body is packed in a way that is not read here: one of gzip, deflate, zstd and br is.",
)
.with_field(&CODINGS);
const UNDECLARED_CODING: Refusal = Refusal::new(
    415,
    "undeclared_content_encoding",
    "The body is packed, and no Content-Encoding says so.",
)
.with_field(&CODINGS);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::limits::HEAD_BYTES_MAX;

    fn with_head<T>(fields: &str, ask: impl FnOnce(&RequestHead, &[u8]) -> T) -> T {
        let bytes = format!("POST /x HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
        let mut head = RequestHead::default();
        head.parse(&bytes, HEAD_BYTES_MAX).unwrap();
        ask(&head, &bytes)
    }

    #[test]
    fn json_is_recognised_by_its_essence() {
        for yes in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(says_json(yes.as_bytes()), "{yes}");
        }
        for no in ["text/plain", "multipart/form-data; boundary=application/json", "", "+json"] {
            assert!(!says_json(no.as_bytes()), "{no}");
        }
    }

    /// Catches: a field by which a body goes unread.
    #[test]
    fn one_coding_is_read_and_no_coding_is_plain() {
        let of = |fields: &str| with_head(fields, coding).map_err(|refusal| refusal.status);
        for plain in ["", "Content-Encoding: identity\r\n", "content-encoding:\r\n"] {
            assert_eq!(of(plain), Ok(None), "{plain}");
        }
        for (fields, coding) in [
            ("Content-Encoding: gzip\r\n", Coding::Gzip),
            ("Content-Encoding: X-GZIP\r\n", Coding::Gzip),
            ("Content-Encoding: deflate\r\n", Coding::Deflate),
            ("Content-Encoding: br\r\n", Coding::Brotli),
            ("X-Body-Compressed: zstd\r\n", Coding::Zstd),
            ("Content-Encoding: identity\r\nContent-Encoding: zstd\r\n", Coding::Zstd),
        ] {
            assert_eq!(of(fields), Ok(Some(coding)), "{fields}");
        }
        for fields in [
            "Content-Encoding: gzip, gzip\r\n",
            "Content-Encoding: gzip\r\nContent-Encoding: gzip\r\n",
            "Content-Encoding: zstd\r\nx-body-compressed: zstd\r\n",
            "Content-Encoding: identity, gzip\r\n",
            "Content-Encoding: compress\r\n",
            "x-body-compressed: yes\r\n",
        ] {
            assert_eq!(of(fields), Err(415), "{fields}");
        }
    }

    /// Catches: a body that an engine reads and we do not, or an engine's own error that is
    /// replaced by ours.
    #[test]
    fn what_no_parser_reads_goes_on_and_what_two_read_differently_does_not() {
        let code = |fields: &str, body: &[u8], dialect| {
            with_head(fields, |head, bytes| {
                let found = Reading::new(head, bytes, body, dialect).step(usize::MAX).unwrap();
                found.map_err(|refusal| refusal.code).err()
            })
        };
        let (form, json) = ("Content-Type: multipart/form-data; boundary=x\r\n", "");
        let (chat, audio) = (Dialect::OpenAi, Dialect::Transcriptions);
        for body in [&b"{"[..], b"nonsense", b"{\"a\":1,}", b" "] {
            assert_eq!(code(json, body, chat), None, "{body:?}");
        }
        for (body, refused) in [
            (&b"{\"model\":\"a\",\"model\":\"b\"}"[..], "duplicate_key"),
            (b"{\"model\":\"a\"} x", "invalid_json"),
            (b"{\"a\":\"\xff\"}", "invalid_json"),
            (b"{\0", "invalid_json"),
            (b"\x1f\x8b\x08", "undeclared_content_encoding"),
            (b"\x28\xb5\x2f\xfd\x00", "undeclared_content_encoding"),
        ] {
            for fields in [form, json, "Content-Type: text/plain\r\n"] {
                assert_eq!(code(fields, body, chat), Some(refused), "{fields} {body:?}");
            }
        }
        // What is a form, or a file, is none of these; what is JSON all the same is read as that.
        for body in [&b"--x\r\n\xff"[..], b"1 2", b"\x1f\x8b\x08"] {
            assert_eq!(code(form, body, audio), None, "{body:?}");
        }
        let twice = b"{\"model\":\"a\",\"model\":\"b\"}";
        assert_eq!(code(form, twice, audio), Some("duplicate_key"));
    }
}
