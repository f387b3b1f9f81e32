//! What a request body says of itself. Read once, strictly; routing, limits and records all go by
//! this one reading.

use crate::base::refusal::Refusal;
use crate::http::field::Known;
use crate::http::request::RequestHead;
use crate::llm::dialect::Dialect;
use crate::llm::form::FormScan;
use crate::llm::inflate::Coding;
use crate::llm::request::prompt::PromptSpans;
use crate::llm::request::{BodyScan, RequestFacts, ScanFault};
use std::borrow::Cow;

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
/// its clients know. Where it matters which model is named, nothing goes on that an engine might
/// read and we did not.
pub struct Reading<'a> {
    body: &'a [u8],
    is_json: bool,
    is_ruled: bool,
    form: Form<'a>,
    scan: BodyScan<'a>,
    /// Of a form that begins as it must. No parser of JSON reads such a body.
    parts: Option<FormScan<'a>>,
}

/// How a body must begin. There are servers that answer before they have read a body, and then take
/// it for the next request of the same connection: none may begin with what a client chose to look
/// like one.
enum Form<'a> {
    /// With an object or an array.
    Json,
    /// With this boundary.
    Multipart(&'a [u8]),
    /// In any way: nobody knows what the path is for.
    Any,
}

impl<'a> Reading<'a> {
    /// Of a body that has not been read yet. `is_known`: its path is one of those of engines;
    /// `is_ruled`: it matters which model the body names.
    pub fn new(
        head: &RequestHead,
        head_bytes: &'a [u8],
        body: &'a [u8],
        (dialect, is_known, is_ruled): (Dialect, bool, bool),
    ) -> Reading<'a> {
        let declared = head.first(head_bytes, Known::ContentType).unwrap_or_default();
        // Elsewhere a body may be a form or a file.
        let is_json_path = !matches!(dialect, Dialect::Other | Dialect::Transcriptions);
        let says_json = says_json(declared);
        let form = match boundary(declared) {
            _ if is_json_path || says_json => Form::Json,
            Some(boundary) => Form::Multipart(boundary),
            None if is_known => Form::Json,
            None => Form::Any,
        };
        let scan = match reads_old_name(head.path(head_bytes), dialect) {
            true => BodyScan::new(body).with_old_name(),
            false => BodyScan::new(body),
        };
        let is_read = is_ruled && matches!(form, Form::Json);
        let is_json = is_json_path || declared.is_empty() || says_json || is_read;
        let parts = match form {
            Form::Multipart(boundary) if begins_with(body, boundary) => {
                Some(FormScan::new(declared_once(head, head_bytes), boundary, body))
            }
            _ => None,
        };
        Reading { body, is_json, is_ruled, form, scan, parts }
    }

    /// Notes where the prompt stands.
    pub fn with_prompt(self) -> Reading<'a> {
        Reading { scan: self.scan.with_prompt(), ..self }
    }

    /// Where it stands, once all is read; `None`: nobody wanted to know.
    pub fn prompt(&self) -> Option<&PromptSpans> {
        self.scan.prompt()
    }

    /// Reads about so many bytes more; `None`: there is still more to be read.
    pub fn step(&mut self, bytes: usize) -> Option<Result<RequestFacts<'a>, Refusal>> {
        if self.body.is_empty() {
            return Some(Ok(RequestFacts::default()));
        }
        if let Some(parts) = &mut self.parts {
            return Some(match parts.step(bytes)? {
                Ok(found) => {
                    let (model, model_span) = found.unzip();
                    let model = model.map(Cow::Borrowed);
                    Ok(RequestFacts { model, model_span, is_form: true, ..RequestFacts::default() })
                }
                Err(fault) if self.is_ruled => Err(fault.refusal()),
                // Its engine reads it, or refuses it in its own words.
                Err(_) => Ok(RequestFacts::default()),
            });
        }
        Some(match self.scan.step(bytes)? {
            Err(_) if self.is_json && is_packed(self.body) => Err(UNDECLARED_CODING),
            _ if !self.begins_well() => Err(match self.form {
                Form::Multipart(_) => NOT_MULTIPART,
                _ => NOT_JSON,
            }),
            Ok(facts) => Ok(facts),
            Err(ScanFault::Malformed { .. }) => Ok(RequestFacts::default()),
            Err(ScanFault::NotUtf8 | ScanFault::Trailing { .. }) if !self.is_json => {
                Ok(RequestFacts::default())
            }
            Err(fault) => Err(fault.refusal()),
        })
    }

    fn begins_well(&self) -> bool {
        match self.form {
            Form::Json => matches!(self.scan.opening(), Some(b'{' | b'[')),
            Form::Multipart(boundary) => begins_with(self.body, boundary),
            Form::Any => true,
        }
    }
}

