//! Events and their boundaries in a stream that passes: server-sent events (WHATWG HTML, 9.2.6),
//! or lines of JSON (NDJSON), of which each is an event.
//!
//! The proxy counts tokens by it, asks before it adds an error event of its own (between two
//! events that is an event to the client, inside of one it would be garbage), and learns from the
//! beginnings of lines whether the stream told of an error, or that it is over.

use super::finish::FinishWatch;
use memchr::memchr2;

/// As much of a line as tells what it is: `data: {"type":"response.incomplete"` and the byte that
/// makes it longer than that, with some spaces. What has more of them is not recognised.
const HEAD_BYTES: usize = 39;

/// What separates the events of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// A blank line: `text/event-stream`.
    #[default]
    Events,
    /// A line end: `application/x-ndjson`.
    Lines,
}

impl Framing {
    /// The framing of this media type (parameters may follow); `None` when it is no stream's.
    pub fn of(content_type: &[u8]) -> Option<Framing> {
        let media = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
        let is = |name: &str| media.trim_ascii().eq_ignore_ascii_case(name.as_bytes());
        if is("text/event-stream") {
            return Some(Framing::Events);
        }
        let lines = is("application/x-ndjson") || is("application/ndjson");
        (lines || is("application/jsonl")).then_some(Framing::Lines)
    }
}

/// Watches bytes of a stream, cut anywhere.
#[derive(Debug, Default)]
pub struct SseScan {
    /// Fed apart, with what is not sent on too. It is here because few connections stream.
    pub finish: FinishWatch,
    events: u64,
    framing: Framing,
    done: bool,
    message_stop: bool,
    response_end: bool,
    error: bool,
    /// A line with something in it began after the last blank line (NDJSON: after the last line).
    inside: bool,
    /// The event being read has a data line that is not `[DONE]`.
    has_data: bool,
    /// The last byte was a CR: a LF right after it belongs to the same line end.
    after_cr: bool,
    /// Beginning of a line that earlier slices left unfinished.
    head: Head,
}

#[derive(Debug)]
struct Head {
    bytes: [u8; HEAD_BYTES],
    len: u8,
}

impl Default for Head {
    fn default() -> Self {
        Head { bytes: [0; HEAD_BYTES], len: 0 }
    }
}

impl SseScan {
    /// Starts before the first byte of a stream.
    pub fn new(framing: Framing) -> SseScan {
        SseScan { framing, ..SseScan::default() }
    }

    /// Sees the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
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
        self.framing == Framing::Lines
    }

    /// The line `data: [DONE]` was seen.
    pub fn done(&self) -> bool {
        self.done
    }

    /// `message_stop` was seen, which ends an answer of `/v1/messages`.
    pub fn message_stopped(&self) -> bool {
        self.message_stop
    }

    /// `response.completed`, `response.incomplete` or `response.failed` was seen.
    pub fn response_ended(&self) -> bool {
        self.response_end
    }

    /// The stream told of an error: an event or data of that name, or `response.failed`.
    pub fn in_band_error(&self) -> bool {
        self.error
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
        if self.framing == Framing::Lines {
            self.inside = false;
            if !line.trim_ascii().is_empty() {
                self.events += 1;
                self.judge_data(line);
            }
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
            Some(b": [DONE]" | b":[DONE]") => self.done = true,
            Some([]) => self.has_data = true,
            Some([b':', value @ ..]) => {
                self.has_data = true;
                self.judge_data(value);
            }
            Some(_) => {}
            None => self.judge_other(line),
        }
    }

    /// Data that begins with `{"error":`, or with the type of an event that matters.
    fn judge_data(&mut self, value: &[u8]) {
        let Some(rest) = inside_object(value) else { return };
        // Nearly always it is the id that comes first.
        match rest.first() {
            Some(b'e') => {
                let value = rest.strip_prefix(b"error\"").and_then(member_value);
                self.error |= value.is_some_and(|value| matches!(value.first(), Some(b'{' | b'"')));
            }
            Some(b't') => {
                let value = rest.strip_prefix(b"type\"").and_then(member_value);
                if let Some(name) = value.and_then(quoted) {
                    self.judge_name(name);
                }
            }
            // Errors of older servers are flat.
            Some(b'o') => {
                let value = rest.strip_prefix(b"object\"").and_then(member_value);
                self.error |= value.and_then(quoted) == Some(b"error");
            }
            _ => {}
        }
    }

    /// A line that is no data: the event's name, or nothing to us.
    fn judge_other(&mut self, line: &[u8]) {
        if let Some(name) = line.strip_prefix(b"event:") {
            self.judge_name(name.strip_prefix(b" ").unwrap_or(name));
        }
        // llama.cpp had a field of its own for them.
        self.error |= line.starts_with(b"error:");
    }

    fn judge_name(&mut self, name: &[u8]) {
        match name {
            b"message_stop" => self.message_stop = true,
            b"response.completed" | b"response.incomplete" => self.response_end = true,
            b"response.failed" => {
                self.response_end = true;
                self.error = true;
            }
            b"error" => self.error = true,
            _ => {}
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

/// What stands behind the first quote of an object.
fn inside_object(value: &[u8]) -> Option<&[u8]> {
    let value = value.trim_ascii_start().strip_prefix(b"{")?;
    value.trim_ascii_start().strip_prefix(b"\"")
}

/// What stands behind the colon.
fn member_value(rest: &[u8]) -> Option<&[u8]> {
    rest.trim_ascii_start().strip_prefix(b":").map(<[u8]>::trim_ascii_start)
}

/// The text in quotes that the value begins with.
fn quoted(value: &[u8]) -> Option<&[u8]> {
    let text = value.strip_prefix(b"\"")?;
    text.iter().position(|byte| *byte == b'"').and_then(|end| text.get(..end))
}

#[cfg(test)]
mod tests;
