//! `/admin/api-keys`: the life of keys.

use super::{input, AdminAnswer, AdminApi, Answer, ApiFault, Call, JSON_LINES};
use crate::config::plan::duration_or_zero;
use crate::control::key_store::form::{
    apply, exported_key, moment, shown_key, state, state_name, FieldFault,
};
use crate::control::key_store::import::{check_key, imported};
use crate::control::key_store::{
    generate, prefix_of, KeyFilter, KeyRef, KeySpan, OnConflict, StoredKey, EXPORTED_MAX,
    LISTED_MAX,
};
use crate::keys::digest::KeyDigest;
use serde_json::{json, Map, Value};
use std::time::Duration;

/// Keys of a page of a list, unless it is said.
const LISTED: usize = 20;
/// An old text of a rotated key is good for so long, unless it is said.
const GRACE: Duration = Duration::from_secs(24 * 3600);
/// And for so long at most.
const GRACE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How far into a list one may begin by counting; further on, by `after`.
const OFFSET_MAX: usize = 10_000_000;

fn key_ref(call: &Call<'_>) -> KeyRef {
    KeyRef::Text(call.part().to_owned())
}

fn with(first: &[(&str, Value)], key: &StoredKey) -> Value {
    let mut object: Map<_, _> =
        first.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    object.extend(shown_key(key));
    Value::Object(object)
}

/// A key of the text that is brought, or a new one. Gives it with its text.
pub(super) fn made(
    object: &Map<String, Value>,
    others: &[&str],
    now_ms: i64,
) -> Result<(StoredKey, String), ApiFault> {
    let (text, digest, prefix) = match object.get("key").filter(|key| !key.is_null()) {
        None => {
            let fault = |error| ApiFault::new(500, "no_randomness", error);
            let made = generate().map_err(fault)?;
            (made.key.reveal().to_owned(), made.digest, made.prefix)
        }
        Some(value) => {
            let text = value.as_str().unwrap_or_default();
            check_key(text).map_err(|message| FieldFault::new("key", message))?;
            (text.to_owned(), KeyDigest::of(text.as_bytes()), prefix_of(text))
        }
    };
    let mut key = StoredKey::new(digest, prefix, now_ms);
    apply(&mut key.facts, object, &[&["key"], others].concat())?;
    Ok((key, text))
}

pub(super) fn create(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let (key, text) = made(&call.object()?, &[], call.now_ms)?;
    api.store.create(&key)?;
    api.changed();
    tracing::info!(id = %key.id, name = %key.facts.name, "admin: a key was made");
    Ok(AdminAnswer::json(201, &with(&[("key", json!(text))], &key)))
}

pub(super) fn list(api: &AdminApi, call: &Call<'_>) -> Answer {
    page(api, call, |key| shown_key(key).into())
}

pub(super) fn usage_of_all(api: &AdminApi, call: &Call<'_>) -> Answer {
    page(api, call, |key| usage_of(api, call, key))
}

/// A page of the keys that a query is about, each as `shown`.
fn page(api: &AdminApi, call: &Call<'_>, shown: impl Fn(&StoredKey) -> Value) -> Answer {
    call.knows(&["limit", "offset", "after", "user_id", "status", "name"])?;
    let limit = call.number("limit", LISTED_MAX)?.unwrap_or(LISTED).max(1);
    let offset = call.number("offset", OFFSET_MAX)?;
    let span = match (call.parameter("after"), offset) {
        (None, offset) => KeySpan::Offset(offset.unwrap_or_default()),
        (Some(id), None) => KeySpan::After(id.to_owned()),
        (Some(_), Some(_)) => return Err(ApiFault::invalid("after", "goes without `offset`")),
    };
    let status = call.parameter("status").map(|text| state(&json!(text))).transpose();
    let status = status.map_err(|message| FieldFault::new("status", message))?;
    let filter = KeyFilter {
        user_id: call.parameter("user_id").map(str::to_owned),
        status: status.map(|state| state_name(state).to_owned()),
        name: call.parameter("name").map(str::to_owned),
    };
    // One more than is shown tells whether there are more.
    let (mut keys, total) = api.store.list(&filter, &span, limit + 1)?;
    let has_more = keys.len() > limit;
    keys.truncate(limit);
    let last = keys.last().map(|key| key.id.clone());
    let data: Vec<_> = api.all_as_counted(keys, call.now_ms).iter().map(shown).collect();
    let page = json!({
        "object": "list", "data": data, "total": total, "has_more": has_more, "last_id": last
    });
    Ok(AdminAnswer::json(200, &page))
}

pub(super) fn show(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let key = api.as_counted(api.store.get(&key_ref(call))?, call.now_ms);
    Ok(AdminAnswer::json(200, &with(&[], &key)))
}

pub(super) fn patch(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let object = call.object()?;
    let change = |facts: &mut _| apply(facts, &object, &[]).map_err(ApiFault::from);
    let key = api.store.change(&key_ref(call), call.now_ms, change)?;
    api.count_from(&key, &object, call.now_ms);
    api.changed();
    let members: Vec<&str> = object.keys().map(String::as_str).collect();
    tracing::info!(id = %key.id, members = members.join(", "), "admin: a key was changed");
    Ok(AdminAnswer::json(200, &with(&[], &api.as_counted(key, call.now_ms))))
}

