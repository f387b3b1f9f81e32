//! What in the bytes of an answer is JSON: the `data` of server-sent events (WHATWG HTML, 9.2.6), a
//! line of NDJSON, or all of it. Comments, ids and all other fields are none.

use super::alike::Alike;
use super::facts::UsageFacts;
use super::places::UsagePlace;
use super::walk::UsageWalk;
use crate::llm::dialect::Dialect;
use crate::llm::sse::{EventFraming, MarkStrip};
use memchr::{memchr, memchr2};

/// As much of a line as tells what it is, when its bytes arrive in pieces: more than the longest
/// line with the name of an event that matters.
const HEAD_BYTES: usize = 31;

/// Watches bytes of an answer, cut anywhere.
#[derive(Debug, Default)]
pub struct Lines {
    /// `None`: the answer is one JSON text.
    framing: Option<EventFraming>,
    mark: MarkStrip,
    line: Line,
    /// Beginning of a line of which it is not known yet what it is.
    head: [u8; HEAD_BYTES],
    head_len: u8,
    /// The last byte was a CR: a LF right after it belongs to the same line end.
    after_cr: bool,
    /// The next byte is the first one of an event.
    is_between: bool,
    /// The event being read has data.
    in_event: bool,
    has_data: bool,
    done: bool,
    alike: Alike,
}

/// What a line is that has begun.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Not known yet.
    #[default]
    New,
    /// Its rest is data.
    Data,
    /// Its rest means nothing.
    Other,
}

/// What the beginning of a line is.
enum Beginning {
    /// Data, behind so many bytes.
    Data(usize),
    /// llama.cpp's field for errors, behind so many bytes.
    Error(usize),
    /// Nothing to us.
    Other,
    /// More bytes, or the end of the line, will tell.
    Open,
}

impl Lines {
    /// An answer of this framing begins.
    pub fn reset(&mut self, framing: Option<EventFraming>) {
        let mut alike = std::mem::take(&mut self.alike);
        alike.reset();
        *self = Lines { framing, alike, is_between: true, ..Lines::default() };
    }

    /// Data other than `[DONE]` has come.
    pub fn has_data(&self) -> bool {
        self.has_data
    }

    /// `data: [DONE]` has come. Behind the last line a line end may be missing.
    pub fn done(&self) -> bool {
        self.done || self.head().strip_prefix(b"data:").is_some_and(is_done)
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        let (held, bytes) = self.mark.strip(bytes);
        if !held.is_empty() {
            self.read(walk, facts, held);
        }
        self.read(walk, facts, bytes);
    }

    fn read(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        match self.framing {
            Some(EventFraming::Events) => self.feed_events(walk, facts, bytes),
            Some(EventFraming::Lines) => self.feed_lines(walk, facts, bytes),
            None => {
                self.has_data |= !bytes.is_empty();
                walk.feed(facts, bytes);
            }
        }
    }

