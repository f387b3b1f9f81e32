//! The door of the admin API: reads requests on the ring of the control plane, turns away who may
//! not ask before a byte of a body is read, and has the rest answered by threads that may block.

use super::reload::Reloads;
use super::supervisor::Event;
use crate::base::limits::{ADMIN_BODY_BYTES_MAX, BUFFER_BYTES, HEAD_BYTES_MAX};
use crate::base::refusal::Refusal;
use crate::http::chunked::{ChunkDecoder, Piece};
use crate::http::framing::Framing;
use crate::http::request::RequestHead;
use crate::rt::patrol::{Alarm, Post};
use crate::state::board::Board;
use crate::state::scrape::AskPage;
use crate::usage::flight::FlightRecorder;
use crossbeam_channel::Sender;
use futures_channel::oneshot;
use serde_json::{json, Value};
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::sync::Arc;

mod gate;
mod guard;
pub use crate::state::admin_desk::{
    AdminAnswer, AdminNumbers, AdminQuestion, AdminRequest, AdminResult,
};
pub use gate::open as open_gate;
pub use guard::Guard;

/// Content-Type of nearly all answers.
pub const JSON: &str = "application/json";

impl AdminAnswer {
    /// Of a JSON value.
    pub fn json(status: u16, value: &Value) -> AdminAnswer {
        let body = format!("{value}\n").into_bytes().into();
        AdminAnswer { status, content_type: JSON, fields: Vec::new(), body }
    }

    /// An error that is about no member of a body, in the shape of OpenAI's.
    pub fn error(status: u16, code: &'static str, message: &str) -> AdminAnswer {
        let kind = Refusal::new(status, code, "").kind();
        let error = json!({"message": message, "type": kind, "code": code, "param": null});
        AdminAnswer::json(status, &json!({"error": error}))
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> AdminAnswer {
        self.fields.push((name, value.into()));
        self
    }
}

/// The gateway that runs, for those who answer.
pub struct Gateway {
    /// Where the configuration in use hangs.
    pub board: Arc<Board>,
    /// Where workers keep stories of requests.
    pub flight: Arc<FlightRecorder>,
    /// Where pages are asked for.
    pub pages: AskPage,
    /// What became of reloads.
    pub reloads: Arc<Reloads>,
    /// Who changes the configuration in use.
    pub supervisor: Sender<Event>,
    /// What became of those who asked.
    pub numbers: Arc<AdminNumbers>,
}

impl Gateway {
    /// Of its parts.
    pub fn new(
        (board, flight): (&Arc<Board>, &Arc<FlightRecorder>),
        pages: &AskPage,
        reloads: &Arc<Reloads>,
        supervisor: Sender<Event>,
    ) -> Gateway {
        Gateway {
            board: Arc::clone(board),
            flight: Arc::clone(flight),
            pages: pages.clone(),
            reloads: Arc::clone(reloads),
            supervisor,
            numbers: Arc::default(),
        }
    }
}

/// The way from a listener to those who answer.
pub struct ApiDoor {
    /// Who answers.
    pub questions: Sender<AdminQuestion>,
    /// Who may ask; `None`: whoever gets here, as on the admin socket.
    pub guard: Option<Guard>,
    /// What became of those who asked.
    pub numbers: Arc<AdminNumbers>,
}

impl ApiDoor {
    /// Whether requests for a path go through it. With a guard nothing else is to be had.
    pub fn is_for(&self, path: &[u8]) -> bool {
        self.guard.is_some() || path.starts_with(b"/admin/")
    }

    /// Whether whoever sent a head may ask: true when it may change something too. Else the answer.
    pub fn check(
        &self,
        peer: IpAddr,
        head: &RequestHead,
        bytes: &[u8],
    ) -> Result<bool, AdminAnswer> {
        self.guard.as_ref().map_or(Ok(true), |guard| guard.check(peer, head, bytes))
    }

    /// Has a request answered whose sender may ask. Its head is at the start of `bytes`, and has so
    /// many bytes.
    pub async fn visit(
        &self,
        (post, may_change): (&Post, bool),
        head: &RequestHead,
        bytes: &[u8],
        head_len: usize,
    ) -> Result<AdminAnswer, Alarm> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let query = text(head.query.of(bytes));
        let mut request = AdminRequest {
            method: head.method.as_str(),
            path: text(head.path(bytes)),
            query: query.strip_prefix('?').unwrap_or_default().to_owned(),
            body: Vec::new(),
            may_change,
        };
        match read_body(post, head, bytes.get(head_len..).unwrap_or_default()).await? {
            Ok(body) => request.body = body,
            Err(refused) => return Ok(refused),
        }
        let (reply, answer) = oneshot::channel();
        if self.questions.try_send((request, reply)).is_err() {
            self.numbers.note(AdminResult::Overloaded);
            let full = AdminAnswer::error(503, "overloaded", "too many ask at a time");
            return Ok(full.with("Retry-After", "1"));
        }
        self.numbers.note(AdminResult::Answered);
        let answer = post.attended(answer).await?;
        let broken = || AdminAnswer::error(500, "internal_error", "this failed: the log says why");
        Ok(answer.unwrap_or_else(|_| broken()))
    }
}

