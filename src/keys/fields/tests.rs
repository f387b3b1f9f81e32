use super::*;
use proptest::prelude::*;
use serde_json::json;

const NOW: i64 = 1_800_000_000; // 2027-01-15T08:00:00Z

fn facts(fields: Value) -> (KeyFacts, Option<&'static str>) {
    let Value::Object(fields) = fields else { panic!("{fields}") };
    read(KeyDigest::of(b"k"), &fields)
}

fn clear(fields: Value) -> KeyFacts {
    let (facts, unclear) = facts(fields.clone());
    assert_eq!(unclear, None, "{fields}");
    facts
}

/// Catches: a spelling that users of Redis, SQL or the original have, and that is not understood.
#[test]
fn a_hash_of_texts_and_an_object_say_the_same() {
    let texts = clear(json!({
        "name": "Team", "user_id": "42", "status": "active", "total_quota": "1000",
        "used_quota": "7", "quota_reset_period": "daily", "balance": "12.50",
        "allowed_ips": "10.0.0.0/8, 192.0.2.1", "denied_ips": "[\"10.9.0.0/16\"]",
        "allowed_models": "llama*,qwen", "starts_at": "1700000000",
        "expires_at": "1900000000000", "rate_limit": "60", "metadata": "{\"tier\":\"gold\"}",
    }));
    let object = clear(json!({
        "name": "Team", "userId": 42, "STATUS": 0, "quota": 1000, "used": 7.0,
        "quotaResetPeriod": "DAILY", "balance": 12.5, "allowed_ips": ["10.0.0.0/8", "192.0.2.1"],
        "denied_ips": "10.9.0.0/16", "allowed_models": ["llama*", "qwen"],
        "starts_at": 1_700_000_000, "expire_at": "2030-03-17T17:46:40Z",
        "rate_limit": {"requests_per_minute": 60}, "metadata": {"tier": "gold"},
        "something_else": [1, {"x": null}], "last_reset_at": null,
    }));
    assert_eq!(texts, object);
    assert_eq!((texts.total_quota, texts.used_quota, texts.balance), (1000, 7, Some(12.5)));
    assert_eq!(texts.limits.requests_per_minute, Some(60));
    assert_eq!(texts.allowed_ips.len() + texts.denied_ips.len(), 3);
    assert_eq!(clear(json!({})), KeyFacts::new(KeyDigest::of(b"k")));
}

/// Catches: a switched-off key that is let in because of how its state is written.
#[test]
fn every_spelling_of_a_state_is_that_state() {
    use KeyState::{Active, Disabled, Expired, QuotaExceeded};
    for (fields, state) in [
        (json!({"status": "Enabled"}), Active),
        (json!({"status": " disabled "}), Disabled),
        (json!({"status": 1}), Disabled),
        (json!({"status": "1"}), Disabled),
        (json!({"status": "2"}), QuotaExceeded),
        (json!({"status": 3}), Expired),
        (json!({"status": true}), Active),
        (json!({"status": false}), Disabled),
        (json!({"status": "active", "enabled": 0}), Disabled),
        (json!({"status": 0, "Enabled": "false"}), Disabled),
        (json!({"enabled": 1}), Active),
        (json!({"disabled": "1"}), Disabled),
        (json!({"disabled": false}), Active),
        (json!({"Status": "disabled", "status": "active"}), Disabled),
        (json!({"status": null}), Active),
    ] {
        assert_eq!(clear(fields.clone()).status, state, "{fields}");
    }
}

/// Catches: a limit that is not understood, and then does not hold.
#[test]
fn what_cannot_be_understood_disables_the_key_and_is_named() {
    for (field, value) in [
        ("status", json!("banned")),
        ("status", json!("")),
        ("status", json!(4)),
        ("status", json!(0.5)),
        ("status", json!(["active"])),
        ("enabled", json!("maybe")),
        ("expires_at", json!("soon")),
        ("expires_at", json!("2026-13-01")),
        ("expires_at", json!(true)),
        ("expires_at", json!("0000-00-00 00:00:00")),
        ("expires_at", json!("9999-12-31 or so")),
        ("expires_at", json!(1e30)),
        ("starts_at", json!({})),
        ("total_quota", json!("-1")),
        ("total_quota", json!("many")),
        ("total_quota", json!("NaN")),
        ("total_quota", json!(true)),
        ("used_quota", json!("x")),
        ("balance", json!("inf")),
        ("balance", json!([])),
        ("quota_reset_period", json!("hourly")),
        ("allowed_ips", json!("10.0.0.1/8")),
        ("allowed_ips", json!(" , ")),
        ("allowed_ips", json!([null])),
        ("allowed_ips", json!([""])),
        ("denied_ips", json!("localhost")),
        ("denied_ips", json!("[\"10.0.0.1\"")),
        ("allowed_models", json!("a*b")),
        ("allowed_models", json!({"a": 1})),
        ("rate_limit", json!("fast")),
        ("rate_limit", json!([60])),
        ("rate_limit", json!({"per_minute": 60})),
        ("rate_limit", json!("{\"limit\": 1}")),
        ("requests_per_second", json!("-5")),
        ("tokens_per_minute", json!("1k")),
        ("metadata", json!("gold")),
        ("user_id", json!("a\nb")),
        ("user_id", json!("u".repeat(KEY_IDENTITY_BYTES_MAX + 1))),
        ("user_id", json!({"id": 1})),
    ] {
        let mut fields = Fields::from_iter([("user_id".to_owned(), json!("u"))]);
        fields.insert(field.to_owned(), value.clone());
        let (facts, unclear) = read(KeyDigest::of(b"k"), &fields);
        assert_eq!((facts.status, unclear), (KeyState::Disabled, Some(field)), "{field}: {value}");
    }
    let nested = json!({"rate_limit": {"tokens_per_minute": "lots"}});
    assert_eq!(facts(nested).1, Some("tokens_per_minute"));
}

