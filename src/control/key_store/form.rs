//! The JSON form of a key: what the admin API takes and gives, what an export has, and what the
//! store keeps of it. Reading is strict: what is misspelt would else be a limit that nobody holds.

use super::{hex, StoredKey};
use crate::base::limits::LIMIT_CONCURRENT_MAX;
use crate::base::line::is_unshown;
use crate::config::plan::{instant, End, IpRange, KeyState, Limits, ModelPattern, ResetPeriod};
use crate::keys::facts::KeyFacts;
use crate::keys::metadata::KeyMetadata;
use jiff::Timestamp;
use serde_json::{json, Map, Value};

/// Letters of a name, or of a user's.
const NAME_LETTERS_MAX: usize = 256;
/// Entries of a list of addresses or models.
const LIST_MAX: usize = 1000;
/// Bytes of the metadata of a key, as JSON.
const METADATA_BYTES_MAX: usize = 8 * 1024;
/// Quotas are counted in 64-bit signed numbers everywhere they are stored.
const QUOTA_MAX: u64 = i64::MAX as u64;
/// A number of seconds that is larger is one of milliseconds: as seconds it lies beyond the year
/// 5000.
const SECONDS_MAX: i64 = 100_000_000_000;

/// A member of an object that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFault {
    /// Its name; empty: the object as a whole.
    pub param: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldFault {
    /// Of a member.
    pub fn new(param: &str, message: impl Into<String>) -> FieldFault {
        FieldFault { param: param.to_owned(), message: message.into() }
    }
}

/// What the settings are called, in the order in which they are written.
pub const SETTINGS: &[&str] = &[
    "name",
    "user_id",
    "status",
    "total_quota",
    "used_quota",
    "quota_reset_period",
    "last_reset_at",
    "balance",
    "allowed_ips",
    "denied_ips",
    "allowed_models",
    "starts_at",
    "expires_at",
    "rate_limit",
    "metadata",
];

const PERIODS: &[(&str, ResetPeriod)] = &[
    ("never", ResetPeriod::Never),
    ("daily", ResetPeriod::Daily),
    ("weekly", ResetPeriod::Weekly),
    ("monthly", ResetPeriod::Monthly),
];

const STATES: &[(&str, KeyState)] = &[
    ("active", KeyState::Active),
    ("enabled", KeyState::Active),
    ("disabled", KeyState::Disabled),
    ("quota_exceeded", KeyState::QuotaExceeded),
    ("expired", KeyState::Expired),
];

/// The name of a status.
pub fn state_name(state: KeyState) -> &'static str {
    STATES.iter().find(|(_, known)| *known == state).map_or("disabled", |(name, _)| name)
}

/// The number of a status in the first implementation's API.
pub fn state_number(state: KeyState) -> u8 {
    match state {
        KeyState::Active => 0,
        KeyState::Disabled | KeyState::NotFound => 1,
        KeyState::QuotaExceeded => 2,
        KeyState::Expired => 3,
    }
}

/// Reads a status: its name, or its number.
pub fn state(value: &Value) -> Result<KeyState, String> {
    let by_number = |number: u64| match number {
        0 => Some(KeyState::Active),
        1 => Some(KeyState::Disabled),
        2 => Some(KeyState::QuotaExceeded),
        3 => Some(KeyState::Expired),
        _ => None,
    };
    let found = match value {
        Value::Number(number) => number.as_u64().and_then(by_number),
        Value::String(text) => STATES.iter().find(|(name, _)| name == text).map(|(_, it)| *it),
        _ => None,
    };
    found.ok_or_else(|| "must be active, disabled, expired or quota_exceeded".to_owned())
}

/// Changes the facts of a key as an object says. `null` sets a member back to what a new key has.
/// Members of `others` are left to the caller.
///
/// # Errors
/// The first member that is not known, or cannot be taken. The facts are of no use then.
pub fn apply(
    facts: &mut KeyFacts,
    object: &Map<String, Value>,
    others: &[&str],
) -> Result<(), FieldFault> {
    let fresh = KeyFacts::new(facts.digest);
    for (name, value) in object {
        if others.contains(&name.as_str()) {
            continue;
        }
        let value = Some(value).filter(|value| !value.is_null());
        set(facts, &fresh, name, value).map_err(|message| FieldFault::new(name, message))?;
    }
    let ends = facts.starts_at.zip(facts.expires_at);
    match ends.is_some_and(|(start, end)| end <= start) {
        true => Err(FieldFault::new("expires_at", "must be after starts_at")),
        false => Ok(()),
    }
}

