//! The same corpora over sockets: the real binary, and a backend that keeps each byte it gets.

use crate::harness::message::{find, Head};
use crate::harness::{Backend, Config, Proxy};
use crate::readback::leak;
use crate::relay::{relay, End, Forwarded};
use crate::{guardian, gunicorn};
use llmproxy::http::path::normalise;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Requests = Arc<Mutex<Vec<Vec<u8>>>>;

/// Catches: bytes that leave the proxy in another shape than its parser and writer alone give them
/// (a body cut short, a second request behind the first, bytes of a refused one), a refusal that
/// the connection loop does not send, and input that ends the process.
#[test]
fn what_arrives_at_a_backend_is_what_was_meant() {
    let arrived = Requests::default();
    let backend = keeping_backend(Arc::clone(&arrived));
    // Nothing in the corpora takes a second; what waits for more is let go by the test.
    let proxy = Config::backend_at(backend.url()).server("paths: [\"/v1/*\"]").start();
    let (mut forwarded, mut refused, mut count) = (0, 0, 0);
    for bytes in gunicorn::all().iter().chain(&guardian::all()) {
        let bytes = under_v1(bytes);
        let (sent, end) = relay(&bytes, bytes.len());
        // What is not below /v1 gets our own answer, and so does what can be read in two ways.
        let doubt = sent.iter().find_map(doubt);
        let end = doubt.map_or(end, |(status, code)| End::Refused(status, code));
        let fine = |request: &Forwarded| self::doubt(request).is_none();
        let sent: Vec<Forwarded> = sent.into_iter().take_while(fine).map(as_forwarded).collect();
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]).into_owned();
        refused += usize::from(replay(&proxy, &bytes, &sent, &end, &shown));
        let got = std::mem::take(&mut *arrived.lock().unwrap());
        assert_eq!(got.len(), sent.len(), "{shown}\n{end:?}");
        for (got, meant) in got.into_iter().zip(sent) {
            let got = Forwarded { bytes: got, ..meant };
            let raw = String::from_utf8_lossy(&got.bytes);
            assert_eq!(leak(&got), None, "{shown}\n became\n{raw}");
            forwarded += 1;
        }
        count += 1;
    }
    println!("over sockets: {count} cases, {forwarded} requests forwarded, {refused} refused");
    // Fewer go on than without sockets: some have a body that their method gives no meaning to.
    assert!(refused >= 213 && forwarded >= 36, "{refused} refused, {forwarded} forwarded");
    assert!(proxy.process.try_status().is_none());
    assert_eq!(proxy.metric("llmproxy_panics_total", &[]), 0.0);
}

/// Sends a case and reads the answers that it must get; true when the last refuses its bytes.
fn replay(proxy: &Proxy, bytes: &[u8], sent: &[Forwarded], end: &End, shown: &str) -> bool {
    let mut conn = proxy.connect();
    // A refusal may close the connection before all is sent.
    conn.try_send(bytes);
    for request in sent {
        let response = match request.method.as_str() {
            "HEAD" => conn.response_to_head(),
            _ => conn.response(),
        };
        assert_eq!(response.status(), 200, "{shown}\n{}", response.text());
    }
    let End::Refused(status, code) = end else { return false };
    if *code == "unexpected_body" && bytes.starts_with(b"HEAD") {
        assert_eq!(conn.response_to_head().status(), *status, "{shown}");
        return true;
    }
    let response = conn.response();
    assert_eq!(response.status(), *status, "{shown}\n{}", response.text());
    // What is wrong with a chunk stands in the message.
    assert!(response.text().contains(code), "{shown}\n{code}: {}", response.text());
    if *status == 404 || *code == "bad_path" {
        return false;
    }
    conn.assert_closes_within(Duration::from_secs(10));
    true
}

/// Why a request with a sound head is refused.
fn doubt(request: &Forwarded) -> Option<(u16, &'static str)> {
    let bodiless = matches!(request.method.as_str(), "GET" | "HEAD" | "DELETE" | "OPTIONS");
    let mut path = path(request).to_vec();
    match normalise(&mut path) {
        Err(_) => Some((400, "bad_path")),
        Ok(normal) if normal.encoded_slash => Some((400, "bad_path")),
        Ok(_) if !path.starts_with(b"/v1/") => Some((404, "unknown_path")),
        Ok(_) if bodiless && !request.body.is_empty() => Some((400, "unexpected_body")),
        Ok(_) => None,
    }
}

fn path(request: &Forwarded) -> &[u8] {
    request.target.split(|byte| *byte == b'?').next().unwrap()
}

/// With the path as it goes to a backend.
fn as_forwarded(mut request: Forwarded) -> Forwarded {
    let end = path(&request).len();
    let len = normalise(&mut request.target[..end]).unwrap().len;
    request.target.drain(len..end);
    request
}

/// The case with its first target below `/v1`, where backends are.
fn under_v1(bytes: &[u8]) -> Vec<u8> {
    let line = find(bytes, b"\r\n").unwrap_or(bytes.len());
    match find(&bytes[..line], b" /") {
        None => bytes.to_vec(),
        Some(at) => [&bytes[..=at], b"/v1", &bytes[at + 1..]].concat(),
    }
}

/// Answers each request and keeps it as it came. It frames by Content-Length alone: what the
/// product writes otherwise is an answer that never comes.
fn keeping_backend(arrived: Requests) -> Backend {
    Backend::start(move |served| {
        let (mut pending, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            let whole = find(&pending, b"\r\n\r\n").map(|end| {
                let length = Head::parse(&pending[..end]).get("content-length").map(str::parse);
                end + 4 + length.map_or(0, |length| length.unwrap_or(usize::MAX / 2))
            });
            if let Some(whole) = whole.filter(|whole| *whole <= pending.len()) {
                arrived.lock().unwrap().push(pending.drain(..whole).collect());
                if !served.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
                    return;
                }
                continue;
            }
            match served.stream().read_within(&mut buffer, Duration::from_secs(60)) {
                Ok(n) if n > 0 => pending.extend_from_slice(&buffer[..n]),
                _ => return,
            }
        }
    })
}
