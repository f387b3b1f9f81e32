//! The embedded store of keys: a SQLite file (`admin.db_path`) in which keys can be made, changed
//! and taken away while the gateway runs.
//!
//! *Takes:* keys, or only their digests, with what is to be known of them. *Gives:* the facts of a
//! key by its digest, and all that an administrator asks. *Runs on:* threads of the control plane,
//! and the command line's. *May:* block, write to the disk. *Never:* keeps a key in clear, or puts
//! an empty store in the place of one that cannot be read.
//!
//! A key has an identity, the digest of the first key that it ever had. Everything else that counts
//! or records it goes by that, so that a rotated key keeps its limits and its quota.

pub mod form;
mod generate;
pub mod import;
mod sqlite;
#[cfg(test)]
mod tests;
mod uses;

pub use generate::{generate, prefix_of, Generated};
pub use sqlite::KeyStore;
pub use uses::KeyUses;

use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use std::fmt;

/// Keys of one page of a list.
pub const LISTED_MAX: usize = 100;
/// Keys of one page of an export.
pub const EXPORTED_MAX: usize = 1000;

/// One key, as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredKey {
    /// What people and programs call it: the first 16 hex digits of its identity.
    pub id: String,
    /// How its text begins, for people who look for it.
    pub prefix: String,
    /// What is known of it. The digest is its identity.
    pub facts: KeyFacts,
    /// Its texts: more than one while an old one is good for a while yet.
    pub texts: Vec<KeyText>,
    /// When it was made, milliseconds since 1970.
    pub created_ms: i64,
    /// When it was last changed.
    pub updated_ms: i64,
    /// When a request last showed it, as far as the store was told.
    pub last_used_ms: Option<i64>,
}

/// A text by which a key may be shown.
#[derive(Debug, Clone, PartialEq)]
pub struct KeyText {
    /// Its digest.
    pub digest: KeyDigest,
    /// The first moment at which it is no more; `None`: it is good for as long as the key is.
    pub until_ms: Option<i64>,
}

impl StoredKey {
    /// A new key with one text.
    pub fn new(text: KeyDigest, prefix: String, now_ms: i64) -> StoredKey {
        StoredKey {
            id: id_of(&text),
            prefix,
            facts: KeyFacts::new(text),
            texts: vec![KeyText { digest: text, until_ms: None }],
            created_ms: now_ms,
            updated_ms: now_ms,
            last_used_ms: None,
        }
    }
}

/// Which key is meant.
#[derive(Clone, PartialEq)]
pub enum KeyRef {
    /// The one with this id, or else the one that has this text.
    Text(String),
}

impl KeyRef {
    fn parts(&self) -> (&str, KeyDigest) {
        let KeyRef::Text(text) = self;
        (text, KeyDigest::of(text.as_bytes()))
    }
}

/// Which keys are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeyFilter {
    /// Those of this user.
    pub user_id: Option<String>,
    /// Those with this status, as it is kept.
    pub status: Option<String>,
    /// Those with this name.
    pub name: Option<String>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySpan {
    /// So many are left out first.
    Offset(usize),
    /// Those behind the one with this id.
    After(String),
}

/// What an import does with a key that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnConflict {
    /// Nothing at all is imported.
    Fail,
    /// It stays as it is.
    Skip,
    /// It becomes what the import says.
    Replace,
}

/// What an import came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that were not there.
    pub created: usize,
    /// Keys that were changed.
    pub replaced: usize,
    /// Keys that were left as they are.
    pub skipped: usize,
    /// Keys that were taken away, since the import is all that there should be.
    pub deleted: usize,
}

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreFault {
    /// There is such a key already: the id of it.
    Conflict(String),
    /// There is no such key.
    NotFound,
    /// What was asked cannot be: a sentence.
    Refused(String),
    /// The file cannot be used: a sentence.
    Unavailable(String),
}

impl fmt::Display for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreFault::Conflict(id) => write!(f, "this key is there already: its id is {id}"),
            StoreFault::NotFound => f.write_str("there is no such key"),
            StoreFault::Refused(why) | StoreFault::Unavailable(why) => f.write_str(why),
        }
    }
}

/// The id of the key with this identity.
pub fn id_of(identity: &KeyDigest) -> String {
    let (first, _) = identity.as_bytes().split_at(8);
    hex(first)
}

/// As hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A digest from its 64 hexadecimal digits.
pub fn digest_from_hex(text: &str) -> Option<KeyDigest> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(KeyDigest::from_bytes(bytes))
}
