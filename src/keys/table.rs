//! The keys that the configuration itself lists, found by their digests.

use super::digest::{DigestHasher, KeyDigest};
use super::facts::KeyFacts;
use crate::config::plan::ApiKey;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

/// Keys by their digests. Made once for each view and shared by all workers; it holds no key in
/// clear. One key costs about 600 bytes, plus its texts and lists (see the test).
#[derive(Debug, Default)]
pub struct KeyTable {
    by_digest: HashMap<KeyDigest, Arc<KeyFacts>, BuildHasherDefault<DigestHasher>>,
}

impl KeyTable {
    /// Of a list of the configuration. Digests each key: control plane only.
    pub fn of(keys: &[ApiKey]) -> KeyTable {
        let facts = keys.iter().map(KeyFacts::from);
        KeyTable { by_digest: facts.map(|facts| (facts.digest, Arc::new(facts))).collect() }
    }

    /// What is known of a key; `None`: it is not in the list. Takes the same time however many
    /// there are.
    pub fn find(&self, digest: &KeyDigest) -> Option<&Arc<KeyFacts>> {
        self.by_digest.get(digest)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// True when there is no key.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn keys(text: &str) -> Vec<ApiKey> {
        config::load_text("test", text, &|_| None).unwrap().plan.api_keys
    }

    /// Catches: a key that is not found, another one that is, a table that prints keys.
    #[test]
    fn a_key_is_found_by_its_digest_alone() {
        let table = KeyTable::of(&keys("api_keys: [{key: sk-a, name: a}, {key: sk-b, name: b}]"));
        assert_eq!(table.len(), 2);
        assert_eq!(table.find(&KeyDigest::of(b"sk-b")).unwrap().name, "b");
        for other in ["sk-", "sk-B", "sk-b ", ""] {
            assert!(table.find(&KeyDigest::of(other.as_bytes())).is_none(), "{other:?}");
        }
        assert!(!format!("{table:?}").contains("sk-"));
    }

    /// Catches: facts that grow without anybody noticing what 100 000 keys cost.
    #[test]
    fn a_key_costs_what_is_stated() {
        // The place in the table, of which at least 7 in 16 are filled, and the facts in their Arc.
        let place = (size_of::<(KeyDigest, Arc<KeyFacts>)>() + 1) * 16 / 7;
        let cost = place + size_of::<KeyFacts>() + 2 * size_of::<usize>();
        println!("{cost} bytes a key at most, beside its texts and lists");
        assert!(cost <= 600, "{cost} bytes");
    }
}
