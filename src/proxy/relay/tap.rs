//! Watches the bytes of an answer after they were sent on: finds usage, counts events, takes
//! times. It can neither delay nor change them.

use super::packed::{Copy as PackedCopy, Lost};
use crate::llm::dialect::Dialect;
use crate::llm::ending;
use crate::llm::header_usage::{self, HeadUsage};
use crate::llm::inflate::{Coding, Packed};
use crate::llm::sse::{EventFraming, SseScan};
use crate::llm::tokens::{Oddities, Usage};
use crate::llm::usage::number::Odd;
use crate::llm::usage::UsageScan;
use crate::state::meters::Times;
use crate::usage::unpacker::Unpacker;
use std::time::{Duration, Instant};

/// A stream is noted in the journal so often: what a kill leaves of its record is that old at most.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// What the relay has seen of one answer.
#[derive(Default)]
pub struct Tap {
    /// Token usage in the body, streamed or not.
    pub body_usage: UsageScan,
    /// Event boundaries; `None` for an answer that is no stream of events that can be read. Boxed:
    /// most connections never stream.
    pub events: Option<Box<SseScan>>,
    /// Usage stands at one end of the answer, if anywhere: the middle may pass unseen.
    pub usage_at_ends: bool,
    /// When the first body byte had been handed to the client's socket.
    pub first_byte: Option<Instant>,
    /// Of a stream: when the first event in which the model said something had been.
    first_token: Option<Instant>,
    last: Option<Instant>,
    /// Usage that stood in the head. Boxed: it is rare.
    head_usage: Option<Box<HeadUsage>>,
    /// Of a packed answer: what the tap does not see as it passes. Boxed: few are packed.
    packed: Option<Box<PackedCopy>>,
    dialect: Dialect,
    reading: Reading,
    /// The answer is a stream, whether or not it can be read as it passes.
    is_stream: bool,
    /// The end mark of the stream was seen, and noted.
    is_over: bool,
    /// Notes so far.
    notes: u32,
}

/// What the body of an answer is read for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reading {
    /// Usage, and all else that an answer says of itself.
    #[default]
    Usage,
    /// What it says of itself but usage: it is an error, or was counted when it was made.
    Facts,
    /// Nothing: it is not in a form of engines, such as the text of a recording, in which whoever
    /// spoke could say anything.
    Nothing,
}

/// What the head of an answer says of its body.
pub struct Expected<'a> {
    /// Path of the request.
    pub dialect: Dialect,
    /// What the body is read for.
    pub reading: Reading,
    /// A stream of events.
    pub event_stream: bool,
    /// A stream of lines.
    pub ndjson: bool,
    /// How the body is packed, when it is.
    pub encoding: Option<&'a [u8]>,
}

impl Tap {
    /// Forgets the last answer, keeps capacity. Of the next one nothing is known.
    pub fn reset(&mut self) {
        self.body_usage.reset();
        self.events = None;
        self.usage_at_ends = false;
        self.first_byte = None;
        self.first_token = None;
        self.last = None;
        self.head_usage = None;
        self.packed = None;
        self.dialect = Dialect::Other;
        self.reading = Reading::default();
        self.is_stream = false;
        self.is_over = false;
        self.notes = 0;
    }

    /// An answer begins.
    pub fn expect(&mut self, what: &Expected<'_>) {
        self.dialect = what.dialect;
        self.reading = what.reading;
        let framing = match (what.event_stream, what.ndjson) {
            (true, _) => Some(EventFraming::Events),
            (false, true) => Some(EventFraming::Lines),
            (false, false) => None,
        };
        self.body_usage.expect(what.dialect, framing);
        self.is_stream = framing.is_some();
        if let Some(encoding) = what.encoding {
            self.packed = Some(Box::new(match Coding::of(encoding) {
                // Nobody would look at the copy.
                _ if what.reading == Reading::Nothing => PackedCopy::Lost(Lost::Unread),
                Some(coding) => {
                    PackedCopy::Kept(Box::new(Packed::new(coding, what.dialect, framing)))
                }
                None => PackedCopy::Lost(Lost::Unknown),
            }));
        } else if let Some(framing) = framing {
            self.events = Some(Box::new(SseScan::new(framing)));
        }
    }

