//! A stream whose usage we asked for and the client did not: the event that tells it is for us
//! alone. All other bytes go out as they came, in whole chunks where they lie; when that event is
//! there, or a read ends inside of one, they are put together anew. An event that ends a choice
//! waits for what follows it, and never for long.

use super::framing::Sections;
use crate::base::limits::FINISH_HELD_MAX;
use crate::http::head::Version;
use crate::http::response::ResponseHead;
use crate::http::write::OutFraming;
use crate::llm::extra_event::ExtraEvent;
use crate::rt::buffer::Buffer;
use std::time::{Duration, Instant};

/// What of a read goes to the client.
pub struct StrippedPart {
    /// Its bytes.
    pub bytes: Buffer,
    /// All of them, as a body.
    pub sections: Sections,
}

impl StrippedPart {
    fn of(bytes: Buffer) -> Box<StrippedPart> {
        let sections = Sections::of_data(bytes.len());
        Box::new(StrippedPart { bytes, sections })
    }
}

/// Takes the event out.
pub struct Strip {
    filter: ExtraEvent,
    /// When the event that waits goes, whatever follows.
    wait_ends: Option<Instant>,
}

impl Strip {
    /// For a client that asked for counts in each event, or not.
    pub fn new(wants_counts: bool) -> Strip {
        Strip { filter: ExtraEvent::new(wants_counts), wait_ends: None }
    }

    /// Looks at what was decoded of `input`. `None`: it may go as it is; else this goes instead,
    /// which may be nothing. `last`: the body ends with it.
    pub fn part(&mut self, body: &Sections, input: &[u8], last: bool) -> Option<Box<StrippedPart>> {
        let mut passes = !last || self.filter.held() == 0;
        body.for_each_data(input, |data| passes = passes && self.filter.passes(data));
        if passes {
            return None;
        }
        let mut bytes = Buffer::take();
        // Mostly there is room. No large buffer is lent for it, which a slow client would hold.
        bytes.reserve(self.filter.held() + input.len());
        body.for_each_data(input, |data| self.filter.feed(data, &mut bytes));
        if last {
            self.filter.finish(&mut bytes);
        }
        let waits_since =
            |ends: Option<Instant>| ends.or_else(|| Some(Instant::now() + FINISH_HELD_MAX));
        self.wait_ends = waits_since(self.wait_ends).filter(|_| self.filter.is_waiting());
        Some(StrippedPart::of(bytes))
    }

    /// How long an event still waits for what follows it; `None`: none does.
    pub fn wait(&self) -> Option<Duration> {
        self.wait_ends.map(|ends| ends.saturating_duration_since(Instant::now()))
    }

    /// What waits goes now.
    pub fn release(&mut self) -> Box<StrippedPart> {
        let mut bytes = Buffer::take();
        self.filter.release(&mut bytes);
        self.wait_ends = None;
        StrippedPart::of(bytes)
    }

    /// True when an event was too long to be judged.
    pub fn passed_unjudged(&self) -> bool {
        self.filter.passed_unjudged()
    }
}

/// True for an answer in which that event can stand and be found.
pub fn is_readable(response: &ResponseHead) -> bool {
    response.status == 200 && response.event_stream && !response.encoded
}

/// The framing for a body of which something may be taken out.
pub fn of_any_length(framing: OutFraming, client: Version) -> OutFraming {
    match (framing, client) {
        (OutFraming::Length(_), Version::Http10) => OutFraming::UntilClose,
        (OutFraming::Length(_), Version::Http11) => OutFraming::Chunked,
        _ => framing,
    }
}
