//! Takes the usage event out of a stream whose client did not ask for one: its event has
//! `"choices": []`, and clients that index the first choice of every event break on it.
//!
//! What is not such an event passes byte for byte, and nearly always untouched where it lies: bytes
//! are copied only when an event goes, or when a slice ends inside of one. That beginning is held
//! back until it is known what it is; nobody can use half an event.

use super::json::{Fault, Reader};
use crate::base::limits::EVENT_HELD_BYTES_MAX;
use memchr::memchr2;
use memchr::memmem::Finder;
use std::borrow::Cow;
use std::sync::LazyLock;

/// Built once: it holds the vector routine chosen for this CPU.
static USAGE_KEY: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));

/// Room that is kept for the beginnings of further events; a longer one is freed with its event.
const ROOM_KEPT_BYTES: usize = 2 * 1024;

/// Decides which bytes of an event stream, cut anywhere, reach the client.
#[derive(Debug, Default)]
pub struct ExtraEvent {
    /// The beginning of an event that is not complete.
    held: Vec<u8>,
    lines: Lines,
    /// The rest of the event being read passes: it is longer than what may be held.
    is_passing: bool,
    /// The last event was taken out, and with it goes a LF that still belongs to it.
    has_dropped: bool,
    unjudged: bool,
}

impl ExtraEvent {
    /// True when bytes may go out as they are; then they must, or else be given to
    /// [`ExtraEvent::feed`].
    pub fn passes(&self, bytes: &[u8]) -> bool {
        self.is_between_events()
            && (bytes.ends_with(b"\n\n") || bytes.ends_with(b"\n\r\n"))
            && !has_extra(bytes)
    }

    /// Takes the next bytes and appends what of them, and of those held, goes out now.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        if self.lines.end_cr(rest) {
            let (lf, behind) = rest.split_at(1);
            match (self.lines.inside, self.has_dropped) {
                // The event goes on.
                (true, _) => self.keep(lf, out),
                (false, false) => out.extend_from_slice(lf),
                (false, true) => {}
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
        out.append(&mut self.held);
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// True when an event was longer than [`EVENT_HELD_BYTES_MAX`] and passed without being looked
    /// at.
    pub fn passed_unjudged(&self) -> bool {
        self.unjudged
    }

    /// Nothing is begun, and no LF of a line end is owed.
    fn is_between_events(&self) -> bool {
        !self.lines.inside && !self.lines.after_cr && !self.is_passing
    }

    /// An event ends with these bytes.
    fn end_event(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if std::mem::take(&mut self.is_passing) {
            self.has_dropped = false;
            out.extend_from_slice(bytes);
            return;
        }
        let long = self.held.len() + bytes.len() > EVENT_HELD_BYTES_MAX;
        self.unjudged |= long;
        if self.held.is_empty() {
            self.has_dropped = !long && is_extra(bytes);
            if !self.has_dropped {
                out.extend_from_slice(bytes);
            }
            return;
        }
        self.held.extend_from_slice(bytes);
        self.has_dropped = !long && is_extra(&self.held);
        if !self.has_dropped {
            out.extend_from_slice(&self.held);
        }
        self.held.clear();
        if self.held.capacity() > ROOM_KEPT_BYTES {
            self.held = Vec::new();
        }
    }

    /// Holds what goes on in the next slice.
    fn keep(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.held.len() + bytes.len() > EVENT_HELD_BYTES_MAX {
            self.unjudged = true;
            self.is_passing = true;
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

/// Whole events: one of them is the extra one.
fn has_extra(bytes: &[u8]) -> bool {
    if USAGE_KEY.find(bytes).is_none() {
        return false;
    }
    let (mut lines, mut rest) = (Lines::default(), bytes);
    while let Some(end) = lines.event_end(rest) {
        let (event, behind) = rest.split_at(end);
        if event.len() <= EVENT_HELD_BYTES_MAX && is_extra(event) {
            return true;
        }
        rest = behind;
    }
    false
}

/// A whole event: its data is an object with no choice and with usage.
fn is_extra(event: &[u8]) -> bool {
    USAGE_KEY.find(event).is_some() && is_usage_alone(&data(event)).unwrap_or(false)
}

/// The data of an event: what its `data` lines say, joined by line ends.
fn data(event: &[u8]) -> Cow<'_, [u8]> {
    let lines = event.split(|byte| matches!(byte, b'\n' | b'\r'));
    let mut values = lines.filter_map(|line| match line.strip_prefix(b"data") {
        Some([b':', value @ ..]) => Some(value),
        _ => None,
    });
    let first = values.next().unwrap_or_default();
    let mut joined = Cow::Borrowed(first);
    for value in values {
        let joined = joined.to_mut();
        joined.push(b'\n');
        joined.extend_from_slice(value);
    }
    joined
}

/// An object with `"choices": []` and a `usage` that is an object.
fn is_usage_alone(json: &[u8]) -> Result<bool, Fault> {
    let mut reader = Reader::new(json);
    let (mut no_choice, mut has_usage) = (false, false);
    let mut key = reader.enter_object()?;
    while let Some(name) = key {
        let first = reader.peek();
        let start = reader.offset();
        reader.skip_value()?;
        match name {
            b"choices" => {
                let inner = json.get(start + 1..reader.offset() - 1).unwrap_or(b"?");
                no_choice = first == Some(b'[') && inner.trim_ascii().is_empty();
            }
            b"usage" => has_usage = first == Some(b'{'),
            _ => {}
        }
        key = reader.next_key()?;
    }
    reader.end()?;
    Ok(no_choice && has_usage)
}

/// `bytes` from `at`; empty when that is past the end.
fn behind(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

#[cfg(test)]
mod tests;
