//! The limits of a configuration, in the form in which requests are held to them.

use crate::config::plan::{Limits, ModelPattern, Plan};
use crate::state::counters::bucket::Bucket;
use crate::state::counters::ids;
use std::time::Duration;

/// Whom a limit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All requests together.
    Global,
    /// Those with one key, or those without one from one address.
    Key,
    /// Those with the keys of one user.
    User,
    /// Those for one group of models.
    Model,
}

/// What is limited; its place is that of the bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests per second.
    PerSecond,
    /// Requests per minute.
    PerMinute,
    /// Tokens per minute.
    Tokens,
}

/// Limits as buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Buckets {
    /// By [`LimitKind`].
    pub of: [Option<Bucket>; 3],
    /// Requests at one time.
    pub concurrent: Option<u32>,
}

impl From<&Limits> for Buckets {
    fn from(limits: &Limits) -> Buckets {
        const SECOND: Duration = Duration::from_secs(1);
        const MINUTE: Duration = Duration::from_secs(60);
        let Limits { requests_per_second, requests_per_minute, tokens_per_minute, .. } = *limits;
        let per_second = requests_per_second.map(|rate| {
            let burst = limits.burst().unwrap_or(rate);
            Bucket::new(rate.into(), SECOND, burst.into())
        });
        let per_minute = |n: u64| Bucket::new(n, MINUTE, n);
        Buckets {
            of: [
                per_second,
                requests_per_minute.map(|n| per_minute(n.into())),
                tokens_per_minute.map(per_minute),
            ],
            concurrent: limits.max_concurrent,
        }
    }
}

/// The limits of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// On all requests together.
    pub global: Option<Buckets>,
    /// On each key.
    pub per_key: Option<Buckets>,
    /// On each user.
    pub per_user: Option<Buckets>,
    per_model: Vec<(ModelPattern, u128, Buckets)>,
}

impl Rules {
    /// Those of a plan; `None`: it has none.
    pub fn of(plan: &Plan) -> Option<Rules> {
        let Some(limits) = &plan.rate_limit else {
            // A key may have limits of its own.
            return plan.auth.is_some().then(Rules::default);
        };
        let buckets = |limits: &Option<Limits>| {
            limits.as_ref().filter(|limits| !limits.is_none()).map(Buckets::from)
        };
        let per_model = limits.per_model.iter().map(|(pattern, limits)| {
            (pattern.clone(), ids::of_model(pattern.text()), Buckets::from(limits))
        });
        Some(Rules {
            global: buckets(&limits.global),
            per_key: buckets(&limits.per_key),
            per_user: buckets(&limits.per_user),
            per_model: per_model.collect(),
        })
    }

    /// The limits of a model: of the first pattern that covers one of its names.
    pub fn of_model(&self, names: [&str; 2]) -> Option<(u128, Buckets)> {
        let covers = |pattern: &ModelPattern| names.iter().any(|name| pattern.matches(name));
        let (_, id, buckets) = self.per_model.iter().find(|(pattern, ..)| covers(pattern))?;
        Some((*id, *buckets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::counters::bucket::ticks;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;

    /// Catches: a burst that is not twice the rate, a limit of zero that refuses everything.
    #[test]
    fn limits_become_buckets() {
        let limits = Limits { requests_per_second: Some(5), ..Limits::default() };
        let buckets = Buckets::from(&limits);
        assert_eq!(buckets.of[0].map(|bucket| bucket.size), Some(10));
        assert_eq!((buckets.of[1], buckets.concurrent), (None, None));
    }

    fn any_limits() -> impl Strategy<Value = Limits> {
        let some = |most: u32| proptest::option::of(1..most);
        (some(20), some(30), some(60), some(4)).prop_map(|(second, burst, minute, concurrent)| {
            Limits {
                requests_per_second: second,
                // Without a rate it means nothing.
                burst_size: burst.filter(|_| second.is_some()),
                requests_per_minute: minute,
                tokens_per_minute: minute.map(u64::from),
                max_concurrent: concurrent,
            }
        })
    }

    proptest! {
        /// Catches: limits of several that let something through which one of them would not, or
        /// hold a key to what nobody named.
        #[test]
        fn what_the_strictest_lets_through_each_lets_through(
            all in proptest::collection::vec(any_limits(), 1..4),
            pauses in proptest::collection::vec(0_u64..400, 1..150),
        ) {
            let strictest = all.iter().copied().reduce(Limits::strictest).unwrap();
            let rates = |limits: &Limits| Buckets::from(limits).of;
            let (together, each) = (rates(&strictest), all.iter().map(rates));
            let mut words: [AtomicU64; 3] = Default::default();
            let mut alone: Vec<_> =
                each.map(|buckets| (buckets, <[AtomicU64; 3]>::default())).collect();
            let is_in = |buckets: &[Option<Bucket>; 3], words: &mut [AtomicU64; 3], now| {
                let mut pairs = buckets.iter().zip(words);
                pairs.all(|(bucket, word)| bucket.is_none_or(|it| it.take(word, now, 1).is_ok()))
            };
            let mut now = 1 << 40;
            for pause in pauses {
                now += pause * ticks(Duration::from_millis(1));
                if is_in(&together, &mut words, now) {
                    for (buckets, words) in &mut alone {
                        prop_assert!(is_in(buckets, words, now));
                    }
                }
            }
            for limit in 0..3 {
                let is_named = alone.iter().any(|(buckets, _)| buckets[limit].is_some());
                prop_assert_eq!(together[limit].is_some(), is_named);
            }
            let concurrent = all.iter().filter_map(|limits| limits.max_concurrent).min();
            prop_assert_eq!(strictest.max_concurrent, concurrent);
            let one = strictest.strictest(strictest);
            prop_assert_eq!(Buckets::from(&one), Buckets::from(&strictest));
        }
    }
}
