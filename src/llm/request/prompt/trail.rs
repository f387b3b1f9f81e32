//! Where the milestones of a prompt are: at fixed places, and at the ends of its last messages.
//!
//! Fixed places are found again in every prompt that begins alike: each 512 bytes at first, and
//! from 4 KiB on each a quarter further than the one before, so that a match is told to a fifth,
//! and a prompt of 256 KiB has 27 of them instead of 512. The ends of messages tell conversations
//! apart that begin with the same long words of the system, and are found again in the next request
//! of the conversation, which has these messages and some more.

use crate::base::limits::{PREFIX_BYTES_MAX, PREFIX_BYTES_MIN, PREFIX_TURNS_MAX};

/// Milestones are as far apart up to here, and then further and further.
const EVEN_BYTES: u32 = 4096;
const STEP_BYTES: u32 = PREFIX_BYTES_MIN as u32;
/// Of the milestones at fixed places.
const FIXED_MAX: usize = {
    let (mut count, mut at) = (0, STEP_BYTES);
    while at <= PREFIX_BYTES_MAX as u32 {
        count += 1;
        at = behind(at);
    }
    count
};
/// The last of them: as far as anybody looks.
pub const LOOKED_AT_BYTES: usize = {
    let (mut count, mut at) = (1, STEP_BYTES);
    while count < FIXED_MAX {
        count += 1;
        at = behind(at);
    }
    at as usize
};
/// Milestones of one prompt.
const MILESTONES_MAX: usize = FIXED_MAX + PREFIX_TURNS_MAX;

/// The next fixed place behind one.
const fn behind(at: u32) -> u32 {
    if at < EVEN_BYTES {
        at + STEP_BYTES
    } else {
        at + at / 4
    }
}

/// A beginning of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Milestone {
    /// Bytes of the prompt up to here.
    pub bytes: u32,
    /// Their hash, and that of all that changes what an engine makes of them.
    pub hash: u64,
}

/// All milestones of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Milestones {
    kept: [Milestone; MILESTONES_MAX],
    count: usize,
    bytes: u32,
    is_whole: bool,
    is_talk: bool,
}

impl Milestones {
    /// Of no prompt.
    pub const NONE: Milestones = Milestones {
        kept: [Milestone { bytes: 0, hash: 0 }; MILESTONES_MAX],
        count: 0,
        bytes: 0,
        is_whole: true,
        is_talk: false,
    };

    /// From the shortest beginning to the longest.
    pub fn all(&self) -> &[Milestone] {
        self.kept.get(..self.count).unwrap_or_default()
    }

    /// Bytes of the prompt, as far as anybody looked.
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether that is all of it.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether who goes on from its end goes on with its conversation. One message alone may be
    /// what many begin with: somebody may have sent no more than the words of the system.
    pub fn ends_a_turn(&self) -> bool {
        self.is_whole && self.is_talk
    }
}

/// A pass along a prompt, in parts. It knows their lengths; its caller knows their bytes.
pub struct Trail {
    hash: u64,
    bytes: u32,
    next: u32,
    fixed: [Milestone; FIXED_MAX],
    fixed_count: usize,
    /// The last ends of messages; a ring.
    turns: [Milestone; PREFIX_TURNS_MAX],
    turns_count: usize,
    is_cut: bool,
}

impl Trail {
    /// At the beginning, with the hash of what changes all of the prompt.
    pub fn new(start: u64) -> Trail {
        Trail {
            hash: start,
            bytes: 0,
            next: STEP_BYTES,
            fixed: [Milestone::default(); FIXED_MAX],
            fixed_count: 0,
            turns: [Milestone::default(); PREFIX_TURNS_MAX],
            turns_count: 0,
            is_cut: false,
        }
    }

    /// Goes past a part of the prompt of so many bytes, in which messages end at `ends`, in order.
    /// `hash_at` gives the hash of so many bytes of the part behind what is before it. False: that
    /// is as far as anybody looks.
    pub fn part(
        &mut self,
        len: usize,
        ends: impl Iterator<Item = usize>,
        hash_at: impl FnMut(u64, usize) -> u64,
    ) -> bool {
        self.is_cut = !self.pass(len, ends, hash_at);
        !self.is_cut
    }

    fn pass(
        &mut self,
        len: usize,
        ends: impl Iterator<Item = usize>,
        mut hash_at: impl FnMut(u64, usize) -> u64,
    ) -> bool {
        let (start, before) = (self.bytes, self.hash);
        for end in ends.filter(|end| *end < len).chain([len]) {
            while self.next as usize <= start as usize + end {
                let Some(slot) = self.fixed.get_mut(self.fixed_count) else { return false };
                let hash = hash_at(before, (self.next - start) as usize);
                *slot = Milestone { bytes: self.next, hash };
                self.bytes = self.next;
                self.fixed_count += 1;
                self.next = behind(self.next);
                if self.fixed_count == FIXED_MAX {
                    return false;
                }
            }
            self.end_turn(start + end as u32, || hash_at(before, end));
        }
        (self.bytes, self.hash) = (start + len as u32, hash_at(before, len));
        true
    }

    /// A message ends here, or a part: another prompt may go on in another way.
    fn end_turn(&mut self, bytes: u32, hash: impl FnOnce() -> u64) {
        let last = self.fixed_count.checked_sub(1).and_then(|at| self.fixed.get(at));
        let is_fixed = last.is_some_and(|last| last.bytes == bytes);
        if bytes >= STEP_BYTES && !is_fixed {
            if let Some(slot) = self.turns.get_mut(self.turns_count % PREFIX_TURNS_MAX) {
                *slot = Milestone { bytes, hash: hash() };
                self.turns_count += 1;
            }
        }
    }

    /// The milestones, in order. The prompt has so many messages, words of the system among them.
    pub fn finish(self, messages: usize) -> Milestones {
        let (is_whole, is_talk) = (!self.is_cut, messages > 1);
        let mut found = Milestones { bytes: self.bytes, is_whole, is_talk, ..Milestones::NONE };
        let first = self.turns_count.saturating_sub(PREFIX_TURNS_MAX);
        let turn = |at: usize| self.turns.get(at % PREFIX_TURNS_MAX).copied().unwrap_or_default();
        let mut turns = (first..self.turns_count).map(turn).peekable();
        let mut fixed = self.fixed.into_iter().take(self.fixed_count).peekable();
        for slot in &mut found.kept {
            let is_turn = match (turns.peek(), fixed.peek()) {
                (Some(turn), Some(fixed)) => turn.bytes < fixed.bytes,
                (turn, _) => turn.is_some(),
            };
            let Some(next) = (if is_turn { turns.next() } else { fixed.next() }) else { break };
            *slot = next;
            found.count += 1;
        }
        found
    }
}
