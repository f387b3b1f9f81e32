//! Keys that come from elsewhere: lines of an export of ours, keys in clear, or their digests.

use super::form::{apply, FieldFault};
use super::{digest_from_hex, prefix_of, KeyText, StoredKey};
use crate::keys::digest::KeyDigest;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Letters of a key that somebody brings. With fewer, the digest would tell who reads the store
/// which key it is of.
pub const KEY_LETTERS: std::ops::RangeInclusive<usize> = 16..=512;
/// Texts of one key.
pub const TEXTS_MAX: usize = 10;

/// Members of a line beside the settings.
const OTHERS: &[&str] = &[
    "key",
    "sha256",
    "identity",
    "texts",
    "id",
    "prefix",
    "created_at",
    "updated_at",
    "last_used_at",
];

/// Checks a key that somebody brings.
///
/// # Errors
/// It cannot be one; a sentence without the key.
pub fn check_key(key: &str) -> Result<(), String> {
    if !KEY_LETTERS.contains(&key.len()) {
        let (low, high) = (KEY_LETTERS.start(), KEY_LETTERS.end());
        return Err(format!("must have {low} to {high} characters"));
    }
    match key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("must be of visible ASCII characters: it travels in an HTTP field".into()),
    }
}

/// The key that a line of an import means.
///
/// # Errors
/// The first member that is not known, or cannot be taken.
pub fn imported(line: &Map<String, Value>, now_ms: i64) -> Result<StoredKey, FieldFault> {
    let mut key = identified(line, now_ms)?;
    apply(&mut key.facts, line, OTHERS)?;
    for (name, into) in [("created_at", &mut key.created_ms), ("updated_at", &mut key.updated_ms)] {
        if let Some(ms) = moment(line, name)? {
            *into = ms;
        }
    }
    key.last_used_ms = moment(line, "last_used_at")?;
    Ok(key)
}

/// By what it is known.
fn identified(line: &Map<String, Value>, now_ms: i64) -> Result<StoredKey, FieldFault> {
    let prefix = match line.get("prefix") {
        None => "…".to_owned(),
        Some(value) => {
            let text = value.as_str().filter(|text| text.chars().count() <= 20);
            text.ok_or_else(|| FieldFault::new("prefix", "must be a short text"))?.to_owned()
        }
    };
    let named = |name| line.get(name).filter(|value: &&Value| !value.is_null());
    match (named("key"), named("sha256"), named("identity")) {
        (Some(key), None, None) => {
            let key = key.as_str().unwrap_or_default();
            check_key(key).map_err(|message| FieldFault::new("key", message))?;
            Ok(StoredKey::new(KeyDigest::of(key.as_bytes()), prefix_of(key), now_ms))
        }
        (None, Some(hex), None) => Ok(StoredKey::new(digest(hex, "sha256")?, prefix, now_ms)),
        (None, None, Some(hex)) => {
            let identity = digest(hex, "identity")?;
            let mut key = StoredKey::new(identity, prefix, now_ms);
            key.texts = texts(line)?;
            Ok(key)
        }
        _ => Err(FieldFault::new("", "needs one of `key`, `sha256`, or `identity` with `texts`")),
    }
}

fn texts(line: &Map<String, Value>) -> Result<Vec<KeyText>, FieldFault> {
    let fault = |message: &str| FieldFault::new("texts", message);
    let list = line.get("texts").and_then(Value::as_array);
    let list = list.filter(|list| (1..=TEXTS_MAX).contains(&list.len()));
    let list = list.ok_or_else(|| fault("must be a list of the digests of the key"))?;
    let text = |item: &Value| {
        let item = item.as_object().ok_or_else(|| fault("must be a list of objects"))?;
        let hex = item.get("sha256").unwrap_or(&Value::Null);
        Ok(KeyText { digest: digest(hex, "texts")?, until_ms: moment(item, "until")? })
    };
    list.iter().map(text).collect()
}

fn digest(value: &Value, name: &str) -> Result<KeyDigest, FieldFault> {
    let found = value.as_str().and_then(digest_from_hex);
    found.ok_or_else(|| FieldFault::new(name, "must have the 64 hex digits of a SHA-256"))
}

fn moment(object: &Map<String, Value>, name: &str) -> Result<Option<i64>, FieldFault> {
    let Some(value) = object.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let time = value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let time = time.ok_or_else(|| FieldFault::new(name, "must be a time in RFC 3339"))?;
    Ok(Some(time.as_millisecond()))
}
