//! Paths in the one form in which they are classified, recorded and forwarded.
//!
//! Engines decode escapes before they look for a route: `/v1/%63hat/completions` is a chat to
//! them. So a path is brought into its plainest spelling (RFC 3986 section 6.2.2: escapes of
//! letters, digits and `-._~` are decoded, all others get capital digits), and the engine is sent
//! that spelling. A path that two servers could still take for two different ones is refused.

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPath(pub &'static str);

/// What became of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Normal {
    /// Bytes of it; never more than before.
    pub len: usize,
    /// It has an encoded slash (`%2F`): some servers see two segments there, others see one.
    pub encoded_slash: bool,
}

/// Brings a path (from its first slash on, without the query) into its plainest spelling, in
/// place. A path that is refused stays as it was.
///
/// # Errors
/// A broken escape; an escaped `%`, backslash, `;`, `?`, `#` or control character; escapes that
/// are not UTF-8; a backslash or `;` as it is; a dot segment or an empty one, in any spelling.
pub fn normalise(path: &mut [u8]) -> Result<Normal, BadPath> {
    if is_plain(path) {
        return Ok(Normal { len: path.len(), encoded_slash: false });
    }
    let encoded_slash = judge_escapes(path)?;
    judge_segments(path)?;
    Ok(Normal { len: respell(path), encoded_slash })
}

/// Nothing in it asks for a closer look, as in nearly all.
fn is_plain(path: &[u8]) -> bool {
    let mut before = b'/';
    path.iter().skip(1).all(|byte| match std::mem::replace(&mut before, *byte) {
        b'/' => !matches!(byte, b'%' | b'\\' | b';' | b'/' | b'.'),
        _ => !matches!(byte, b'%' | b'\\' | b';'),
    })
}

/// What clients ask for without a version although engines have it below `/v1`.
const UNVERSIONED: [&[u8]; 5] =
    [b"/chat/completions", b"/completions", b"/embeddings", b"/responses", b"/models"];

/// The base below which a path is asked for at a backend with this base path. One that ends in
/// `/v1` (as clients write their `base_url`) is not put before paths that have the version already,
/// nor before those that engines have beside it, such as `/ping` and `/generate`.
pub fn base_of<'a>(base: &'a str, path: &[u8]) -> &'a str {
    match base.strip_suffix("/v1") {
        Some(root) if !UNVERSIONED.contains(&path) => root,
        _ => base,
    }
}

const BROKEN: BadPath = BadPath("The path has a `%` without two hexadecimal digits behind it.");
const NOT_UTF8: BadPath = BadPath("The escapes of the path are not UTF-8.");
const DOUBTFUL: BadPath = BadPath(
    "The path has a backslash, a `;`, or an escape of one of these, of a control character, or \
     of `%`, `?` or `#`, which servers read in different ways.",
);
const DOT_SEGMENT: BadPath =
    BadPath("The path has a dot segment, which servers read in different ways.");
const EMPTY_SEGMENT: BadPath =
    BadPath("The path has two slashes in a row, which servers read in different ways.");

/// Whether one of the escapes is a slash; a fault when one may not stand in a path.
fn judge_escapes(path: &[u8]) -> Result<bool, BadPath> {
    let mut encoded_slash = false;
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            decoded.push(*first);
            continue;
        }
        let byte = escaped(tail).ok_or(BROKEN)?;
        match byte {
            b'/' => encoded_slash = true,
            b'\\' | b';' | b'%' | b'?' | b'#' | 0..=0x1f | 0x7f => return Err(DOUBTFUL),
            _ => {}
        }
        decoded.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    std::str::from_utf8(&decoded).map_err(|_| NOT_UTF8)?;
    Ok(encoded_slash)
}

/// The byte that two hexadecimal digits stand for.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
    u8::try_from(digit(0)? * 16 + digit(1)?).ok()
}

/// No segment may be a dot segment, and none but the last may be empty. Slashes and dots count in
/// every spelling.
fn judge_segments(path: &[u8]) -> Result<(), BadPath> {
    let mut rest = path.get(1..).unwrap_or_default();
    let (mut dots, mut others) = (0usize, false);
    loop {
        let (ends, tail) = match rest {
            [] => (true, rest),
            [b'\\' | b';', ..] => return Err(DOUBTFUL),
            [b'/', tail @ ..] | [b'%', b'2', b'f' | b'F', tail @ ..] => (true, tail),
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => {
                dots += 1;
                (false, tail)
            }
            [_, tail @ ..] => {
                others = true;
                (false, tail)
            }
        };
        if ends && !others && matches!(dots, 1 | 2) {
            return Err(DOT_SEGMENT);
        }
        if ends && rest.is_empty() {
            return Ok(());
        }
        if ends && !others && dots == 0 {
            return Err(EMPTY_SEGMENT);
        }
        if ends {
            (dots, others) = (0, false);
        }
        rest = tail;
    }
}

