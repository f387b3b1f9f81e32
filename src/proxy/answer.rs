//! Answers that we make ourselves: refusals, health, readiness, metrics. The one place where a
//! [`Refusal`] becomes bytes.

use super::client::Client;
use crate::base::fault::Fault;
use crate::base::refusal::Refusal;
use crate::http::write::{own_head, OwnHead};
use crate::rt::buffer::Buffer;
use std::io::IoSlice;

/// An answer of ours.
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// Content-Type.
    pub content_type: &'a str,
    /// The body.
    pub body: &'a [u8],
    /// Seconds of a `Retry-After`.
    pub retry_after: Option<u32>,
    /// `x-request-id`.
    pub request_id: &'a str,
    /// The connection closes after it.
    pub close: bool,
    /// The request was a HEAD: the head alone is sent.
    pub head_only: bool,
}

/// Sends an answer.
pub async fn send(client: &Client, answer: &Answer<'_>) -> Result<(), Fault> {
    let mut head = Buffer::take();
    own_head(
        &mut head,
        &OwnHead {
            status: answer.status,
            content_type: answer.content_type,
            content_length: answer.body.len() as u64,
            retry_after: answer.retry_after,
            request_id: answer.request_id,
            close: answer.close,
        },
    );
    let body = if answer.head_only { &[] } else { answer.body };
    client.send(&mut [IoSlice::new(&head), IoSlice::new(body)]).await
}

/// Sends a refusal as the JSON error object that OpenAI clients read.
pub async fn refuse(
    client: &Client,
    refusal: &Refusal,
    request_id: &str,
    close: bool,
    head_only: bool,
) -> Result<(), Fault> {
    let mut body = Buffer::take();
    crate::llm::error::write_body(refusal, &mut body);
    let answer = Answer {
        status: refusal.status,
        content_type: "application/json",
        body: &body,
        retry_after: refusal.retry_after,
        request_id,
        close,
        head_only,
    };
    send(client, &answer).await
}

/// A whole refusal, for a connection that never becomes a client.
pub fn refusal_bytes(out: &mut Vec<u8>, refusal: &Refusal, request_id: &str) {
    let mut body = Buffer::take();
    crate::llm::error::write_body(refusal, &mut body);
    own_head(
        out,
        &OwnHead {
            status: refusal.status,
            content_type: "application/json",
            content_length: body.len() as u64,
            retry_after: refusal.retry_after,
            request_id,
            close: true,
        },
    );
    out.extend_from_slice(&body);
}
