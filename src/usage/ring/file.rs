//! Where a ring lies: one page that says whose it is and how far both sides are, then the window.

use super::spsc::Window;
use crate::base::clock::unix_ms;
use crate::rt::sys::mapping::{Mapping, WORD};
use crate::usage::spool::disk::is_at;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};

/// Bytes of the page in front of the window.
pub const OWNER_BYTES: usize = 4096;
/// What a ring's file begins with.
pub const MAGIC: [u8; 8] = *b"LLMPRING";
/// Grows when an older program could not read what a newer one writes.
pub const VERSION: u32 = 1;

/// What names a ring's file.
const PREFIX: &str = "ring-";

/// Words of the owner's page. The positions have cache lines of their own: each side writes one.
pub(super) mod word {
    pub const MAGIC: usize = 0;
    /// Version in the lower half, process id in the upper.
    pub const OWNER: usize = 1;
    /// When the ring was made, milliseconds since 1970.
    pub const STARTED: usize = 2;
    /// When something was last taken from it, likewise.
    pub const HEARTBEAT: usize = 3;
    /// Bytes of the window.
    pub const SIZE: usize = 4;
    pub const HEAD: usize = 128;
    pub const TAIL: usize = 256;
}

/// A position with a cache line of its own: each side writes one.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

/// The memory of one ring. The positions in the file are for the next process: this one goes by its
/// own, which nobody else can set.
#[derive(Debug)]
pub struct RingFile {
    mapping: Mapping,
    head: Line,
    tail: Line,
    bytes: u64,
    path: Option<PathBuf>,
    /// Its file is not where it was made any more.
    is_lost: AtomicBool,
}

impl RingFile {
    /// A new one in this folder, with a window of so many bytes, a power of two.
    ///
    /// # Errors
    /// The file cannot be made, or there is no room for it.
    pub fn create(folder: &Path, worker: usize, bytes: u64) -> io::Result<RingFile> {
        let mut again = 0;
        loop {
            // Another one is there when a start could not put into the journal what is in it.
            let path = match again {
                0 => folder.join(format!("{PREFIX}{worker}")),
                _ => folder.join(format!("{PREFIX}{worker}.{again}")),
            };
            match Mapping::create(&path, words(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => again += 1,
                mapping => return Ok(RingFile::of(mapping?, bytes, Some(path))),
            }
        }
    }

    /// One that ends with the process.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn anonymous(bytes: u64) -> io::Result<RingFile> {
        Ok(RingFile::of(Mapping::anonymous(words(bytes))?, bytes, None))
    }

    fn of(mapping: Mapping, bytes: u64, path: Option<PathBuf>) -> RingFile {
        let (head, tail) = (Line::default(), Line::default());
        let is_lost = AtomicBool::default();
        let ring = RingFile { mapping, head, tail, bytes, path, is_lost };
        let owner = u64::from(VERSION) | u64::from(std::process::id()) << 32;
        let now = unix_ms();
        for (index, value) in [
            (word::OWNER, owner),
            (word::STARTED, now),
            (word::HEARTBEAT, now),
            (word::SIZE, bytes),
            // The last: with it the file is a ring.
            (word::MAGIC, u64::from_le_bytes(MAGIC)),
        ] {
            ring.set(index, value, Release);
        }
        ring
    }

    /// Notes that it is alive.
    pub fn beat(&self) {
        self.set(word::HEARTBEAT, unix_ms(), Relaxed);
    }

    /// True when a kill of the process leaves what is in it, as far as [`RingFile::look`] saw.
    pub fn outlives_us(&self) -> bool {
        self.path.is_some() && !self.is_lost.load(Relaxed)
    }

    /// Looks whether its file is where it was made: a start finds no other. Tells the log when it
    /// went, or came back.
    pub fn look(&self) {
        let (Some(path), Some(file)) = (&self.path, self.mapping.file()) else { return };
        // What cannot be told is no reason for an alarm.
        let is_lost = !is_at(file, path).unwrap_or(true);
        if self.is_lost.swap(is_lost, Relaxed) == is_lost {
            return;
        }
        let file = path.display();
        if is_lost {
            let message =
                "a ring of the journal was deleted or moved: until the next start a kill \
                           loses what the spool does not have yet";
            tracing::error!(%file, "{message}");
        } else {
            tracing::info!(%file, "a ring of the journal is where it was again");
        }
    }

    /// Bytes that wait to be taken.
    pub fn waiting(&self) -> u64 {
        self.head().saturating_sub(self.tail())
    }

    /// Removes its file: all that was in it is kept elsewhere.
    pub fn remove(&self) {
        // From now on it is nothing to be missed.
        self.is_lost.store(true, Relaxed);
        match self.path.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a ring's file stays: the next start finds nothing in it");
            }
            _ => {}
        }
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        self.mapping.words().get(index)
    }

    fn set(&self, index: usize, value: u64, order: std::sync::atomic::Ordering) {
        if let Some(word) = self.word(index) {
            word.store(value.to_le(), order);
        }
    }
}

fn words(bytes: u64) -> usize {
    OWNER_BYTES / WORD + bytes as usize / WORD
}

fn in_window(at: u64) -> usize {
    OWNER_BYTES / WORD + at as usize / WORD
}

/// True for the name of a ring's file.
pub fn is_ring(name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let (worker, again) = rest.split_once('.').unwrap_or((rest, "0"));
    is_number(worker) && is_number(again)
}

impl Window for RingFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn load(&self, at: u64) -> u64 {
        self.word(in_window(at)).map_or(0, |word| word.load(Relaxed))
    }

    fn store(&self, at: u64, value: u64) {
        if let Some(word) = self.word(in_window(at)) {
            word.store(value, Relaxed);
        }
    }

    fn store_all(&self, at: u64, words: &[[u8; 8]]) {
        let places = self.mapping.words().get(in_window(at)..).unwrap_or_default();
        places.iter().zip(words).for_each(|(place, word)| {
            place.store(u64::from_ne_bytes(*word), Relaxed);
        });
    }

    fn load_all(&self, at: u64, into: &mut [[u8; 8]]) {
        let places = self.mapping.words().get(in_window(at)..).unwrap_or_default();
        places.iter().zip(into).for_each(|(place, word)| {
            *word = place.load(Relaxed).to_ne_bytes();
        });
    }

    fn head(&self) -> u64 {
        self.head.0.load(Acquire)
    }

    fn set_head(&self, to: u64) {
        self.set(word::HEAD, to, Release);
        self.head.0.store(to, Release);
    }

    fn tail(&self) -> u64 {
        self.tail.0.load(Acquire)
    }

    fn set_tail(&self, to: u64) {
        self.set(word::TAIL, to, Release);
        self.tail.0.store(to, Release);
    }
}
