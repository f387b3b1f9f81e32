use super::*;
use crate::config::load_text;
use crate::config::plan::IpRange;
use crate::keys::digest::KeyDigest;
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample;
use std::sync::Arc;

fn gate(auth: &str) -> Gate {
    let plan = load_text("test", &format!("auth: {auth}"), &|_| None).unwrap().plan;
    Gate::of(&View::new(Arc::new(plan), Vec::new(), None), None).unwrap()
}

fn facts(change: impl FnOnce(&mut KeyFacts)) -> KeyAnswer {
    let mut facts = KeyFacts::new(KeyDigest::of(b"sk"));
    change(&mut facts);
    KeyAnswer::Known(Arc::new(facts))
}

fn now(facts: &KeyFacts) -> Circumstances {
    let used_quota = facts.used_quota;
    Circumstances { now: Timestamp::UNIX_EPOCH, client: None, used_quota }
}

/// What becomes of a request whose providers answer so; as many are asked as it takes.
fn judged(gate: &Gate, answers: &[KeyAnswer]) -> Result<usize, (u16, &'static str)> {
    let told = |refusal: Refusal| (refusal.status, refusal.code);
    let mut tour = gate.begin().map_err(told)?;
    loop {
        let answer = answers[tour.place].clone();
        if gate.hear(&mut tour, &answer, now).map_err(told)? == Ruling::In {
            return Ok(tour.place);
        }
    }
}

const THREE: &str = "pipeline: [{type: redis, name: a}, {type: redis, name: b}, {type: file}]";
const UNKNOWN: (u16, &str) = (401, "invalid_api_key");
const ELSEWHERE: (u16, &str) = (403, "ip_not_allowed");
const UNAVAILABLE: (u16, &str) = (503, "auth_unavailable");

/// Catches: a key that a later provider lets in after an earlier one that knows it said no, and a
/// failure that is told as an unknown key.
#[test]
fn the_first_that_knows_a_key_decides() {
    use KeyAnswer::{Denied, Failed, Unknown};
    let gate = gate(&format!("{{{THREE}}}"));
    let (good, off) = (facts(|_| {}), facts(|f| f.status = KeyState::Disabled));
    for (answers, want) in [
        ([&good, &off, &off], Ok(1)),
        ([&Unknown, &good, &off], Ok(2)),
        ([&Failed, &Unknown, &good], Ok(3)),
        ([&off, &good, &good], Err((403, "key_disabled"))),
        ([&Unknown, &off, &good], Err((403, "key_disabled"))),
        ([&Denied(None), &good, &good], Err((403, "access_denied"))),
        ([&Unknown, &Unknown, &Unknown], Err(UNKNOWN)),
        ([&Failed, &Failed, &Failed], Err(UNAVAILABLE)),
        ([&Failed, &Unknown, &Unknown], Err(UNAVAILABLE)),
    ] {
        let answers = answers.map(Clone::clone);
        assert_eq!(judged(&gate, &answers), want, "{answers:?}");
    }
}

/// Catches: `all` that lets in what one provider does not know, or cannot say.
#[test]
fn all_means_all() {
    use KeyAnswer::{Denied, Failed, Unknown};
    let gate = gate(&format!("{{mode: all, {THREE}}}"));
    let (good, off) = (facts(|_| {}), facts(|f| f.status = KeyState::Expired));
    for (answers, want) in [
        ([&good, &good, &good], Ok(3)),
        ([&good, &Unknown, &good], Err(UNKNOWN)),
        ([&good, &good, &off], Err((403, "key_expired"))),
        ([&good, &Failed, &good], Err(UNAVAILABLE)),
        ([&good, &Denied(None), &good], Err((403, "access_denied"))),
    ] {
        let answers = answers.map(Clone::clone);
        assert_eq!(judged(&gate, &answers), want, "{answers:?}");
    }
}

fn any_answer() -> impl Strategy<Value = KeyAnswer> {
    let states = [KeyState::Active, KeyState::Active, KeyState::Disabled, KeyState::Expired];
    let known = (sample::select(states.to_vec()), 0_u64..3, 0_u64..3, any::<bool>()).prop_map(
        |(status, total, used, is_elsewhere)| {
            facts(|facts| {
                (facts.status, facts.total_quota, facts.used_quota) = (status, total, used);
                // Of a client whose address is not known.
                facts.denied_ips.extend(is_elsewhere.then(|| IpRange::parse("::1").unwrap()));
            })
        },
    );
    let others =
        sample::select(vec![KeyAnswer::Unknown, KeyAnswer::Denied(None), KeyAnswer::Failed]);
    prop_oneof![4 => known, 1 => others]
}

proptest! {
    /// Catches: a key that is let in though one of the providers that were asked refuses it, or
    /// refused though none does; a refusal that is not that of the first.
    #[test]
    fn together_providers_are_as_strict_as_each(
        answers in vec(any_answer(), 1..4),
        may_fail in vec(any::<bool>(), 3),
    ) {
        let on_error = |may: &bool| if *may { "next" } else { "deny" };
        let provider = |(n, may): (usize, &bool)| {
            format!("{{type: redis, name: p{n}, on_error: {}}}", on_error(may))
        };
        let asked = may_fail.iter().take(answers.len()).enumerate();
        let pipeline: Vec<_> = asked.map(provider).collect();
        let gate = gate(&format!("{{mode: all, pipeline: [{}]}}", pipeline.join(", ")));
        let alone = |(answer, may_fail): (&KeyAnswer, &bool)| match answer {
            KeyAnswer::Failed if *may_fail => Ok(false),
            KeyAnswer::Failed => Err(UNAVAILABLE),
            KeyAnswer::Unknown => Err(UNKNOWN),
            KeyAnswer::Denied(_) => Err((403, "access_denied")),
            KeyAnswer::Known(facts) => match facts.status {
                KeyState::Disabled => Err((403, "key_disabled")),
                KeyState::Expired => Err((403, "key_expired")),
                _ if !facts.denied_ips.is_empty() => Err(ELSEWHERE),
                _ if facts.total_quota > 0 && facts.used_quota >= facts.total_quota => {
                    Err((429, "insufficient_quota"))
                }
                _ => Ok(true),
            },
        };
        let each: Result<Vec<bool>, _> = answers.iter().zip(&may_fail).map(alone).collect();
        let want = each.and_then(|known| match known.contains(&true) {
            true => Ok(answers.len()),
            false => Err(UNAVAILABLE),
        });
        prop_assert_eq!(judged(&gate, &answers), want);
    }
}