/// All of a body; `came`: what came with the head.
async fn read_body(
    post: &Post,
    head: &RequestHead,
    came: &[u8],
) -> Result<Result<Vec<u8>, AdminAnswer>, Alarm> {
    let too_large = || {
        let message = format!("the body has more than {ADMIN_BODY_BYTES_MAX} bytes");
        Err(AdminAnswer::error(413, "body_too_large", &message))
    };
    let mut body = Reading::new(head.framing);
    match head.framing {
        Framing::Length(length) if length > ADMIN_BODY_BYTES_MAX as u64 => return Ok(too_large()),
        _ if head.expect_continue && came.is_empty() => {
            // Two dozen bytes fit into what the kernel takes, or the client is gone.
            let _ = post.socket().try_send(&[IoSlice::new(b"HTTP/1.1 100 Continue\r\n\r\n")]);
        }
        _ => {}
    }
    let mut piece = came.to_vec();
    loop {
        match body.take(&piece) {
            Ok(true) => return Ok(Ok(body.bytes)),
            Ok(false) if body.bytes.len() > ADMIN_BODY_BYTES_MAX => return Ok(too_large()),
            Ok(false) => {}
            Err(what) => return Ok(Err(AdminAnswer::error(400, "bad_chunk", what))),
        }
        piece.clear();
        piece.reserve(BUFFER_BYTES);
        while piece.is_empty() {
            post.attended(post.socket().readable()).await?.map_err(|_| Alarm::Gone)?;
            match post.socket().try_recv(&mut piece) {
                Ok(0) => return Err(Alarm::Gone),
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(Alarm::Gone),
                _ => {}
            }
        }
    }
}

/// A body that is read.
struct Reading {
    bytes: Vec<u8>,
    missing: u64,
    chunks: Option<ChunkDecoder>,
}

impl Reading {
    fn new(framing: Framing) -> Reading {
        let missing = if let Framing::Length(length) = framing { length } else { 0 };
        let is_chunked = matches!(framing, Framing::Chunked);
        let chunks = is_chunked.then(|| ChunkDecoder::new(HEAD_BYTES_MAX));
        Reading { bytes: Vec::new(), missing, chunks }
    }

    /// Takes what came; true when the body is whole. What is behind it is nobody's: the connection
    /// closes.
    fn take(&mut self, mut piece: &[u8]) -> Result<bool, &'static str> {
        let Some(chunks) = &mut self.chunks else {
            let ours = usize::try_from(self.missing).unwrap_or(usize::MAX).min(piece.len());
            self.bytes.extend_from_slice(piece.get(..ours).unwrap_or_default());
            self.missing = self.missing.saturating_sub(ours as u64);
            return Ok(self.missing == 0);
        };
        loop {
            match chunks.decode(piece).map_err(|bad| bad.0)? {
                Piece::Data { start, end } => {
                    self.bytes.extend_from_slice(piece.get(start..end).unwrap_or_default());
                    piece = piece.get(end..).unwrap_or_default();
                }
                Piece::NeedMore => return Ok(false),
                Piece::End { .. } => return Ok(true),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: bytes of a body that are lost or doubled where they are cut, an end that is not
    /// seen.
    #[test]
    fn a_body_may_be_cut_anywhere() {
        let chunked: &[u8] = b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        for (framing, wire) in [(Framing::Chunked, chunked), (Framing::Length(5), b"abcde")] {
            for step in 1..=wire.len() {
                let mut body = Reading::new(framing);
                let ends: Vec<bool> =
                    wire.chunks(step).map(|piece| body.take(piece).unwrap()).collect();
                assert_eq!(ends.iter().filter(|end| **end).count(), 1, "{step}");
                assert_eq!((ends.last(), &*body.bytes), (Some(&true), &b"abcde"[..]), "{step}");
            }
        }
        assert_eq!(Reading::new(Framing::None).take(b"GET "), Ok(true));
        assert!(Reading::new(Framing::Chunked).take(b"x\r\n").is_err());
    }
}
