//! Reads what a backend would get, twice: by our own strict parser, and by a reader written
//! against the grammar's plainest reading that shares no code with it.

use llmproxy::base::limits::HEAD_BYTES_MAX;
use llmproxy::http::framing::Framing;
use llmproxy::http::head::Parse;
use llmproxy::http::request::RequestHead;

use crate::relay::Forwarded;

/// A reason why a forwarded request could be read in another way than it was meant.
pub fn leak(sent: &Forwarded) -> Option<String> {
    ours(sent).err().or_else(|| plain(sent).err()).or_else(|| httparse(sent).err())
}

fn ours(sent: &Forwarded) -> Result<(), String> {
    let mut head = RequestHead::default();
    let len = match head.parse(&sent.bytes, 2 * HEAD_BYTES_MAX) {
        Ok(Parse::Done { len }) => len,
        Ok(Parse::Partial) => return Err("our head has no end".into()),
        // A head at a limit grows beyond it by the fields that we add: refused, not misread.
        Err(refusal) if refusal.code == "too_many_fields" => return Ok(()),
        Err(refusal) => return Err(refusal.code.to_owned()),
    };
    let body = match head.framing {
        Framing::None => 0,
        Framing::Length(length) => length as usize,
        Framing::Chunked => return Err("chunks were not written".into()),
    };
    check(len + body == sent.bytes.len(), "our length")?;
    check(sent.bytes[len..] == sent.body, "our body")?;
    check(head.method_span.of(&sent.bytes) == sent.method.as_bytes(), "our method")?;
    check(head.path(&sent.bytes).starts_with(b"/") || head.path(&sent.bytes) == b"*", "our path")
}

/// Lines end at any LF, and every field that smells of framing counts, whatever stands between its
/// letters: the reader that would be fooled first.
fn plain(sent: &Forwarded) -> Result<(), String> {
    let end = find(&sent.bytes, b"\r\n\r\n").ok_or("no blank line")?;
    check(!sent.bytes[..end].windows(2).any(|w| w[1] == b'\n' && w[0] != b'\r'), "bare LF")?;
    let text: String = sent.bytes[..end].iter().map(|b| char::from(*b)).collect();
    check(
        !text.chars().any(|c| c.is_control() && c < '\u{80}' && !"\r\n\t".contains(c)),
        "control",
    )?;
    check(!text.replace("\r\n", "").contains(['\r', '\n']), "line end")?;
    let mut lines = text.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or("").split(' ').collect();
    check(first.len() == 3 && first[0] == sent.method && first[2] == "HTTP/1.1", "request line")?;
    let (mut lengths, mut hosts) = (Vec::new(), 0);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a line without a colon")?;
        check(!line.starts_with([' ', '\t']), "fold")?;
        check(!name.is_empty() && !name.contains([' ', '\t', '_']), "name")?;
        let lower = name.to_lowercase();
        let letters: String = lower.chars().filter(|c| c.is_alphanumeric()).collect();
        match (lower.as_str(), letters.as_str()) {
            (_, "contentlength") => lengths.push(value.trim().to_owned()),
            ("host", _) => hosts += 1,
            (_, "transferencoding")
            | ("connection" | "keep-alive" | "te" | "trailer" | "upgrade" | "expect", _)
            | ("proxy-connection" | "proxy-authorization" | "proxy-authenticate", _) => {
                return Err(format!("{name} was forwarded"));
            }
            _ => {}
        }
    }
    check(hosts == 1, "one Host")?;
    let length = match lengths.as_slice() {
        [] => 0,
        [one] => one.parse::<usize>().map_err(|e| e.to_string())?,
        _ => return Err("two lengths".into()),
    };
    check(sent.bytes.len() == end + 4 + length, "length")
}

/// The same bytes as `httparse` alone sees them.
fn httparse(sent: &Forwarded) -> Result<(), String> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(&sent.bytes).map_err(|e| e.to_string())?;
    check(parsed == httparse::Status::Complete(sent.bytes.len() - sent.body.len()), "head")?;
    check(request.method == Some(sent.method.as_str()), "method")?;
    let path = request.path.unwrap_or_default().as_bytes();
    check(path == sent.target || path == [b"/", sent.target.as_slice()].concat(), "target")?;
    let has = |(name, value): &(Vec<u8>, Vec<u8>)| {
        request.headers.iter().any(|h| h.name.as_bytes() == name && h.value == value)
    };
    let ours = |name: &[u8]| {
        let lower = String::from_utf8_lossy(name).to_lowercase();
        lower == "x-request-id"
            || lower == "x-real-ip"
            || lower == "forwarded"
            || lower.starts_with("x-forwarded-")
    };
    let kept = sent.fields.iter().filter(|(name, _)| !ours(name));
    check(kept.clone().all(has), "a field was lost or changed")?;
    check(request.headers.len() <= kept.count() + 7, "a field was injected")
}

fn check(holds: bool, what: &str) -> Result<(), String> {
    if holds {
        Ok(())
    } else {
        Err(what.to_owned())
    }
}

pub fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}
