//! One thread puts entries in, one takes them out, and neither ever waits for the other. Written
//! against [`Window`], so that a model checker can run it in place of real memory.
//!
//! A position is the number of bytes that were put in before, ever; where that is in the window is
//! its rest by the window's size. What lies between `tail` and `head` belongs to the consumer, all
//! else to the producer. Only the bytes of the window may be written by a foreign hand; the
//! positions are those of the process.

use super::entry::{self, Check, Header, Walk};
use crate::base::limits::{RING_CALL_SHARE, RING_ENTRY_SHARE};

/// What a ring lies in: two positions and a window of words.
pub trait Window {
    /// Bytes of the window: a power of two, and at least a few entries.
    fn bytes(&self) -> u64;
    /// The word at this place of the window, in bytes. No order: the positions give that.
    fn load(&self, at: u64) -> u64;
    /// Stores it, likewise.
    fn store(&self, at: u64, word: u64);
    /// Stores these words from this place on. They end before the window does.
    fn store_all(&self, at: u64, words: &[[u8; 8]]) {
        let places = (at..).step_by(entry::ALIGN);
        places.zip(words).for_each(|(at, word)| self.store(at, u64::from_ne_bytes(*word)));
    }
    /// Loads words from this place on, as many as there is room for, and none behind the window.
    fn load_all(&self, at: u64, into: &mut [[u8; 8]]) {
        let places = (at..).step_by(entry::ALIGN);
        places.zip(into).for_each(|(at, word)| *word = self.load(at).to_ne_bytes());
    }
    /// Where the producer is: all that it stored before is seen behind this (acquire).
    fn head(&self) -> u64;
    /// Sets it (release).
    fn set_head(&self, to: u64);
    /// Up to where the consumer is done (acquire).
    fn tail(&self) -> u64;
    /// Sets it (release).
    fn set_tail(&self, to: u64);
}

impl<W: Window> Window for std::sync::Arc<W> {
    fn bytes(&self) -> u64 {
        (**self).bytes()
    }
    fn load(&self, at: u64) -> u64 {
        (**self).load(at)
    }
    fn store(&self, at: u64, word: u64) {
        (**self).store(at, word);
    }
    fn store_all(&self, at: u64, words: &[[u8; 8]]) {
        (**self).store_all(at, words);
    }
    fn load_all(&self, at: u64, into: &mut [[u8; 8]]) {
        (**self).load_all(at, into);
    }
    fn head(&self) -> u64 {
        (**self).head()
    }
    fn set_head(&self, to: u64) {
        (**self).set_head(to);
    }
    fn tail(&self) -> u64 {
        (**self).tail()
    }
    fn set_tail(&self, to: u64) {
        (**self).set_tail(to);
    }
}

/// Bytes of an entry in a window of so many. A record that is larger goes without its request body.
pub fn entry_bytes_max(window: u64) -> u64 {
    window / RING_ENTRY_SHARE
}

/// What an entry may use of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// So many bytes must be free behind it: they are for ends, which are what is billed.
    Spare(u64),
    /// All of it.
    All,
}

/// Puts entries in.
#[derive(Debug)]
pub struct Producer<W> {
    window: W,
    head: u64,
    /// As last looked at: there is at least so much room.
    tail: u64,
    has_filled_a_share: bool,
}

impl<W: Window> Producer<W> {
    /// Of a window in which nothing is.
    pub fn new(window: W) -> Producer<W> {
        Producer { window, head: 0, tail: 0, has_filled_a_share: false }
    }

    /// The window.
    pub fn window(&self) -> &W {
        &self.window
    }

    /// Puts an entry in, and gives its position. The draft begins as [`entry::begin`] makes it, and
    /// holds the payload, of which a last part may lie elsewhere. `None`: there is no room for it,
    /// or it is larger than [`entry_bytes_max`].
    pub fn push(
        &mut self,
        (kind, open): (u8, u32),
        (draft, last): (&mut Vec<u8>, &[u8]),
        room: Room,
    ) -> Option<u64> {
        let window = self.window.bytes();
        let length = draft.len().saturating_sub(entry::HEADER_BYTES) + last.len();
        let size = entry::size(length) as u64;
        if size > entry_bytes_max(window) {
            return None;
        }
        let left = window - (self.head & (window - 1));
        let skipped = if size > left { left } else { 0 };
        if !self.has_room(skipped + size, room) {
            return None;
        }
        if skipped >= entry::HEADER_BYTES as u64 {
            let mut wrap = [0; entry::HEADER_BYTES];
            Header::wrap(self.head).seal(&mut wrap, &[]);
            Out::at(&self.window, self.head).bytes(&wrap);
        }
        let position = self.head + skipped;
        Header { position, open, kind }.seal(draft, last);
        if last.is_empty() {
            // Whole words in one go. What is behind the draft is for the next one to write over.
            draft.extend_from_slice(&[0; entry::ALIGN]);
            let words = draft.get(..size as usize).unwrap_or_default().as_chunks().0;
            self.window.store_all(position & (window - 1), words);
        } else {
            let mut out = Out::at(&self.window, position);
            out.bytes(draft);
            out.bytes(last);
            out.fill_up();
        }
        let before = self.head;
        self.head = position + size;
        self.window.set_head(self.head);
        // The window is a power of two, and so is the share.
        self.has_filled_a_share = (before ^ self.head) & !(window / RING_CALL_SHARE - 1) != 0;
        Some(position)
    }

