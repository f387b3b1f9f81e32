//! Requests that are made to get past the keys: hundreds of them, of which none reaches an engine
//! and none harms the next request of its connection.

use crate::harness::{Backend, Config, Conn, Proxy};
use crate::rig::{rejected, CHATS, OK};
use flate2::write::GzEncoder;
use flate2::Compression;
use std::io::Write;

/// One key that may do anything, one for a single model, and one that may do nothing.
const KEYS: &str = "api_keys: [{key: sk-good}, {key: sk-m, allowed_models: [m, 'small-*']}, \
                    {key: sk-off, status: disabled}]
routing: {model_mapping: {alias: big}}
auth: {skip_paths: [/v1/embeddings, '/v1/responses/open/*']}";
/// What may reach the engine, and nothing else.
const GOOD: &str = r#"{"model":"m","good":true}"#;
/// What may not.
const BAD: &str = r#"{"model":"m","bad":true}"#;

struct Scene {
    proxy: Proxy,
    backend: Backend,
    conn: Conn,
    sent: usize,
    good: usize,
}

impl Scene {
    fn set() -> Scene {
        let backend = Backend::answering(OK);
        let proxy = Config::backend_at(backend.url()).section(KEYS).start();
        let conn = proxy.connect();
        Scene { proxy, backend, conn, sent: 0, good: 0 }
    }

    /// Sends what must be refused, then what must not, on the same connection if that lives.
    fn refuses(&mut self, bytes: &[u8]) {
        let shown = || String::from_utf8_lossy(bytes).chars().take(300).collect::<String>();
        self.sent += 1;
        self.conn.send(bytes);
        let answer = self.conn.response();
        // 501: a method that there is none of.
        let is_no = matches!(answer.status(), 400..=499 | 501);
        assert!(is_no, "{} to {}", answer.status(), shown());
        let code = answer.json()["error"]["code"].clone();
        assert!(code.is_string(), "{code} to {}", shown());
        if answer.head.get("connection").is_some_and(|it| it.eq_ignore_ascii_case("close")) {
            self.conn.assert_closes();
            self.conn = self.proxy.connect();
        } else if bytes.windows(9).any(|part| part == b" HTTP/1.0") {
            self.conn = self.proxy.connect();
        }
        self.good += 1;
        let key = "Authorization: Bearer sk-good\r\n";
        assert_eq!(self.conn.post(CHATS, key, GOOD).text(), "ok", "behind {}", shown());
    }

    /// Nothing but what was to reach the engine has.
    fn end(self, least: usize) {
        assert!(self.sent >= least, "{} were sent", self.sent);
        let requests = self.backend.requests();
        assert!(requests.iter().all(|request| request.body == GOOD.as_bytes()));
        assert_eq!(requests.len(), self.good);
    }
}

/// A POST of JSON, unless its further fields say that it is something else.
fn post_bytes(path: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let json = "Content-Type: application/json\r\n";
    let json = if fields.contains("Content-Type") { "" } else { json };
    let length = body.as_ref().len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\n{json}{fields}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_ref()].concat()
}

/// Fields that look like a key that is good, and are none.
const NO_KEYS: [&str; 44] = [
    "",
    "Authorization: sk-good\r\n",
    "Authorization: Bearer\r\n",
    "Authorization: Bearer \r\n",
    "Authorization: \r\n",
    "Authorization: Bearersk-good\r\n",
    "Authorization: Bearer,sk-good\r\n",
    "Authorization: Bearer=sk-good\r\n",
    "Authorization: Bearer \"sk-good\"\r\n",
    "Authorization: Bearer sk-good,\r\n",
    "Authorization: Bearer sk-good;\r\n",
    "Authorization: Bearer sk-good sk-good\r\n",
    "Authorization: Bearer sk-good, Bearer sk-good\r\n",
    "Authorization: Bearer Bearer sk-good\r\n",
    "Authorization: Bearer SK-GOOD\r\n",
    "Authorization: Bearer sk-goo\r\n",
    "Authorization: Bearer sk-good0\r\n",
    "Authorization: Bearer sk%2Dgood\r\n",
    "Authorization: Bearer sk-good%00\r\n",
    "Authorization: Bearer *\r\n",
    "Authorization: Bearer null\r\n",
    "Authorization: Bearer undefined\r\n",
    "Authorization: Bearer {api_key}\r\n",
    "Authorization: Bearer ' OR '1'='1\r\n",
    "Authorization: Bearer \u{443}sk-good\r\n",
    "Authorization: Basic c2stZ29vZA==\r\n",
    "Authorization: Token sk-good\r\n",
    "Authorization: Negotiate sk-good\r\n",
    "Authorization: Bearer sk-off\r\n",
    "Authorization: Bearer sk-off\r\nX-API-Key: sk-good\r\n",
    "Authorization: Bearer sk-nobody\r\nX-API-Key: sk-good\r\n",
    "Authorization: Bearer sk-good\r\nAuthorization: Bearer sk-off\r\n",
    "Authorization: Bearer sk-off\r\nAuthorization: Bearer sk-good\r\n",
    "Authorization: Basic eA==\r\nAUTHORIZATION: Bearer sk-good\r\n",
    "X-API-Key: Bearer sk-good\r\n",
    "X-API-Key: sk-good\r\nX-Api-Key: sk-off\r\n",
    "X_API_Key: sk-good\r\n",
    "X-APIKey: sk-good\r\n",
    "Api-Key: sk-good\r\n",
    "X-Goog-Api-Key: sk-good\r\n",
    "Proxy-Authorization: Bearer sk-good\r\n",
    "Cookie: Authorization=Bearer sk-good; api_key=sk-good\r\n",
    "X-Forwarded-Authorization: Bearer sk-good\r\nX-Original-Authorization: Bearer sk-good\r\n",
    "X-LLMProxy-User: ann\r\nX-User-Id: ann\r\nX-Forwarded-For: 127.0.0.1\r\n",
];

