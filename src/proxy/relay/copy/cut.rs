//! A stream whose key has no more of its quota ends as one does that is long enough.

use super::Relay;
use crate::base::clock::unix_ms;
use crate::base::fault::Fault;
use crate::http::write::LAST_CHUNK;
use crate::llm::cut::{self, CutAnswer};
use crate::proxy::relay::Relayed;
use crate::rt::buffer::Buffer;
use std::io::IoSlice;

impl Relay<'_> {
    /// Its key's quota is used up, and its client can be told: a stream that can be read, between
    /// two events, with something still to be said.
    pub(super) fn is_to_be_cut(&self) -> bool {
        let can_end = self.state.chunked || self.state.until_close;
        let is_said = self.tap.ended() == Some(true) || self.tap.awaits_usage();
        self.state.is_exhausted
            && can_end
            && !is_said
            && self.tap.body_usage.facts().content_events() > 0
            && !self.state.torn
            && cut::is_known(self.tap.dialect())
            && self.tap.at_event_boundary()
    }

    /// Ends the stream. `path` and `model`: of the request.
    pub async fn cut(&mut self, path: &str, model: &str) -> Relayed {
        // The end of another choice may still wait for what follows it.
        let waits = self.strip.as_ref().is_some_and(|strip| strip.wait().is_some());
        let released = if waits { self.release().await } else { Ok(()) };
        if let Err(fault) = released {
            return self.outcome(Some(fault));
        }
        let facts = self.tap.body_usage.facts();
        let answer = CutAnswer {
            dialect: self.tap.dialect(),
            is_chat: path.ends_with("chat/completions") || path.ends_with("api/chat"),
            id: self.tap.body_usage.upstream_id(),
            model,
            now_ms: unix_ms(),
            choices: facts.choices(),
            is_text_over: facts.is_text_over(),
            events: self.tap.events_sent(),
            tokens: facts.content_events(),
        };
        let mut events = Buffer::take();
        cut::write_end(&answer, &mut events);
        let sent = match self.send_own(&events).await {
            Ok(()) if self.is_chunked() => self.client.send(&mut [IoSlice::new(LAST_CHUNK)]).await,
            sent => sent,
        };
        let outcome = self.outcome(Some(sent.err().unwrap_or(Fault::QuotaExhausted)));
        Relayed { client_clean: sent.is_ok(), ..outcome }
    }
}
