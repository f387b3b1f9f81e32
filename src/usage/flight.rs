//! The flight recorder: what became of the last requests, in memory that a worker writes and the
//! control plane reads. A worker never waits for a reader, allocates nothing and formats nothing: a
//! story is some dozens of plain words, stored under the number of its slot. A reader that meets a
//! slot while it is written leaves it out.

use crate::rt::sys::mapping::Mapping;
use std::io;
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::Arc;

pub mod picked;
pub mod story;

/// Words of a story.
pub const FLIGHT_WORDS: usize = 152;
/// And those of its slot: 1 224 bytes.
const SLOT_WORDS: usize = FLIGHT_WORDS + 1;

/// The words of one story.
pub type FlightWords = [u64; FLIGHT_WORDS];

/// The last stories of each worker.
pub struct FlightRecorder(Vec<Arc<FlightLane>>);

impl FlightRecorder {
    /// Of so many workers, each of which keeps so many stories; 0: none. Memory is taken only as
    /// stories come.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(workers: usize, kept: usize) -> io::Result<FlightRecorder> {
        let lanes = (0..workers).map(|_| FlightLane::new(kept).map(Arc::new));
        Ok(FlightRecorder(lanes.collect::<io::Result<_>>()?))
    }

    /// Where a worker, and nobody else, writes its own; `None`: none are kept.
    pub fn of_worker(&self, worker: usize) -> Option<Arc<FlightLane>> {
        self.0.get(worker).filter(|lane| lane.kept > 0).cloned()
    }

    /// Those of all workers.
    pub fn lanes(&self) -> &[Arc<FlightLane>] {
        &self.0
    }

    /// Stories that each worker keeps.
    pub fn kept(&self) -> u64 {
        self.0.first().map_or(0, |lane| lane.kept)
    }

    /// Stories that were ever written.
    pub fn written(&self) -> u64 {
        self.0.iter().map(|lane| lane.written.load(Ordering::Relaxed)).sum()
    }
}

/// The last stories of one worker, which alone writes them.
pub struct FlightLane {
    /// Slots, one behind the other. The first word of each is its turn: odd while it is written;
    /// half of it is how often that was done.
    memory: Option<Mapping>,
    kept: u64,
    /// Stories that were ever written.
    written: AtomicU64,
}

impl FlightLane {
    fn new(kept: usize) -> io::Result<FlightLane> {
        let words = kept.saturating_mul(SLOT_WORDS);
        let memory = (words > 0).then(|| Mapping::anonymous(words)).transpose()?;
        Ok(FlightLane { memory, kept: kept as u64, written: AtomicU64::new(0) })
    }

    /// The turn and the words of the slot that a story with this number has.
    fn slot(&self, number: u64) -> Option<(&AtomicU64, &[AtomicU64])> {
        let place = usize::try_from(number.checked_rem(self.kept)?).ok()?;
        let slot = self.memory.as_ref()?.words().chunks_exact(SLOT_WORDS).nth(place)?;
        slot.split_first()
    }

    /// Keeps a story in the place of the oldest one: what `tell` writes. What it leaves out is what
    /// an older story had there. By the worker of this lane alone.
    pub fn write(&self, tell: impl FnOnce(&mut FlightPen<'_>)) {
        let number = self.written.load(Ordering::Relaxed);
        let Some((slot, words)) = self.slot(number) else { return };
        // It is odd already where a panic ended the last one.
        let turn = slot.load(Ordering::Relaxed) | 1;
        slot.store(turn, Ordering::Relaxed);
        // Whoever sees a word of the new story sees the odd turn.
        fence(Ordering::Release);
        tell(&mut FlightPen { words, at: 0 });
        slot.store(turn.wrapping_add(1), Ordering::Release);
        self.written.store(number.wrapping_add(1), Ordering::Release);
    }

    /// The stories that are kept, the newest first. By any thread.
    pub fn newest_first(&self) -> impl Iterator<Item = FlightWords> + '_ {
        let written = self.written.load(Ordering::Acquire);
        let numbers = (written.saturating_sub(self.kept)..written).rev();
        numbers.filter_map(|number| self.read(number))
    }

    /// `None`: it is being written, or was meanwhile.
    fn read(&self, number: u64) -> Option<FlightWords> {
        let (slot, words) = self.slot(number)?;
        let before = slot.load(Ordering::Acquire);
        if before % 2 == 1 || before == 0 {
            return None;
        }
        let mut story = [0; FLIGHT_WORDS];
        story.iter_mut().zip(words).for_each(|(told, word)| *told = word.load(Ordering::Relaxed));
        // The words are read before the turn is looked at once more.
        fence(Ordering::Acquire);
        (slot.load(Ordering::Relaxed) == before).then_some(story)
    }
}

/// Puts plain values into the words of a story, one behind the other. What has no room is left out.
pub struct FlightPen<'a> {
    words: &'a [AtomicU64],
    at: usize,
}