    /// True when the last entry was the one that filled another share of the ring
    /// ([`RING_CALL_SHARE`]).
    pub fn has_filled_a_share(&self) -> bool {
        self.has_filled_a_share
    }

    fn has_room(&mut self, wanted: u64, room: Room) -> bool {
        let spared = if let Room::Spare(bytes) = room { bytes } else { 0 };
        let most = self.window.bytes().saturating_sub(spared);
        let fits = |tail: u64| self.head - tail + wanted <= most;
        if fits(self.tail) {
            return true;
        }
        self.tail = self.window.tail();
        fits(self.tail)
    }
}

/// Puts bytes into a window, a word at a time.
struct Out<'a, W> {
    window: &'a W,
    at: u64,
    word: [u8; 8],
    filled: usize,
}

impl<'a, W: Window> Out<'a, W> {
    fn at(window: &'a W, position: u64) -> Out<'a, W> {
        Out { window, at: position & (window.bytes() - 1), word: [0; 8], filled: 0 }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let (first, rest) = bytes.split_at(bytes.len().min(8 - self.filled));
            self.word[self.filled..self.filled + first.len()].copy_from_slice(first);
            self.filled += first.len();
            bytes = rest;
            if self.filled < 8 {
                return;
            }
            self.put(&[self.word]);
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.put(words);
        self.word = [0; 8];
        self.word[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    fn fill_up(&mut self) {
        if self.filled > 0 {
            self.put(&[self.word]);
        }
    }

    fn put(&mut self, words: &[[u8; 8]]) {
        self.window.store_all(self.at, words);
        self.at += words.as_flattened().len() as u64;
        self.filled = 0;
    }
}

/// Bytes that a consumer took.
#[derive(Debug, Default)]
pub struct Taken {
    /// What was taken, and behind it what is left of more that was taken before: so the room need
    /// not be filled with zeros for each of its uses.
    room: Vec<u8>,
    len: usize,
    /// Position of the first byte.
    pub start: u64,
}

impl Taken {
    /// As they lay in the ring.
    pub fn bytes(&self) -> &[u8] {
        self.room.get(..self.len).unwrap_or_default()
    }

    /// Forgets them, and gives back room beyond so many bytes.
    pub fn shrink_to(&mut self, kept: usize) {
        self.len = 0;
        self.room.truncate(kept);
        self.room.shrink_to(kept);
    }

    /// Room for so many bytes, in place of those that were taken.
    fn renew(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        if self.room.len() < len {
            self.room.resize(len, 0);
        }
        self.room.get_mut(..len).unwrap_or_default()
    }

    /// The entries in it.
    pub fn walk(&self, check: Check) -> Walk<'_> {
        Walk::new(self.bytes(), self.start, check)
    }
}

/// Takes entries out.
#[derive(Debug)]
pub struct Consumer<W> {
    window: W,
    /// Up to here all was taken.
    taken: u64,
}

impl<W: Window> Consumer<W> {
    /// Of a window in which nothing is.
    pub fn new(window: W) -> Consumer<W> {
        Consumer { window, taken: 0 }
    }

    /// The window.
    pub fn window(&self) -> &W {
        &self.window
    }

    /// True when there is something to take.
    pub fn has_more(&self) -> bool {
        self.window.head() != self.taken
    }

    /// Takes all that is there of the current lap, in place of what was in `into`. False: nothing.
    pub fn take(&mut self, into: &mut Taken) -> bool {
        into.start = self.taken;
        let window = self.window.bytes();
        let waiting = self.window.head() - self.taken;
        if waiting == 0 {
            into.renew(0);
            return false;
        }
        let at = self.taken & (window - 1);
        let len = waiting.min(window - at);
        self.window.load_all(at, into.renew(len as usize).as_chunks_mut().0);
        self.taken += len;
        true
    }

    /// What was taken is kept elsewhere: the producer may use its room.
    pub fn release(&mut self) {
        self.window.set_tail(self.taken);
    }
}
