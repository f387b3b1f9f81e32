//! Passes over a whole value, of any size, in steps that its caller bounds: a body of megabytes
//! must not keep a worker from its other connections. Where it is stands in a few words, so that a
//! step can end anywhere: within a string, between two tokens, in white space.

use super::{string_end, JsonFault, Reader};
use crate::base::limits::JSON_DEPTH_MAX;
use std::ops::Range;

/// The state between two steps.
pub struct JsonWalk {
    /// Depth of what surrounds the value.
    base: usize,
    /// What is open around the reader, one bit a level, the outermost lowest: 1 is an object.
    objects: u64,
    next: Next,
    /// The key of the member of the value, when it is an object, that was met last.
    key: Range<usize>,
    /// Where the value of that member begins.
    value: usize,
    /// Items of arrays that are such values are told, too.
    tells_items: bool,
}

const _: () = assert!(JSON_DEPTH_MAX <= u64::BITS as usize);

/// What must come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Value,
    /// Or the end of the array.
    FirstValue,
    Key,
    /// Or the end of the object.
    FirstKey,
    Colon,
    /// The rest of a string.
    Text,
    /// The rest of a key.
    KeyText,
    /// A comma, or the end of what is open.
    After,
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub enum JsonStep {
    /// At the bound; more is to come.
    Paused,
    /// The value is an object, and one of its members was passed: the bytes between the quotes of
    /// its key, and those of its value.
    Member {
        /// Of the key.
        key: Range<usize>,
        /// Of the value.
        value: Range<usize>,
    },
    /// An item of an array was passed that is the value of a member.
    Item {
        /// The bytes between the quotes of the member's key.
        key: Range<usize>,
        /// Where the array begins.
        array: usize,
        /// Where the item ends.
        end: usize,
    },
    /// All of the value was passed.
    Whole,
}

impl JsonWalk {
    /// Of the value that a reader stands before.
    pub fn new(reader: &Reader<'_>) -> JsonWalk {
        let base = reader.depth;
        JsonWalk { base, objects: 0, next: Next::Value, key: 0..0, value: 0, tells_items: false }
    }

    /// The same, which tells items of arrays too.
    pub fn with_items(self) -> JsonWalk {
        JsonWalk { tells_items: true, ..self }
    }

    /// Goes on until something is to be said, or `stop` was reached, a byte of the input. It goes
    /// beyond `stop` by no more than a number or a few blocks of text are long.
    pub fn step(&mut self, reader: &mut Reader<'_>, stop: usize) -> Result<JsonStep, JsonFault> {
        loop {
            let is_text = matches!(self.next, Next::Text | Next::KeyText);
            if !is_text && !reader.pass_space(stop) {
                return Ok(JsonStep::Paused);
            }
            match self.next {
                Next::FirstValue if reader.leave(b']') => {}
                Next::FirstKey if reader.leave(b'}') => {}
                Next::Value | Next::FirstValue => {
                    if !self.begin(reader)? {
                        continue;
                    }
                }
                Next::Key | Next::FirstKey => {
                    reader.expect(b'"')?;
                    if reader.depth == self.base + 1 {
                        self.key.start = reader.at;
                    }
                    self.next = Next::KeyText;
                    continue;
                }
                Next::Colon => {
                    reader.expect(b':')?;
                    self.next = Next::Value;
                    continue;
                }
                Next::Text | Next::KeyText => {
                    let (at, is_end) =
                        string_end(reader.bytes, reader.at, stop, &mut reader.non_ascii)?;
                    reader.at = at + usize::from(is_end);
                    if !is_end {
                        return Ok(JsonStep::Paused);
                    }
                    if self.next == Next::KeyText {
                        if reader.depth == self.base + 1 {
                            self.key.end = at;
                        }
                        self.next = Next::Colon;
                        continue;
                    }
                }
                Next::After => {
                    let is_object = self.is_in_object(reader);
                    if !reader.leave(if is_object { b'}' } else { b']' }) {
                        reader.expect(b',')?;
                        self.next = if is_object { Next::Key } else { Next::Value };
                        continue;
                    }
                }
            }
            // A value ended here.
            self.next = Next::After;
            if reader.depth == self.base {
                return Ok(JsonStep::Whole);
            }
            if reader.depth == self.base + 1 && self.is_in_object(reader) {
                return Ok(JsonStep::Member {
                    key: self.key.clone(),
                    value: self.value..reader.at,
                });
            }
            // An array at the second level is the value of a member, if the first is an object.
            if self.tells_items && reader.depth == self.base + 2 && self.is_in_array(reader) {
                let (key, array) = (self.key.clone(), self.value);
                return Ok(JsonStep::Item { key, array, end: reader.at });
            }
        }
    }

    /// Reads a value, or the beginning of one; true when it was all of it.
    fn begin(&mut self, reader: &mut Reader<'_>) -> Result<bool, JsonFault> {
        if reader.depth == self.base + 1 {
            self.value = reader.at;
        }
        self.next = match reader.peek() {
            Some(b'"') => {
                reader.at += 1;
                Next::Text
            }
            Some(b'{') => {
                reader.enter(b'{')?;
                self.objects |= level(reader);
                Next::FirstKey
            }
            Some(b'[') => {
                reader.enter(b'[')?;
                self.objects &= !level(reader);
                Next::FirstValue
            }
            Some(b't') => return reader.literal(b"true").map(|()| true),
            Some(b'f') => return reader.literal(b"false").map(|()| true),
            Some(b'n') => return reader.literal(b"null").map(|()| true),
            Some(b'N') => return reader.literal(b"NaN").map(|()| true),
            Some(b'I') => return reader.literal(b"Infinity").map(|()| true),
            _ => return reader.number().map(|_| true),
        };
        Ok(false)
    }

    /// In an array that stands in an object.
    fn is_in_array(&self, reader: &Reader<'_>) -> bool {
        !self.is_in_object(reader) && self.objects & (level(reader) >> 1) != 0
    }

    fn is_in_object(&self, reader: &Reader<'_>) -> bool {
        self.objects & level(reader) != 0
    }
}

/// The bit of the innermost level.
fn level(reader: &Reader<'_>) -> u64 {
    1u64.checked_shl(reader.depth.saturating_sub(1) as u32).unwrap_or(0)
}
