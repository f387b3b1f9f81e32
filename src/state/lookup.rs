//! Questions of workers to the providers that are asked over a network or from a disk: what is
//! known of this key? Each such provider has a queue of its own, and threads of the control plane
//! that answer.

use super::ask::Ask;
use crate::base::secret::Secret;
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

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

/// One provider, as workers ask it. Clones ask the same one.
#[derive(Clone)]
pub struct KeyService {
    /// Its queue.
    pub ask: Ask<KeyQuestion, KeyAnswer>,
    changes: Arc<AtomicU64>,
}

impl KeyService {
    /// Of a queue.
    pub fn new(ask: Ask<KeyQuestion, KeyAnswer>) -> KeyService {
        KeyService { ask, changes: Arc::default() }
    }

    /// How often its keys were changed by us. An answer that is older than the newest change must
    /// not be used any more.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A key of it was changed, or may have been.
    pub fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
