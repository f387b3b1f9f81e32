//! What a provider knows of a key: the same form, whoever knows it.

use super::digest::KeyDigest;
use super::metadata::KeyMetadata;
use crate::config::plan::{ApiKey, IpRange, KeyState, Limits, ModelPattern, ResetPeriod};
use jiff::Timestamp;
use serde_json::Value;
use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

/// A request notes that a key was used unless another one did so less than this before.
const USE_PAUSE_MS: i64 = 1000;

/// One key. Shared by all requests that show it, and never changed: a provider that learns
/// something new makes another one.
#[derive(Clone, PartialEq)]
pub struct KeyFacts {
    /// What the key is known by here.
    pub digest: KeyDigest,
    /// Label for people.
    pub name: String,
    /// Whom records and limits of users name; empty: nobody.
    pub user_id: String,
    /// As its provider says. What follows from time and use is not stored, but checked.
    pub status: KeyState,
    /// Tokens per period; 0 = unlimited.
    pub total_quota: u64,
    /// Tokens used already when the gateway first meets the key.
    pub used_quota: u64,
    /// When the used tokens count as none again.
    pub quota_reset_period: ResetPeriod,
    /// Begin of the period that `used_quota` belongs to; `None`: the running one.
    pub last_reset_at: Option<Timestamp>,
    /// Prepaid money, in whatever unit; `None`: the provider tells of none. Nothing left, or less,
    /// is a refusal.
    pub balance: Option<f64>,
    /// Clients that may use it; empty = all.
    pub allowed_ips: Vec<IpRange>,
    /// Clients that may not, whatever `allowed_ips` says.
    pub denied_ips: Vec<IpRange>,
    /// Models it may use; empty = all.
    pub allowed_models: Vec<ModelPattern>,
    /// First moment of its life.
    pub starts_at: Option<Timestamp>,
    /// First moment after its life.
    pub expires_at: Option<Timestamp>,
    /// Its own limits, over those of `rate_limit.per_key`.
    pub limits: Limits,
    /// Further facts that records, webhooks and scripts get.
    pub metadata: KeyMetadata,
    /// All that the provider said, in the shape in which scripts see it; `None` where no script
    /// will look.
    pub data: Option<Value>,
    /// Where requests note that they showed it, if its provider wants to know.
    pub last_use: UseMark,
}

/// Where requests note when they showed a key: shared by all that have its facts, so that also
/// those count that were answered from memory. Facts are the same wherever their use is noted.
#[derive(Clone, Default)]
pub struct UseMark(Option<Arc<AtomicI64>>);

impl UseMark {
    /// Of a key that was used at this moment, in milliseconds since 1970.
    pub fn new(now_ms: i64) -> UseMark {
        UseMark(Some(Arc::new(AtomicI64::new(now_ms))))
    }

    /// A request showed the key. A key that all workers use at once is written once in a second:
    /// they do not take the memory away from each other.
    pub fn note(&self, now_ms: i64) {
        let Some(last) = &self.0 else { return };
        let since = now_ms.saturating_sub(last.load(Ordering::Relaxed));
        if since >= USE_PAUSE_MS {
            last.fetch_max(now_ms, Ordering::Relaxed);
        }
    }

    /// When that was last, about to the second.
    pub fn last_ms(&self) -> Option<i64> {
        self.0.as_ref().map(|last| last.load(Ordering::Relaxed))
    }

    /// True when nobody else can note anything here.
    pub fn is_forgotten(&self) -> bool {
        self.0.as_ref().is_none_or(|last| Arc::strong_count(last) == 1)
    }
}

impl PartialEq for UseMark {
    fn eq(&self, _: &UseMark) -> bool {
        true
    }
}

impl KeyFacts {
    /// Of a key of which nothing else is known: it is active and unlimited.
    pub fn new(digest: KeyDigest) -> KeyFacts {
        KeyFacts {
            digest,
            name: String::new(),
            user_id: String::new(),
            status: KeyState::Active,
            total_quota: 0,
            used_quota: 0,
            quota_reset_period: ResetPeriod::Never,
            last_reset_at: None,
            balance: None,
            allowed_ips: Vec::new(),
            denied_ips: Vec::new(),
            allowed_models: Vec::new(),
            starts_at: None,
            expires_at: None,
            limits: Limits::default(),
            metadata: KeyMetadata::default(),
            data: None,
            last_use: UseMark::default(),
        }
    }
}

impl fmt::Debug for KeyFacts {
    /// Without what a provider may have written the key itself into.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyFacts")
            .field("digest", &self.digest)
            .field("status", &self.status)
            .field("total_quota", &self.total_quota)
            .field("used_quota", &self.used_quota)
            .field("balance", &self.balance)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl From<&ApiKey> for KeyFacts {
    /// Of a key of the configuration.
    fn from(key: &ApiKey) -> KeyFacts {
        KeyFacts {
            digest: KeyDigest::of(key.key.reveal().as_bytes()),
            name: key.name.clone(),
            user_id: key.user_id.clone(),
            status: key.status,
            total_quota: key.total_quota,
            used_quota: key.used_quota,
            quota_reset_period: key.quota_reset_period,
            last_reset_at: key.last_reset_at,
            balance: None,
            allowed_ips: key.allowed_ips.clone(),
            denied_ips: key.denied_ips.clone(),
            allowed_models: key.allowed_models.clone(),
            starts_at: key.starts_at,
            expires_at: key.expires_at,
            limits: key.rate_limit,
            metadata: KeyMetadata::default(),
            data: None,
            last_use: UseMark::default(),
        }
    }
}
