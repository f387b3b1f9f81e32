use super::*;
use crate::keys::digest::KeyDigest;
use crate::state::counters::quota::Quota;
use proptest::prelude::*;
use std::sync::atomic::AtomicU64;

fn key(kind: ResetPeriod, last_reset_at: Option<&str>) -> KeyFacts {
    KeyFacts {
        total_quota: 100,
        used_quota: 40,
        quota_reset_period: kind,
        last_reset_at: last_reset_at.map(|at| at.parse().unwrap()),
        ..KeyFacts::new(KeyDigest::of(b"a"))
    }
}

fn ms(text: &str) -> u64 {
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64
}

/// Catches: a period that goes on when it is over, or begins anew within itself; tokens of an
/// earlier one that count in this one.
#[test]
fn terms_change_with_the_period() {
    let clock = QuotaClock::of(None);
    let at = |key: &KeyFacts, text: &str| clock.terms(key, ms(text)).unwrap();
    let daily = key(ResetPeriod::Daily, None);
    let first = at(&daily, "2026-03-01T00:00:00Z");
    assert_eq!(at(&daily, "2026-03-01T23:59:59Z"), first);
    assert!(at(&daily, "2026-03-02T00:00:00Z").window > first.window);
    assert_eq!(at(&daily, "2026-03-01T12:00:00Z"), first, "the clock was put back");
    assert_eq!((first.total, first.first), (100, 40));
    let old = key(ResetPeriod::Monthly, Some("2026-02-27T00:00:00Z"));
    assert_eq!(at(&old, "2026-02-28T00:00:00Z").first, 40);
    assert_eq!(at(&old, "2026-03-01T00:00:00Z").first, 0);
    let never = key(ResetPeriod::Never, Some("2020-01-01T00:00:00Z"));
    assert_eq!(at(&never, "2026-03-01T00:00:00Z").first, 40);
    let unlimited = KeyFacts { total_quota: 0, ..never };
    assert_eq!(clock.terms(&unlimited, 0), None);
}

/// Catches: a time of reset that is not the end of the period by which is counted.
#[test]
fn a_quota_starts_again_when_its_period_is_over() {
    let text = "auth: {quota_timezone: Europe/Berlin, pipeline: [{type: static}]}";
    let plan = crate::config::load_text("test", text, &|_| None).unwrap().plan;
    let clock = QuotaClock::of(plan.auth.as_ref());
    let at = |kind, text| {
        let resets = clock.resets_ms(&key(kind, None), ms(text) as i64)?;
        Some(jiff::Timestamp::from_millisecond(resets).unwrap().to_string())
    };
    let now = "2026-02-28T23:30:00Z";
    assert_eq!(at(ResetPeriod::Daily, now).as_deref(), Some("2026-03-01T23:00:00Z"));
    assert_eq!(at(ResetPeriod::Weekly, now).as_deref(), Some("2026-03-01T23:00:00Z"));
    assert_eq!(at(ResetPeriod::Monthly, now).as_deref(), Some("2026-03-31T22:00:00Z"));
    assert_eq!(at(ResetPeriod::Never, now), None);
    let unlimited = KeyFacts { total_quota: 0, ..key(ResetPeriod::Daily, None) };
    assert_eq!(clock.resets_ms(&unlimited, 0), None);
}

fn any_key() -> impl Strategy<Value = KeyFacts> {
    use ResetPeriod::{Daily, Monthly, Never};
    let kind = proptest::sample::select(vec![Never, Daily, Daily, Monthly]);
    (kind, 0_u64..60, 0_u64..60).prop_map(|(kind, total, used)| KeyFacts {
        total_quota: total,
        used_quota: used,
        quota_reset_period: kind,
        ..KeyFacts::new(KeyDigest::of(b"a"))
    })
}

proptest! {
    /// Catches: a count for several quotas that lets something through which one of them would
    /// not, that refuses what all would let through, or that holds a key to the quota of
    /// another kind of period.
    #[test]
    fn one_count_is_as_strict_as_all_quotas_of_its_kind(
        keys in proptest::collection::vec(any_key(), 0..4),
        steps in proptest::collection::vec((0_u64..20, 0_u64..2 * 86_400_000), 0..20),
    ) {
        let clock = QuotaClock::of(None);
        let keys: Vec<_> = keys.into_iter().map(Arc::new).collect();
        let kind = keys.iter().find(|key| key.total_quota > 0).map(|k| k.quota_reset_period);
        let held: Vec<_> = keys
            .iter()
            .filter(|key| key.total_quota > 0 && Some(key.quota_reset_period) == kind)
            .collect();
        let [word, own] = [0; 2].map(AtomicU64::new);
        let count = Quota { used: &word, own: &own, reserved: &[], column: 0 };
        // The reference: each quota with a count of its own, which begins anew with its period.
        let mut now = ms("2026-01-31T12:00:00Z");
        let mut begun = None;
        let mut used: Vec<u64> = held.iter().map(|key| key.used_quota).collect();
        for (tokens, pause) in steps {
            now += pause;
            let running = period_of(kind, now);
            // What was used when the key is met counts for the period that runs then.
            if begun.replace(running).is_some_and(|before| before != running) {
                used.iter_mut().for_each(|used| *used = 0);
            }
            let is_in = held.iter().zip(&used).all(|(key, used)| *used < key.total_quota);
            match clock.terms_of(&keys, now) {
                None => prop_assert!(held.is_empty()),
                Some((whose, terms)) => {
                    count.meet(terms);
                    prop_assert_eq!(Some(whose.quota_reset_period), kind);
                    prop_assert_eq!(count.used(terms) < terms.total, is_in);
                    if is_in {
                        count.debit(terms, tokens, 0);
                        used.iter_mut().for_each(|used| *used += tokens);
                    }
                }
            }
        }
    }
}