/// Rewrites a path whose escapes were judged; gives its new length.
fn respell(path: &mut [u8]) -> usize {
    let (mut from, mut to) = (0, 0);
    while let Some(first) = path.get(from).copied() {
        let escape = (first == b'%').then(|| path.get(from + 1..).and_then(escaped)).flatten();
        let (first, read, written) = match escape {
            Some(byte) if is_unreserved(byte) => (byte, 3, 1),
            Some(_) => (first, 3, 3),
            None => (first, 1, 1),
        };
        path[to] = first;
        for at in 1..written {
            path[to + at] = path[from + at].to_ascii_uppercase();
        }
        from += read;
        to += written;
    }
    to
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn normal(path: &str) -> Result<(String, bool), BadPath> {
        let mut bytes = path.as_bytes().to_vec();
        let result = normalise(&mut bytes);
        if result.is_err() {
            assert_eq!(bytes, path.as_bytes(), "what is refused is not changed");
        }
        let Normal { len, encoded_slash } = result?;
        Ok((String::from_utf8(bytes[..len].to_vec()).unwrap(), encoded_slash))
    }

    /// Catches: a spelling that an engine takes for chat and we take for something else.
    #[test]
    fn every_spelling_becomes_the_plain_one() {
        for (sent, plain) in [
            ("/v1/chat/completions", "/v1/chat/completions"),
            ("/v1/%63hat/completions", "/v1/chat/completions"),
            ("/%76%31/%63%68at/complet%69ons", "/v1/chat/completions"),
            ("/v1/chat/completions/", "/v1/chat/completions/"),
            ("/v1/models/a%2eb", "/v1/models/a.b"),
            ("/v1/models/a%3ab%c3%a9", "/v1/models/a%3Ab%C3%A9"),
            ("/v1/models/..x", "/v1/models/..x"),
            ("/v1/...", "/v1/..."),
            ("/%7E%2d%5F", "/~-_"),
            ("/", "/"),
        ] {
            assert_eq!(normal(sent), Ok((plain.to_owned(), false)), "{sent}");
        }
        let slash = "/v1/models/org%2fname";
        assert_eq!(normal(slash), Ok(("/v1/models/org%2Fname".to_owned(), true)));
    }

    /// Catches: a path that leaves its prefix, or ends early, at one engine and not at another.
    #[test]
    fn what_servers_read_in_different_ways_is_refused() {
        for path in [
            "/v1/../metrics",
            "/v1/..",
            "/v1/.",
            "/v1/./x",
            "/v1/%2e%2e/metrics",
            "/v1/.%2E/metrics",
            "/v1/..%2fmetrics",
            "/v1/x%2f..%2fmetrics",
            "/v1/x%2F%2e%2e",
            "/v1/...%2f..%2f..%2fmetrics",
        ] {
            assert_eq!(normal(path), Err(DOT_SEGMENT), "{path}");
        }
        for path in ["//v1/models", "/v1//models", "/v1/models//", "//", "/v1/%2f%2f", "/%2fx"] {
            assert_eq!(normal(path), Err(EMPTY_SEGMENT), "{path}");
        }
        for path in [
            "/v1\\..\\metrics",
            "/v1/..%5cmetrics",
            "/v1/chat/completions;x=1",
            "/v1/chat/completions%3bx",
            "/v1/chat%252fcompletions",
            "/v1/%2563hat",
            "/v1/chat/completions%3Fx",
            "/v1/chat/completions%23",
            "/v1/chat/completions%00",
            "/v1/chat/completions%0d%0ax",
            "/v1/%7f",
        ] {
            assert_eq!(normal(path), Err(DOUBTFUL), "{path}");
        }
        for path in ["/v1/%", "/v1/%6", "/v1/%g1", "/v1/%u0063hat", "/%+1"] {
            assert_eq!(normal(path), Err(BROKEN), "{path}");
        }
        // An overlong dot is no UTF-8.
        for path in ["/v1/%c0%ae%c0%ae/x", "/v1/%ff", "/v1/%c3"] {
            assert_eq!(normal(path), Err(NOT_UTF8), "{path}");
        }
    }

    /// Catches: a version that is written twice, and one before what engines have beside it.
    #[test]
    fn a_base_with_a_version_goes_before_what_is_below_it() {
        for (base, path, whole) in [
            ("/v1", "/v1/chat/completions", "/v1/chat/completions"),
            ("/x/v1", "/v1", "/x/v1"),
            ("/v1", "/chat/completions", "/v1/chat/completions"),
            ("/x/v1", "/models", "/x/v1/models"),
            ("/v1", "/ping", "/ping"),
            ("/x/v1", "/generate", "/x/generate"),
            ("/v1", "/api/chat", "/api/chat"),
            ("/v1", "/v2/rerank", "/v2/rerank"),
            ("/v1x", "/v1/models", "/v1x/v1/models"),
            ("", "/v1/models", "/v1/models"),
        ] {
            assert_eq!(format!("{}{path}", base_of(base, path.as_bytes())), whole);
        }
    }

    /// What an engine sees: one round of decoding.
    fn decoded(path: &str) -> Vec<u8> {
        let (mut out, mut rest) = (Vec::new(), path.as_bytes());
        while let [first, tail @ ..] = rest {
            match (*first, escaped(tail)) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    rest = &tail[2..];
                }
                _ => {
                    out.push(*first);
                    rest = tail;
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// The plain spelling means the same to an engine, is its own plain spelling, and what an
        /// engine sees of it has nothing that is read twice.
        #[test]
        fn the_plain_spelling_means_the_same(
            path in "(/|%2[fF]|%2[eE]|\\.|%[0-9a-fA-F]{2}|[a-z;:@\\\\%]|%c3%a9){0,12}",
        ) {
            let path = format!("/{path}");
            if let Ok((plain, _)) = normal(&path) {
                prop_assert_eq!(decoded(&plain), decoded(&path));
                let again = normal(&plain).unwrap().0;
                prop_assert_eq!(&again, &plain);
                let seen = String::from_utf8(decoded(&plain)).unwrap();
                prop_assert!(!seen.contains(['%', '\\', ';', '?', '#']), "{}", seen);
                let segments: Vec<&str> = seen.split('/').collect();
                let inner = &segments[1..segments.len() - 1];
                prop_assert!(inner.iter().all(|s| !s.is_empty()), "{}", seen);
                prop_assert!(segments.iter().all(|s| *s != "." && *s != ".."), "{}", seen);
            }
        }
    }
}
