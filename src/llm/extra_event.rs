//! Takes out of a stream what its engine put there because we asked for usage and the client did
//! not: the usage event, whose `"choices": []` breaks clients that index the first choice of every
//! event, and counts in the events before it. What the usage event took from the event before it
//! (engines put some members on the last event, whichever that is) is put back there.
//!
//! What an engine does without being asked, passes. The rules, by what an event has:
//!
//! - `usage` is an object and `choices` empty: the usage event, which goes.
//! - `usage` has nothing but zeros, beside choices: the member goes. Ollama and LocalAI count so
//!   when they are asked.
//! - `usage` has counts, beside choices: the engine counts for everybody, as vLLM does with
//!   `--enable-force-include-usage`, and from here on all passes, the usage event too.
//! - The same, where the client asked for counts in each event and not for the usage event: vLLM
//!   gives them only with that event, and the member goes. It stays when it is SGLang's, which
//!   gives it without, and on a last event that alone has one.
//! - `usage` is null: SGLang and TGI write it into every event, asked or not. It tells nothing, and
//!   passes.
//!
//! What is not such an event passes byte for byte, and nearly always untouched where it lies: bytes
//! are copied only when something goes, or when a slice ends inside of an event. That beginning is
//! held back until it is known what it is; nobody can use half an event. And an event that ends a
//! choice is held back for what follows it, as long as its owner allows.

use crate::base::limits::EVENT_HELD_BYTES_MAX;
use facts::{data, ends_choice, may_matter, put_back, ChoiceList, EventFacts};
use memchr::memchr2;
use std::ops::Range;

mod facts;

/// Room that is kept for the beginnings of further events; a longer one is freed with its event.
const ROOM_KEPT_BYTES: usize = 2 * 1024;

/// Decides which bytes of an event stream, cut anywhere, reach the client.
#[derive(Debug, Default)]
pub struct ExtraEvent {
    /// The beginning of an event that is not complete.
    held: Vec<u8>,
    /// A whole event that ends a choice, and what goes with it.
    finish: Vec<u8>,
    lines: Lines,
    /// The rest of the event being read passes: it is longer than what may be held.
    is_passing: bool,
    /// The last event was taken out, and with it goes a LF that still belongs to it.
    has_dropped: bool,
    unjudged: bool,
    /// The client asked for counts in each event, and not for the usage event.
    wants_counts: bool,
    /// Counts were taken out of an event.
    has_cut: bool,
    /// The engine counts for everybody: nothing is there for our sake.
    is_untouched: bool,
}

/// What becomes of an event.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// It goes as it is.
    Passes,
    /// It goes when it is known what follows.
    Finishes,
    /// It does not go.
    Extra,
    /// It goes without these bytes; and it ends a choice, or not.
    Cut(Range<usize>, bool),
    /// It goes, and all that follow.
    Untouched,
}

impl ExtraEvent {
    /// For a client that asked for counts in each event, or not.
    pub fn new(wants_counts: bool) -> ExtraEvent {
        ExtraEvent { wants_counts, ..ExtraEvent::default() }
    }