    fn feed_lines(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, behind) = rest.split_at(end);
            self.line_data(walk, facts, line);
            walk.end(facts);
            walk.begin(UsagePlace::Top);
            rest = behind.get(1..).unwrap_or_default();
        }
        self.line_data(walk, facts, rest);
    }

    fn line_data(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        self.has_data = self.has_data || !bytes.trim_ascii().is_empty();
        walk.feed(facts, bytes);
    }

    fn feed_events(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        let mut rest = bytes;
        // The event that is read, if all of it is here, and where in it the model's text begins.
        let mut event = None;
        let mut text_from = None;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            if self.is_between {
                if let Some(len) = self.alike.event_like_it(rest) {
                    self.pass_event(walk, facts);
                    let (seen, behind) = rest.split_at(len);
                    self.after_cr = seen.last() == Some(&b'\r');
                    rest = behind;
                    continue;
                }
                self.is_between = false;
                (event, text_from) = (Some(rest), None);
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.piece(walk, facts, rest);
                return;
            };
            let (line, behind) = rest.split_at(end);
            self.after_cr = behind.first() == Some(&b'\r');
            if self.line == Line::New && self.head_len == 0 {
                let is_first = !self.in_event;
                self.whole(walk, facts, line);
                if let (Some(event), true) = (event, self.in_event) {
                    let left = walk.content_left().filter(|_| is_first && facts.is_plain());
                    text_from = left.map(|left| event.len() - behind.len() - left);
                }
            } else {
                self.piece(walk, facts, line);
                self.end_line(walk, facts);
            }
            rest = behind.get(1..).unwrap_or_default();
            if let (true, Some(event), Some(from)) = (self.is_between, event, text_from) {
                let len = event.len() - rest.len();
                self.alike.remember(event.get(..len).unwrap_or_default(), from);
            }
        }
    }

    /// An event came that says what the last one said.
    fn pass_event(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts) {
        self.has_data = true;
        walk.pass();
        facts.count_content();
    }

    /// A whole line.
    fn whole(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, line: &[u8]) {
        if let Some(value) = line.strip_prefix(b"data:") {
            if is_done(value) {
                self.done = true;
                // What follows is not what it was before.
                return self.alike.reset();
            }
            return self.data(walk, facts, value.strip_prefix(b" ").unwrap_or(value));
        }
        if line.is_empty() {
            return self.end_event(walk, facts);
        }
        if line == b"data" {
            return self.data(walk, facts, b"");
        }
        if let Some(name) = line.strip_prefix(b"event:") {
            return facts.event_name(name.strip_prefix(b" ").unwrap_or(name));
        }
        if let Some(value) = line.strip_prefix(b"error:") {
            self.error(walk, facts, value);
        }
    }

    fn data(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, value: &[u8]) {
        if std::mem::replace(&mut self.in_event, true) {
            walk.join(facts);
        } else {
            walk.begin(if self.done { UsagePlace::BehindEnd } else { UsagePlace::Top });
        }
        self.has_data |= !self.done;
        walk.feed(facts, value);
    }

    fn error(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, value: &[u8]) {
        walk.end(facts);
        facts.mark_error();
        walk.begin(UsagePlace::Error);
        walk.feed(facts, value);
    }

    fn end_event(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts) {
        walk.end(facts);
        self.is_between = true;
        let is_counted = facts.dialect == Dialect::Other && !self.done;
        if std::mem::take(&mut self.in_event) && is_counted {
            // Nothing is known of what stands in it.
            facts.count_content();
        }
    }

    /// A piece of a line that is not all here.
    fn piece(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts, bytes: &[u8]) {
        match self.line {
            Line::Data => return walk.feed(facts, bytes),
            Line::Other => return,
            Line::New => {}
        }
        let room = self.head.iter_mut().skip(usize::from(self.head_len));
        let kept = room.zip(bytes).map(|(to, from)| *to = *from).count();
        self.head_len += kept as u8;
        let head = self.head;
        let head = head.get(..usize::from(self.head_len)).unwrap_or_default();
        let from = match beginning(head) {
            Beginning::Open if head.len() < HEAD_BYTES => return,
            Beginning::Open | Beginning::Other => {
                self.line = Line::Other;
                self.head_len = 0;
                return;
            }
            Beginning::Data(from) => {
                self.data(walk, facts, head.get(from..).unwrap_or_default());
                kept
            }
            Beginning::Error(from) => {
                self.error(walk, facts, head.get(from..).unwrap_or_default());
                kept
            }
        };
        self.line = Line::Data;
        self.head_len = 0;
        walk.feed(facts, bytes.get(from..).unwrap_or_default());
    }

    fn end_line(&mut self, walk: &mut UsageWalk, facts: &mut UsageFacts) {
        if std::mem::take(&mut self.line) == Line::New {
            let head = self.head;
            let len = usize::from(std::mem::take(&mut self.head_len));
            self.whole(walk, facts, head.get(..len).unwrap_or_default());
        }
    }

    fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or_default()
    }
}

fn is_done(value: &[u8]) -> bool {
    value.strip_prefix(b" ").unwrap_or(value) == b"[DONE]"
}

/// What a line is that begins so.
fn beginning(head: &[u8]) -> Beginning {
    if let Some(value) = head.strip_prefix(b"data:") {
        let open = b" [DONE]".starts_with(value) || b"[DONE]".starts_with(value);
        return match (open, value.first()) {
            (true, _) => Beginning::Open,
            (false, Some(b' ')) => Beginning::Data(6),
            (false, _) => Beginning::Data(5),
        };
    }
    if head.starts_with(b"error:") {
        return Beginning::Error(6);
    }
    let fields = [&b"data:"[..], b"event:", b"error:"];
    match head.starts_with(b"event:") || fields.iter().any(|field| field.starts_with(head)) {
        true => Beginning::Open,
        false => Beginning::Other,
    }
}
