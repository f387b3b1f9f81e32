//! What clients ask: chats of several turns, agents, prompts of which no two are alike, prompts of
//! which most begin alike.

use super::{task, Us, SECOND};
use crate::proxy::route::dice::Dice;

/// A request: the pieces of its prompt (who wrote them, and bytes), and tokens of its answer.
#[derive(Debug, Clone, Default)]
pub struct Task {
    pub pieces: Vec<(u64, u32)>,
    pub answer: u32,
}

impl Task {
    pub fn bytes(&self) -> u32 {
        self.pieces.iter().map(|(_, bytes)| bytes).sum()
    }

    /// The prompt with the answer behind it: what the next request of the client begins with.
    pub fn with_answer(&self) -> Vec<(u64, u32)> {
        let last = self.pieces.last().map_or(0, |(id, _)| *id);
        let answer = (last ^ 0x5555_0000_0000, self.answer * super::engine::TOKEN_BYTES);
        self.pieces.iter().copied().chain([answer]).collect()
    }
}

pub trait Work {
    /// Tokens that an engine has room for.
    fn cache(&self) -> u32;
    fn clients(&self) -> usize;
    /// When a client asks for the first time.
    fn begins(&mut self, client: usize, dice: &mut Dice) -> Us;
    fn ask(&mut self, client: usize, dice: &mut Dice) -> Task;
    /// A client that does not wait for its answer asks again after so long.
    fn also(&mut self, client: usize, dice: &mut Dice) -> Option<Us>;
    /// A client has its answer, and asks again after so long.
    fn answered(&mut self, client: usize, task: &Task, dice: &mut Dice) -> Option<Us>;
}

/// From the first to below the second.
fn between(dice: &mut Dice, (from, to): (u32, u32)) -> u32 {
    from + dice.below(u64::from(to - from)) as u32
}

/// A pause at random, so long in the mean.
fn pause(dice: &mut Dice, mean: f64) -> Us {
    let unit = dice.below(1 << 53) as f64 / (1u64 << 53) as f64;
    (-(1.0 - unit).ln() * mean * SECOND as f64) as Us
}

/// Clients that go on from answer to answer, and then begin anew.
pub struct Chats {
    cache: u32,
    /// What the first piece is, for each kind of them.
    systems: (u64, u32),
    /// Bytes of what is added in each turn, and tokens of answers.
    turn: (u32, u32),
    answer: (u32, u32),
    turns: (u32, u32),
    /// Seconds between an answer and the next request.
    think: f64,
    chats: Vec<(Vec<(u64, u32)>, u32)>,
    ids: u64,
}

impl Chats {
    /// People: short words of the system, and time to think.
    pub fn of_people() -> Chats {
        Chats {
            cache: 150_000,
            systems: (1, 2_000),
            turn: (200, 2_000),
            answer: (60, 300),
            turns: (6, 16),
            think: 8.0,
            chats: vec![Default::default(); 160],
            ids: 1 << 20,
        }
    }

    /// Programs: long tools, of three kinds, and what they say in no time.
    pub fn of_agents() -> Chats {
        Chats {
            cache: 250_000,
            systems: (3, 24_000),
            turn: (1_000, 6_000),
            answer: (40, 120),
            turns: (10, 30),
            think: 1.5,
            chats: vec![Default::default(); 40],
            ids: 1 << 20,
        }
    }

    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

impl Work for Chats {
    fn cache(&self) -> u32 {
        self.cache
    }

    fn clients(&self) -> usize {
        self.chats.len()
    }

    fn begins(&mut self, _: usize, dice: &mut Dice) -> Us {
        pause(dice, self.think)
    }

    fn ask(&mut self, client: usize, dice: &mut Dice) -> Task {
        if self.chats[client].1 == 0 {
            let system = 1 + dice.below(self.systems.0);
            let turns = between(dice, self.turns);
            self.chats[client] = (vec![(system, self.systems.1)], turns);
        }
        let words = (self.id(), between(dice, self.turn));
        let (pieces, turns) = &mut self.chats[client];
        pieces.push(words);
        *turns -= 1;
        task(pieces.clone(), between(dice, self.answer))
    }

    fn also(&mut self, _: usize, _: &mut Dice) -> Option<Us> {
        None
    }

    fn answered(&mut self, client: usize, task: &Task, dice: &mut Dice) -> Option<Us> {
        self.chats[client].0 = task.with_answer();
        Some(pause(dice, self.think))
    }
}

/// Requests that come at random moments, whoever has an answer.
pub struct Singles {
    per_second: f64,
    /// Bytes that nine of ten have in common.
    shared: u32,
    own: (u32, u32),
    ids: u64,
}

impl Singles {
    pub fn unique() -> Singles {
        Singles { per_second: 14.0, shared: 0, own: (800, 8_000), ids: 1 << 20 }
    }

    pub fn hot() -> Singles {
        Singles { per_second: 24.0, shared: 16_000, own: (400, 2_400), ids: 1 << 20 }
    }
}

impl Work for Singles {
    fn cache(&self) -> u32 {
        150_000
    }

    fn clients(&self) -> usize {
        1
    }

    fn begins(&mut self, _: usize, _: &mut Dice) -> Us {
        0
    }

    fn ask(&mut self, _: usize, dice: &mut Dice) -> Task {
        self.ids += 1;
        let own = (self.ids, between(dice, self.own));
        let is_shared = self.shared > 0 && dice.below(10) > 0;
        let pieces = if is_shared { vec![(1, self.shared), own] } else { vec![own] };
        task(pieces, between(dice, (20, 100)))
    }

    fn also(&mut self, _: usize, dice: &mut Dice) -> Option<Us> {
        Some(pause(dice, 1.0 / self.per_second))
    }

    fn answered(&mut self, _: usize, _: &Task, _: &mut Dice) -> Option<Us> {
        None
    }
}