impl FlightPen<'_> {
    /// A number.
    pub fn number(&mut self, number: u64) {
        if let Some(word) = self.words.get(self.at) {
            word.store(number, Ordering::Relaxed);
        }
        self.at += 1;
    }

    /// A number, if there is one. The largest of all is told as the next one.
    pub fn maybe(&mut self, number: Option<u64>) {
        self.number(number.map_or(0, |number| number.saturating_add(1)));
    }

    /// A text, if there is one, which takes one word and as many as hold `most` bytes; what is
    /// longer is cut.
    pub fn text(&mut self, text: Option<&str>, most: usize) {
        let bytes = text.unwrap_or_default().as_bytes();
        let mut rest = bytes.get(..most).unwrap_or(bytes);
        self.maybe(text.map(|_| rest.len() as u64));
        let end = self.at + most.div_ceil(8);
        while let Some((word, more)) = rest.split_first_chunk() {
            self.number(u64::from_le_bytes(*word));
            rest = more;
        }
        if !rest.is_empty() {
            self.number(rest.iter().rev().fold(0, |word, byte| (word << 8) | u64::from(*byte)));
        }
        self.at = end;
    }
}

/// Takes them out again, in the same order.
pub struct FlightReader<'a> {
    words: &'a FlightWords,
    at: usize,
}

impl<'a> FlightReader<'a> {
    /// At the beginning.
    pub fn new(words: &'a FlightWords) -> FlightReader<'a> {
        FlightReader { words, at: 0 }
    }

    /// A number.
    pub fn number(&mut self) -> u64 {
        let number = self.words.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        number
    }

    /// A number, if there is one.
    pub fn maybe(&mut self) -> Option<u64> {
        self.number().checked_sub(1)
    }

    /// A text of at most so many bytes, if there is one. A cut may have gone through a character.
    pub fn text(&mut self, most: usize) -> Option<String> {
        let len = self.maybe();
        let words = most.div_ceil(8);
        let bytes: Vec<u8> = (0..words).flat_map(|_| self.number().to_le_bytes()).collect();
        let len = usize::try_from(len?).unwrap_or(usize::MAX).min(most);
        Some(String::from_utf8_lossy(bytes.get(..len).unwrap_or_default()).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn write(lane: &FlightLane, number: u64) {
        lane.write(|pen| (0..FLIGHT_WORDS).for_each(|_| pen.number(number)));
    }

    fn kept(lane: &FlightLane) -> Vec<u64> {
        lane.newest_first().map(|story| story[0]).collect()
    }

    /// Catches: a ring that forgets too much, too little, or tells the stories in another order;
    /// one that keeps some though none are wanted.
    #[test]
    fn the_last_ones_are_kept_the_newest_first() {
        let recorder = FlightRecorder::new(2, 3).unwrap();
        let (lane, other) = (recorder.of_worker(0).unwrap(), recorder.of_worker(1).unwrap());
        assert!(kept(&lane).is_empty());
        (1..=2).for_each(|number| write(&lane, number));
        assert_eq!(kept(&lane), [2, 1]);
        (3..=7).for_each(|number| write(&lane, number));
        write(&other, 9);
        assert_eq!((kept(&lane), kept(&other)), (vec![7, 6, 5], vec![9]));
        assert_eq!((recorder.written(), recorder.kept()), (8, 3));
        let off = FlightRecorder::new(2, 0).unwrap();
        assert!(off.of_worker(0).is_none() && recorder.of_worker(2).is_none());
        write(&off.lanes()[0], 1);
        assert!(kept(&off.lanes()[0]).is_empty());
    }

    /// Catches: a reader that is told half of one story and half of another.
    #[test]
    fn no_story_is_read_in_part() {
        let (lane, is_over) = (FlightLane::new(2).unwrap(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut read = 0u64;
                while !is_over.load(Ordering::Relaxed) || read == 0 {
                    for story in lane.newest_first() {
                        assert!(story.iter().all(|word| *word == story[0]), "{story:?}");
                        read += 1;
                    }
                }
            });
            (1..=200_000).for_each(|number| write(&lane, number));
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(kept(&lane), [200_000, 199_999]);
    }

    /// Catches: a story that a panic has cut off and that is told all the same, and a slot that is
    /// lost, or told while it is written, from then on.
    #[test]
    fn a_panic_spoils_no_slot() {
        let lane = FlightLane::new(1).unwrap();
        write(&lane, 1);
        let panics = std::panic::AssertUnwindSafe(|| {
            lane.write(|pen| {
                pen.number(2);
                panic!("in the middle");
            });
        });
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(kept(&lane).is_empty());
        lane.write(|pen| {
            pen.number(3);
            assert!(kept(&lane).is_empty(), "it is being written");
        });
        assert_eq!(kept(&lane), [3]);
    }

    /// Catches: values that come out as others, and a text that spoils what stands behind it.
    #[test]
    fn what_is_put_in_comes_out() {
        let lane = FlightLane::new(1).unwrap();
        write(&lane, u64::MAX);
        lane.write(|pen| {
            pen.text(Some("chatcmpl-0123456789"), 64);
            pen.number(7);
            pen.text(Some(""), 16);
            pen.text(None, 16);
            pen.text(Some("größer als sechzehn"), 16);
            pen.maybe(Some(0));
            pen.maybe(None);
            (0..FLIGHT_WORDS).for_each(|_| pen.number(9));
        });
        let words = lane.newest_first().next().unwrap();
        let mut reader = FlightReader::new(&words);
        assert_eq!(reader.text(64).as_deref(), Some("chatcmpl-0123456789"));
        assert_eq!(reader.number(), 7);
        assert_eq!((reader.text(16).as_deref(), reader.text(16)), (Some(""), None));
        assert_eq!(reader.text(16).as_deref(), Some("größer als sec"));
        assert_eq!((reader.maybe(), reader.maybe(), reader.number()), (Some(0), None, 9));
    }
}
