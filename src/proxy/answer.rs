//! Answers that we make ourselves: refusals, health, readiness, metrics. The one place where a
//! [`Refusal`] becomes bytes.

use super::client::Client;
use super::rate_fields::RateFields;
use super::takings::Level;
use super::whence::CorsField;
use crate::base::fault::Fault;
use crate::base::refusal::Refusal;
use crate::http::head::Version;
use crate::http::write::{self, OwnResponse};
use crate::rt::buffer::Buffer;
use std::io::IoSlice;

/// What an own answer has in common with all others of its request.
pub struct Frame<'a> {
    /// `x-request-id`.
    pub request_id: &'a str,
    /// The client's version.
    pub version: Version,
    /// The connection closes after it.
    pub close: bool,
    /// The request was a HEAD: the head alone is sent.
    pub head_only: bool,
    /// How the limits of its request stand, where it has any: those of requests, those of tokens.
    pub limits: [Option<Level>; 2],
    /// For pages of other origins.
    pub cors: Vec<CorsField<'a>>,
}

/// Sends an answer.
pub async fn send(
    client: &Client,
    frame: &Frame<'_>,
    status: u16,
    content_type: &str,
    body: &[u8],
) -> Result<(), Fault> {
    let mut head = Buffer::take();
    write_head(&mut head, frame, (status, content_type), body.len(), &[]);
    let body = if frame.head_only { &[] } else { body };
    client.send(&mut [IoSlice::new(&head), IoSlice::new(body)]).await
}

/// Sends a refusal as the JSON error object that OpenAI clients read.
pub async fn refuse(client: &Client, frame: &Frame<'_>, refusal: &Refusal) -> Result<(), Fault> {
    let mut bytes = Buffer::take();
    write_refusal(&mut bytes, frame, refusal);
    client.send(&mut [IoSlice::new(&bytes)]).await
}

/// Writes a refusal, head and body.
pub fn write_refusal(out: &mut Vec<u8>, frame: &Frame<'_>, refusal: &Refusal) {
    let mut body = Buffer::take();
    crate::llm::error::write_body(refusal, &mut body);
    let seconds = refusal.retry_after.map(|s| s.to_string());
    let seconds = seconds.as_deref().map(|seconds| ("Retry-After", seconds));
    let limits = RateFields::new(frame.limits);
    let (limits, count) = limits.list();
    let limits = limits.into_iter().take(count);
    let fields: Vec<_> = seconds.into_iter().chain(refusal.field.copied()).chain(limits).collect();
    let kind = (refusal.status, "application/json");
    write_head(out, frame, kind, body.len(), &fields);
    if !frame.head_only {
        out.extend_from_slice(&body);
    }
}

fn write_head(
    out: &mut Vec<u8>,
    frame: &Frame<'_>,
    (status, content_type): (u16, &str),
    body_len: usize,
    fields: &[(&str, &str)],
) {
    let fields = [&frame.cors, fields].concat();
    let own = OwnResponse {
        status,
        content_type,
        body_len: body_len as u64,
        fields: &fields,
        client: frame.version,
        close: frame.close,
        request_id: frame.request_id,
    };
    write::own(out, &own);
}
