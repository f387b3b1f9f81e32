//! A stream whose usage we asked for and the client did not: the event that tells it is for us
//! alone. All other bytes go out as they came, in whole chunks where they lie; once in a stream,
//! when that event is there or a read ends inside of one, they are put together anew.

use super::framing::Sections;
use crate::http::head::Version;
use crate::http::response::ResponseHead;
use crate::http::write::OutFraming;
use crate::llm::extra_event::ExtraEvent;
use crate::rt::buffer::Buffer;

/// What of a read goes to the client.
pub struct Part {
    /// Its bytes.
    pub bytes: Buffer,
    /// All of them, as a body.
    pub sections: Sections,
}

/// Takes the event out.
#[derive(Default)]
pub struct Strip {
    filter: ExtraEvent,
}

impl Strip {
    /// Looks at what was decoded of `input`. `None`: it may go as it is; else this goes instead,
    /// which may be nothing. `last`: the body ends with it.
    pub fn part(&mut self, body: &Sections, input: &[u8], last: bool) -> Option<Box<Part>> {
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
        let sections = Sections::of_data(bytes.len());
        Some(Box::new(Part { bytes, sections }))
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
