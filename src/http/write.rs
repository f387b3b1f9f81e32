//! Heads for the other side (contract).
use super::request::RequestHead;
use super::response::ResponseHead;
use super::head::Version;

/// What the writer adds to, and leaves out of, a client's head.
pub struct ForwardRequest<'a> {
    /// Put before the target ("" or "/base").
    pub base_path: &'a str,
    /// Host of the backend.
    pub host: &'a str,
    /// Length of the buffered body; `None` = the request has no body and no Content-Length.
    pub body_len: Option<u64>,
    /// x-request-id to send.
    pub request_id: &'a str,
    /// Lower-case names of the client's fields that stay here (gateway credentials).
    pub drop: &'a [String],
    /// Fields that replace the client's of the same name.
    pub set: &'a [(String, crate::base::secret::Secret)],
    /// Address of the client, appended to X-Forwarded-For if `trust_forwarded`, else replacing it.
    pub client_ip: &'a str,
}

/// How the body goes to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutFraming { /// no body, and no framing field written unless `Length` is echoed (HEAD)
    None, /// Content-Length
    Length(u64), /// Transfer-Encoding: chunked
    Chunked, /// Connection: close delimits it (HTTP/1.0 clients)
    UntilClose }

/// Writes the request head for a backend (always HTTP/1.1, keep-alive).
pub fn request(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], how: &ForwardRequest<'_>) { let _ = (out, head, bytes, how); todo!() }
/// Writes the response head for the client: status, reason and fields as sent, hop-by-hop apart,
/// exactly one framing field, our x-request-id (replacing the backend's), Connection when `close` or HTTP/1.0 keep-alive.
pub fn response(out: &mut Vec<u8>, head: &ResponseHead, bytes: &[u8], client: Version, framing: OutFraming, close: bool, request_id: &str) { let _ = (out, head, bytes, client, framing, close, request_id); todo!() }
