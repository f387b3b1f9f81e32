//! An engine as vLLM and SGLang are: it reads one prompt at a time, decodes all its streams
//! together, and keeps the blocks that it has read or said, of which the oldest go first.

use super::work::Task;
use super::{Us, SECOND};
use crate::state::engine_cache::ExpectedPrefix;
use crate::state::hash::QuickMap;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Bytes of a block, 128 tokens of them. Engines have blocks of 16 tokens; that makes no difference
/// here, and a test that takes eight times as long.
pub const BLOCK_BYTES: u32 = 512;
/// A token of English text, or of code.
pub const TOKEN_BYTES: u32 = 4;
/// Prompt tokens that an engine reads in a second.
const PREFILL_PER_S: u64 = 8_000;
/// What each prompt costs beside.
const PREFILL_COST: Us = 5_000;
/// One step of decoding, and what each stream in it adds.
const STEP: (Us, Us) = (20_000, 500);

/// A request at an engine.
#[derive(Clone)]
pub struct Stream {
    pub client: usize,
    pub task: Task,
    pub came: Us,
    /// The blocks of its prompt: each stands for all bytes up to its end.
    pub blocks: Rc<[u64]>,
    /// Where it went, and what was expected there.
    pub at: usize,
    pub expected: ExpectedPrefix,
    left: u32,
}

impl Stream {
    pub fn new(client: usize, task: Task, came: Us) -> Stream {
        let blocks = blocks(&task.pieces);
        let left = task.answer;
        Stream { client, task, came, blocks, at: 0, expected: ExpectedPrefix::default(), left }
    }

    /// Tokens of the prompt.
    pub fn tokens(&self) -> u64 {
        u64::from(self.task.bytes() / TOKEN_BYTES)
    }
}

/// The blocks of a prompt that are full.
pub fn blocks(pieces: &[(u64, u32)]) -> Rc<[u64]> {
    let (mut all, mut chain, mut filled) = (Vec::new(), 0, 0);
    for (id, bytes) in pieces {
        let mut done = 0;
        while done < *bytes {
            let step = (BLOCK_BYTES - filled).min(bytes - done);
            chain = mix(chain, *id, (done, done + step));
            (done, filled) = (done + step, filled + step);
            if filled == BLOCK_BYTES {
                filled = 0;
                all.push(chain);
            }
        }
    }
    all.into()
}

/// Stands for a part of a piece behind all that was before.
pub fn mix(before: u64, id: u64, part: (u32, u32)) -> u64 {
    let word = id ^ u64::from(part.0) << 40 ^ u64::from(part.1) << 20;
    let mixed = (before.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    mixed ^ (mixed >> 32)
}

/// Blocks of which the ones that nobody used for longest make room.
pub struct Lru {
    room: usize,
    clock: u64,
    used: QuickMap<u64, u64>,
    order: BTreeMap<u64, u64>,
}

impl Lru {
    pub fn new(room: usize) -> Lru {
        Lru { room, clock: 0, used: QuickMap::default(), order: BTreeMap::new() }
    }

    pub fn has(&self, block: u64) -> bool {
        self.used.contains_key(&block)
    }

    /// How many of these are there, from the first on.
    pub fn matched(&self, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|block| self.has(**block)).count()
    }

    /// They are used now: the last ones are the first to go.
    pub fn touch(&mut self, blocks: &[u64]) {
        for block in blocks.iter().rev() {
            self.clock += 1;
            if let Some(before) = self.used.insert(*block, self.clock) {
                self.order.remove(&before);
            }
            self.order.insert(self.clock, *block);
        }
        while self.used.len() > self.room {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            self.used.remove(&oldest);
        }
    }
}

/// What an engine did.
pub struct Did {
    /// It has read a prompt, of which it found so many tokens in its cache.
    pub read: Option<(Stream, u64)>,
    /// Streams that are over.
    pub ended: Vec<Stream>,
}

pub struct Engine {
    pub cache: Lru,
    pub waiting: VecDeque<Stream>,
    running: Vec<Stream>,
    busy: bool,
    /// What it found of the prompt that it reads.
    reads: Option<u64>,
}

impl Engine {
    /// With room for so many tokens.
    pub fn new(tokens: u32) -> Engine {
        Engine {
            cache: Lru::new((tokens * TOKEN_BYTES / BLOCK_BYTES) as usize),
            waiting: VecDeque::new(),
            running: Vec::new(),
            busy: false,
            reads: None,
        }
    }

    pub fn inflight(&self) -> u32 {
        (self.waiting.len() + self.running.len()) as u32
    }

    /// Tokens of all that it decodes, and is to read.
    pub fn active_tokens(&self) -> u64 {
        self.waiting.iter().chain(&self.running).map(Stream::tokens).sum()
    }

    pub fn take(&mut self, stream: Stream) {
        self.waiting.push_back(stream);
    }

    /// Begins what it does next, if it does nothing; gives when that is done.
    pub fn go_on(&mut self, now: Us) -> Option<Us> {
        if self.busy {
            return None;
        }
        let time = if let Some(stream) = self.waiting.front() {
            let found = self.cache.matched(&stream.blocks) as u64;
            let found = found * u64::from(BLOCK_BYTES / TOKEN_BYTES);
            self.reads = Some(found);
            PREFILL_COST + stream.tokens().saturating_sub(found) * SECOND / PREFILL_PER_S
        } else if self.running.is_empty() {
            return None;
        } else {
            STEP.0 + STEP.1 * self.running.len() as u64
        };
        self.busy = true;
        Some(now + time)
    }

    /// What it did is done.
    pub fn done(&mut self, _: Us) -> Did {
        self.busy = false;
        if let Some(found) = self.reads.take() {
            let stream = self.waiting.pop_front().unwrap();
            self.cache.touch(&stream.blocks);
            self.running.push(stream.clone());
            return Did { read: Some((stream, found)), ended: Vec::new() };
        }
        self.running.iter_mut().for_each(|stream| stream.left = stream.left.saturating_sub(1));
        let ended: Vec<_> = self.running.extract_if(.., |stream| stream.left == 0).collect();
        for stream in &ended {
            self.cache.touch(&blocks(&stream.task.with_answer()));
        }
        Did { read: None, ended }
    }
}