    /// Looks for usage in the fields of a head.
    pub fn see_head<'a>(&mut self, fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) {
        self.head_usage = header_usage::usage_of(fields).map(Box::new);
    }

    /// Tokens as the engine counted them. A head that tells tells all; the body beside it may not.
    pub fn usage(&self) -> Option<Usage> {
        match &self.head_usage {
            Some(told) => told.usage.ok(),
            None => self.body_usage.usage().filter(|_| self.reading == Reading::Usage),
        }
    }

    /// Why there are no tokens although the engine said something of them.
    pub fn odd_usage(&self) -> Option<Odd> {
        match &self.head_usage {
            Some(told) => told.usage.err(),
            None => self.body_usage.facts().fault().filter(|_| self.reading == Reading::Usage),
        }
    }

    /// What is strange in the counts.
    pub fn oddities(&self) -> Oddities {
        match &self.head_usage {
            Some(told) => told.oddities,
            None if self.reading == Reading::Usage => self.body_usage.facts().oddities(),
            None => Oddities::default(),
        }
    }

    /// Seconds of a recording, as the engine counted them.
    pub fn audio_seconds(&self) -> Option<u64> {
        self.body_usage.facts().seconds().filter(|_| self.reading == Reading::Usage)
    }

    /// What the answer says cannot be seen as it passes.
    pub fn is_packed(&self) -> bool {
        self.packed.is_some()
    }

    /// The answer is whole: if it is packed, its copy goes to be unpacked.
    pub fn hand_copy_over(&mut self, unpacker: &Unpacker) {
        if let Some(packed) = &mut self.packed {
            packed.hand_over(unpacker);
        }
    }

    /// What the answer says is not known yet: its copy is being unpacked.
    pub fn awaits_copy(&self) -> bool {
        matches!(self.packed.as_deref(), Some(PackedCopy::Handed(_)))
    }

    /// Waits for the copy, if it is on its way; what is in it was seen then, as if it had come
    /// plain.
    pub async fn see_copy(&mut self) {
        let Some(packed) = &mut self.packed else { return };
        if let Some(scan) = packed.unpacked().await {
            self.body_usage = *scan;
        }
    }

    /// Waits no longer for the copy.
    pub fn give_copy_up(&mut self) {
        if let Some(packed) = &mut self.packed {
            packed.give_up();
        }
    }

    /// Why nothing is known of a packed answer.
    fn why_lost(&self) -> Option<Lost> {
        self.packed.as_ref().and_then(|packed| packed.why_lost())
    }

    /// What came of unpacking a packed answer whose usage was looked for, for the counter.
    pub fn unpacked_as(&self) -> Option<&'static str> {
        if !self.is_packed() || self.reading != Reading::Usage {
            return None;
        }
        Some(match (self.why_lost(), self.usage()) {
            (_, Some(_)) => "found",
            (Some(why), None) => why.as_str(),
            (None, None) => "missing",
        })
    }

    /// What the answer is read for.
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// The answer is in a form that has usage, and is read for it.
    pub fn may_tell(&self) -> bool {
        self.reading == Reading::Usage && self.dialect != Dialect::Other
    }

    /// Why there is no usage, when that is known.
    pub fn why_missing(&self) -> Option<&'static str> {
        if self.usage().is_some() || self.reading != Reading::Usage {
            return None;
        }
        let odd = self.odd_usage().map(Odd::as_str);
        odd.or(self.why_lost().map(Lost::as_str))
    }

    /// What is wrong with an answer of status 200 whose bytes all came: the engine did not know it
    /// when it sent the head.
    pub fn broken_inside(&self) -> Option<&'static str> {
        let is_seen = matches!(self.packed.as_deref(), None | Some(PackedCopy::Read));
        if !is_seen || self.reading == Reading::Nothing {
            return None;
        }
        match (self.body_usage.facts().error(), self.is_stream) {
            (true, true) => Some("error_in_stream"),
            (true, false) => Some("error_in_answer"),
            (false, _) if !self.body_usage.has_data() && self.dialect != Dialect::Other => {
                Some("empty_answer")
            }
            (false, _) if self.ended() == Some(false) => Some("stream_unfinished"),
            (false, _) if self.body_usage.is_cut() && self.dialect != Dialect::Other => {
                Some("answer_unfinished")
            }
            (false, _) => None,
        }
    }

    /// Whether the stream is a whole answer so far; `None` where nobody can say.
    pub fn ended(&self) -> Option<bool> {
        self.is_stream.then(|| ending::ended(self.dialect, &self.body_usage)).flatten()
    }

    /// When the client was sent the first token: of a stream, the first event in which the model
    /// said something, which is not known of one that is packed; of any other answer its first
    /// byte.
    pub fn first_token(&self) -> Option<Instant> {
        match self.is_stream {
            true => self.first_token,
            false => self.first_byte,
        }
    }

    /// True when the last read brought the first token of a stream.
    pub fn has_just_begun(&self) -> bool {
        self.is_stream && self.first_token.is_some() && self.first_token == self.last
    }

    /// True when something was sent that is worth waiting for: of a stream, data. Comments are
    /// sent by engines that are still busy with the prompt.
    pub fn has_begun(&self) -> bool {
        match self.events {
            Some(_) => self.body_usage.has_data(),
            None => self.first_byte.is_some(),
        }
    }

    /// When the last bytes so far had been handed to the client's socket.
    pub fn last_byte(&self) -> Option<Instant> {
        self.last
    }

    /// Sees a slice of the body.
    pub fn see(&mut self, bytes: &[u8]) {
        self.see_unsent(bytes);
        self.see_sent(bytes);
    }

    /// Sees a slice that no client takes. What the engine counts in it, it counted all the same.
    pub fn see_unsent(&mut self, bytes: &[u8]) {
        match (&mut self.packed, self.reading) {
            (_, Reading::Nothing) => {}
            (Some(packed), _) => packed.keep(bytes),
            (None, _) => self.body_usage.feed(bytes),
        }
    }

    /// All text of the stream is here, and its usage is not: it may follow.
    pub fn awaits_usage(&self) -> bool {
        let is_read = self.events.is_some() && self.reading == Reading::Usage;
        let scan = &self.body_usage;
        let is_over = scan.done() || self.ended() == Some(true);
        is_read && !is_over && self.head_usage.is_none() && scan.facts().awaits_counts()
    }

    /// Sees a slice that went to the client, of which the usage was seen where it came from.
    pub fn see_sent(&mut self, bytes: &[u8]) {
        if let Some(events) = self.events.as_mut() {
            events.feed(bytes);
        }
    }

    /// True when bytes in the middle of the answer may pass without being seen.
    pub fn may_skip(&self) -> bool {
        self.usage_at_ends && self.events.is_none() && !self.is_packed()
    }

    /// Bytes pass unseen.
    pub fn skip(&mut self) {
        self.body_usage.skip();
    }

    /// Called once for what one read brought: takes the times.
    pub fn tick(&mut self, inter_token: &mut Times) {
        let now = Instant::now();
        match (self.last, self.events.is_some()) {
            (Some(last), true) => inter_token.record(now - last),
            (None, _) => self.first_byte = Some(now),
            _ => {}
        }
        if self.first_token.is_none() && self.body_usage.facts().content_events() > 0 {
            self.first_token = Some(now);
        }
        self.last = Some(now);
    }

    /// Nothing more of the answer goes to the client: if nothing did, it is over now.
    pub fn stop(&mut self) {
        self.last.get_or_insert_with(Instant::now);
    }

    /// True when the answer should be noted: after each [`NOTE_INTERVAL`], and when its end mark
    /// has come and its last bytes have not.
    pub fn is_note_due(&mut self) -> bool {
        if !self.is_over && self.ended() == Some(true) {
            self.is_over = true;
            return true;
        }
        let (Some(last), Some(first)) = (self.last, self.first_byte) else { return false };
        // Both instants are there anyway; a third would be carried by every stream.
        let is_due = last.saturating_duration_since(first) >= NOTE_INTERVAL * (self.notes + 1);
        if is_due {
            let passed = last.saturating_duration_since(first).as_secs() / NOTE_INTERVAL.as_secs();
            self.notes = u32::try_from(passed).unwrap_or(u32::MAX - 1);
        }
        is_due
    }

    /// The client was sent the end of the stream: nothing that it could miss is left. What looked
    /// like the end is none when another choice begins behind it.
    pub fn is_over(&self) -> bool {
        self.is_over && self.ended() == Some(true)
    }

    /// In whose form an error of ours would have to be told.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Events that went to the client.
    pub fn events_sent(&self) -> u64 {
        self.events.as_ref().map_or(0, |events| events.events())
    }

    /// Our own error would have to be a line of JSON instead of an event.
    pub fn is_ndjson(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.is_ndjson())
    }

    /// True when an event of ours may be put into the stream: the engine's last one is complete.
    pub fn at_event_boundary(&self) -> bool {
        self.events.as_ref().is_some_and(|events| events.at_boundary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a request whose client left before its answer began, and that is said to have
    /// lasted until its engine was read to the end.
    #[test]
    fn what_is_stopped_is_over() {
        let mut tap = Tap::default();
        tap.stop();
        let stopped = tap.last_byte();
        assert!(stopped.is_some());
        tap.see_unsent(b"data: {}\n\n");
        tap.stop();
        assert_eq!(tap.last_byte(), stopped);
        assert_eq!(tap.first_byte, None);
    }
}
