//! One request of our own to a backend, on the control plane's ring: over a connection that closes
//! behind it. Whoever calls sets the time limit.

use crate::base::limits::{BUFFER_BYTES, HEAD_BYTES_MAX};
use crate::base::tls_fault;
use crate::config::plan::Endpoint;
use crate::http::chunked::{ChunkDecoder, Piece};
use crate::http::framing::ResponseFraming;
use crate::http::head::Parse;
use crate::http::request::Method;
use crate::http::response::ResponseHead;
use crate::rt::tls::Link;
use crate::rt::{self, connect};
use crate::state::hop;
use crate::state::member::{Member, MemberTls};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

/// Connects. The time is shared by the addresses of the backend.
pub(super) async fn open(member: &Member, timeout: Duration) -> Result<Link, String> {
    let backend = &member.plan;
    let socket = match &backend.endpoint {
        Endpoint::Unix(path) => connect::unix(path).await.map_err(|e| format!("connect: {e}"))?,
        Endpoint::Tcp { host, .. } => {
            let addresses = member.addresses().to_vec();
            // Each gets its share, so that one that drops packets cannot use up all of the time.
            let share = timeout / addresses.len().max(1) as u32;
            let mut result = Err(format!("{host} has no address"));
            for address in addresses {
                result = match rt::await_peer(share, connect::tcp(address)).await {
                    Some(done) => done.map_err(|e| format!("connect: {e}")),
                    None => Err(format!("connect: no answer within {} ms", share.as_millis())),
                };
                if result.is_ok() {
                    break;
                }
            }
            result?
        }
    };
    match &member.tls {
        Some(MemberTls { config, name }) => {
            let done = Link::handshake(socket, Arc::clone(config), name.clone()).await;
            done.map_err(|e| format!("tls: {}", tls_fault::told(&e).unwrap_or(e.to_string())))
        }
        None => Ok(Link::plain(socket)),
    }
}

/// Sends a request without a body. `path` is put behind the backend's address and its base path
/// without a version; its own fields are set, as they are on requests of clients.
pub(super) async fn send(
    link: &mut Link,
    member: &Member,
    (method, path): (&str, &str),
    agent: &str,
) -> Result<(), String> {
    let backend = &member.plan;
    let mut text = format!(
        "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: llmproxy-{agent}/{}\r\nAccept: */*\r\n",
        backend.root_path(),
        backend.host,
        env!("CARGO_PKG_VERSION")
    );
    // A backend that is this very process says so, as it does to requests.
    text.push_str(&format!("Via: 1.1 {}\r\n", hop::name()));
    for (name, value) in &backend.headers {
        text.push_str(&format!("{name}: {}\r\n", value.reveal()));
    }
    text.push_str(if method == "POST" { "Content-Length: 0\r\n" } else { "" });
    text.push_str("Connection: close\r\n\r\n");
    send_all(link, text.as_bytes()).await.map_err(|e| format!("send: {e}"))
}

async fn send_all(link: &mut Link, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match link.try_send(&[IoSlice::new(bytes)]) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => link.writable().await?,
            Err(e) => return Err(e),
        }
    }
    link.flush().await
}

/// Reads the head of the final answer, over interim ones; `bytes` holds what is behind it, then.
pub(super) async fn read_head(
    link: &mut Link,
    method: Method,
    bytes: &mut Vec<u8>,
) -> Result<ResponseHead, String> {
    let (head, len) = await_head(link, method, bytes).await?;
    bytes.drain(..len);
    Ok(head)
}

/// Reads the head of the final answer and nothing else; gives its status, and what it calls its
/// server.
pub(super) async fn read_status(
    link: &mut Link,
    method: Method,
) -> Result<(u16, Option<Vec<u8>>), String> {
    let mut bytes = Vec::new();
    let (head, _) = await_head(link, method, &mut bytes).await?;
    Ok((head.status, head.named(&bytes, "server").map(<[u8]>::to_vec)))
}

