use super::*;
use crate::config::plan::{IpRange, ModelPattern};
use crate::keys::digest::KeyDigest;
use proptest::prelude::*;

fn facts(change: impl FnOnce(&mut KeyFacts)) -> KeyFacts {
    let mut facts = KeyFacts::new(KeyDigest::of(b"sk"));
    change(&mut facts);
    facts
}

fn at(second: i64, client: &str) -> Circumstances {
    let now = Timestamp::from_second(second).unwrap();
    Circumstances { now, client: client.parse().ok(), used_quota: 0 }
}

fn second(second: i64) -> Option<Timestamp> {
    Timestamp::from_second(second).ok()
}

fn ranges(texts: &[&str]) -> Vec<IpRange> {
    texts.iter().map(|text| IpRange::parse(text).unwrap()).collect()
}

/// Catches: a state that lets a key in, or names the wrong reason.
#[test]
fn only_an_active_key_passes() {
    for (status, want) in [
        (KeyState::Active, Ok(())),
        (KeyState::Disabled, Err(Denial::Disabled)),
        (KeyState::Expired, Err(Denial::Expired)),
        (KeyState::QuotaExceeded, Err(Denial::Quota)),
        (KeyState::NotFound, Err(Denial::Unknown)),
    ] {
        assert_eq!(check(&facts(|f| f.status = status), &at(0, "::1")), want);
    }
}

/// Catches: a life that is a moment too long, or too short, at either end.
#[test]
fn a_life_has_its_first_moment_and_not_its_last() {
    let key = facts(|f| (f.starts_at, f.expires_at) = (second(10), second(20)));
    for (now, want) in [
        (9, Err(Denial::NotActive)),
        (10, Ok(())),
        (19, Ok(())),
        (20, Err(Denial::Expired)),
        (21, Err(Denial::Expired)),
    ] {
        assert_eq!(check(&key, &at(now, "::1")), want, "{now}");
    }
}

/// Catches: a list that an address slips past: in its other spelling, unknown, or allowed too.
#[test]
fn denied_addresses_come_before_allowed_ones() {
    let key = facts(|f| {
        f.allowed_ips = ranges(&["10.0.0.0/8", "fd00::/8"]);
        f.denied_ips = ranges(&["10.1.0.0/16"]);
    });
    for (client, is_good) in [
        ("10.2.3.4", true),
        ("::ffff:10.2.3.4", true),
        ("fd00::1", true),
        ("10.1.2.3", false),
        ("::ffff:10.1.2.3", false),
        ("192.0.2.1", false),
        ("::1", false),
        ("unix", false),
    ] {
        assert_eq!(check(&key, &at(0, client)).is_ok(), is_good, "{client}");
    }
    let key = facts(|f| f.denied_ips = ranges(&["10.1.0.0/16"]));
    assert!(check(&key, &at(0, "192.0.2.1")).is_ok(), "no list of allowed ones: all others");
    assert_eq!(check(&key, &at(0, "?")), Err(Denial::Address));
}

/// Catches: a quota of nothing that is taken for none, money that is no number.
#[test]
fn what_is_used_up_is_used_up() {
    let used = |used_quota, total_quota| {
        check(
            &facts(|f| f.total_quota = total_quota),
            &Circumstances { used_quota, ..at(0, "::1") },
        )
    };
    assert_eq!(used(u64::MAX, 0), Ok(()), "unlimited");
    assert_eq!((used(9, 10), used(10, 10)), (Ok(()), Err(Denial::Quota)));
    for (balance, want) in [
        (None, Ok(())),
        (Some(0.01), Ok(())),
        (Some(0.0), Err(Denial::Balance)),
        (Some(-1.0), Err(Denial::Balance)),
        (Some(f64::NAN), Err(Denial::Balance)),
    ] {
        assert_eq!(check(&facts(|f| f.balance = balance), &at(0, "::1")), want);
    }
}