/// Catches: `on_error` that is not that of the provider which failed, and a request that nobody
/// knows and that is let in because of it.
#[test]
fn a_failure_means_what_its_provider_says() {
    use KeyAnswer::{Failed, Unknown};
    let good = facts(|_| {});
    let first = gate("{pipeline: [{type: redis, on_error: deny}, {type: file}]}");
    assert_eq!(judged(&first, &[Failed, good.clone()]), Err(UNAVAILABLE));
    assert_eq!(judged(&first, &[Unknown, good.clone()]), Ok(2));
    let all = gate("{mode: all, pipeline: [{type: redis, on_error: next}, {type: file}]}");
    assert_eq!(judged(&all, &[Failed, good]), Ok(2));
    assert_eq!(judged(&all, &[Failed, Unknown]), Err(UNKNOWN));
    let none = gate("{mode: all, pipeline: [{type: redis, on_error: next}]}");
    assert_eq!(judged(&none, &[Failed]), Err(UNAVAILABLE));
    assert_eq!(judged(&gate("{pipeline: []}"), &[]), Err(UNKNOWN), "nobody is asked");
}

/// Catches: a refusal that is not that of the table, and clients that try again for nothing.
#[test]
fn refusals_are_those_of_the_table() {
    let gate = gate("{pipeline: [{type: file}]}");
    for (answer, want, field) in [
        (KeyAnswer::Unknown, (401, "invalid_api_key"), Some(&CHALLENGE)),
        (facts(|f| f.status = KeyState::NotFound), UNKNOWN, Some(&CHALLENGE)),
        (facts(|f| f.status = KeyState::Disabled), (403, "key_disabled"), None),
        (facts(|f| f.status = KeyState::Expired), (403, "key_expired"), None),
        (facts(|f| f.expires_at = Some(Timestamp::MIN)), (403, "key_expired"), None),
        (facts(|f| f.starts_at = Some(Timestamp::MAX)), (403, "key_not_active"), None),
        (facts(|f| f.allowed_ips = vec![IpRange::parse("::1").unwrap()]), ELSEWHERE, None),
        (
            facts(|f| (f.total_quota, f.used_quota) = (1, 1)),
            (429, "insufficient_quota"),
            Some(&NO_RETRY),
        ),
        (facts(|f| f.balance = Some(0.0)), (429, "insufficient_quota"), Some(&NO_RETRY)),
        (KeyAnswer::Denied(Some("no more".into())), (403, "access_denied"), None),
        (KeyAnswer::Failed, UNAVAILABLE, None),
    ] {
        let refusal = gate.hear(&mut Tour::default(), &answer, now).unwrap_err();
        assert_eq!((refusal.status, refusal.code), want, "{answer:?}");
        assert_eq!(refusal.field, field, "{answer:?}");
        assert_eq!(refusal.retry_after.is_some(), refusal.status == 503, "{answer:?}");
        let is_theirs = matches!(answer, KeyAnswer::Denied(_));
        assert!(!is_theirs || refusal.message == "no more");
        assert!(!refusal.close, "its framing is not in doubt");
    }
}

/// Catches: `status_codes` that load and do nothing, or change what they do not name.
#[test]
fn a_configuration_gives_its_own_answers() {
    let gate = gate(
        "{pipeline: [{type: file}], status_codes: {disabled: {http_code: 402, message: pay}, \
         quota_exceeded: {message: wait}, not_found: {http_code: 404}}}",
    );
    let told = |answer| {
        let refusal = gate.hear(&mut Tour::default(), &answer, now).unwrap_err();
        (refusal.status, refusal.code, refusal.message.into_owned())
    };
    let off = told(facts(|f| f.status = KeyState::Disabled));
    assert_eq!(off, (402, "key_disabled", "pay".into()));
    let empty = told(facts(|f| f.balance = Some(0.0)));
    assert_eq!(empty, (429, "insufficient_quota", "wait".into()));
    let unknown = told(KeyAnswer::Unknown);
    assert_eq!(unknown, (404, "invalid_api_key", "The API key is not known here.".into()));
    assert_eq!(told(facts(|f| f.status = KeyState::Expired)).0, 403);
}

/// Catches: a path that needs no key because it looks like one that does not.
#[test]
fn paths_without_a_key_are_exactly_those_that_are_named() {
    let gate = gate("{skip_paths: [/v1/models, '/public/*']}");
    for (path, skips) in [
        ("/v1/models", true),
        ("/public/", true),
        ("/public/a/b", true),
        ("/public", false),
        ("/publicity", false),
        ("/v1/models/", false),
        ("/v1/models/m", false),
        ("/V1/models", false),
        ("/v1/chat/completions", false),
        ("*", false),
        ("", false),
    ] {
        assert_eq!(gate.skips(path.as_bytes()), skips, "{path}");
    }
}
