//! What several providers say of one key (`auth.mode: all`), taken together. Each has let it in by
//! what it says itself: its states, times, addresses, models and balances hold by that. What is
//! left is whose the key is, and what it is held to: the strictest counts. Nothing here allocates.

use super::facts::KeyFacts;
use crate::config::plan::Limits;
use std::sync::Arc;

/// Whom records name: the first user that somebody names.
pub fn user_id(keys: &[Arc<KeyFacts>]) -> Option<&str> {
    keys.iter().map(|key| key.user_id.as_str()).find(|id| !id.is_empty())
}

/// The label of the key: the first that somebody gives it.
pub fn name(keys: &[Arc<KeyFacts>]) -> Option<&str> {
    keys.iter().map(|key| key.name.as_str()).find(|name| !name.is_empty())
}

/// What records have of it beside: of the first who says something.
pub fn recorded_metadata(keys: &[Arc<KeyFacts>]) -> Option<&str> {
    keys.iter().find_map(|key| key.metadata.recorded())
}

/// The key's own limits: the least of each. Who names none leaves those of the others.
pub fn limits(keys: &[Arc<KeyFacts>]) -> Limits {
    let limits = keys.iter().map(|key| key.limits);
    limits.reduce(Limits::strictest).unwrap_or_default()
}

/// Who has the quota that is counted: the first who names one.
pub fn quota(keys: &[Arc<KeyFacts>]) -> Option<&KeyFacts> {
    keys.iter().map(|key| &**key).find(|key| key.total_quota > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::digest::KeyDigest;

    fn key(change: impl FnOnce(&mut KeyFacts)) -> Arc<KeyFacts> {
        let mut facts = KeyFacts::new(KeyDigest::of(b"k"));
        change(&mut facts);
        Arc::new(facts)
    }

    /// Catches: a key without an owner because the first who knows it does not know whose it is; a
    /// later one who takes it from its owner.
    #[test]
    fn the_first_who_says_whose_it_is_is_believed() {
        let metadata = |name: &str| {
            let mut metadata = crate::keys::metadata::KeyMetadata::default()
                .with([(name.to_owned(), true.into())].into_iter().collect());
            metadata.tell_records("k");
            metadata
        };
        let (silent, nobody) = (key(|_| {}), &[]);
        let first = key(|key| {
            (key.user_id, key.metadata, key.total_quota) = ("ann".into(), metadata("a"), 9);
        });
        let later = key(|key| {
            (key.user_id, key.name, key.total_quota) = ("bob".into(), "b".into(), 5);
            key.metadata = metadata("b");
        });
        for keys in [&[silent.clone(), first.clone(), later.clone()][..], &[first, later]] {
            assert_eq!((user_id(keys), name(keys)), (Some("ann"), Some("b")));
            assert_eq!(recorded_metadata(keys), Some(r#"{"a":true}"#));
            assert_eq!(quota(keys).map(|key| key.total_quota), Some(9));
        }
        assert_eq!(
            (user_id(&[silent]), name(nobody), limits(nobody)),
            (None, None, Limits::default())
        );
    }
}
