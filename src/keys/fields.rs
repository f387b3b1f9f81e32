//! What other systems write of a key, in many spellings: a Redis hash (all texts), a JSON object, a
//! row of a SQL table. Out comes one form.
//!
//! A field that would limit a key and cannot be understood must not leave the key unlimited: such a
//! key counts as disabled, and the field is named, so that a log can say which one it is. Where
//! several fields mean the same, the strictest one counts; where none is stricter, they have to
//! agree.

mod values;

use super::digest::KeyDigest;
use super::facts::KeyFacts;
use crate::base::limits::KEY_IDENTITY_BYTES_MAX;
use crate::base::line::is_unshown;
use crate::config::plan::{IpRange, KeyState, Limits, ModelPattern, ResetPeriod};
use jiff::Timestamp;
use serde_json::{Map, Value};
use values::{Day, Unclear};

/// Names of the limits.
const SECOND: [&str; 2] = ["requests_per_second", "rps"];
const MINUTE: [&str; 2] = ["requests_per_minute", "rpm"];
const TOKENS: [&str; 2] = ["tokens_per_minute", "tpm"];
const CONCURRENT: [&str; 1] = ["max_concurrent"];
const BURST: [&str; 1] = ["burst_size"];

/// A key as another system describes it.
pub type Fields = Map<String, Value>;

/// The facts of a key, and the first field that could not be understood. If there is one, the facts
/// say that the key is disabled.
pub fn read(digest: KeyDigest, fields: &Fields) -> (KeyFacts, Option<&'static str>) {
    let mut reader = Reader::new(fields);
    let mut facts = KeyFacts {
        name: reader.first("name", &["name"], values::label).unwrap_or_default(),
        user_id: reader.agreed("user_id", &["user_id"], identity).unwrap_or_default(),
        status: reader.status(),
        total_quota: reader.total_quota(),
        used_quota: reader.all("used_quota", &["used_quota", "used"], used).max().unwrap_or(0),
        quota_reset_period: reader
            .agreed("quota_reset_period", &["quota_reset_period"], period)
            .unwrap_or(ResetPeriod::Never),
        last_reset_at: reader.agreed("last_reset_at", &["last_reset_at"], begin),
        balance: reader.all("balance", &["balance"], values::real).min_by(f64::total_cmp),
        allowed_ips: reader.agreed("allowed_ips", &["allowed_ips"], ranges).unwrap_or_default(),
        denied_ips: reader.agreed("denied_ips", &["denied_ips"], ranges).unwrap_or_default(),
        allowed_models: reader
            .agreed("allowed_models", &["allowed_models"], models)
            .unwrap_or_default(),
        starts_at: reader.all("starts_at", &["starts_at"], begin).max(),
        expires_at: reader.all("expires_at", &["expires_at", "expired_at", "expire_at"], end).min(),
        limits: reader.limits(),
        metadata: reader
            .first("metadata", &["metadata"], values::object)
            .unwrap_or_default()
            .into(),
        ..KeyFacts::new(digest)
    };
    if reader.unclear.is_some() {
        facts.status = KeyState::Disabled;
    }
    (facts, reader.unclear)
}

/// Looks fields up by their plain names, and notes the first that cannot be understood.
struct Reader<'a> {
    /// `expires_at`, `expiresAt` and `EXPIRES_AT` are one name. NULL is no field.
    fields: Vec<(String, &'a Value)>,
    unclear: Option<&'static str>,
}

impl<'a> Reader<'a> {
    fn new(fields: &'a Fields) -> Reader<'a> {
        let given = fields.iter().filter(|(_, value)| !value.is_null());
        Reader { fields: given.map(|(name, value)| (plain(name), value)).collect(), unclear: None }
    }

    /// What each of the fields of these names says, in the order of the names. `None` from `parse`
    /// is a field that says nothing.
    fn all<T>(
        &mut self,
        meaning: &'static str,
        names: &[&str],
        parse: impl Fn(&Value) -> Result<Option<T>, Unclear>,
    ) -> std::vec::IntoIter<T> {
        let mut said = Vec::new();
        for name in names.iter().map(|name| plain(name)) {
            for (_, value) in self.fields.iter().filter(|(other, _)| *other == name) {
                match parse(value) {
                    Ok(value) => said.extend(value),
                    Err(Unclear) => self.unclear = self.unclear.or(Some(meaning)),
                }
            }
        }
        said.into_iter()
    }

    fn first<T>(
        &mut self,
        meaning: &'static str,
        names: &[&str],
        parse: impl Fn(&Value) -> Result<Option<T>, Unclear>,
    ) -> Option<T> {
        self.all(meaning, names, parse).next()
    }

    /// What all fields of these names say alike. Of two that differ, nobody knows which one counts.
    fn agreed<T: PartialEq>(
        &mut self,
        meaning: &'static str,
        names: &[&str],
        parse: impl Fn(&Value) -> Result<Option<T>, Unclear>,
    ) -> Option<T> {
        let mut all = self.all(meaning, names, parse);
        let first = all.next();
        if all.any(|other| first.as_ref() != Some(&other)) {
            self.unclear = self.unclear.or(Some(meaning));
        }
        first
    }

    fn status(&mut self) -> KeyState {
        let states = self.all("status", &["status"], state);
        let enabled = self.all("enabled", &["enabled"], values::boolean);
        let disabled = self.all("disabled", &["disabled"], values::boolean);
        let switched = enabled.chain(disabled.map(|disabled| !disabled));
        let switched = switched.map(|on| if on { KeyState::Active } else { KeyState::Disabled });
        let mut all = states.chain(switched);
        all.find(|state| *state != KeyState::Active).unwrap_or(KeyState::Active)
    }

    /// Zero is no quota.
    fn total_quota(&mut self) -> u64 {
        let all = self.all("total_quota", &["total_quota", "quota"], values::whole);
        all.filter(|quota| *quota > 0).min().unwrap_or(0)
    }

    /// `rate_limit` as a number of requests per minute or as an object, and each limit under its
    /// own name. Zero is no limit.
    fn limits(&mut self) -> Limits {
        let objects: Vec<Fields> = self.all("rate_limit", &["rate_limit"], limit_object).collect();
        let mut readers: Vec<Reader<'_>> = objects.iter().map(Reader::new).collect();
        readers.push(Reader { fields: self.fields.clone(), unclear: None });
        let mut least = |meaning: &'static str, names: &[&str]| -> Option<u64> {
            let all = readers.iter_mut().flat_map(|r| r.all(meaning, names, values::whole));
            all.filter(|limit| *limit > 0).min()
        };
        let small = |limit: Option<u64>| limit.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let requests_per_second = small(least("requests_per_second", &SECOND));
        let burst = small(least("burst_size", &BURST));
        let limits = Limits {
            requests_per_second,
            requests_per_minute: small(least("requests_per_minute", &MINUTE)),
            tokens_per_minute: least("tokens_per_minute", &TOKENS),
            max_concurrent: small(least("max_concurrent", &CONCURRENT)),
            burst_size: requests_per_second.map(|rate| burst.unwrap_or(rate.saturating_mul(2))),
        };
        let unclear = readers.iter().find_map(|reader| reader.unclear);
        self.unclear = self.unclear.or(unclear);
        limits
    }
}