fn begins_with(body: &[u8], boundary: &[u8]) -> bool {
    let first = body.strip_prefix(b"--").unwrap_or_default();
    !boundary.is_empty() && first.starts_with(boundary)
}

/// The content type; an empty one when there are several, of which engines might take any.
fn declared_once<'a>(head: &RequestHead, head_bytes: &'a [u8]) -> &'a [u8] {
    let mut all = head.fields.iter().filter(|field| field.known == Known::ContentType);
    match (all.next(), all.next()) {
        (Some(only), None) => only.value.of(head_bytes),
        _ => &[],
    }
}

/// Whether the path is one of Ollama's that are about a model instead of asking it: there the key
/// `name` still stands for `model`.
fn reads_old_name(path: &[u8], dialect: Dialect) -> bool {
    path.starts_with(b"/api/") && dialect != Dialect::Ollama
}

/// The boundary that a content type of several parts names; an empty one when it is not one word,
/// which no body begins with.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let mut parameters = content_type.split(|b| *b == b';').map(<[u8]>::trim_ascii);
    let kind = parameters.next().and_then(|essence| essence.split_at_checked(MULTIPART.len()))?.0;
    if !kind.eq_ignore_ascii_case(MULTIPART) {
        return None;
    }
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_at_checked(BOUNDARY.len())?;
        name.eq_ignore_ascii_case(BOUNDARY).then_some(value)
    });
    let value = value.unwrap_or_default();
    let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    let value = bare.unwrap_or(value);
    Some(if value.iter().all(u8::is_ascii_graphic) { value } else { &[] })
}

const MULTIPART: &[u8] = b"multipart/";
const BOUNDARY: &[u8] = b"boundary=";

/// By its first bytes gzip or zstd: a server that looks at them would unpack what we did not read.
fn is_packed(body: &[u8]) -> bool {
    body.starts_with(b"\x1f\x8b") || body.starts_with(b"\x28\xb5\x2f\xfd")
}

fn says_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}