/// Catches: a key that ends too late or is over too soon, since its end was read as another kind of
/// number, in another zone, or without its last day.
#[test]
fn a_time_is_read_as_what_it_is() {
    let at = |value: Value| clear(json!({"expires_at": value})).expires_at.map(|t| t.to_string());
    let is = |value, time: &str| assert_eq!(at(value).as_deref(), Some(time));
    is(json!(1_800_000_000), "2027-01-15T08:00:00Z");
    is(json!("1800000000.9"), "2027-01-15T08:00:00Z");
    is(json!(1.8e9), "2027-01-15T08:00:00Z");
    is(json!("1800000000123"), "2027-01-15T08:00:00.123Z");
    is(json!("2027-01-15T10:00:00+02:00"), "2027-01-15T08:00:00Z");
    is(json!("2027-01-15 08:00:00"), "2027-01-15T08:00:00Z");
    is(json!("2027-01-15T08:00:00.5"), "2027-01-15T08:00:00.5Z");
    is(json!("2027-01-15 08:00:00+00"), "2027-01-15T08:00:00Z");
    is(json!("2027-01-15"), "2027-01-16T00:00:00Z");
    is(json!("0001-01-01T00:00:00Z"), "0001-01-01T00:00:00Z");
    is(json!(-5), "1969-12-31T23:59:55Z");
    for never in [json!(0), json!("0"), json!(""), json!(null)] {
        assert_eq!(at(never.clone()), None, "{never}");
    }
    let far = Timestamp::MAX.to_string();
    for never in [
        json!("9999-12-31T23:59:59Z"),
        json!("9999-12-31"),
        json!("infinity"),
        json!(253_402_300_799_i64),
        json!(253_402_300_799_000_i64),
    ] {
        is(never, &far);
    }
    let two = clear(json!({"expired_at": 2_000_000_000, "expires_at": 1_900_000_000}));
    assert_eq!(two.expires_at.map(|at| at.as_second()), Some(1_900_000_000));
    let begin = clear(json!({"starts_at": "2027-01-15"})).starts_at.map(|t| t.to_string());
    assert_eq!(begin.as_deref(), Some("2027-01-15T00:00:00Z"));
}

/// Catches: the weaker of two limits, a limit of zero that lets nothing through, a burst that the
/// configuration would have made another one.
#[test]
fn limits_are_read_from_wherever_they_stand() {
    let limits = clear(json!({
        "rate_limit": "{\"requests_per_second\": 5, \"max_concurrent\": \"3\"}",
        "rpm": "100", "requests_per_minute": 50, "tokens_per_minute": 0, "requests_per_second": 9,
    }))
    .limits;
    let expected = Limits {
        requests_per_second: Some(5),
        requests_per_minute: Some(50),
        tokens_per_minute: None,
        max_concurrent: Some(3),
        burst_size: Some(10),
    };
    assert_eq!(limits, expected);
    let quotas = clear(json!({"quota": 0, "total_quota": 500, "used_quota": -3, "used": 8}));
    assert_eq!((quotas.total_quota, quotas.used_quota), (500, 8));
    assert_eq!(clear(json!({"metadata": []})).metadata.object(), Fields::new());
}

/// Catches: a limit below one that becomes none.
#[test]
fn a_limit_below_one_is_one() {
    let facts = clear(json!({"rps": 0.5, "tpm": "0.01", "rate_limit": 0.9, "quota": "0.9"}));
    let limits = facts.limits;
    assert_eq!((limits.requests_per_second, limits.requests_per_minute), (Some(1), Some(1)));
    assert_eq!((limits.tokens_per_minute, facts.total_quota), (Some(1), 1));
    for none in [json!(0), json!("0.0"), json!(-0.0), json!({}), json!({"RPM": null})] {
        assert_eq!(clear(json!({"rate_limit": none})).limits, Limits::default());
    }
    let whole = clear(json!({"rps": 1.9, "total_quota": 2.5}));
    assert_eq!((whole.limits.requests_per_second, whole.total_quota), (Some(1), 2));
}

