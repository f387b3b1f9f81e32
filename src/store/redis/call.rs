//! The call of a script as it goes over the wire, written into one buffer that is used again: the
//! library's own command keeps its arguments apart, and puts them together in a new buffer.

use crate::base::digits::{pair, push_decimal};
use crate::base::limits::BATCH_BUFFER_BYTES_KEPT;
use std::borrow::Cow;

/// Bytes that are left free for what stands before the arguments: how many there are, and the
/// script by its hash.
const HEAD_BYTES: usize = 96;
/// Digits of a number that is written before it is known.
const HOLE_DIGITS: usize = 3;

/// The keys and arguments of a call.
pub struct Call {
    /// [`HEAD_BYTES`] of room, then each argument as the protocol has it.
    bytes: Vec<u8>,
    arguments: u64,
}

/// Where a number is still to be written.
pub struct Hole(usize);

impl Call {
    /// Without an argument yet.
    pub fn new() -> Call {
        Call { bytes: vec![0; HEAD_BYTES], arguments: 0 }
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.bytes.truncate(HEAD_BYTES);
        self.bytes.shrink_to(BATCH_BUFFER_BYTES_KEPT);
        self.arguments = 0;
    }

    /// Appends an argument.
    pub fn text(&mut self, text: &str) {
        self.begin(text.len());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends an argument that these texts together are.
    pub fn texts<const N: usize>(&mut self, texts: [&str; N]) {
        self.begin(texts.iter().map(|text| text.len()).sum());
        for text in texts {
            self.bytes.extend_from_slice(text.as_bytes());
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends a number.
    pub fn number(&mut self, number: u64) {
        self.begin(number.checked_ilog10().map_or(1, |tens| tens as usize + 1));
        push_decimal(&mut self.bytes, number);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends what [`argument`] has made.
    pub fn ready(&mut self, argument: &[u8]) {
        self.arguments += 1;
        self.bytes.extend_from_slice(argument);
    }

    /// Appends a number below 1000 that is not known yet.
    pub fn hole(&mut self) -> Hole {
        self.begin(HOLE_DIGITS);
        let hole = Hole(self.bytes.len());
        self.bytes.extend_from_slice(b"000\r\n");
        hole
    }

    /// Says what the number is, with zeros before it.
    pub fn fill(&mut self, hole: &Hole, number: u64) {
        let slots = self.bytes.iter_mut().skip(hole.0).take(HOLE_DIGITS);
        for (slot, digit) in slots.zip([number / 100, number / 10, number]) {
            *slot = b'0' + (digit % 10) as u8;
        }
    }

    /// How many arguments there are.
    pub fn arguments(&self) -> u64 {
        self.arguments
    }

    /// The arguments as the server would read them.
    #[cfg(test)]
    pub fn read(&mut self) -> Vec<String> {
        let wire = self.wire("EVALSHA", "");
        let read = ::redis::parse_redis_value(&wire).unwrap();
        let all: Vec<String> = ::redis::from_redis_value(read).unwrap();
        all[2..].to_vec()
    }

    fn begin(&mut self, len: usize) {
        self.arguments += 1;
        let [tens, ones] = pair(len as u64);
        match len {
            // Most are short.
            0..10 => self.bytes.extend_from_slice(&[b'$', ones, b'\r', b'\n']),
            10..100 => self.bytes.extend_from_slice(&[b'$', tens, ones, b'\r', b'\n']),
            100.. => {
                self.bytes.push(b'$');
                push_decimal(&mut self.bytes, len as u64);
                self.bytes.extend_from_slice(b"\r\n");
            }
        }
    }

    /// The whole command, for a script by its text or by its hash; a text makes it a new buffer.
    pub(super) fn wire(&mut self, command: &str, script: &str) -> Cow<'_, [u8]> {
        let mut head = Call { bytes: Vec::new(), arguments: self.arguments };
        head.text(command);
        head.text(script);
        let mut bytes = vec![b'*'];
        push_decimal(&mut bytes, head.arguments);
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&head.bytes);
        let Some(first) = HEAD_BYTES.checked_sub(bytes.len()) else {
            bytes.extend_from_slice(self.bytes.get(HEAD_BYTES..).unwrap_or_default());
            return Cow::Owned(bytes);
        };
        for (slot, byte) in self.bytes.iter_mut().skip(first).zip(bytes) {
            *slot = byte;
        }
        Cow::Borrowed(self.bytes.get(first..).unwrap_or_default())
    }
}

impl Default for Call {
    fn default() -> Call {
        Call::new()
    }
}

/// Bytes of an argument as the protocol has it.
pub const fn argument_len(text: &str) -> usize {
    let digits = if text.len() < 10 { 1 } else { 2 };
    text.len() + digits + 5
}

/// An argument of less than 100 bytes as the protocol has it, made by the compiler; `N` is its
/// [`argument_len`].
pub const fn argument<const N: usize>(text: &str) -> [u8; N] {
    let (from, len) = (text.as_bytes(), text.len());
    assert!(len < 100 && N == argument_len(text), "its length is another one");
    let mut bytes = [b'$'; N];
    let mut at = 1;
    if len >= 10 {
        bytes[at] = b'0' + (len / 10) as u8;
        at += 1;
    }
    bytes[at] = b'0' + (len % 10) as u8;
    bytes[at + 1] = b'\r';
    bytes[at + 2] = b'\n';
    at += 3;
    let mut copied = 0;
    while copied < len {
        bytes[at + copied] = from[copied];
        copied += 1;
    }
    bytes[N - 2] = b'\r';
    bytes[N - 1] = b'\n';
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call() -> Call {
        let mut call = Call::new();
        call.text("1");
        call.texts(["usage", "", ":seen"]);
        let hole = call.hole();
        call.number(0);
        call.ready(&argument::<11>("model"));
        call.ready(&argument::<17>("request_id"));
        call.fill(&hole, 72);
        call
    }

    /// Catches: a command that the server reads otherwise than the library would have sent it.
    #[test]
    fn a_call_is_what_the_library_would_send() {
        let mut call = call();
        let script = "return 1 -- ".repeat(20);
        for (command, script) in [("EVALSHA", "0123456789abcdef"), ("EVAL", &script)] {
            let mut wanted = ::redis::cmd(command);
            wanted.arg(script).arg(1).arg("usage:seen").arg("072").arg(0);
            wanted.arg("model").arg("request_id");
            let wire = call.wire(command, script).into_owned();
            let wanted = wanted.get_packed_command();
            assert_eq!(String::from_utf8(wire), String::from_utf8(wanted));
        }
        assert_eq!(call.arguments(), 6);
    }

    /// Catches: arguments of an earlier call, or the room of a large one, in the next one.
    #[test]
    fn a_call_is_begun_anew() {
        let mut used = call();
        used.text(&"x".repeat(2 * BATCH_BUFFER_BYTES_KEPT));
        used.clear();
        assert!(used.bytes.capacity() <= BATCH_BUFFER_BYTES_KEPT);
        used.text("1");
        let mut fresh = Call::new();
        fresh.text("1");
        assert_eq!(used.wire("EVAL", "x"), fresh.wire("EVAL", "x"));
    }
}
