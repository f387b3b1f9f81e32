//! Watches the bytes of an answer after they were sent on: finds usage, counts events, takes
//! times. It can neither delay nor change them.

use crate::llm::sse::SseScan;
use crate::llm::usage::UsageScan;
use crate::state::meters::Times;
use std::time::{Duration, Instant};

/// A stream is noted in the journal so often: what a kill leaves of its record is that old at most.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// What the relay has seen of one answer.
#[derive(Default)]
pub struct Tap {
    /// Token usage, streamed or not.
    pub usage: UsageScan,
    /// Event boundaries; `None` for an answer that is not an event stream.
    pub events: Option<SseScan>,
    /// Usage stands at one end of the answer, if anywhere: the middle may pass unseen.
    pub usage_at_ends: bool,
    /// When the first body byte had been handed to the client's socket.
    pub first_byte: Option<Instant>,
    last: Option<Instant>,
    /// Notes so far.
    notes: u32,
}

impl Tap {
    /// Forgets the last answer, keeps capacity. Of the next one nothing is known.
    pub fn reset(&mut self) {
        self.usage.reset();
        self.events = None;
        self.usage_at_ends = false;
        self.first_byte = None;
        self.last = None;
        self.notes = 0;
    }

    /// The answer is an event stream.
    pub fn expect_events(&mut self) {
        self.events = Some(SseScan::default());
    }

    /// When the last bytes so far had been handed to the client's socket.
    pub fn last_byte(&self) -> Option<Instant> {
        self.last
    }

    /// Sees a slice of the body.
    pub fn see(&mut self, bytes: &[u8]) {
        self.usage.feed(bytes);
        self.see_sent(bytes);
    }

    /// Sees a slice that went to the client, of which the usage was seen where it came from.
    pub fn see_sent(&mut self, bytes: &[u8]) {
        if let Some(events) = self.events.as_mut() {
            events.feed(bytes);
        }
    }

    /// True when bytes in the middle of the answer may pass without being seen.
    pub fn may_skip(&self) -> bool {
        self.usage_at_ends && self.events.is_none()
    }

    /// Bytes pass unseen.
    pub fn skip(&mut self) {
        self.usage.skip();
    }

    /// Called once for what one read brought: takes the times.
    pub fn tick(&mut self, inter_token: &mut Times) {
        let now = Instant::now();
        match (self.last, self.events.is_some()) {
            (Some(last), true) => inter_token.record(now - last),
            (None, _) => self.first_byte = Some(now),
            _ => {}
        }
        self.last = Some(now);
    }

    /// True, once, when the answer has gone on for so long that it should be noted.
    pub fn is_note_due(&mut self) -> bool {
        let (Some(last), Some(first)) = (self.last, self.first_byte) else { return false };
        // Both instants are there anyway; a third would be carried by every stream.
        let is_due = last.saturating_duration_since(first) >= NOTE_INTERVAL * (self.notes + 1);
        if is_due {
            let passed = last.saturating_duration_since(first).as_secs() / NOTE_INTERVAL.as_secs();
            self.notes = u32::try_from(passed).unwrap_or(u32::MAX - 1);
        }
        is_due
    }

    /// True when an event of ours may be put into the stream: the engine's last one is complete.
    pub fn at_event_boundary(&self) -> bool {
        self.events.as_ref().is_some_and(SseScan::at_boundary)
    }
}
