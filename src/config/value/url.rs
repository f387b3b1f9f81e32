//! URLs of backends and of webhooks. A hand-written reader, since what is accepted is narrow:
//! scheme, authority, path; no credentials, no fragment.

use super::quoted;
use std::net::Ipv6Addr;

/// An `http`, `https` or `unix` URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Url {
    /// `http://host[:port][/path]` or `https://…`.
    Http {
        /// True for `https`.
        tls: bool,
        /// Name or address, an IPv6 address without its brackets.
        host: String,
        /// Given, or 80 and 443.
        port: u16,
        /// Host and port as they go into a `Host` field: the port only when given.
        authority: String,
        /// From the `/` on; empty when there is none. No final slash.
        path: String,
        /// After the `?`, when there is one.
        query: Option<String>,
    },
    /// `unix:/run/engine.sock[:/base]`.
    Unix {
        /// File name of the socket.
        socket: String,
        /// Path in front of the client's; empty, or without a final slash.
        path: String,
    },
}

impl Url {
    /// The URL of a backend. A query would be cut off or clash with the client's, so it is an
    /// error; credentials belong into `api_key`.
    pub fn backend(text: &str) -> Result<Url, String> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return unix(text, rest.strip_prefix("//").unwrap_or(rest));
        }
        match http_url(text)? {
            Url::Http { query: Some(_), .. } => Err(format!(
                "{} must not have a query (`?…`)",
                quoted(text.split('?').next().unwrap_or_default())
            )),
            url => Ok(url),
        }
    }
}

fn unix(text: &str, rest: &str) -> Result<Url, String> {
    let (socket, base) = match rest.split_once(':') {
        Some((socket, base)) => (socket, base),
        None => (rest, ""),
    };
    if !socket.starts_with('/') || socket.contains('\0') {
        return Err(format!(
            "{} must name an absolute path, such as unix:/run/engine.sock",
            quoted(text)
        ));
    }
    // sun_path of sockaddr_un holds 108 bytes with its final zero.
    if socket.len() > 107 {
        return Err(format!("{}: the path of a Unix socket has at most 107 bytes", quoted(text)));
    }
    Ok(Url::Unix { socket: socket.to_owned(), path: base_path(text, base)? })
}

/// An `http` or `https` URL. Messages never repeat a query, which may hold a token.
pub fn http_url(text: &str) -> Result<Url, String> {
    let shown = quoted(text.split(['?', '#']).next().unwrap_or(""));
    let (tls, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        _ => return Err(format!("{shown} must begin with http:// or https://")),
    };
    if rest.contains('#') {
        return Err(format!("{shown} must not have a fragment (`#…`)"));
    }
    let (before_query, query) = match rest.split_once('?') {
        Some((before, query)) => (before, Some(query.to_owned())),
        None => (rest, None),
    };
    if query.as_deref().is_some_and(|q| !q.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(format!("{shown}: the query holds characters that a URL cannot"));
    }
    let slash = before_query.find('/').unwrap_or(before_query.len());
    let (authority, path) = before_query.split_at(slash);
    if authority.contains('@') {
        return Err("a URL must not hold credentials: use `headers` or `api_key`".into());
    }
    let (host, port) = host_and_port(authority).ok_or_else(|| {
        format!("{shown} must name a host and may name a port, such as http://gpu-1:8000")
    })?;
    let port = port.unwrap_or(if tls { 443 } else { 80 });
    let path = base_path(&shown, path)?;
    Ok(Url::Http { tls, host, port, authority: authority.to_owned(), path, query })
}

fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (v6, after) = rest.split_once(']')?;
        v6.parse::<Ipv6Addr>().ok()?;
        (
            v6,
            after
                .strip_prefix(':')
                .map_or_else(|| after.is_empty().then_some(None), |p| Some(Some(p)))?,
        )
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        // Underscores are no part of DNS names but of Compose service names.
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if host.is_empty() || host.len() > 253 || !host.bytes().all(fine) {
            return None;
        }
        (host, port)
    };
    let port = match port {
        None => None,
        Some(p) => Some(p.parse::<u16>().ok().filter(|n| *n > 0 && !p.starts_with('+'))?),
    };
    Some((host.to_owned(), port))
}

fn base_path(shown: &str, path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    let fine = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#');
    if (path.is_empty() || path.starts_with('/')) && path.bytes().all(fine) {
        return Ok(path.to_owned());
    }
    Err(format!("{shown}: the base path must begin with `/` and hold neither blank, `?` nor `#`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (bool, String, u16, String, String) {
        match Url::backend(text).unwrap() {
            Url::Http { tls, host, port, authority, path, .. } => {
                (tls, host, port, authority, path)
            }
            Url::Unix { socket, path } => (false, socket, 0, String::new(), path),
        }
    }

    #[test]
    fn forms_of_a_backend() {
        let p = |tls, host: &str, port, authority: &str, path: &str| {
            (tls, host.to_owned(), port, authority.to_owned(), path.to_owned())
        };
        assert_eq!(parts("http://gpu-1:8000"), p(false, "gpu-1", 8000, "gpu-1:8000", ""));
        assert_eq!(
            parts("https://llm.example/base/"),
            p(true, "llm.example", 443, "llm.example", "/base")
        );
        assert_eq!(parts("http://[::1]:8000/v"), p(false, "::1", 8000, "[::1]:8000", "/v"));
        assert_eq!(parts("http://[::1]"), p(false, "::1", 80, "[::1]", ""));
        assert_eq!(parts("HTTP://a_b:1/"), p(false, "a_b", 1, "a_b:1", ""));
        assert_eq!(parts("unix:/run/e.sock"), p(false, "/run/e.sock", 0, "", ""));
        assert_eq!(parts("unix:/run/e.sock:/base/"), p(false, "/run/e.sock", 0, "", "/base"));
    }

    #[test]
    fn what_is_no_backend() {
        for bad in [
            "",
            "gpu-1:8000",
            "ftp://x",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:65536",
            "http://a:+1",
            "http://a:",
            "http://user:pw@a",
            "http://a/?x=1",
            "http://a#f",
            "http://a b",
            "http://[::1",
            "http://[x]:1",
            "http://[::1]x",
            "http://a/b c",
            "http://::1:80",
            "unix:run/x",
            "unix:",
            "unix:/x:base",
            "http://a\r\nb",
        ] {
            assert!(Url::backend(bad).is_err(), "{bad:?}");
        }
        assert!(!Url::backend("http://u:hunter2@a").unwrap_err().contains("hunter2"));
        assert!(!http_url("ftp://a?token=hunter2").unwrap_err().contains("hunter2"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "(http://|https://|unix:)?[a-z0-9:/@?#\\[\\]. %]{0,24}") {
            if let Ok(Url::Http { host, port, .. }) = Url::backend(&text) {
                proptest::prop_assert!(!host.is_empty() && port > 0);
            }
        }
    }
}