/// Gives the head, and how many bytes it has at the start of `bytes`.
async fn await_head(
    link: &mut Link,
    method: Method,
    bytes: &mut Vec<u8>,
) -> Result<(ResponseHead, usize), String> {
    let mut head = ResponseHead::default();
    loop {
        while let Parse::Done { len } =
            head.parse(bytes, method, HEAD_BYTES_MAX).map_err(|bad| bad.0.to_owned())?
        {
            if head.status >= 200 {
                return Ok((head, len));
            }
            bytes.drain(..len);
            head.reset();
        }
        if !read_more(link, bytes).await? {
            return Err("closed without an answer".into());
        }
    }
}

/// Reads the body behind a head; `bytes` is what came with that. An error when it is longer than so
/// many bytes, or breaks off.
pub(super) async fn read_body(
    link: &mut Link,
    head: &ResponseHead,
    mut bytes: Vec<u8>,
    bytes_max: usize,
) -> Result<Vec<u8>, String> {
    let too_long = || format!("the answer has more than {bytes_max} bytes");
    match head.framing {
        ResponseFraming::None => Ok(Vec::new()),
        ResponseFraming::Length(length) => {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > bytes_max {
                return Err(too_long());
            }
            while bytes.len() < length {
                if !read_more(link, &mut bytes).await? {
                    return Err("the answer breaks off".into());
                }
            }
            bytes.truncate(length);
            Ok(bytes)
        }
        ResponseFraming::Chunked => {
            let (mut decoder, mut body) = (ChunkDecoder::new(HEAD_BYTES_MAX), Vec::new());
            while !unchunk(&mut decoder, &bytes, &mut body)? {
                if body.len() > bytes_max {
                    return Err(too_long());
                }
                bytes.clear();
                if !read_more(link, &mut bytes).await? {
                    return Err("the answer breaks off".into());
                }
            }
            match body.len() > bytes_max {
                true => Err(too_long()),
                false => Ok(body),
            }
        }
        ResponseFraming::UntilClose => {
            while read_more(link, &mut bytes).await? {
                if bytes.len() > bytes_max {
                    return Err(too_long());
                }
            }
            Ok(bytes)
        }
    }
}

/// Puts all that these bytes hold of a body behind what there is of it. True at its end.
fn unchunk(
    decoder: &mut ChunkDecoder,
    mut bytes: &[u8],
    body: &mut Vec<u8>,
) -> Result<bool, String> {
    loop {
        match decoder.decode(bytes).map_err(|bad| bad.0.to_owned())? {
            Piece::Data { start, end } => {
                body.extend_from_slice(bytes.get(start..end).unwrap_or_default());
                bytes = bytes.get(end..).unwrap_or_default();
            }
            Piece::End { .. } => return Ok(true),
            Piece::NeedMore => return Ok(false),
        }
    }
}

/// Waits for more bytes; false at the end.
async fn read_more(link: &mut Link, bytes: &mut Vec<u8>) -> Result<bool, String> {
    loop {
        link.readable().await.map_err(|e| e.to_string())?;
        bytes.reserve(BUFFER_BYTES);
        match link.try_recv(bytes) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a body that is lost, or kept twice, where bytes end within a chunk or behind one.
    #[test]
    fn chunks_may_be_cut_anywhere() {
        let wire = "1\r\na\r\n2;x=y\r\nbc\r\n1\r\nd\r\n0\r\n\r\n".as_bytes();
        for step in 1..=wire.len() {
            let (mut decoder, mut body) = (ChunkDecoder::new(HEAD_BYTES_MAX), Vec::new());
            let ends = wire.chunks(step).map(|piece| {
                let end = unchunk(&mut decoder, piece, &mut body).unwrap();
                (end, body.len())
            });
            let ends: Vec<_> = ends.collect();
            assert_eq!(ends.iter().filter(|(end, _)| *end).count(), 1, "{step}");
            assert_eq!(ends.last(), Some(&(true, 4)), "{step}");
            assert_eq!(body, b"abcd", "{step}");
        }
        let mut decoder = ChunkDecoder::new(HEAD_BYTES_MAX);
        assert!(unchunk(&mut decoder, b"x\r\n", &mut Vec::new()).is_err());
    }
}
