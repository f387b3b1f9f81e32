//! `/admin/keys/...`: the six calls of the first implementation, for programs that make them. A
//! thin layer over the same store: times, statuses and the envelope are as they were there.

use super::keys::made;
use super::{AdminAnswer, AdminApi, Answer, ApiFault, Call};
use crate::control::key_store::form::{apply, shown_key, state_number, FieldFault};
use crate::control::key_store::import::imported;
use crate::control::key_store::{KeyFilter, KeyRef, KeySpan, OnConflict, StoredKey, LISTED_MAX};
use serde_json::{json, Map, Value};

const LISTED: u64 = 20;

/// Whether a path is one of these.
pub(super) fn is_its_path(path: &str) -> bool {
    path.starts_with("/admin/keys/")
}

fn done(message: &str, data: Value) -> AdminAnswer {
    AdminAnswer::json(200, &json!({"success": true, "message": message, "data": data}))
}

/// A fault in the envelope.
pub(super) fn failed(fault: &ApiFault) -> AdminAnswer {
    let envelope = json!({"success": false, "message": fault.message, "error": fault.code});
    let mut answer = AdminAnswer::json(fault.status, &envelope);
    answer.fields.extend(fault.field.clone());
    answer
}

/// With the number of the status, as these calls have it.
fn told(key: &StoredKey) -> Map<String, Value> {
    let mut object = shown_key(key);
    object.insert("status".into(), json!(state_number(key.facts.status)));
    object
}

/// The body, and which key it names.
fn named(call: &Call<'_>) -> Result<(Map<String, Value>, KeyRef), ApiFault> {
    call.knows(&[])?;
    let object = call.object()?;
    let key = object.get("key").and_then(Value::as_str).filter(|key| !key.is_empty());
    let key = key.ok_or_else(|| FieldFault::new("key", "is required"))?.to_owned();
    Ok((object, KeyRef::Text(key)))
}

fn no_others(object: &Map<String, Value>, known: &[&str]) -> Result<(), ApiFault> {
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => Err(FieldFault::new(name, "is no member of this").into()),
    }
}

pub(super) fn create(api: &AdminApi, call: &Call<'_>) -> Answer {
    let (object, _) = named(call)?;
    let (key, _) = made(&object, &[], call.now_ms)?;
    api.store.create(&key)?;
    api.changed();
    tracing::info!(id = %key.id, name = %key.facts.name, "admin: a key was made");
    Ok(done("key created", Value::Object(told(&key))))
}

pub(super) fn update(api: &AdminApi, call: &Call<'_>) -> Answer {
    let (object, key) = named(call)?;
    let change = |facts: &mut _| apply(facts, &object, &["key"]).map_err(ApiFault::from);
    let key = api.store.change(&key, call.now_ms, change)?;
    api.count_from(&key, &object, call.now_ms);
    api.changed();
    tracing::info!(id = %key.id, "admin: a key was changed");
    Ok(done("key updated", Value::Object(told(&api.as_counted(key, call.now_ms)))))
}

pub(super) fn delete(api: &AdminApi, call: &Call<'_>) -> Answer {
    let (object, key) = named(call)?;
    no_others(&object, &["key"])?;
    let key = api.store.delete(&key)?;
    api.changed();
    tracing::info!(id = %key.id, name = %key.facts.name, "admin: a key was taken away");
    Ok(done("key deleted", json!({"id": key.id})))
}

pub(super) fn get(api: &AdminApi, call: &Call<'_>) -> Answer {
    let (object, key) = named(call)?;
    no_others(&object, &["key"])?;
    let key = api.as_counted(api.store.get(&key)?, call.now_ms);
    Ok(done("key found", Value::Object(told(&key))))
}

pub(super) fn list(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let object = call.object_or_none()?;
    no_others(&object, &["offset", "limit"])?;
    let number = |name: &str, fresh: u64| match object.get(name) {
        None | Some(Value::Null) => Ok(fresh),
        Some(value) => {
            let message = "must be a whole number of 0 or more";
            value.as_u64().ok_or_else(|| FieldFault::new(name, message))
        }
    };
    let limit = usize::try_from(number("limit", LISTED)?).unwrap_or(usize::MAX);
    let offset = number("offset", 0)?.min(u64::from(u32::MAX)) as usize;
    let limit = if limit == 0 { LISTED as usize } else { limit.min(LISTED_MAX) };
    let (keys, total) = api.store.list(&KeyFilter::default(), &KeySpan::Offset(offset), limit)?;
    let keys: Vec<_> = api.all_as_counted(keys, call.now_ms).iter().map(told).collect();
    Ok(done("keys listed", json!({"keys": keys, "total": total})))
}

/// `mode` has to be said: the first implementation took `full` for granted, and a list that was
/// empty by mistake then took all keys away.
pub(super) fn sync(api: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let object = call.object()?;
    no_others(&object, &["keys", "mode", "confirm"])?;
    let is_all = match object.get("mode").and_then(Value::as_str) {
        Some("full") => true,
        Some("incremental") => false,
        _ => return Err(FieldFault::new("mode", "must be full or incremental").into()),
    };
    let list = object.get("keys").and_then(Value::as_array);
    let list = list.ok_or_else(|| FieldFault::new("keys", "must be a list of keys"))?;
    let confirmed = object.get("confirm").and_then(Value::as_bool).unwrap_or_default();
    if is_all && list.is_empty() && !confirmed {
        let message = "is empty: that would take all keys away; say `\"confirm\": true`";
        return Err(FieldFault::new("keys", message).into());
    }
    let mut keys = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let fault = |message: &str| FieldFault::new("keys", format!("[{index}]: {message}"));
        let item = item.as_object().ok_or_else(|| fault("must be an object"))?;
        let key = imported(item, call.now_ms)
            .map_err(|bad| fault(&format!("{} {}", bad.param, bad.message)))?;
        keys.push(key);
    }
    let synced = api.store.import(&keys, OnConflict::Replace, is_all)?;
    api.changed();
    let (created, updated, deleted) = (synced.created, synced.replaced, synced.deleted);
    tracing::info!(created, updated, deleted, "admin: keys were synchronised");
    let told = json!({"created": created, "updated": updated, "deleted": deleted});
    Ok(done("keys synchronised", told))
}
