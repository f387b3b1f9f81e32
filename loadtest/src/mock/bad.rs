//! Answers that break HTTP on purpose, by name.

/// What the connection does once the broken bytes are out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It stays usable, as far as the engine is concerned
    Keep,
    /// It closes
    Close,
    /// It repeats the last `n` bytes until the client leaves
    Repeat(usize),
}

/// All names, for the help and the tests.
pub const NAMES: [&str; 22] = [
    "cl-te",
    "te-unknown",
    "dup-cl",
    "list-cl",
    "plus-cl",
    "huge-cl",
    "short-body",
    "extra-bytes",
    "bad-chunk",
    "huge-chunk",
    "chunk-ext",
    "no-crlf",
    "trailers",
    "bare-lf",
    "obs-fold",
    "nul-header",
    "huge-header",
    "1xx",
    "many-1xx",
    "endless-1xx",
    "http10",
    "garbage",
];

/// The bytes of the broken answer around `body`; None for an unknown name.
pub fn answer(name: &str, size: usize, body: &[u8]) -> Option<(Vec<u8>, Then)> {
    let length = body.len();
    let ok = |fields: &str| {
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{fields}\r\n").into_bytes()
    };
    let with = |fields: &str| [ok(fields).as_slice(), body].concat();
    let chunked = |head: &str, tail: &str| {
        let size = format!("{length:x}{head}");
        [ok("transfer-encoding: chunked\r\n").as_slice(), size.as_bytes(), body, tail.as_bytes()]
            .concat()
    };
    let plain = with(&format!("content-length: {length}\r\n"));
    let answer = match name {
        "cl-te" => {
            let head = ok(&format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"));
            let chunk = format!("{length:x}\r\n");
            ([&head, chunk.as_bytes(), body, b"\r\n0\r\n\r\n"].concat(), Then::Keep)
        }
        "te-unknown" => (with("transfer-encoding: gzip, chunked\r\n"), Then::Close),
        "dup-cl" => {
            let fields = format!("content-length: {length}\r\ncontent-length: {}\r\n", length + 1);
            (with(&fields), Then::Keep)
        }
        "list-cl" => (with(&format!("content-length: {length}, {length}\r\n")), Then::Keep),
        "plus-cl" => (with(&format!("content-length: +{length}\r\n")), Then::Keep),
        "huge-cl" => (with("content-length: 99999999999999999999999\r\n"), Then::Close),
        "short-body" => (with(&format!("content-length: {}\r\n", length + 100)), Then::Close),
        "extra-bytes" => {
            (plain.iter().chain(b"HTTP/1.1 200 OK\r\n").copied().collect(), Then::Keep)
        }
        "bad-chunk" => {
            let head = ok("transfer-encoding: chunked\r\n");
            ([&head, b"xyz\r\n".as_slice(), body, b"\r\n0\r\n\r\n"].concat(), Then::Keep)
        }
        "huge-chunk" => {
            let head = ok("transfer-encoding: chunked\r\n");
            let filler = [b'x'; 4096];
            let chunk = b"40000000\r\n".as_slice(); // 1 GiB
            ([&head, chunk, &filler].concat(), Then::Repeat(filler.len()))
        }
        "chunk-ext" => (chunked(";name=\"value\"\r\n", "\r\n0\r\n\r\n"), Then::Keep),
        "no-crlf" => (chunked("\r\n", "0\r\n\r\n"), Then::Keep),
        "trailers" => (chunked("\r\n", "\r\n0\r\nx-trailer: 1\r\n\r\n"), Then::Keep),
        "bare-lf" => {
            let text = format!("HTTP/1.1 200 OK\ncontent-length: {length}\n\n");
            ([text.as_bytes(), body].concat(), Then::Keep)
        }
        "obs-fold" => {
            (with(&format!("x-folded: a\r\n b\r\ncontent-length: {length}\r\n")), Then::Keep)
        }
        "nul-header" => (with(&format!("x-nul: a\0b\r\ncontent-length: {length}\r\n")), Then::Keep),
        "huge-header" => {
            let value = "x".repeat(size);
            (with(&format!("x-huge: {value}\r\ncontent-length: {length}\r\n")), Then::Keep)
        }
        "1xx" => ([HINTS, &plain].concat(), Then::Keep),
        "many-1xx" => ([HINTS.repeat(1000), plain].concat(), Then::Keep),
        "endless-1xx" => (HINTS.repeat(16), Then::Repeat(HINTS.len() * 16)),
        "http10" => {
            let head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n".as_slice();
            ([head, body].concat(), Then::Close)
        }
        "garbage" => (b"SSH-2.0-OpenSSH_9.2\r\n\0\xff\xfe".to_vec(), Then::Close),
        _ => return None,
    };
    Some(answer)
}

const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n";