const NOT_JSON: Refusal = Refusal::new(
    400,
    "not_json",
    "The body of a request to this path is a JSON object: it begins with `{`.",
);
const NOT_MULTIPART: Refusal = Refusal::new(
    400,
    "not_multipart",
    "The body does not begin with the boundary that its Content-Type names, one word behind `--`.",
);

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
                let path = (dialect, dialect != Dialect::Other, false);
                let found = Reading::new(head, bytes, body, path).step(usize::MAX).unwrap();
                found.map_err(|refusal| refusal.code).err()
            })
        };
        let (form, json) = ("Content-Type: multipart/form-data; boundary=x\r\n", "");
        let (chat, audio) = (Dialect::OpenAi, Dialect::Transcriptions);
        for body in [&b"{"[..], b"[nonsense", b"{\"a\":1,}", b"\xef\xbb\xbf\r\n{x"] {
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
        for body in [&b"--x\r\n\xff"[..], b"--x{1 2"] {
            assert_eq!(code(form, body, audio), None, "{body:?}");
        }
        for body in [&b"1 2"[..], b"\x1f\x8b\x08", b"\xff"] {
            assert_eq!(code("Content-Type: audio/wav\r\n", body, Dialect::Other), None, "{body:?}");
        }
        let twice = b"{\"model\":\"a\",\"model\":\"b\"}";
        assert_eq!(code("Content-Type: text/plain\r\n", twice, audio), Some("duplicate_key"));
    }

    /// Catches: a model that an engine reads and we do not, where it matters; a body that is
    /// refused for it where it does not.
    #[test]
    fn where_models_matter_nothing_goes_on_unread() {
        let read = |fields: &str, body: &[u8], is_ruled| {
            with_head(fields, |head, bytes| {
                let path = (Dialect::Transcriptions, true, is_ruled);
                let found = Reading::new(head, bytes, body, path).step(usize::MAX).unwrap();
                let model = |facts: RequestFacts<'_>| facts.model.map(Cow::into_owned);
                found.map(model).map_err(|refusal| refusal.code)
            })
        };
        let form = "Content-Type: multipart/form-data; boundary=x\r\n";
        let part = "Content-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n";
        let (once, twice) =
            (format!("--x\r\n{part}--x--"), format!("--x\r\n{part}--x\r\n{part}--x--"));
        let bad = format!("--x\n{part}--x--");
        for is_ruled in [true, false] {
            assert_eq!(read(form, once.as_bytes(), is_ruled), Ok(Some("whisper".to_owned())));
        }
        let two_types = format!("{form}{form}");
        for (fields, body, code) in [
            (form, twice.as_bytes(), "duplicate_key"),
            (form, bad.as_bytes(), "bad_multipart"),
            (&two_types, once.as_bytes(), "bad_multipart"),
            (
                "Content-Type: text/plain\r\n",
                &b"{\"model\":\"a\"} {\"model\":\"b\"}"[..],
                "invalid_json",
            ),
        ] {
            assert_eq!(read(fields, body, true), Err(code), "{fields}");
            assert_eq!(read(fields, body, false), Ok(None), "{fields}");
        }
    }

    /// Catches: a body that a server, which did not read it, executes as the next request.
    #[test]
    fn no_body_begins_like_a_request() {
        let code = |fields: &str, body: &[u8], (dialect, is_known)| {
            with_head(fields, |head, bytes| {
                let path = (dialect, is_known, false);
                let found = Reading::new(head, bytes, body, path).step(usize::MAX).unwrap();
                found.map_err(|refusal| refusal.code).err()
            })
        };
        let (chat, audio) = ((Dialect::OpenAi, true), (Dialect::Transcriptions, true));
        let (rerank, other) = ((Dialect::Other, true), (Dialect::Other, false));
        let request = b"\r\n\r\nPOST /sleep HTTP/1.1\r\nHost: h\r\n\r\n";
        let form = "Content-Type: multipart/form-data; boundary=\"x\"\r\n";
        let two_words = "Content-Type: multipart/form-data; boundary=\"x /sleep HTTP/1.1\"\r\n";
        let none = "Content-Type: Multipart/form-data; charset=a\r\n";
        for fields in ["", "Content-Type: text/plain\r\n", "Content-Type: application/json\r\n"] {
            for path in [chat, audio, rerank] {
                for body in [&request[..], b"--x\r\n", b"\"a\"", b" "] {
                    assert_eq!(code(fields, body, path), Some("not_json"), "{fields} {path:?}");
                }
                assert_eq!(code(fields, b"\n[1]", path), None);
            }
        }
        assert_eq!(code(form, b"--x\r\n", chat), Some("not_json"));
        for path in [audio, rerank, other] {
            assert_eq!(code(form, b"--x\r\n", path), None);
            for body in [&request[..], b"\r\n--x\r\n", b"x", b"{}"] {
                assert_eq!(code(form, body, path), Some("not_multipart"), "{path:?}");
            }
            assert_eq!(code(two_words, b"--x /sleep HTTP/1.1\r\n", path), Some("not_multipart"));
            assert_eq!(code(none, b"--x\r\n", path), Some("not_multipart"));
        }
        assert_eq!(code("Content-Type: text/plain\r\n", request, other), None);
    }
}