pub(super) fn delete(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let key = api.store.delete(&key_ref(call))?;
    api.changed();
    tracing::info!(id = %key.id, name = %key.facts.name, "admin: a key was taken away");
    Ok(AdminAnswer::json(200, &json!({"id": key.id, "deleted": true})))
}

pub(super) fn usage(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let key = api.as_counted(api.store.get(&key_ref(call))?, call.now_ms);
    Ok(AdminAnswer::json(200, &usage_of(api, call, &key)))
}

/// Where a key stands with its quota, by whose count, and when that starts again.
fn usage_of(api: &AdminApi, call: &Call<'_>, key: &StoredKey) -> Value {
    let (total, used) = (key.facts.total_quota, key.facts.used_quota);
    let is_limited = total > 0;
    let percentage = is_limited.then(|| (used as f64 / total as f64 * 1e4).round() / 1e2);
    let shown = shown_key(key);
    json!({
        "id": key.id,
        "key": key.prefix,
        "name": shown.get("name"),
        "user_id": shown.get("user_id"),
        "total_quota": total,
        "used_quota": used,
        "used_quota_source": api.used_quota_source(),
        "remaining_quota": is_limited.then(|| total.saturating_sub(used)),
        "usage_percentage": percentage,
        "quota_reset_period": shown.get("quota_reset_period"),
        "quota_resets_at": api.resets_ms(key, call.now_ms).map_or(Value::Null, moment),
        "last_used_at": key.last_used_ms.map_or(Value::Null, moment),
    })
}

pub(super) fn rotate(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let object = call.object_or_none()?;
    let unknown = object.keys().find(|name| *name != "grace_period");
    if let Some(name) = unknown {
        return Err(FieldFault::new(name, "is no member of this").into());
    }
    let grace = match object.get("grace_period") {
        None | Some(Value::Null) => Ok(GRACE),
        Some(Value::String(text)) => duration_or_zero(text),
        Some(value) => value.as_u64().map(Duration::from_secs).ok_or_else(String::new),
    };
    let grace = grace.ok().filter(|grace| *grace <= GRACE_MAX);
    let advice = "must be a time such as 24h, or seconds: a year at most, 0 for none";
    let grace = grace.ok_or_else(|| FieldFault::new("grace_period", advice))?;
    let until_ms = call.now_ms.saturating_add(grace.as_millis() as i64);
    let made = generate().map_err(|error| ApiFault::new(500, "no_randomness", error))?;
    let text = (made.digest, made.prefix);
    let key = api.store.rotate(&key_ref(call), text, (call.now_ms, until_ms))?;
    api.changed();
    let grace_s = grace.as_secs();
    tracing::info!(id = %key.id, grace_s, "admin: a key was given a new text");
    let first = [("key", json!(made.key.reveal())), ("old_key_valid_until", moment(until_ms))];
    Ok(AdminAnswer::json(200, &with(&first, &key)))
}

pub(super) fn export(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&["after", "limit"])?;
    let limit = call.number("limit", EXPORTED_MAX)?.unwrap_or(EXPORTED_MAX).max(1);
    let span = match call.parameter("after") {
        None => KeySpan::Offset(0),
        Some(id) => KeySpan::After(id.to_owned()),
    };
    let (keys, _) = api.store.list(&KeyFilter::default(), &span, limit)?;
    let lines: String =
        keys.iter().map(|key| format!("{}\n", Value::Object(exported_key(key)))).collect();
    let mut answer = AdminAnswer::json(200, &Value::Null);
    (answer.content_type, answer.body) = (JSON_LINES, lines.into_bytes().into());
    Ok(answer)
}

pub(super) fn import(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&["on_conflict"])?;
    let on_conflict = match call.parameter("on_conflict").unwrap_or("fail") {
        "fail" => OnConflict::Fail,
        "skip" => OnConflict::Skip,
        "replace" => OnConflict::Replace,
        _ => return Err(ApiFault::invalid("on_conflict", "must be fail, skip or replace")),
    };
    let mut keys = Vec::new();
    let lines = call.body.split(|byte| *byte == b'\n').enumerate();
    for (index, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let at = |message: String| format!("line {}: {message}", index + 1);
        let object = input::object(line);
        let object = object.map_err(|message| ApiFault::invalid("", at(message)))?;
        let key = imported(&object, call.now_ms).map_err(|fault| {
            let fault = ApiFault::from(fault);
            ApiFault { message: at(fault.message), ..fault }
        })?;
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(ApiFault::invalid("", "there is no key in it: a JSON object in each line"));
    }
    let done = api.store.import(&keys, on_conflict, false)?;
    api.changed();
    let (created, replaced, skipped) = (done.created, done.replaced, done.skipped);
    tracing::info!(created, replaced, skipped, "admin: keys were imported");
    let told = json!({"created": created, "replaced": replaced, "skipped": skipped});
    Ok(AdminAnswer::json(200, &told))
}
