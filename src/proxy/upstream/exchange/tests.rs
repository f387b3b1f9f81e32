use super::*;
use crate::http::request::Method;

/// Catches: a connection kept against the engine's word, or on which bytes may follow that belong
/// to nobody.
#[test]
fn a_head_lets_its_connection_live_on_or_not() {
    const GET: Method = Method::Get;
    for (method, head, kept) in [
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true),
        (GET, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
        (GET, "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", true),
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\n", false),
        (GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x, close\r\n\r\n", false),
        (GET, "HTTP/1.1 200 OK\r\n\r\n", false),
        (GET, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", false),
        (GET, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n", false),
        (GET, "HTTP/1.1 204 No Content\r\n\r\n", true),
        (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true),
        (GET, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false),
        (GET, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
        (GET, "HTTP/1.1 304 Not Modified\r\nETag: 1\r\n\r\n", true),
        (GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false),
        (Method::Head, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false),
        (Method::Head, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        (Method::Head, "HTTP/1.1 200 OK\r\n\r\n", true),
    ] {
        let mut response = ResponseHead::default();
        let parsed = response.parse(head.as_bytes(), method, HEAD_BYTES_MAX).unwrap();
        assert_eq!(parsed, Parse::Done { len: head.len() }, "{head}");
        assert_eq!(is_kept(&response, false), kept, "{method:?} {head}");
        let is_error = response.status >= 400;
        assert_eq!(is_kept(&response, true), kept && !is_error, "with a body: {head}");
    }
}
