//! Pages of other origins: what browsers ask, and what they are told.

use crate::harness::client::Response;
use crate::harness::{Backend, Config, Proxy};
use crate::rig::*;

const PAGE: &str = "https://chat.example";
const CORS: &str = "cors: {enabled: true, allowed_origins: [\"https://chat.example\"], \
                    allow_credentials: true, expose_headers: [x-request-id], max_age: 600s}";
/// An engine that allows everybody everything, as engines do.
const ENGINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\
    Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Credentials: true\r\n\
    Vary: Accept-Encoding\r\n\r\n{}";

fn start(cors: &str) -> (Proxy, Backend) {
    let backend = Backend::answering(ENGINE);
    let config = Config::backend_at(backend.url()).section("api_keys: [{key: sk-a}]");
    let config = if cors.is_empty() { config } else { config.server(cors) };
    (config.start(), backend)
}

fn ask(proxy: &Proxy, request: &str, fields: &str) -> Response {
    let mut conn = proxy.connect();
    conn.send(format!("{request} HTTP/1.1\r\nHost: gw\r\n{fields}\r\n"));
    conn.response()
}

fn preflight(proxy: &Proxy, origin: &str, method: &str, headers: &str) -> Response {
    let fields = format!(
        "Origin: {origin}\r\nAccess-Control-Request-Method: {method}\r\n\
         Access-Control-Request-Headers: {headers}\r\n"
    );
    ask(proxy, &format!("OPTIONS {CHATS}"), &fields)
}

/// Catches: a browser that must show a key before it can, and one that is told what is not so.
#[test]
fn a_question_needs_no_key() {
    let (proxy, backend) = start(CORS);
    let yes = preflight(&proxy, PAGE, "POST", "authorization,content-type");
    assert_eq!((yes.status(), yes.body.len()), (204, 0));
    for (name, value) in [
        ("access-control-allow-origin", PAGE),
        ("access-control-allow-methods", "GET, POST, PUT, DELETE, OPTIONS"),
        ("access-control-allow-headers", "Authorization, Content-Type, X-API-Key"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(yes.head.all(name), [value], "{name}");
    }
    for (origin, method, headers) in [
        ("https://evil.example", "POST", ""),
        (PAGE, "PATCH", ""),
        (PAGE, "POST", "authorization, x-evil"),
    ] {
        let no = preflight(&proxy, origin, method, headers);
        no.assert_refused(403, "cors_not_allowed");
        assert_eq!(no.head.get("access-control-allow-methods"), None);
    }
    let question = format!("Origin: {PAGE}\r\nAccess-Control-Request-Method: POST\r\n");
    for path in ["/nowhere", "/v1/../admin", "*"] {
        let no = ask(&proxy, &format!("OPTIONS {path}"), &question);
        assert!([400, 404].contains(&no.status()), "{path}: {}", no.status());
        assert_eq!(no.head.get("access-control-allow-methods"), None, "{path}");
    }
    let two = format!("Origin: https://evil.example\r\n{question}");
    ask(&proxy, &format!("OPTIONS {CHATS}"), &two).assert_refused(403, "cors_not_allowed");
    // An OPTIONS that asks for nothing of this is another request, and needs a key.
    let plain = ask(&proxy, &format!("OPTIONS {CHATS}"), &format!("Origin: {PAGE}\r\n"));
    assert!(plain.status() == 401 || plain.status() == 405, "{}", plain.status());
    assert!(backend.requests().is_empty());
}

/// Catches: a page that cannot read its answer, be it of an engine or a refusal; or another one
/// that can.
#[test]
fn answers_name_the_page_that_may_read_them() {
    let (proxy, _backend) = start(CORS);
    let key = "Authorization: Bearer sk-a\r\n";
    let length = format!("Content-Length: {}\r\n", CHAT.len());
    let ask = |fields: &str| {
        let mut conn = proxy.connect();
        let head = format!("POST {CHATS} HTTP/1.1\r\nHost: gw\r\n{length}{fields}\r\n{CHAT}");
        conn.send(head).response()
    };
    let page = format!("Origin: {PAGE}\r\n");
    for (fields, status) in [(format!("{key}{page}"), 200), (page.clone(), 401)] {
        let got = ask(&fields);
        assert_eq!(got.status(), status);
        assert_eq!(got.head.all("access-control-allow-origin"), [PAGE]);
        assert_eq!(got.head.all("access-control-allow-credentials"), ["true"]);
        assert_eq!(got.head.all("access-control-expose-headers"), ["x-request-id"]);
        assert!(got.head.all("vary").contains(&"Origin"), "{:?}", got.head);
    }
    assert_eq!(ask(&format!("{key}{page}")).head.all("vary"), ["Accept-Encoding", "Origin"]);
    for origin in ["", "Origin: https://evil.example\r\n"] {
        for (fields, status) in [(format!("{key}{origin}"), 200), (origin.to_owned(), 401)] {
            let got = ask(&fields);
            assert_eq!(got.status(), status);
            assert_eq!(got.head.get("access-control-allow-origin"), None, "{origin}");
            assert_eq!(got.head.get("access-control-allow-credentials"), None, "{origin}");
            assert!(got.head.all("vary").contains(&"Origin"));
        }
    }
    let health =
        proxy.connect().send(format!("GET /health HTTP/1.1\r\nHost: gw\r\n{page}\r\n")).response();
    assert_eq!(health.head.all("access-control-allow-origin"), [PAGE]);
}

/// Catches: streams whose head is ours, without the fields; and `*`.
#[test]
fn streams_have_them_too() {
    let rig = Rig::with("", |config| {
        config
            .server("cors: {enabled: true, allowed_origins: [\"*\"], allowed_headers: [\"*\"]}")
            .section("routing: {sse_keepalive: 100ms, early_head: true}")
    });
    for knobs in ["", "x-mock-ttft-ms: 500\r\n"] {
        let mut conn = rig.ask(STREAM, &format!("Origin: {PAGE}\r\n{knobs}"));
        let got = conn.response();
        assert_eq!(got.status(), 200);
        assert_eq!(got.head.all("access-control-allow-origin"), ["*"], "{knobs}");
    }
    let told = preflight(&rig.proxy, "https://any.example", "POST", "x-stainless-os");
    assert_eq!(told.head.all("access-control-allow-headers"), ["x-stainless-os"]);
    rig.assert_quiet();
}

/// Catches: a gateway that says more about pages than it was told to.
#[test]
fn without_rules_engines_speak_for_themselves() {
    let (proxy, backend) = start("");
    let refused = preflight(&proxy, PAGE, "POST", "");
    assert!(refused.status() >= 400 && refused.head.get("access-control-allow-origin").is_none());
    assert!(backend.requests().is_empty());
}