fn set(
    facts: &mut KeyFacts,
    fresh: &KeyFacts,
    name: &str,
    value: Option<&Value>,
) -> Result<(), String> {
    match name {
        "name" => facts.name = or(value, &fresh.name, label)?,
        "user_id" => facts.user_id = or(value, &fresh.user_id, label)?,
        "status" => facts.status = or(value, &fresh.status, state)?,
        "total_quota" => facts.total_quota = or(value, &fresh.total_quota, quota)?,
        "used_quota" => facts.used_quota = or(value, &fresh.used_quota, quota)?,
        "quota_reset_period" => {
            facts.quota_reset_period = or(value, &fresh.quota_reset_period, period)?;
        }
        "last_reset_at" => facts.last_reset_at = or(value, &None, |v| time(v, End::First))?,
        "balance" => facts.balance = or(value, &None, |v| number(v).map(Some))?,
        "allowed_ips" => facts.allowed_ips = or(value, &Vec::new(), |v| list(v, IpRange::parse))?,
        "denied_ips" => facts.denied_ips = or(value, &Vec::new(), |v| list(v, IpRange::parse))?,
        "allowed_models" => {
            facts.allowed_models = or(value, &Vec::new(), |v| list(v, ModelPattern::parse))?;
        }
        "starts_at" => facts.starts_at = or(value, &None, |v| time(v, End::First))?,
        "expires_at" => facts.expires_at = or(value, &None, |v| time(v, End::AfterLast))?,
        "rate_limit" => facts.limits = or(value, &fresh.limits, limits)?,
        "metadata" => facts.metadata = or(value, &fresh.metadata, metadata)?,
        _ => return Err(unknown(name)),
    }
    Ok(())
}

fn unknown(name: &str) -> String {
    let is_ours = ["id", "prefix", "created_at", "updated_at", "last_used_at"].contains(&name);
    match is_ours {
        true => "cannot be set".to_owned(),
        false => "is no member of a key".to_owned(),
    }
}

fn or<T: Clone>(
    value: Option<&Value>,
    fresh: &T,
    read: impl FnOnce(&Value) -> Result<T, String>,
) -> Result<T, String> {
    value.map_or_else(|| Ok(fresh.clone()), read)
}

