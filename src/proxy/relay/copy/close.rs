//! How an answer ends: with its last bytes, or broken.

use super::Relay;
use crate::base::fault::Fault;
use crate::http::write::{chunk_header, CHUNK_HEADER_BYTES_MAX};
use crate::llm::error;
use crate::proxy::relay::last::LastBytes;
use crate::proxy::relay::Relayed;
use crate::rt::buffer::Buffer;
use std::io::IoSlice;

impl Relay<'_> {
    /// Sends the last bytes.
    pub async fn end(&mut self, last: Box<LastBytes>) -> Relayed {
        let head = last.head.as_ref().map_or(&[][..], |head| head);
        let bytes = last.bytes.as_ref().and_then(|bytes| bytes.get(last.from..));
        let sent = self.send(head, &last.body, bytes.unwrap_or_default()).await;
        last.let_go();
        self.outcome(sent.err())
    }

    /// Ends an answer that broke.
    pub async fn break_off(&mut self, fault: Fault) -> Relayed {
        Box::pin(self.tell(fault)).await;
        self.outcome(Some(fault))
    }

    pub(super) fn outcome(&self, fault: Option<Fault>) -> Relayed {
        if self.strip.as_ref().is_some_and(|strip| strip.passed_unjudged()) {
            self.meters.borrow_mut().events_unjudged += 1;
        }
        let finished = self.state.finished;
        // Whether the client took the answer does not matter to the engine's connection.
        let exact = finished && !self.state.extra;
        Relayed {
            fault,
            upstream_at_end: exact && !self.inbound.ends_with_close(),
            client_clean: exact && fault.is_none(),
            upstream_finished: finished,
            upstream_extra: self.state.extra,
            bytes: self.state.bytes,
        }
    }

    /// Puts bytes of our own into the stream.
    pub(super) async fn send_own(&self, bytes: &[u8]) -> Result<(), Fault> {
        let mut size = [0u8; CHUNK_HEADER_BYTES_MAX];
        let header = chunk_header(&mut size, bytes.len());
        let mut parts = [IoSlice::new(header), IoSlice::new(bytes), IoSlice::new(b"\r\n")];
        let parts = if self.is_chunked() { &mut parts[..] } else { &mut parts[1..2] };
        self.client.send(parts).await
    }

    /// A client must see that an answer is incomplete: its body never gets a proper end, and an
    /// event stream says why first, if its last event is whole.
    async fn tell(&mut self, fault: Fault) {
        let mut client_reads = !matches!(fault, Fault::ClientLeft | Fault::ClientWriteTimeout);
        if client_reads && self.strip.as_ref().is_some_and(|strip| strip.wait().is_some()) {
            client_reads = self.release().await.is_ok();
        }
        let chunked = self.is_chunked();
        let whole = !self.state.torn && self.tap.at_event_boundary();
        if client_reads && chunked && whole {
            let mut event = Buffer::take();
            let (why, events) = (fault.refusal(), self.tap.events_sent());
            match self.tap.is_ndjson() {
                true => error::write_last_line(&why, events, &mut event),
                false => error::write_last_event(self.tap.dialect(), &why, events, &mut event),
            }
            // Best effort: the stream is broken either way.
            let _ = self.send_own(&event).await;
        }
        if self.state.until_close {
            // A body that ends with the close would look whole: reset instead.
            self.client.post.socket().reset_on_close();
        }
    }
}
