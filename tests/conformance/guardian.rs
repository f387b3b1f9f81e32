//! The corpus of http_desync_guardian: requests in four tiers of danger.

use std::fs;
use std::path::Path;

use crate::readback::leak;
use crate::relay::{relay, End};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    uri: String,
    method: String,
    version: String,
    headers: Option<Vec<Header>>,
    expected: Verdict,
}

#[derive(serde::Deserialize)]
struct Header {
    name: serde_yaml::Value,
    value: serde_yaml::Value,
}

#[derive(serde::Deserialize)]
struct Verdict {
    tier: String,
}

const FILES: [&str; 9] = [
    "acceptable",
    "ambiguous",
    "bad-header-characters",
    "edge-cases",
    "more-compliant-tests",
    "real-life-test-cases",
    "rfc-compliant",
    "severe",
    "uri-specific-test-cases",
];

fn cases(tier: &str) -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/desync_guardian");
    let read = |file: &&str| -> Vec<Case> {
        let text = fs::read_to_string(folder.join(format!("{file}.yaml"))).unwrap();
        serde_yaml::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
    };
    FILES.iter().flat_map(read).filter(|case| case.expected.tier == tier).collect()
}

/// The corpus writes some bytes as `\x01` inside its strings.
fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        out.push(match (c, (c == '\\').then(|| rest.next()).flatten()) {
            ('\\', Some('x')) => {
                let hex: String = rest.by_ref().take(2).collect();
                char::from(u8::from_str_radix(&hex, 16).unwrap())
            }
            ('\\', Some('b')) => '\x08',
            ('\\', Some('f')) => '\x0c',
            ('\\', Some('n')) => '\n',
            ('\\', Some('r')) => '\r',
            ('\\', Some('t')) => '\t',
            ('\\', Some(other)) => other,
            (c, _) => c,
        });
    }
    out
}

fn text(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::String(text) => unescape(text),
        serde_yaml::Value::Number(number) => number.to_string(),
        other => panic!("neither text nor number: {other:?}"),
    }
}

/// Announced bodies are rendered up to this.
const BODY_BYTES_MAX: usize = 100_000;

/// A case as bytes: with a Host, which the corpus leaves out, and with the body it announces.
fn render(case: &Case) -> Vec<u8> {
    let headers: Vec<(String, String)> =
        case.headers.iter().flatten().map(|h| (text(&h.name), text(&h.value))).collect();
    let version = unescape(&case.version);
    let space = if version.is_empty() { "" } else { " " };
    let mut out = format!("{} {}{space}{version}\r\n", case.method, unescape(&case.uri));
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        out.push_str("Host: corpus.test\r\n");
    }
    let mut body = String::new();
    for (name, value) in &headers {
        out.push_str(&format!("{name}: {value}\r\n"));
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "transfer-encoding" => body = "5\r\nhello\r\n0\r\n\r\n".to_owned(),
            "content-length" if body.is_empty() => {
                body = "x".repeat(value.parse().unwrap_or(0).min(BODY_BYTES_MAX));
            }
            _ => {}
        }
    }
    (out + "\r\n" + &body).into_bytes()
}

/// All requests of the corpus.
pub fn all() -> Vec<Vec<u8>> {
    let tiers = ["Severe", "Ambiguous", "Acceptable", "Compliant"];
    tiers.iter().flat_map(|tier| cases(tier)).map(|case| render(&case)).collect()
}

/// Refused or, where that is enough, closed after the answer. Gives how many were refused.
fn judge(tier: &str, count: usize, closing_is_enough: bool) -> usize {
    let cases = cases(tier);
    assert_eq!(cases.len(), count, "{tier}");
    let mut refused = 0;
    for case in &cases {
        let bytes = render(case);
        let (sent, end) = relay(&bytes, bytes.len());
        for request in &sent {
            assert_eq!(leak(request), None, "{tier}: {}", case.name);
        }
        match end {
            End::Refused(..) => refused += 1,
            End::Closed if closing_is_enough => println!("  closed: {}", case.name),
            other => {
                panic!("{tier}: {}: {other:?}\n{}", case.name, String::from_utf8_lossy(&bytes))
            }
        }
    }
    println!("guardian {tier}: {refused} of {count} refused, {} closed, 0 leaked", count - refused);
    refused
}

#[test]
fn severe_requests_are_refused() {
    assert_eq!(judge("Severe", 58, false), 58);
}

#[test]
fn ambiguous_requests_are_refused_or_end_the_connection() {
    judge("Ambiguous", 57, true);
}

/// Compliant requests are served, but for those that break a rule we hold on purpose.
#[test]
fn compliant_requests_are_served() {
    let cases = cases("Compliant");
    let mut refusals = Vec::new();
    for case in &cases {
        let bytes = render(case);
        let (sent, end) = relay(&bytes, bytes.len());
        match end {
            End::Open | End::Closed => assert_eq!(sent.len(), 1, "{}", case.name),
            End::Refused(_, code) => refusals.push((case.name.as_str(), code)),
            // Only for a body of which not all is rendered: its head was accepted.
            End::Waiting => assert!(bytes.len() > BODY_BYTES_MAX, "{} waits", case.name),
        }
        for request in &sent {
            assert_eq!(leak(request), None, "{}", case.name);
        }
    }
    println!(
        "guardian Compliant: {} of {} served; refused:",
        cases.len() - refusals.len(),
        cases.len()
    );
    for (name, code) in &refusals {
        println!("  {code:32} {name}");
    }
    assert_eq!(refusals, STRICTER);
}

/// Grammatical requests that are refused all the same: transfer codings other than chunked alone,
/// and (grammatical for the corpus only) targets with a fragment, 8-bit bytes, or nothing.
const STRICTER: [(&str, &str); 10] = [
    ("Correct TE OK", "transfer_coding_not_implemented"),
    ("Transfer-Encoding: identity and chunked OK", "transfer_coding_not_implemented"),
    (
        "Multiple transfer encoding headers in a single request OK",
        "transfer_coding_not_implemented",
    ),
    ("TE with custom parameters OK", "bad_transfer_encoding"),
    ("Different Transfer-Encoding headers", "transfer_coding_not_implemented"),
    ("Different Transfer-Encoding headers combined", "transfer_coding_not_implemented"),
    ("Transfer-Encoding with a param: chunked;custom_param", "bad_transfer_encoding"),
    ("Compliant URL", "bad_target"),
    ("International in URI", "bad_target"),
    ("Empty URI", "bad_request_line"),
];

/// Tolerable requests may be served or refused; none may leak.
#[test]
fn acceptable_requests_do_not_leak() {
    let cases = cases("Acceptable");
    let mut refused = 0;
    for case in &cases {
        let bytes = render(case);
        let (sent, end) = relay(&bytes, bytes.len());
        refused += usize::from(matches!(end, End::Refused(..)));
        for request in &sent {
            assert_eq!(leak(request), None, "{}", case.name);
        }
    }
    println!("guardian Acceptable: {refused} of {} refused, 0 leaked", cases.len());
}
