//! The relay loop. Events leave in the same turn in which they arrive, in one system call: our
//! chunk header, the body slices where they lie in the read buffer, the line end.

use super::framing::{Inbound, Slices};
use super::tap::Tap;
use super::Outcome;
use crate::base::fault::Fault;
use crate::base::limits::SLICES_PER_SEND_MAX;
use crate::config::plan::Backend;
use crate::http::write::{chunk_header, OutFraming, LAST_CHUNK};
use crate::proxy::client::Client;
use crate::proxy::worker::Worker;
use crate::rt::buffer::Buffer;
use crate::rt::patrol::Alarm;
use crate::rt::tls::Link;
use std::io::{self, IoSlice};

/// Parts of one send beside the slices: head, chunk header, line end, last chunk.
const EXTRA_PARTS: usize = 4;

/// What is relayed, and how.
pub struct Answer<'a> {
    /// The head for the client, sent with the first bytes of the body if there are any yet.
    pub head: Buffer,
    /// What the engine has sent so far; the body starts at `body_at`.
    pub bytes: Buffer,
    /// See `bytes`.
    pub body_at: usize,
    /// The engine's framing.
    pub inbound: Inbound,
    /// The framing towards the client.
    pub outbound: OutFraming,
    /// The answer is an event stream.
    pub event_stream: bool,
    /// The backend's timeouts.
    pub plan: &'a Backend,
}

/// Relays an answer to its end, whichever that is.
pub async fn relay(w: &Worker, client: &Client, link: &mut Link, answer: Answer<'_>) -> Outcome {
    let mut flow = Flow {
        client,
        inbound: answer.inbound,
        outbound: answer.outbound,
        finished: false,
        extra: false,
        bytes: 0,
        tap: Tap::new(answer.event_stream),
    };
    let mut result =
        flow.forward(w, answer.bytes.get(answer.body_at..).unwrap_or_default(), &answer.head).await;
    drop((answer.head, answer.bytes));
    while result.is_ok() && !flow.finished {
        result = flow.next_read(w, link, answer.plan).await;
    }
    flow.conclude(result).await
}

struct Flow<'a> {
    client: &'a Client,
    inbound: Inbound,
    outbound: OutFraming,
    finished: bool,
    /// The engine sent bytes behind the end of its answer.
    extra: bool,
    bytes: u64,
    tap: Tap,
}

impl Flow<'_> {
    fn is_chunked(&self) -> bool {
        self.outbound == OutFraming::Chunked
    }

    /// Waits for the engine without a buffer, reads once, forwards what came.
    async fn next_read(&mut self, w: &Worker, link: &mut Link, plan: &Backend) -> Result<(), Fault> {
        let post = &self.client.post;
        post.arm(plan.idle_timeout);
        match post.attended(link.readable()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Fault::BackendBroke),
            Err(Alarm::Gone) => return Err(Fault::ClientLeft),
            Err(Alarm::Expired) => return Err(Fault::BackendIdleTimeout),
            Err(Alarm::Ended) => return Err(Fault::ShuttingDown),
        }
        let mut buffer = Buffer::take();
        match link.try_recv(&mut buffer) {
            Ok(0) if self.inbound.ends_with_close() => {
                self.finished = true;
                self.send(&[], &Slices::default(), &[]).await
            }
            Ok(0) => Err(Fault::BackendBroke),
            Ok(_) => self.forward(w, &buffer, &[]).await,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(Fault::BackendBroke),
        }
    }

    /// Decodes and sends on all of `input`; `head` goes first.
    async fn forward(&mut self, w: &Worker, input: &[u8], head: &[u8]) -> Result<(), Fault> {
        let mut head = head;
        let mut rest = input;
        let mut slices = Slices::default();
        loop {
            let progress =
                self.inbound.decode(rest, &mut slices).map_err(|_| Fault::BackendBroke)?;
            self.finished = progress.finished;
            if !head.is_empty() || !slices.is_empty() || self.finished {
                self.send(head, &slices, rest).await?;
                head = &[];
            }
            if !slices.is_empty() {
                self.observe(w, &slices, rest);
            }
            rest = rest.get(progress.consumed..).unwrap_or_default();
            if self.finished {
                self.extra = !rest.is_empty();
                return Ok(());
            }
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// One vectored send: all slices of a read become one chunk.
    async fn send(&mut self, head: &[u8], slices: &Slices, input: &[u8]) -> Result<(), Fault> {
        let mut size = [0u8; 18];
        let mut parts = [IoSlice::new(&[]); SLICES_PER_SEND_MAX + EXTRA_PARTS];
        let mut used = 0;
        let length = slices.len();
        let as_chunk = self.is_chunked() && length > 0;
        let header = if as_chunk { chunk_header(&mut size, length) } else { &[] };
        let data = slices.ranges().iter().map(|r| input.get(r.clone()).unwrap_or_default());
        let line_end: &[u8] = if as_chunk { b"\r\n" } else { &[] };
        let end: &[u8] = if self.is_chunked() && self.finished { LAST_CHUNK } else { &[] };
        for part in [head, header].into_iter().chain(data).chain([line_end, end]) {
            if let (false, Some(slot)) = (part.is_empty(), parts.get_mut(used)) {
                *slot = IoSlice::new(part);
                used += 1;
            }
        }
        let Some(parts) = parts.get_mut(..used).filter(|p| !p.is_empty()) else { return Ok(()) };
        self.client.send(parts).await?;
        self.bytes += length as u64;
        Ok(())
    }

    /// Looks at what was just sent.
    fn observe(&mut self, w: &Worker, slices: &Slices, input: &[u8]) {
        for range in slices.ranges() {
            self.tap.see(input.get(range.clone()).unwrap_or_default());
        }
        self.tap.tick(&mut w.meters.borrow_mut().inter_token);
    }

    /// Turns the result into an outcome. A client must see that an answer is incomplete: its body
    /// never gets a proper end, and an event stream says why first, if its last event is whole.
    async fn conclude(self, result: Result<(), Fault>) -> Outcome {
        let fault = result.err();
        if let Some(fault) = fault {
            self.tell(fault).await;
        }
        Outcome {
            upstream_clean: self.finished
                && fault.is_none()
                && !self.extra
                && !self.inbound.ends_with_close(),
            client_clean: fault.is_none() && !self.extra,
            fault,
            bytes: self.bytes,
            tap: self.tap,
            rest: (!self.finished).then_some(self.inbound),
        }
    }

    async fn tell(&self, fault: Fault) {
        let client_can_read = !matches!(fault, Fault::ClientLeft | Fault::ClientWriteTimeout);
        let stream_is_whole = self.tap.at_event_boundary();
        if client_can_read && self.is_chunked() && stream_is_whole {
            let mut event = Buffer::take();
            crate::llm::error::write_event(&fault.refusal(), &mut event);
            let mut size = [0u8; 18];
            let header = chunk_header(&mut size, event.len());
            let mut parts = [IoSlice::new(header), IoSlice::new(&event), IoSlice::new(b"\r\n")];
            // Best effort: the stream is broken either way.
            let _ = self.client.send(&mut parts).await;
        }
        if self.outbound == OutFraming::UntilClose {
            // A body that ends with the close would look whole: reset instead.
            self.client.post.socket().reset_on_close();
        }
    }
}
