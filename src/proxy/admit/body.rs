//! What a request body says of itself. Read once, strictly; routing, limits and records all go by
//! this one reading.

use crate::base::refusal::Refusal;
use crate::http::field::Known;
use crate::http::request::{Method, RequestHead};
use crate::llm::request::{scan, RequestFacts, ScanFault};

/// The facts of a body; none when it is not JSON that we read.
///
/// A body that is declared as JSON must be JSON (400 otherwise). Engines read JSON whatever it is
/// called: one that is not declared must not be readable in two ways either, but need not be JSON.
/// Forms and compressed bodies pass unread: no policy depends on them yet.
pub fn facts<'a>(
    head: &RequestHead,
    head_bytes: &[u8],
    body: &'a [u8],
) -> Result<RequestFacts<'a>, Refusal> {
    if head.method != Method::Post || body.is_empty() {
        return Ok(RequestFacts::default());
    }
    let field = |known| head.fields.iter().find(|f| f.known == known);
    if field(Known::ContentEncoding).is_some() {
        return Ok(RequestFacts::default());
    }
    let declared = field(Known::ContentType).map(|f| f.value.of(head_bytes)).unwrap_or_default();
    if is_form(declared) {
        return Ok(RequestFacts::default());
    }
    match scan(body) {
        Err(fault) if is_json(declared) || !is_not_json(fault) => Err(fault.refusal()),
        facts => Ok(facts.unwrap_or_default()),
    }
}

/// The body is not JSON, as opposed to JSON that two readers may take for two things.
fn is_not_json(fault: ScanFault) -> bool {
    matches!(fault, ScanFault::Malformed { .. } | ScanFault::NotUtf8)
}

fn is_form(content_type: &[u8]) -> bool {
    let form = content_type.get(..FORM.len());
    form.is_some_and(|start| start.eq_ignore_ascii_case(FORM))
}

const FORM: &[u8] = b"multipart/form-data";

fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || (essence.len() > 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_is_recognised_by_its_essence() {
        for yes in ["application/json", "Application/JSON; charset=utf-8", "application/x+json"] {
            assert!(is_json(yes.as_bytes()), "{yes}");
        }
        for no in ["text/plain", "multipart/form-data; boundary=application/json", "", "+json"] {
            assert!(!is_json(no.as_bytes()), "{no}");
        }
    }
}
