//! Events and their boundaries in a stream that passes: server-sent events (WHATWG HTML, 9.2.6),
//! or lines of JSON (NDJSON), of which each is an event.
//!
//! This looks at what went to the client: the proxy counts events by it, and asks before it adds an
//! error event of its own (between two events that is an event to the client, inside of one it
//! would be garbage). What the events say, [`super::usage`] reads.

use memchr::memchr2;

/// As much of a line as tells what it is: `data: [DONE]`, and the byte that makes it longer.
const HEAD_BYTES: usize = 13;

/// What separates the events of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EventFraming {
    /// A blank line: `text/event-stream`.
    #[default]
    Events,
    /// A line end: `application/x-ndjson`.
    Lines,
}

impl EventFraming {
    /// The framing of this media type (parameters may follow); `None` when it is no stream's.
    pub fn of(content_type: &[u8]) -> Option<EventFraming> {
        let media = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
        let is = |name: &str| media.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        if is("text/event-stream") {
            return Some(EventFraming::Events);
        }
        let lines = is("application/x-ndjson") || is("application/ndjson");
        (lines || is("application/jsonl")).then_some(EventFraming::Lines)
    }
}

/// What some senders put before a text to say that it is UTF-8. It is none of the text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Takes that mark off the beginning of a text, cut anywhere.
#[derive(Debug, Default)]
pub struct MarkStrip {
    /// Bytes of the mark that were seen; more than it has once it is not looked for any more.
    seen: u8,
}

impl MarkStrip {
    /// What is to be read, in two parts: bytes that were held back because they might have been
    /// the mark's, and some of these.
    pub fn strip<'a>(&mut self, bytes: &'a [u8]) -> (&'static [u8], &'a [u8]) {
        let Some((held, missing)) = BYTE_ORDER_MARK.split_at_checked(self.seen.into()) else {
            return (&[], bytes);
        };
        let alike = missing.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        if alike == bytes.len() && alike < missing.len() {
            self.seen += alike as u8;
            return (&[], &[]);
        }
        self.seen = u8::MAX;
        match alike == missing.len() {
            true => (&[], bytes.get(alike..).unwrap_or_default()),
            false => (held, bytes),
        }
    }
}

/// Watches bytes of a stream, cut anywhere.
#[derive(Debug, Default)]
pub struct SseScan {
    mark: MarkStrip,
    events: u64,
    framing: EventFraming,
    /// A line with something in it began after the last blank line (NDJSON: after the last line).
    inside: bool,
    /// The event being read has a data line that is not `[DONE]`.
    has_data: bool,
    /// The last byte was a CR: a LF right after it belongs to the same line end.
    after_cr: bool,
    /// Beginning of a line that earlier slices left unfinished.
    head: Head,
}

#[derive(Debug, Default)]
struct Head {
    bytes: [u8; HEAD_BYTES],
    len: u8,
}

impl SseScan {
    /// Starts before the first byte of a stream.
    pub fn new(framing: EventFraming) -> SseScan {
        SseScan { framing, ..SseScan::default() }
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        let (held, bytes) = self.mark.strip(bytes);
        self.read(held);
        self.read(bytes);
    }

    fn read(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.keep(rest);
                return;
            };
            let (line, after) = rest.split_at(end);
            self.after_cr = after.first() == Some(&b'\r');
            self.end_line(line);
            rest = after.get(1..).unwrap_or_default();
        }
    }

    /// Events with at least one `data` line that ended so far (`[DONE]` not counted). NDJSON: lines
    /// with something in them.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// True when the last byte seen ended an event (or nothing was seen): an event of ours may
    /// follow.
    pub fn at_boundary(&self) -> bool {
        !self.inside
    }

    /// The stream is lines of JSON: an event of ours would be none.
    pub fn is_ndjson(&self) -> bool {
        self.framing == EventFraming::Lines
    }

    /// A line ends here; `piece` is what this slice holds of it.
    fn end_line(&mut self, piece: &[u8]) {
        if self.head.len == 0 {
            return self.judge(piece);
        }
        self.keep(piece);
        let Head { bytes, len } = std::mem::take(&mut self.head);
        self.judge(bytes.get(..usize::from(len)).unwrap_or_default());
    }

    /// Takes a complete line, or [`HEAD_BYTES`] of a longer one at least.
    fn judge(&mut self, line: &[u8]) {
        // What is seen of a line must not depend on how it was cut.
        let line = line.get(..HEAD_BYTES).unwrap_or(line);
        if self.framing == EventFraming::Lines {
            self.inside = false;
            self.events += u64::from(!line.trim_ascii().is_empty());
            return;
        }
        if line.is_empty() {
            self.events += u64::from(self.has_data);
            self.has_data = false;
            self.inside = false;
            return;
        }
        self.inside = true;
        // A field name ends at the colon or with the line; one space after the colon is dropped.
        match line.strip_prefix(b"data") {
            Some(b": [DONE]" | b":[DONE]") | None => {}
            Some([] | [b':', ..]) => self.has_data = true,
            Some(_) => {}
        }
    }

    /// Remembers the beginning of a line that goes on in the next slice. `piece` is not empty
    /// unless the line has begun already.
    fn keep(&mut self, piece: &[u8]) {
        self.inside = true;
        let free = self.head.bytes.iter_mut().skip(usize::from(self.head.len));
        let mut kept = 0;
        for (to, from) in free.zip(piece) {
            *to = *from;
            kept += 1;
        }
        self.head.len += kept;
    }
}

#[cfg(test)]
mod tests;
