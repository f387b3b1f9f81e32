//! The one thing that is asked of memory: words that are exchanged as a whole. All that counts is
//! written against this trait, so that every interleaving can be tried.

use crate::rt::sys::mapping::Mapping;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// A word that threads and processes share.
pub trait Word {
    /// What it is now.
    fn value(&self) -> u64;
    /// Makes it `new` if it is `old`; else gives what it is.
    ///
    /// # Errors
    /// It is something else.
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64>;

    /// Changes it by a function of what it is, unless that gives `None`. Gives what it was.
    fn change(&self, to: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let mut old = self.value();
        loop {
            match self.exchange(old, to(old)?) {
                Ok(()) => return Some(old),
                Err(now) => old = now,
            }
        }
    }

    /// Makes it `new`, whatever it is.
    fn set(&self, new: u64) {
        self.change(|_| Some(new));
    }
}

impl Word for AtomicU64 {
    fn value(&self) -> u64 {
        AtomicU64::load(self, SeqCst)
    }

    fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
}

/// Memory that is made of such words.
pub trait WordMemory {
    /// Of these.
    type Word: Word;
    /// All of them.
    fn words(&self) -> &[Self::Word];
}

impl WordMemory for Mapping {
    type Word = AtomicU64;

    fn words(&self) -> &[AtomicU64] {
        Mapping::words(self)
    }
}