/// A name without what spellings differ in.
pub fn plain(name: &str) -> String {
    let letters = name.chars().filter(|c| !matches!(c, '_' | '-' | ' '));
    letters.map(|c| c.to_ascii_lowercase()).collect()
}

/// Words, and the numbers of the old admin API.
fn state(value: &Value) -> Result<Option<KeyState>, Unclear> {
    if let Value::Bool(active) = value {
        return Ok(Some(if *active { KeyState::Active } else { KeyState::Disabled }));
    }
    let word = values::text(value)?.trim().to_ascii_lowercase();
    match word.as_str() {
        "active" | "enabled" | "0" => Ok(Some(KeyState::Active)),
        "disabled" | "1" => Ok(Some(KeyState::Disabled)),
        "quota_exceeded" | "2" => Ok(Some(KeyState::QuotaExceeded)),
        "expired" | "3" => Ok(Some(KeyState::Expired)),
        _ => Err(Unclear),
    }
}

/// Whom records and bills name: taken as it is or not at all.
fn identity(value: &Value) -> Result<Option<String>, Unclear> {
    let text = values::text(value)?;
    if text.len() > KEY_IDENTITY_BYTES_MAX || text.chars().any(is_unshown) {
        return Err(Unclear);
    }
    Ok(Some(text.into_owned()).filter(|text| !text.is_empty()))
}

/// What was given back may make it less than none.
fn used(value: &Value) -> Result<Option<u64>, Unclear> {
    match values::real(value)? {
        Some(number) if number < 0.0 => Ok(Some(0)),
        _ => values::whole(value),
    }
}

fn period(value: &Value) -> Result<Option<ResetPeriod>, Unclear> {
    match values::text(value)?.trim().to_ascii_lowercase().as_str() {
        "" => Ok(None),
        "never" | "none" => Ok(Some(ResetPeriod::Never)),
        "daily" => Ok(Some(ResetPeriod::Daily)),
        "weekly" => Ok(Some(ResetPeriod::Weekly)),
        "monthly" => Ok(Some(ResetPeriod::Monthly)),
        _ => Err(Unclear),
    }
}

fn begin(value: &Value) -> Result<Option<Timestamp>, Unclear> {
    values::time(value, Day::Begin)
}

fn end(value: &Value) -> Result<Option<Timestamp>, Unclear> {
    values::time(value, Day::End)
}

fn ranges(value: &Value) -> Result<Option<Vec<IpRange>>, Unclear> {
    values::list(value, |text| IpRange::parse(text).map_err(|_| Unclear))
}

fn models(value: &Value) -> Result<Option<Vec<ModelPattern>>, Unclear> {
    values::list(value, |text| ModelPattern::parse(text).map_err(|_| Unclear))
}

/// A number alone is one of requests per minute. An object of which no name is known was meant to
/// limit something, too.
fn limit_object(value: &Value) -> Result<Option<Fields>, Unclear> {
    match values::whole(value) {
        Ok(Some(number)) => {
            Ok(Some(Fields::from_iter([("requests_per_minute".to_owned(), number.into())])))
        }
        Ok(None) => Ok(None),
        Err(Unclear) => {
            let object = values::object(value)?;
            let is_other =
                |object: &Fields| !object.is_empty() && !object.keys().any(|name| is_limit(name));
            match object.as_ref().is_some_and(is_other) {
                true => Err(Unclear),
                false => Ok(object),
            }
        }
    }
}

fn is_limit(name: &str) -> bool {
    let names = [&SECOND[..], &MINUTE, &TOKENS, &CONCURRENT, &BURST];
    names.concat().iter().any(|limit| plain(limit) == plain(name))
}

#[cfg(test)]
mod tests;