    /// True when bytes may go out as they are; then they must, or else be given to
    /// [`ExtraEvent::feed`].
    pub fn passes(&self, bytes: &[u8]) -> bool {
        self.is_between_events()
            && (bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n"))
            && self.all_pass(bytes)
    }

    /// Takes the next bytes and appends what of them, and of those held, goes out now.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        if self.lines.end_cr(rest) {
            let (lf, behind) = rest.split_at(1);
            match (self.lines.inside, self.has_dropped, self.is_waiting()) {
                // The event goes on.
                (true, _, _) => self.keep(lf, out),
                (false, true, _) => {}
                (false, false, true) => self.finish.extend_from_slice(lf),
                (false, false, false) => out.extend_from_slice(lf),
            }
            rest = behind;
        }
        while let Some(end) = self.lines.event_end(rest) {
            let (event, behind) = rest.split_at(end);
            self.end_event(event, out);
            rest = behind;
        }
        self.keep(rest, out);
    }

    /// The stream is over: appends what is held.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.release(out);
        out.append(&mut self.held);
    }

    /// A whole event is held back for what follows it.
    pub fn is_waiting(&self) -> bool {
        !self.finish.is_empty()
    }

    /// It waits no longer: appends it.
    pub fn release(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.finish);
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.len() + self.finish.len()
    }

    /// True when an event was longer than [`EVENT_HELD_BYTES_MAX`] and passed without being looked
    /// at.
    pub fn passed_unjudged(&self) -> bool {
        self.unjudged
    }

    /// Nothing is begun or waits, and no LF of a line end is owed.
    fn is_between_events(&self) -> bool {
        !self.lines.inside && !self.lines.after_cr && !self.is_passing && !self.is_waiting()
    }

    /// Whole events: none of them is touched.
    fn all_pass(&self, bytes: &[u8]) -> bool {
        if self.is_untouched || !may_matter(bytes) {
            return true;
        }
        let (mut lines, mut rest) = (Lines::default(), bytes);
        while let Some(end) = lines.event_end(rest) {
            let (event, behind) = rest.split_at(end);
            if self.judge(event) != Verdict::Passes {
                return false;
            }
            rest = behind;
        }
        true
    }

    /// An event ends with these bytes.
    fn end_event(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if std::mem::take(&mut self.is_passing) {
            self.has_dropped = false;
            out.extend_from_slice(bytes);
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        if held.is_empty() {
            self.send_event(bytes, out);
        } else {
            held.extend_from_slice(bytes);
            self.send_event(&held, out);
        }
        held.clear();
        if held.capacity() <= ROOM_KEPT_BYTES {
            self.held = held;
        }
    }

    /// A whole event.
    fn send_event(&mut self, event: &[u8], out: &mut Vec<u8>) {
        self.unjudged |= event.len() > EVENT_HELD_BYTES_MAX;
        let verdict = self.judge(event);
        self.has_dropped = verdict == Verdict::Extra;
        if self.has_dropped && self.is_waiting() {
            put_back(event, &mut self.finish);
        }
        self.release(out);
        match verdict {
            Verdict::Passes => out.extend_from_slice(event),
            Verdict::Finishes => self.finish.extend_from_slice(event),
            Verdict::Extra => {}
            Verdict::Cut(range, finishes) => {
                self.has_cut = true;
                let to = if finishes { &mut self.finish } else { out };
                to.extend_from_slice(event.get(..range.start).unwrap_or_default());
                to.extend_from_slice(behind(event, range.end));
            }
            Verdict::Untouched => {
                self.is_untouched = true;
                out.extend_from_slice(event);
            }
        }
    }

    fn judge(&self, event: &[u8]) -> Verdict {
        if self.is_untouched || event.len() > EVENT_HELD_BYTES_MAX || !may_matter(event) {
            return Verdict::Passes;
        }
        let (json, at) = data(event);
        let Ok(facts) = EventFacts::of(&json) else { return Verdict::Passes };
        let finishes = ends_choice(event);
        let Some(counts) = facts.counts else {
            return if finishes { Verdict::Finishes } else { Verdict::Passes };
        };
        match facts.choices {
            ChoiceList::Absent => return Verdict::Passes,
            ChoiceList::None => return Verdict::Extra,
            ChoiceList::Some => {}
        }
        let tells_always = counts.are_sglangs || (finishes && !self.has_cut);
        match (counts.are_zeros, self.wants_counts) {
            (false, false) => Verdict::Untouched,
            (false, true) if tells_always => Verdict::Passes,
            // Where data has several lines nothing can be cut out of it.
            _ => at.map_or(Verdict::Passes, |at| {
                Verdict::Cut(at + counts.span.start..at + counts.span.end, finishes)
            }),
        }
    }

    /// Holds what goes on in the next slice.
    fn keep(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.held.len() + bytes.len() > EVENT_HELD_BYTES_MAX {
            self.unjudged = true;
            self.is_passing = true;
            self.release(out);
            out.append(&mut std::mem::take(&mut self.held));
        }
        match self.is_passing {
            true => out.extend_from_slice(bytes),
            false => self.held.extend_from_slice(bytes),
        }
    }
}

/// Finds the ends of events: blank lines. Lines end with LF, CRLF or CR (WHATWG HTML, 9.2.6).
#[derive(Debug, Default)]
struct Lines {
    /// An event has begun.
    inside: bool,
    /// The line being read has something in it.
    in_line: bool,
    /// The last byte was a CR: a LF right after it belongs to the same line end.
    after_cr: bool,
}

impl Lines {
    /// True when the first byte completes a line end that the last slice began.
    fn end_cr(&mut self, bytes: &[u8]) -> bool {
        !bytes.is_empty() && std::mem::take(&mut self.after_cr) && bytes.first() == Some(&b'\n')
    }

    /// Offset behind the first event that ends here; `None`: all bytes belong to one that goes on.
    fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(found) = memchr2(b'\n', b'\r', behind(bytes, at)) {
            let has_text = std::mem::take(&mut self.in_line) || found > 0;
            let end = at + found;
            at = end + 1;
            if bytes.get(end) == Some(&b'\r') {
                match bytes.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_cr = true,
                }
            }
            self.inside = has_text;
            if !has_text {
                return Some(at);
            }
        }
        self.in_line |= at < bytes.len();
        self.inside |= self.in_line;
        None
    }
}

/// `bytes` from `at`; empty when that is past the end.
fn behind(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