fn period_of(kind: Option<ResetPeriod>, now: u64) -> Option<i64> {
    let kind = kind.filter(|kind| *kind != ResetPeriod::Never)?;
    Some(period(kind, &TimeZone::UTC, now as i64).begin_ms)
}

/// What is told to a clock and a count, one after the other.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// The clock goes on, or is put back, by milliseconds.
    Time(i64),
    Reserve(u64),
    /// This much of what is reserved was used, of that much.
    Debit(u64, u64),
}

fn told() -> impl Strategy<Value = Told> {
    const DAY: i64 = 86_400_000;
    prop_oneof![
        2 => (-3 * DAY / 2..2 * DAY).prop_map(Told::Time),
        1 => (-40 * DAY..40 * DAY).prop_map(Told::Time),
        // A summer time begins or ends within an hour of a midnight.
        1 => (-2 * 3_600_000..2 * 3_600_000_i64).prop_map(Told::Time),
        3 => (1_u64..60).prop_map(Told::Reserve),
        3 => (0_u64..60, 0_u64..60).prop_map(|(used, of)| Told::Debit(used, of)),
    ]
}

/// What a quota is meant to be, in plain words: tokens of the newest period that was seen. A clock
/// that was put back by one period opens none again; where it was wrong by more, what was used
/// stays with the period that the clock says now.
struct Meant {
    begin_ms: i64,
    used: u64,
    reserved: u64,
}

impl Meant {
    /// It is `at` now, in this zone.
    fn go_to(&mut self, kind: ResetPeriod, zone: &TimeZone, at: i64) {
        if kind == ResetPeriod::Never {
            return;
        }
        let now = period(kind, zone, at);
        // The one that follows is the newest that was seen.
        let is_put_back_by_one = period(kind, zone, now.end_ms).begin_ms == self.begin_ms;
        if now.begin_ms > self.begin_ms {
            (self.begin_ms, self.used) = (now.begin_ms, 0);
        } else if !is_put_back_by_one {
            self.begin_ms = now.begin_ms;
        }
    }
}

/// Cases of the property below: more where all tests are run; `PROPTEST_CASES` asks for others.
fn cases() -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let is_whole_run = std::env::var_os("LLMPROXY_TEST_CLIENTS").is_some();
    // So many take a dozen seconds.
    asked.unwrap_or(if is_whole_run { 20_000 } else { 2_000 })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Catches: a period that begins anew because a clock was put back, one that does not begin
    /// where a day has 23 or 25 hours, tokens of one that is over which count in another, what is
    /// reserved and is lost or stays when a period ends.
    #[test]
    fn a_quota_is_of_the_newest_period_whatever_its_clock_does(
        begun in 1_700_000_000_000_i64..1_900_000_000_000,
        kind in proptest::sample::select(vec![
            ResetPeriod::Never, ResetPeriod::Daily, ResetPeriod::Weekly, ResetPeriod::Monthly,
        ]),
        name in proptest::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo",
        ]),
        steps in proptest::collection::vec(told(), 1..24),
    ) {
        let found = TimeZone::get(name);
        let is_whole_run = std::env::var_os("LLMPROXY_TEST_CLIENTS").is_some();
        prop_assert!(found.is_ok() || !is_whole_run, "{}: tzdata is missing", name);
        let zone = found.unwrap_or(TimeZone::UTC);
        let clock = QuotaClock { zone: zone.clone(), ..QuotaClock::of(None) };
        let key = key(kind, None);
        let words = [0; 3].map(AtomicU64::new);
        let [used, own, reserved] = &words;
        let reserved = std::slice::from_ref(reserved);
        let count = Quota { used, own, reserved, column: 0 };
        let mut now = begun;
        let mut meant = Meant { begin_ms: i64::MIN, used: key.used_quota, reserved: 0 };
        if kind != ResetPeriod::Never {
            meant.begin_ms = period(kind, &zone, now).begin_ms;
        }
        count.meet(clock.terms(&key, now as u64).unwrap());
        for step in steps {
            if let Told::Time(by) = step {
                now += by;
            }
            let terms = clock.terms(&key, now as u64).unwrap();
            let mut seen = Meant { ..meant };
            seen.go_to(kind, &zone, now);
            match step {
                Told::Time(_) => {}
                Told::Reserve(tokens) => {
                    let fits = seen.used + seen.reserved + tokens <= terms.total;
                    prop_assert_eq!(count.reserve(terms, tokens), fits);
                    meant.reserved += if fits { tokens } else { 0 };
                }
                Told::Debit(used, of) => {
                    let of = of.min(meant.reserved);
                    count.debit(terms, used, 0);
                    count.release(of);
                    // What is written is of the period that was seen.
                    seen.used += used;
                    meant = Meant { reserved: meant.reserved - of, ..seen };
                }
            }
            let mut seen = Meant { ..meant };
            seen.go_to(kind, &zone, now);
            prop_assert_eq!((count.used(terms), count.reserved()), (seen.used, meant.reserved));
        }
    }
}