/// Catches: an alias that is refused though its key lists it, a name that slips past a list.
#[test]
fn a_model_is_allowed_by_either_of_its_names() {
    let key = facts(|f| {
        f.allowed_models = ["gpt-4", "llama-*"].map(|m| ModelPattern::parse(m).unwrap()).into();
    });
    for (asked, served, is_good) in [
        ("gpt-4", "qwen-72b", true),
        ("chat", "llama-3-8b", true),
        ("llama-3", "llama-3", true),
        ("gpt-4o", "gpt-4o", false),
        ("GPT-4", "GPT-4", false),
        ("", "", false),
    ] {
        assert_eq!(may_ask(&key, asked, served), is_good, "{asked} {served}");
    }
    assert!(may_ask(&facts(|_| {}), "", ""), "no list: all");
    let any = facts(|f| f.allowed_models = vec![ModelPattern::parse("*").unwrap()]);
    assert!(may_ask(&any, "", ""));
}

/// The rules as sentences, in their order, each written without looking at the others.
fn reference(f: &KeyFacts, at: &Circumstances) -> Result<(), Denial> {
    let in_any = |list: &[IpRange]| at.client.is_some_and(|ip| list.iter().any(|r| r.contains(ip)));
    let rules = [
        (f.status == KeyState::Disabled, Denial::Disabled),
        (f.status == KeyState::Expired, Denial::Expired),
        (f.status == KeyState::QuotaExceeded, Denial::Quota),
        (f.status == KeyState::NotFound, Denial::Unknown),
        (f.starts_at.is_some_and(|t| t > at.now), Denial::NotActive),
        (f.expires_at.is_some_and(|t| t <= at.now), Denial::Expired),
        (in_any(&f.denied_ips), Denial::Address),
        (!f.denied_ips.is_empty() && at.client.is_none(), Denial::Address),
        (!f.allowed_ips.is_empty() && !in_any(&f.allowed_ips), Denial::Address),
        (f.total_quota != 0 && f.total_quota <= at.used_quota, Denial::Quota),
        (f.balance.is_some_and(|b| b.is_nan() || b <= 0.0), Denial::Balance),
    ];
    rules.iter().find(|(is_broken, _)| *is_broken).map_or(Ok(()), |(_, denial)| Err(*denial))
}

fn states() -> impl Strategy<Value = KeyState> {
    prop_oneof![
        6 => Just(KeyState::Active),
        1 => Just(KeyState::Disabled),
        1 => Just(KeyState::Expired),
        1 => Just(KeyState::QuotaExceeded),
        1 => Just(KeyState::NotFound),
    ]
}

fn lists() -> impl Strategy<Value = Vec<IpRange>> {
    let texts = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "fd00::/8", "0.0.0.0/0", "::/0"];
    proptest::collection::vec(proptest::sample::select(ranges(&texts)), 0..3)
}

fn clients() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["10.1.2.3", "10.1.9.9", "192.0.2.1", "fd00::1", "::1", "?"])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    /// Catches: rules that hinder one another, or come in another order than is written.
    #[test]
    fn the_rules_are_those_that_are_written(
        (status, starts, ends) in (states(), 0..6_i64, 0..6_i64),
        (denied, allowed, client) in (lists(), lists(), clients()),
        (total_quota, used, balance) in (0..4_u64, 0..4_u64, -1..3_i32),
        now in 1..5_i64,
    ) {
        let key = facts(|f| {
            f.status = status;
            f.starts_at = second(starts).filter(|_| starts > 0);
            f.expires_at = second(ends).filter(|_| ends > 0);
            (f.denied_ips, f.allowed_ips) = (denied, allowed);
            f.total_quota = total_quota;
            f.balance = (balance < 2).then_some(f64::from(balance));
        });
        let at = Circumstances { used_quota: used, ..at(now, client) };
        prop_assert_eq!(check(&key, &at), reference(&key, &at));
    }
}

/// What scripts/test runs; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000)
}