/// Catches: any way to show a key that none of us was given, at any spelling of a path that an
/// engine takes for a chat.
#[test]
fn what_is_no_key_opens_no_spelling_of_a_path() {
    let mut scene = Scene::set();
    let targets = [
        CHATS,
        "/v1/%63hat/%63ompletions",
        "/v1/chat/completions/",
        "/v1/chat/completions?api_key=sk-good&key=sk-good",
        "http://127.0.0.1/v1/chat/completions",
        "http://sk-good@127.0.0.1/v1/chat/completions",
        "/chat/completions",
        "/v1/completions",
        "/v1/chat/completions?/v1/embeddings",
        "/v1/responses/openly/cancel",
    ];
    for fields in NO_KEYS {
        for target in targets {
            scene.refuses(&post_bytes(target, fields, BAD));
        }
    }
    scene.end(440);
}

/// Catches: a path that is forwarded without a key because it looks like one that needs none.
#[test]
fn no_path_hides_behind_one_that_needs_no_key() {
    let mut scene = Scene::set();
    for target in [
        "/v1/embeddings/../chat/completions",
        "/v1/embeddings/..%2fchat/completions",
        "/v1/embeddings%2f..%2fchat/completions",
        "/v1/embeddings/%2e%2e/chat/completions",
        "/v1/embeddings/.%2e/chat/completions",
        "/v1/embeddings;/../chat/completions",
        "/v1/embeddings/;/../../chat/completions",
        "/v1/embeddings\\..\\chat/completions",
        "/v1/embeddings%5c..%5cchat/completions",
        "/v1/embeddings%00/../chat/completions",
        "/v1/embeddings%0d%0a/v1/chat/completions",
        "/v1/embeddings#/../chat/completions",
        "/v1/embeddings//chat/completions",
        "/v1//embeddings",
        "//v1/embeddings",
        "/./v1/embeddings",
        "/v1/Embeddings",
        "/V1/embeddings",
        "/v1/embeddings%20",
        "/v1/embeddings%252e",
        "/v1/%2565mbeddings",
        "/v1/responses/open",
        "/v1/responses/open/../resp_1/cancel",
        "/v1/responses/open%2f../resp_1/cancel",
        "/v1/responses/opened/cancel",
        "http://127.0.0.1//v1/embeddings",
        "/health/../v1/chat/completions",
        "/health%2f..%2fv1/chat/completions",
        "/metrics/v1/chat/completions",
        "/ready;v1/chat/completions",
    ] {
        scene.refuses(&post_bytes(target, "", BAD));
    }
    for method in ["GET", "PUT", "PATCH", "DELETE", "chat", "post", "OPTIONS", "CONNECT"] {
        scene.refuses(
            format!("{method} {CHATS} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        );
    }
    scene.end(38);
}

/// Catches: framing by which the end of a refused request is somewhere else for us than for others,
/// and a request inside its body that is taken for one.
#[test]
fn a_refused_body_is_no_request() {
    let mut scene = Scene::set();
    let inner = String::from_utf8(post_bytes(CHATS, "Authorization: Bearer sk-good\r\n", BAD));
    let inner = inner.unwrap();
    let length = inner.len();
    let chunk = format!("{length:x}\r\n{inner}\r\n0\r\n\r\n");
    let zero = format!("0\r\n\r\n{inner}");
    for (version, fields, body) in [
        ("1.1", format!("Content-Length: {length}\r\n"), &inner),
        ("1.0", format!("Content-Length: {length}\r\n"), &inner),
        ("1.0", "Connection: keep-alive\r\nContent-Length: 0\r\n".into(), &String::new()),
        ("1.0", "Transfer-Encoding: chunked\r\n".into(), &chunk),
        ("1.1", "Transfer-Encoding: chunked\r\n".into(), &chunk),
        ("1.1", format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"), &zero),
        ("1.1", format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"), &zero),
        ("1.1", format!("Content-Length: 0\r\nContent-Length: {length}\r\n"), &inner),
        ("1.1", format!("Content-Length: 0, {length}\r\n"), &inner),
        ("1.1", format!("Content-Length: +{length}\r\n"), &inner),
        ("1.1", format!("Content-Length: {length} \r\nExpect: 100-continue\r\n"), &inner),
        ("1.1", "Transfer-Encoding: xchunked\r\n".into(), &zero),
        ("1.1", "Transfer-Encoding: chunked, identity\r\n".into(), &zero),
        ("1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n".into(), &zero),
        ("1.1", "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n".into(), &"0\r\n\r\n".into()),
        ("1.1", "Transfer-Encoding:\x0bchunked\r\n".into(), &zero),
        (
            "1.1",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n".into(),
            &String::new(),
        ),
        ("1.1", "Connection: Authorization\r\nContent-Length: 0\r\n".into(), &String::new()),
    ] {
        for key in ["", "Authorization: Bearer sk-off\r\n"] {
            let head = format!("POST {CHATS} HTTP/{version}\r\nHost: a\r\n{key}{fields}\r\n");
            scene.refuses(format!("{head}{body}").as_bytes());
        }
    }
    scene.end(36);
}

fn packed(body: &str) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(body.as_bytes()).unwrap();
    packer.finish().unwrap()
}

/// Bodies that an engine may read as `big`, which the key may not ask.
fn smuggled() -> Vec<(&'static str, Vec<u8>)> {
    const JSON: &str = "";
    let form = "Content-Type: multipart/form-data; boundary=b\r\n";
    let part = |name: &str, value: &str| {
        format!("--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n")
    };
    let texts = [
        r#"{"model":"big"}"#,
        r#"{"model":"alias"}"#,
        r#"{"model":"M"}"#,
        r#"{"model":" m"}"#,
        r#"{"model":"m "}"#,
        r#"{"model":"m\u0000"}"#,
        r#"{"model":"b\u0069g"}"#,
        r#"{"model":""}"#,
        r#"{"model":null}"#,
        r#"{"model":["m","big"]}"#,
        r#"{"model":{"m":"big"}}"#,
        r#"{"model":1}"#,
        r#"{"model":true}"#,
        r#"{"model":"m","model":"big"}"#,
        r#"{"model":"big","model":"m"}"#,
        r#"{"model":"m","mod\u0065l":"big"}"#,
        r#"{"mod\u0065l":"big"}"#,
        r#"{"Model":"m"}"#,
        r#"{"MODEL":"big","model":"m"}"#,
        r#"{"model ":"m"}"#,
        r#"{"a":{"model":"m"}}"#,
        r#"{"messages":[{"model":"m"}]}"#,
        r#"[{"model":"m"}]"#,
        r#"{"model":"m"}{"model":"big"}"#,
        "{\"model\":\"m\"}\n{\"model\":\"big\"}",
        r#"{}"#,
        r#"{"messages":[]}"#,
        r#"{"name":"m"}"#,
        r#"{"engine":"m"}"#,
        "{\"model\":\"m\"\u{0}}",
        "\u{feff}{\"model\":\"big\"}",
        "{/*\"model\":\"m\"*/\"model\":\"big\"}",
        "{'model':'m'}",
        "{model:\"m\"}",
        "{\"model\":\"m\",}",
        "\"model\"",
        "model=m",
        "null",
    ];
    let mut all: Vec<_> = texts.map(|text| (JSON, text.as_bytes().to_vec())).into();
    all.push((JSON, Vec::new()));
    all.push((JSON, b"{\"model\":\"\xff\"}".to_vec()));
    let wide: Vec<u8> = r#"{"model":"m"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    all.push(("Content-Type: application/json; charset=utf-16\r\n", wide));
    all.push(("Content-Encoding: gzip\r\n", packed(r#"{"model":"big"}"#)));
    all.push(("Content-Encoding: gzip\r\n", br#"{"model":"m"}"#.to_vec()));
    all.push(("Content-Encoding: x\r\n", br#"{"model":"m"}"#.to_vec()));
    all.push(("Content-Encoding: gzip, gzip\r\n", packed(r#"{"model":"m"}"#)));
    all.push(("", packed(r#"{"model":"m"}"#)));
    all.push(("Content-Type: text/plain\r\n", br#"{"model":"big"}"#.to_vec()));
    all.push(("Content-Type: application/x-www-form-urlencoded\r\n", b"model=m".to_vec()));
    let twice = format!("{}{}--b--\r\n", part("model", "m"), part("model", "big"));
    all.push((form, twice.into_bytes()));
    all.push((form, format!("{}--b--\r\n", part("model", "big")).into_bytes()));
    all.push((form, b"--b--\r\n".to_vec()));
    all
}

/// Catches: a model that a key may not ask and that an engine is asked for all the same, on any
/// path where one may be named.
#[test]
fn no_body_smuggles_a_model_past_its_key() {
    let mut scene = Scene::set();
    let paths = [CHATS, "/v1/completions", "/v1/responses", "/v1/rerank", "/api/chat", "/tokenize"];
    for (fields, body) in smuggled() {
        for path in paths {
            let fields = format!("Authorization: Bearer sk-m\r\n{fields}");
            scene.refuses(&post_bytes(path, &fields, &body));
        }
    }
    assert!(rejected(&scene.proxy, "model_not_allowed") > 50.0);
    scene.end(300);
}