/// Catches: the more generous of two fields that mean the same, or the one that happens to be the
/// first.
#[test]
fn of_two_spellings_the_strictest_counts_or_they_agree() {
    for balances in [json!({"Balance": 5, "balance": 0}), json!({"Balance": 0, "balance": "5"})] {
        assert_eq!(clear(balances).balance, Some(0.0));
    }
    for (field, other, one, two) in [
        ("user_id", "userId", json!("a"), json!("b")),
        ("quota_reset_period", "QuotaResetPeriod", json!("daily"), json!("monthly")),
        ("last_reset_at", "lastResetAt", json!(1_700_000_000), json!(1_800_000_000)),
        ("allowed_ips", "AllowedIPs", json!(["10.0.0.0/8"]), json!([])),
        ("denied_ips", "deniedIps", json!("10.0.0.1"), json!("10.0.0.2")),
        ("allowed_models", "Allowed_Models", json!("a"), json!("a,b")),
    ] {
        for (one, two) in [(&one, &two), (&two, &one)] {
            let (facts, unclear) = facts(json!({field: one, other: two}));
            assert_eq!((facts.status, unclear), (KeyState::Disabled, Some(field)));
        }
        clear(json!({field: one, other: one}));
        clear(json!({field: one, other: null}));
    }
}

/// Catches: a name that breaks a log line, or one that disables a key.
#[test]
fn a_name_is_made_fit() {
    let name = |value: Value| clear(json!({"name": value})).name;
    assert_eq!(name(json!("a\u{1b}[31m\nb")), "a[31mb");
    assert_eq!(name(json!({"x": 1})), "");
    let long = name(json!("é".repeat(KEY_IDENTITY_BYTES_MAX)));
    assert_eq!(long.len(), KEY_IDENTITY_BYTES_MAX);
}

/// Any JSON, of the names that mean something and of others.
fn anything() -> impl Strategy<Value = Fields> {
    let names = prop::sample::select(vec![
        "status",
        "Status",
        "enabled",
        "disabled",
        "expires_at",
        "expiredAt",
        "expire_at",
        "starts_at",
        "total_quota",
        "quota",
        "used_quota",
        "balance",
        "allowed_ips",
        "denied_ips",
        "allowed_models",
        "rate_limit",
        "rpm",
        "metadata",
        "user_id",
        "name",
        "other",
    ]);
    let texts = "(active|disabled|enabled|expired|[0-3]|-?[0-9]{1,20}|[0-9]{4}-[01][0-9]-[0-3][0-9](T[0-2][0-9]:00:00Z)?|\\PC{0,12}|true|false|\\[\\]|\\{\\}|,)";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        texts.prop_map(Value::from),
    ];
    let value = leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{0,12}", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    });
    prop::collection::vec((names, value), 0..6)
        .prop_map(|all| all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Words of a status and of a switch that let a key in.
fn lets_in(name: &str, value: &Value) -> bool {
    let text = values::text(value).unwrap_or_default().trim().to_ascii_lowercase();
    match name {
        "status" => ["active", "enabled", "0", "true"].contains(&&*text),
        "enabled" => ["true", "1", "yes", "on", "t", "y"].contains(&&*text),
        _ => ["false", "0", "no", "off", "f", "n"].contains(&&*text),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever another system writes: no panic, and no key that is active and in its time although
    /// one of its fields says, or may say, otherwise.
    #[test]
    fn nothing_is_allowed_that_a_field_forbids(fields in anything()) {
        let (facts, unclear) = read(KeyDigest::of(b"k"), &fields);
        prop_assert!(unclear.is_none() || facts.status == KeyState::Disabled);
        if facts.status != KeyState::Active {
            return Ok(());
        }
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            match plain(name).as_str() {
                name @ ("status" | "enabled" | "disabled") => {
                    // A JSON boolean is a state too; a number is one of the admin API's.
                    prop_assert!(lets_in(name, value), "{name} {value}");
                }
                "expiresat" | "expiredat" | "expireat" => {
                    let seconds = value.as_i64().or(value.as_str().and_then(|t| t.parse().ok()));
                    if let Some(seconds) = seconds.filter(|s| *s != 0 && *s <= NOW) {
                        let end = facts.expires_at.unwrap().as_second();
                        prop_assert!(end <= seconds, "{value} {end}");
                    }
                    let is_said = value.as_str().is_none_or(|t| !t.trim().is_empty());
                    prop_assert!(is_said || facts.expires_at.is_none() || fields.len() > 1);
                }
                "balance" => {
                    let is_blank = value.as_str().is_some_and(|text| text.trim().is_empty());
                    prop_assert!(is_blank || facts.balance.is_some(), "{value}");
                }
                "allowedips" | "allowedmodels" => {
                    let said = value.as_str().map_or(value.to_string(), str::to_owned);
                    let limits = facts.allowed_ips.len() + facts.allowed_models.len();
                    let says_all = ["", "[]"].contains(&said.trim());
                    prop_assert!(says_all || limits > 0, "{value}");
                }
                _ => {}
            }
        }
    }
}
