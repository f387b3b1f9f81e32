//! Questions of workers to the providers that are asked over a network or from a disk: what is
//! known of this key? Each such provider has a queue of its own, and threads of the control plane
//! that answer.

use super::ask::Ask;
use super::meters::Times;
use crate::base::secret::Secret;
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// A question about one key.
#[derive(Debug, Clone)]
pub struct KeyQuestion {
    /// What it is known by: questions about one key are one question.
    pub digest: KeyDigest,
    /// The key itself: it is part of a Redis name, a SQL value, a body.
    pub key: Secret,
}

impl PartialEq for KeyQuestion {
    fn eq(&self, other: &KeyQuestion) -> bool {
        self.digest == other.digest
    }
}

/// What a provider says of a key.
#[derive(Debug, Clone)]
pub enum KeyAnswer {
    /// It knows the key.
    Known(Arc<KeyFacts>),
    /// It has no such key.
    Unknown,
    /// It knows the key, and said itself that it may not be used: a webhook of status 403. With
    /// its message, if it gave one.
    Denied(Option<Arc<str>>),
    /// It cannot be asked, or answered what cannot be understood. The log says why.
    Failed,
}

/// What became of the questions to a provider, for the metrics page.
#[derive(Default)]
pub struct LookupNumbers {
    results: [AtomicU64; 4],
    uses_lost: AtomicU64,
    /// Calls that counted quotas with other gateways, that failed, and keys that were left out.
    quotas: [AtomicU64; 3],
    /// Only the threads that answer and the metrics page take it.
    times: Mutex<Times>,
}

impl LookupNumbers {
    /// Words for the results, in the order of [`LookupNumbers::results`].
    pub const RESULTS: [&'static str; 4] = ["known", "unknown", "denied", "failed"];

    /// An answer was found, in so long.
    pub fn note(&self, answer: &KeyAnswer, time: Duration) {
        let place = match answer {
            KeyAnswer::Known(_) => 0,
            KeyAnswer::Unknown => 1,
            KeyAnswer::Denied(_) => 2,
            KeyAnswer::Failed => 3,
        };
        if let Some(count) = self.results.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.times.lock().unwrap_or_else(PoisonError::into_inner).record(time);
    }

    /// How many there were of each.
    pub fn results(&self) -> [u64; 4] {
        self.results.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// So many uses of keys cannot be written down: too many keys are in use at a time.
    pub fn note_uses_lost(&self, count: u64) {
        self.uses_lost.fetch_add(count, Ordering::Relaxed);
    }

    /// How many that were.
    pub fn uses_lost(&self) -> u64 {
        self.uses_lost.load(Ordering::Relaxed)
    }

    /// So many calls counted quotas with other gateways, so many failed, and so many look-ups were
    /// of keys that are left out.
    pub fn note_quotas(&self, [told, failed]: [u64; 2], left_out: u64) {
        for (count, more) in self.quotas.iter().zip([told, failed, left_out]) {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// How many of each.
    pub fn quotas(&self) -> [(&'static str, u64); 3] {
        let [told, failed, left_out] = self.quotas.each_ref().map(|n| n.load(Ordering::Relaxed));
        [("told", told), ("failed", failed), ("left_out", left_out)]
    }

    /// How long they took.
    pub fn times(&self) -> Times {
        self.times.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One provider, as workers ask it. Clones ask the same one.
#[derive(Clone)]
pub struct KeyService {
    /// Its queue.
    pub ask: Ask<KeyQuestion, KeyAnswer>,
    /// What one look-up may take; who asks waits a little longer than this, and no more.
    pub patience: Duration,
    /// What became of the questions.
    pub numbers: Arc<LookupNumbers>,
    changes: KeyChanges,
}

/// How often the keys of a provider were changed by us, and whether it is over.
#[derive(Clone, Default)]
pub struct KeyChanges {
    count: Arc<AtomicU64>,
    ends: Arc<OnceLock<Sender<()>>>,
}

impl KeyChanges {
    /// So often.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// There when the process ends: what is left to be done is to be done now, and then told here.
    pub fn ends(&self) -> Option<&Sender<()>> {
        self.ends.get()
    }
}

impl KeyService {
    /// Of a queue, whose questions are answered within so long each.
    pub fn new(ask: Ask<KeyQuestion, KeyAnswer>, patience: Duration) -> KeyService {
        KeyService { ask, patience, numbers: Arc::default(), changes: KeyChanges::default() }
    }

    /// How often its keys were changed by us. An answer that is older than the newest change must
    /// not be used any more.
    pub fn changes(&self) -> u64 {
        self.changes.count()
    }

    /// The same, for those who answer: they must not hold the end that asks.
    pub fn watch_changes(&self) -> KeyChanges {
        self.changes.clone()
    }

    /// True when both ask the same provider.
    pub fn is_same(&self, other: &KeyService) -> bool {
        Arc::ptr_eq(&self.changes.count, &other.changes.count)
    }

    /// The process ends: what was left to be done is done when this tells so. `None`: there is no
    /// room to ask for it.
    pub fn end(&self) -> Option<Receiver<()>> {
        let (done, is_done) = bounded(1);
        self.changes.ends.set(done).ok()?;
        // About a key that nobody can have, so that whoever answers looks.
        let asked = KeyQuestion { digest: KeyDigest::of(b""), key: Secret::new("") };
        self.ask.ask(asked).map(|_| is_done)
    }

    /// A key of it was changed, or may have been.
    pub fn note_change(&self) {
        self.changes.count.fetch_add(1, Ordering::AcqRel);
    }
}
