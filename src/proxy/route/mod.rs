//! Where to: which backend gets the next try.
//!
//! *Takes:* the health of a view's backends and what was tried already. *Gives:* the place of one
//! in that view. *Runs on:* workers, each with a state of its own. *May:* read atomics. *Never:*
//! waits, allocates per pick (but once for a request's fourth try).

mod dice;
mod load;
mod round_robin;
pub mod affinity;
pub mod strategy;
pub mod tiers;
pub mod tries;

use crate::base::fault::Fault;
use crate::base::limits::{FULL_RETRY_AFTER_S_MAX, TRIED_MAX};
use crate::state::member::MemberId;
use std::time::Duration;

/// So many a request remembers to have tried without room of their own.
const TRIED_AT_HAND: usize = 3;

/// The backends that one request has tried; there are at most [`TRIED_MAX`].
#[derive(Debug, Clone, Default)]
pub struct TriedMembers {
    first: [Option<MemberId>; TRIED_AT_HAND],
    /// Few requests have more, and every stream would carry them.
    more: Option<Box<MoreTried>>,
    count: u8,
}

type MoreTried = [Option<MemberId>; TRIED_MAX - TRIED_AT_HAND];

// They are counted in a byte.
const _: () = assert!(TRIED_AT_HAND < TRIED_MAX && TRIED_MAX <= u8::MAX as usize);

impl TriedMembers {
    /// Notes a try.
    pub fn add(&mut self, backend: MemberId) {
        let at = self.len();
        let slot = match at.checked_sub(TRIED_AT_HAND) {
            None => self.first.get_mut(at),
            Some(at) => {
                let none = || Box::new([None; TRIED_MAX - TRIED_AT_HAND]);
                let more = self.more.get_or_insert_with(none);
                more.get_mut(at)
            }
        };
        if let Some(slot) = slot {
            *slot = Some(backend);
            self.count += 1;
        }
    }

    /// Number of tries noted.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// True before the first try.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The same as if this had been the only one.
    pub fn only(backend: MemberId) -> TriedMembers {
        let mut tried = TriedMembers::default();
        tried.add(backend);
        tried
    }

    /// True when it was tried.
    pub fn contains(&self, backend: MemberId) -> bool {
        let more = self.more.iter().flat_map(|more| more.iter());
        self.first.iter().chain(more).take(self.len()).any(|tried| *tried == Some(backend))
    }
}

/// Why nobody was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPicked {
    /// Nobody is left: those that could be picked were tried.
    Nobody,
    /// Those that could be picked have as many requests as they may.
    Full {
        /// When one of them is likely to have room, in seconds.
        retry_after_s: u32,
    },
}

impl NotPicked {
    /// For a request that had a backend before.
    pub fn fault(self) -> Fault {
        match self {
            NotPicked::Nobody => Fault::BackendEjected,
            NotPicked::Full { .. } => Fault::BackendFull,
        }
    }

    /// All are full; a request takes so long where it takes the least.
    fn full(stay: Duration) -> NotPicked {
        let seconds = u32::try_from(stay.as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
        NotPicked::Full { retry_after_s: seconds.clamp(1, FULL_RETRY_AFTER_S_MAX) }
    }
}

#[cfg(test)]
mod tests;
