//! API keys: `api_keys[]`, and the list of a `static` provider.

use super::limit::limits;
use crate::base::limits::{KEY_IDENTITY_BYTES_MAX, LOOKUP_KEY_BYTES_MAX};
use crate::base::secret::Secret;
use crate::config::plan::{ApiKey, KeyState, Limits, ModelPattern, ResetPeriod};
use crate::config::section::Section;
use crate::config::value::{self, End, IpRange};
use ring::digest::{digest, SHA256};
use std::collections::HashSet;

/// What keys get that do not say otherwise (`auth.defaults`).
#[derive(Debug, Clone, Copy, Default)]
pub struct KeyDefaults {
    total_quota: u64,
    period: Option<ResetPeriod>,
}

/// Reads `auth.defaults`.
pub fn defaults(auth: &mut Section) -> KeyDefaults {
    let Some(mut s) = auth.section("defaults") else { return KeyDefaults::default() };
    KeyDefaults {
        total_quota: s.int("total_quota", 0..=QUOTA_MAX, 0),
        period: s.parsed("quota_reset_period", period),
    }
}

/// Quotas are counted in 64-bit signed numbers everywhere they are stored.
const QUOTA_MAX: u64 = i64::MAX as u64;

/// Reads the list under `list`. The same key twice is an error: which would count?
pub fn keys(section: &mut Section, list: &str, defaults: KeyDefaults) -> Vec<ApiKey> {
    let mut keys: Vec<ApiKey> = Vec::new();
    let mut known = HashSet::new();
    for mut s in section.sections(list) {
        let key = key(&mut s, defaults);
        // By a digest: no second copy of a key is made, and there may be many.
        let digest = digest(&SHA256, key.key.reveal().as_bytes());
        if !key.key.is_empty() && !known.insert(digest.as_ref().to_vec()) {
            s.error("key", "is given twice");
        }
        keys.push(key);
    }
    keys
}

fn key(s: &mut Section, defaults: KeyDefaults) -> ApiKey {
    s.refused(&[("allowed_backends", "keys choose models, not machines: use allowed_models")]);
    let secret = s.required("key");
    if !secret.bytes().all(|b| b.is_ascii_graphic()) {
        s.error("key", "must be of visible ASCII characters: it travels in an HTTP field");
    }
    if secret.len() > LOOKUP_KEY_BYTES_MAX {
        s.error(
            "key",
            format!("has more than {LOOKUP_KEY_BYTES_MAX} bytes: no request could use it"),
        );
    }
    let total_quota = s.int("total_quota", 0..=QUOTA_MAX, defaults.total_quota);
    let given = s.parsed("quota_reset_period", period).or(defaults.period);
    if total_quota > 0 && given.is_none() {
        let message = format!("the quota of {total_quota} tokens is never reset: set quota_reset_period to daily, weekly or monthly, or to never");
        s.warn("total_quota", message);
    }
    let time = |end| {
        move |text: &str| {
            if text.is_empty() {
                Ok(None)
            } else {
                value::instant(text, end).map(Some)
            }
        }
    };
    let (starts_at, expires_at) = (
        s.parsed("starts_at", time(End::First)).flatten(),
        s.parsed("expires_at", time(End::AfterLast)).flatten(),
    );
    if starts_at.zip(expires_at).is_some_and(|(start, end)| end <= start) {
        s.error("expires_at", "must be after starts_at");
    }
    ApiKey {
        key: Secret::new(secret),
        name: identity(s, "name"),
        user_id: identity(s, "user_id"),
        status: s.choice("status", &STATES, KeyState::Active),
        total_quota,
        used_quota: s.int("used_quota", 0..=QUOTA_MAX, 0),
        quota_reset_period: given.unwrap_or(ResetPeriod::Never),
        allowed_ips: s.list_of_allowed("allowed_ips", IpRange::parse),
        denied_ips: s.list_of_allowed("denied_ips", IpRange::parse),
        allowed_models: s.list_of_allowed("allowed_models", ModelPattern::parse),
        starts_at,
        expires_at,
        last_reset_at: s.parsed("last_reset_at", time(End::First)).flatten(),
        created_at: s.parsed("created_at", time(End::First)).flatten(),
        updated_at: s.parsed("updated_at", time(End::First)).flatten(),
        rate_limit: s.section("rate_limit").map_or(Limits::default(), |mut s| limits(&mut s)),
    }
}

/// A text that records and logs name a key or its user by.
fn identity(s: &mut Section, name: &str) -> String {
    let text = s.text(name).unwrap_or_default();
    if text.len() > KEY_IDENTITY_BYTES_MAX || text.chars().any(char::is_control) {
        let most = KEY_IDENTITY_BYTES_MAX;
        s.error(name, format!("must have at most {most} bytes, none of them a control character"));
    }
    text
}

/// The names, and the numbers of the old admin API.
const STATES: [(&str, KeyState); 9] = [
    ("active", KeyState::Active),
    ("enabled", KeyState::Active),
    ("disabled", KeyState::Disabled),
    ("quota_exceeded", KeyState::QuotaExceeded),
    ("expired", KeyState::Expired),
    ("0", KeyState::Active),
    ("1", KeyState::Disabled),
    ("2", KeyState::QuotaExceeded),
    ("3", KeyState::Expired),
];

fn period(text: &str) -> Result<ResetPeriod, String> {
    let periods = [
        ("never", ResetPeriod::Never),
        ("daily", ResetPeriod::Daily),
        ("weekly", ResetPeriod::Weekly),
        ("monthly", ResetPeriod::Monthly),
        ("", ResetPeriod::Never),
    ];
    value::choice(text, &periods).map_err(|_| {
        format!("{} is not one of: never, daily, weekly, monthly", value::quoted(text))
    })
}
