//! What is used of a key's quota is counted beside the store, by whoever serves requests. What the
//! store has is what was used before the key was first met.

use super::AdminApi;
use crate::control::key_store::StoredKey;
use crate::state::board::View;
use crate::state::counters::ids;
use crate::state::counters::quota::{Quota, QuotaTerms};
use crate::state::counters::table::TablePart;
use crate::state::quota_clock::QuotaClock;
use serde_json::{Map, Value};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

impl AdminApi {
    /// The key with what is used of its quota now, by the gateway's count.
    pub(super) fn as_counted(&self, mut key: StoredKey, now_ms: i64) -> StoredKey {
        if let Some(gateway) = &self.gateway {
            let view = gateway.board.view();
            if let Some(terms) = terms(&view, &key, now_ms) {
                let counted = quota(&view, &key).map(|quota| quota.used(terms));
                // Of one that was never met, what the store has, if it is of this period.
                key.facts.used_quota = counted.unwrap_or(terms.first);
            }
        }
        key
    }

    /// When the quota of the key starts again. `None`: never; or it is not known, since the zone of
    /// its calendar is a matter of the gateway, of which there is none.
    pub(super) fn resets_ms(&self, key: &StoredKey, now_ms: i64) -> Option<i64> {
        let view = self.gateway.as_ref()?.board.view();
        QuotaClock::of(view.plan.auth.as_ref()).resets_ms(&key.facts, now_ms)
    }

    /// Whose figure of a used quota is shown.
    pub(super) fn used_quota_source(&self) -> &'static str {
        match self.gateway {
            Some(_) => "gateway",
            None => "store",
        }
    }

    /// Several keys with what is used of their quotas now.
    pub(super) fn all_as_counted(&self, keys: Vec<StoredKey>, now_ms: i64) -> Vec<StoredKey> {
        keys.into_iter().map(|key| self.as_counted(key, now_ms)).collect()
    }

    /// Where a change names what is used, that is the count from now on.
    pub(super) fn count_from(&self, key: &StoredKey, changed: &Map<String, Value>, now_ms: i64) {
        let Some(gateway) = &self.gateway else { return };
        let view = gateway.board.view();
        let Some(counters) = view.counters.as_ref() else { return };
        let Some(terms) = terms(&view, key, now_ms) else { return };
        if changed.contains_key("used_quota") {
            // Of one that was not met yet as well: a request may be about to meet it.
            let id = ids::of_key(&key.facts.digest);
            let found = counters.find(id, TablePart::Known, counters.at(Instant::now()));
            if let (Some(quota), true) = (counters.quota(found.0), found.1) {
                quota.set(terms, key.facts.used_quota);
            }
        }
    }
}

/// `None`: the key has no quota.
fn terms(view: &View, key: &StoredKey, now_ms: i64) -> Option<QuotaTerms> {
    let clock = QuotaClock::of(view.plan.auth.as_ref());
    clock.terms(&key.facts, u64::try_from(now_ms).unwrap_or(0))
}

/// `None`: the key was not met yet.
fn quota<'a>(view: &'a View, key: &StoredKey) -> Option<Quota<'a, AtomicU64>> {
    let counters = view.counters.as_ref()?;
    let place = counters.seek(ids::of_key(&key.facts.digest), TablePart::Known)?;
    counters.quota(place)
}
