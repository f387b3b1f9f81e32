//! `rate_limit`, and the limits of single keys.

use super::storage::{self, Stores};
use crate::base::limits::{
    COUNTERS_ENTRIES_MAX, LIMIT_CONCURRENT_MAX, REDIS_LEASE_MAX, REDIS_LEASE_MIN,
};
use crate::config::plan::{
    CountersPlan, LimitOnError, LimitStorage, Limits, ModelPattern, RateLimit, Redis,
};
use crate::config::raw::{Node, ValueKind};
use crate::config::section::Section;
use std::time::Duration;

/// Unless `rate_limit.redis_lease` says otherwise.
const REDIS_LEASE: Duration = Duration::from_millis(100);

/// Reads `counters`.
pub fn counters(s: &mut Section) -> CountersPlan {
    let default = CountersPlan::default();
    let dir = s.text("dir").filter(|dir| !dir.is_empty() && dir != "auto").map(Into::into);
    let entries = s.int_opt("entries", 1024..=COUNTERS_ENTRIES_MAX);
    CountersPlan { dir, entries: entries.unwrap_or(default.entries) }
}

/// Reads `rate_limit`.
pub fn rate_limit(s: &mut Section, stores: &Stores) -> RateLimit {
    s.refused(&[
        ("per_backend", "limits are global, per key, per user and per model"),
        ("script", "limits are not scripted"),
    ]);
    let errors = [("local", LimitOnError::Local), ("deny", LimitOnError::Deny)];
    let rate_limit = RateLimit {
        storage: storage(s, stores),
        on_error: s.choice("on_error", &errors, LimitOnError::Local),
        global: s.when_present("global", limits),
        per_key: s.when_present("per_key", limits),
        per_user: s.when_present("per_user", limits),
        per_model: per_model(s),
    };
    let sets = [rate_limit.global, rate_limit.per_key, rate_limit.per_user];
    if s.desk.is_off() {
        return rate_limit;
    }
    if !["global", "per_key", "per_user", "per_model"].iter().any(|key| s.given(key)) {
        let message = "sets no limit: give `global`, `per_key`, `per_user` or `per_model`";
        s.desk.error(s.node(), message);
    } else if sets.iter().flatten().all(|l| *l == Limits::default())
        && rate_limit.per_model.is_empty()
    {
        s.desk.warn(s.node(), "is on, but sets no limit");
    }
    rate_limit
}

/// The limits of one section; 0 means the same as absent.
pub fn limits(s: &mut Section) -> Limits {
    let concurrent = s.int_opt("max_concurrent", 0..=LIMIT_CONCURRENT_MAX).filter(|n| *n > 0);
    let mut number = |key: &str| s.int_opt(key, 0..=u32::MAX).filter(|n| *n > 0);
    let requests_per_second = number("requests_per_second");
    let requests_per_minute = number("requests_per_minute");
    let burst = number("burst_size");
    let tokens = s.int_opt("tokens_per_minute", 0..=i64::MAX as u64).filter(|n| *n > 0);
    let limits = ["requests_per_second", "requests_per_minute", "tokens_per_minute"];
    if !s.desk.is_off() && !limits.iter().chain(&["max_concurrent"]).any(|key| s.given(key)) {
        s.desk.error(s.node(), format!("sets no limit: give one of {}", limits.join(", ")));
    }
    if burst.is_some() && requests_per_second.is_none() {
        s.warn("burst_size", "has no effect without requests_per_second");
    }
    let burst_size = requests_per_second.map(|rate| burst.unwrap_or(rate.saturating_mul(2)));
    Limits {
        requests_per_second,
        requests_per_minute,
        tokens_per_minute: tokens,
        max_concurrent: concurrent,
        burst_size,
    }
}

fn per_model(s: &mut Section) -> Vec<(ModelPattern, Limits)> {
    let mut all = Vec::new();
    for (name, node) in s.named("per_model") {
        let pattern = ModelPattern::parse(&name).map_err(|message| s.desk.error(node, message));
        let Some(mut inner) = Section::open(s.desk, node, "rate_limit.per_model.*") else {
            continue;
        };
        let limits = limits(&mut inner);
        if let Ok(pattern) = pattern {
            all.push((pattern, limits));
        }
    }
    all
}

/// `storage: memory | redis | name of a cache`; `redis` is the name of a cache or an address.
fn storage(s: &mut Section, stores: &Stores) -> LimitStorage {
    let name = s.text("storage").unwrap_or_else(|| "memory".into());
    let node = s.get("redis");
    let own = node.and_then(|node| own_redis(s, stores, node));
    let lease = lease(s);
    if name != "redis" && s.given("redis") {
        s.warn("redis", "has no effect: storage is not redis");
    }
    let redis = match name.as_str() {
        "memory" => None,
        "redis" => {
            let redis = own.or_else(|| stores.shared()).unwrap_or_else(|| {
                let at = storage::REDIS_ADDR;
                s.warn("storage", format!("no address of a Redis server is given: {at} is taken"));
                storage::default_redis()
            });
            Some(redis)
        }
        name => stores.cache(name).unwrap_or_else(|| {
            s.error("storage", "must be memory, redis, or the name of one of storage.caches");
            None
        }),
    };
    match redis {
        Some(redis) => LimitStorage::Redis { redis, lease },
        None => {
            if s.given("redis_lease") {
                s.warn("redis_lease", "has no effect: storage is not redis");
            }
            LimitStorage::Memory
        }
    }
}

/// `redis_lease`: for how long a gateway may keep what it has borrowed and not used.
fn lease(s: &mut Section) -> Duration {
    let lease = s.duration("redis_lease", REDIS_LEASE);
    if !(REDIS_LEASE_MIN..=REDIS_LEASE_MAX).contains(&lease) {
        s.error("redis_lease", "must be from 10ms to 10s");
    }
    lease
}

fn own_redis(s: &Section, stores: &Stores, node: &Node) -> Option<Redis> {
    if matches!(node.kind, ValueKind::Map(_)) {
        return Section::open(s.desk, node, "rate_limit.redis").map(|mut s| storage::redis(&mut s));
    }
    let name = s.desk.text(node).filter(|name| !name.is_empty())?;
    let found = stores.cache(&name).flatten();
    // The first implementation called its one cache `default` and let it be absent.
    if found.is_none() && name != "default" {
        s.desk.error(node, "must be an address (`{addr: …}`) or the name of one of storage.caches");
    }
    found
}
