//! Events and their boundaries in a server-sent event stream that passes (WHATWG HTML, 9.2.6).
//!
//! The proxy counts tokens by it, and asks before it adds an error event of its own: between two
//! events that is an event to the client, inside of one it would be garbage.

use memchr::memchr2;

/// As much of a line as tells what it is: `data: [DONE]` and one byte more.
const HEAD_BYTES: usize = 13;

/// Watches bytes of an event stream, cut anywhere.
#[derive(Debug, Default)]
pub struct SseScan {
    events: u64,
    done: bool,
    /// A line with something in it began after the last blank line.
    inside: bool,
    /// The event being read has a data line that is not `[DONE]`.
    has_data: bool,
    /// The last byte was a CR: a LF right after it belongs to the same line end.
    after_cr: bool,
    /// Beginning of a line that earlier slices left unfinished, and how much there is.
    head: [u8; HEAD_BYTES],
    head_len: u8,
}

impl SseScan {
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

    /// Events with at least one `data` line that ended so far (`[DONE]` not counted).
    pub fn events(&self) -> u64 {
        self.events
    }

    /// True when the last byte seen ended an event (or nothing was seen): an event of ours may
    /// follow.
    pub fn at_boundary(&self) -> bool {
        !self.inside
    }

    /// The line `data: [DONE]` was seen.
    pub fn done(&self) -> bool {
        self.done
    }

    /// A line ends here; `piece` is what this slice holds of it.
    fn end_line(&mut self, piece: &[u8]) {
        if self.head_len == 0 {
            return self.judge(piece);
        }
        self.keep(piece);
        let (head, len) = (self.head, usize::from(self.head_len));
        self.head_len = 0;
        self.judge(head.get(..len).unwrap_or_default());
    }

    /// Takes a complete line, or the first [`HEAD_BYTES`] of a longer one.
    fn judge(&mut self, line: &[u8]) {
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
            Some([] | [b':', ..]) => self.has_data = true,
            _ => {}
        }
    }

    /// Remembers the beginning of a line that goes on in the next slice. `piece` is not empty
    /// unless the line has begun already.
    fn keep(&mut self, piece: &[u8]) {
        self.inside = true;
        let free = self.head.iter_mut().skip(usize::from(self.head_len));
        let mut kept = 0;
        for (to, from) in free.zip(piece) {
            *to = *from;
            kept += 1;
        }
        self.head_len += kept;
    }
}

#[cfg(test)]
mod tests;
