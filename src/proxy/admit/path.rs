//! Which paths exist: three of our own, and those of LLM engines that the plan lets through.

use crate::base::refusal::Refusal;
use crate::config::plan::Plan;
use crate::http::request::Method;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/health`: the process lives.
    Health,
    /// `/ready`: at least one backend is healthy and the process does not drain.
    Ready,
    /// The metrics page.
    Metrics,
    /// For a backend.
    Forward,
}

/// Finds out what a path is for; 404 when it is for nothing.
pub fn classify(path: &[u8], method: Method, plan: &Plan) -> Result<Kind, Refusal> {
    let reads = matches!(method, Method::Get | Method::Head);
    let own = match path {
        b"/health" => Some(Kind::Health),
        b"/ready" => Some(Kind::Ready),
        _ => match &plan.metrics {
            Some(metrics) if metrics.listen.is_none() && metrics.path.as_bytes() == path => {
                Some(Kind::Metrics)
            }
            _ => None,
        },
    };
    match own {
        Some(kind) if reads => Ok(kind),
        Some(_) => Err(METHOD_NOT_ALLOWED),
        None if has_dot_segment(path) => Err(BAD_PATH),
        None if plan.server.paths.iter().any(|pattern| matches(pattern, path)) => Ok(Kind::Forward),
        None => Err(NOT_FOUND),
    }
}

fn matches(pattern: &str, path: &[u8]) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix.as_bytes()),
        None => path == pattern.as_bytes(),
    }
}

/// `/v1/../metrics` would pass a prefix rule here and mean another path at the engine. Engines
/// decode before they resolve, so the encoded forms of dots and slashes count too (RFC 3986
/// section 6.2.2). One pass: a path of slashes must not cost more than another.
fn has_dot_segment(path: &[u8]) -> bool {
    // Without a dot or an escape there is none, and that is what paths are like.
    memchr::memchr2(b'.', b'%', path).is_some() && has_odd_dot_segment(path)
}

fn has_odd_dot_segment(path: &[u8]) -> bool {
    let mut rest = path;
    let mut dots = 0;
    let mut other = false;
    loop {
        let (separator, tail) = match rest {
            [] => return !other && (dots == 1 || dots == 2),
            [b'/' | b'\\', tail @ ..] => (true, tail),
            [b'%', b'2', b'f' | b'F', tail @ ..] => (true, tail),
            [b'%', b'5', b'c' | b'C', tail @ ..] => (true, tail),
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => {
                dots += 1;
                (false, tail)
            }
            [_, tail @ ..] => {
                other = true;
                (false, tail)
            }
        };
        if separator {
            if !other && (dots == 1 || dots == 2) {
                return true;
            }
            dots = 0;
            other = false;
        }
        rest = tail;
    }
}

/// The label of a path in metrics and records. A fixed set: a client cannot make series.
pub fn label(path: &[u8]) -> &'static str {
    const LABELS: &[&str] = &[
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/score",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/moderations",
        "/generate",
        "/generate_stream",
        "/api/chat",
        "/api/generate",
        "/api/embed",
        "/api/embeddings",
        "/api/tags",
        "/tokenize",
        "/detokenize",
        "/embed",
        "/rerank",
        "/score",
        "/classify",
        "/pooling",
        "/completion",
        "/infill",
        "/health",
        "/ready",
        "/metrics",
    ];
    LABELS.iter().find(|label| label.as_bytes() == path).unwrap_or(&"other")
}

const NOT_FOUND: Refusal =
    Refusal::new(404, "unknown_path", "This path is not served. LLM APIs live under /v1/.");
const METHOD_NOT_ALLOWED: Refusal =
    Refusal::new(405, "method_not_allowed", "This path answers GET and HEAD only.");
const BAD_PATH: Refusal =
    Refusal::new(400, "bad_path", "The path has a dot segment, which engines read differently.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_are_found_in_every_spelling() {
        for bad in [
            "/v1/../metrics",
            "/v1/..",
            "/v1/./x",
            "/v1/%2e%2e/metrics",
            "/v1/.%2E/metrics",
            "/v1/..%2fmetrics",
            "/v1/x%2f..%2fmetrics",
            "/v1/x%2F%2e%2e",
            "/v1\\..\\metrics",
            "/v1/..%5cmetrics",
            "/v1/...%2f..%2f..%2fmetrics",
            "/v1/%2f%2f%2e%2f",
        ] {
            assert!(has_dot_segment(bad.as_bytes()), "{bad}");
        }
        for good in ["/v1/models/a.b", "/v1/models/..x", "/v1/...", "/", "/v1/models/org%2fname"] {
            assert!(!has_dot_segment(good.as_bytes()), "{good}");
        }
    }

    #[test]
    fn patterns_are_exact_or_prefixes() {
        assert!(matches("/v1/*", b"/v1/chat/completions"));
        assert!(!matches("/v1/*", b"/v2/rerank"));
        assert!(matches("/rerank", b"/rerank"));
        assert!(!matches("/rerank", b"/rerank/x"));
    }

    #[test]
    fn a_client_cannot_make_labels() {
        assert_eq!(label(b"/v1/chat/completions"), "/v1/chat/completions");
        assert_eq!(label(b"/v1/chat/completions/x"), "other");
    }
}