/// A text that people see.
fn label(value: &Value) -> Result<String, String> {
    let text = value.as_str().ok_or("must be a text")?;
    if text.chars().count() > NAME_LETTERS_MAX {
        return Err(format!("has more than {NAME_LETTERS_MAX} letters"));
    }
    match text.chars().any(is_unshown) {
        true => Err("must not have control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn quota(value: &Value) -> Result<u64, String> {
    let number = value.as_u64().filter(|number| *number <= QUOTA_MAX);
    number.ok_or_else(|| "must be a whole number of 0 or more".to_owned())
}

fn number(value: &Value) -> Result<f64, String> {
    value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| "must be a number".to_owned())
}

fn period(value: &Value) -> Result<ResetPeriod, String> {
    let text = value.as_str().unwrap_or("?");
    let text = if text.is_empty() { "never" } else { text };
    let found = PERIODS.iter().find(|(name, _)| *name == text).map(|(_, period)| *period);
    found.ok_or_else(|| "must be never, daily, weekly or monthly".to_owned())
}

fn list<T>(value: &Value, read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items = value.as_array().ok_or("must be a list of texts")?;
    if items.len() > LIST_MAX {
        return Err(format!("has more than {LIST_MAX} entries"));
    }
    let text = |item: &'_ Value| item.as_str().map(str::to_owned).ok_or("must be a list of texts");
    items.iter().map(|item| read(&text(item)?)).collect()
}

/// RFC 3339, a date, seconds since 1970 or milliseconds; an empty text is none.
fn time(value: &Value, end: End) -> Result<Option<Timestamp>, String> {
    let advice = "must be a time such as 2026-12-31T23:59:59Z, a date, or seconds since 1970";
    match value {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => instant(text, end).map(Some),
        Value::Number(number) => {
            let number = number.as_i64().filter(|number| *number >= 0).ok_or(advice)?;
            let found = match number > SECONDS_MAX {
                true => Timestamp::from_millisecond(number),
                false => Timestamp::from_second(number),
            };
            found.map(Some).map_err(|_| advice.to_owned())
        }
        _ => Err(advice.to_owned()),
    }
}

/// An object of limits, or a number: requests per minute. 0 is no limit.
fn limits(value: &Value) -> Result<Limits, String> {
    let count = |value: &Value| {
        let found = value.as_u64().and_then(|number| u32::try_from(number).ok());
        found.ok_or_else(|| "must have whole numbers of 0 or more".to_owned())
    };
    let some = |value: &Value| count(value).map(|number| Some(number).filter(|n| *n > 0));
    let mut limits = Limits::default();
    let Some(object) = value.as_object() else {
        limits.requests_per_minute = some(value)?;
        return Ok(limits);
    };
    for (name, value) in object {
        match name.as_str() {
            "requests_per_second" => limits.requests_per_second = some(value)?,
            "requests_per_minute" => limits.requests_per_minute = some(value)?,
            "tokens_per_minute" => {
                limits.tokens_per_minute = Some(quota(value)?).filter(|n| *n > 0);
            }
            "max_concurrent" => {
                limits.max_concurrent = some(value)?;
                if limits.max_concurrent > Some(LIMIT_CONCURRENT_MAX) {
                    return Err(format!("has a max_concurrent beyond {LIMIT_CONCURRENT_MAX}"));
                }
            }
            "burst_size" => limits.burst_size = some(value)?,
            other => return Err(format!("has no member `{}`", shown(other))),
        }
    }
    match (limits.requests_per_second, limits.burst_size) {
        (None, Some(_)) => Err("has a burst_size without requests_per_second".to_owned()),
        (Some(rate), None) => Ok(Limits { burst_size: Some(rate.saturating_mul(2)), ..limits }),
        _ => Ok(limits),
    }
}

fn metadata(value: &Value) -> Result<KeyMetadata, String> {
    let object = value.as_object().ok_or("must be an object")?;
    match value.to_string().len() > METADATA_BYTES_MAX {
        true => Err(format!("has more than {METADATA_BYTES_MAX} bytes")),
        false => Ok(object.clone().into()),
    }
}

/// A name that somebody else chose, for a message.
pub fn shown(name: &str) -> String {
    name.chars().take(40).map(|c| if is_unshown(c) { '\u{fffd}' } else { c }).collect()
}

/// All settings of a key. [`apply`] makes the same key of them.
pub fn settings(facts: &KeyFacts) -> Map<String, Value> {
    let time = |time: Option<Timestamp>| json!(time.map(|time| time.to_string()));
    let texts = |list: Vec<String>| Value::from(list);
    let ips = |list: &[IpRange]| texts(list.iter().map(IpRange::to_string).collect());
    let models = facts.allowed_models.iter().map(|model| model.text().to_owned()).collect();
    let period = PERIODS.iter().find(|(_, it)| *it == facts.quota_reset_period);
    let limits = match facts.limits.is_none() {
        true => Value::Null,
        false => json!(facts.limits),
    };
    let values = [
        json!(facts.name),
        json!(facts.user_id),
        json!(state_name(facts.status)),
        json!(facts.total_quota),
        json!(facts.used_quota),
        json!(period.map_or("never", |(name, _)| name)),
        time(facts.last_reset_at),
        json!(facts.balance),
        ips(&facts.allowed_ips),
        ips(&facts.denied_ips),
        texts(models),
        time(facts.starts_at),
        time(facts.expires_at),
        limits,
        Value::Object(facts.metadata.object()),
    ];
    SETTINGS.iter().map(|name| (*name).to_owned()).zip(values).collect()
}

/// A moment as the API writes it.
pub fn moment(unix_ms: i64) -> Value {
    json!(Timestamp::from_millisecond(unix_ms).map(|time| format!("{time:.3}")).ok())
}

/// A key as the API shows it: without its text and without its digest.
pub fn shown_key(key: &StoredKey) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("id".into(), json!(key.id));
    object.insert("prefix".into(), json!(key.prefix));
    object.extend(settings(&key.facts));
    object.insert("created_at".into(), moment(key.created_ms));
    object.insert("updated_at".into(), moment(key.updated_ms));
    object.insert("last_used_at".into(), key.last_used_ms.map_or(Value::Null, moment));
    object
}

/// A key as an export has it: with the digests by which it is known, from which nobody makes a key.
pub fn exported_key(key: &StoredKey) -> Map<String, Value> {
    let mut object = Map::new();
    let texts = key.texts.iter().map(|text| {
        let until = text.until_ms.map_or(Value::Null, moment);
        json!({"sha256": hex(text.digest.as_bytes()), "until": until})
    });
    object.insert("identity".into(), json!(hex(key.facts.digest.as_bytes())));
    object.insert("texts".into(), texts.collect());
    object.extend(shown_key(key));
    object
}
