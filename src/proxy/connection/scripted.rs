//! The scripts of a provider, which decide about a key that it knows and that is good so far.

use crate::base::refusal::Refusal;
use crate::keys::digest::KeyDigest;
use crate::keys::facts::KeyFacts;
use crate::proxy::client::Client;
use crate::proxy::pass::Pass;
use crate::proxy::receive::Request;
use crate::script::{Decided, ScriptError, ScriptInput};
use serde_json::{json, Map, Value};
use std::sync::Arc;

const DENIED: Refusal = Refusal::new(403, "access_denied", "The API key may not be used.");

/// What a provider knows of a key that is a script alone: the script decides all the rest.
pub(super) fn facts_of(api_key: &str, digest: &KeyDigest) -> Arc<KeyFacts> {
    let data = Some(json!({"api_key": api_key}));
    Arc::new(KeyFacts { data, ..KeyFacts::new(*digest) })
}

/// What the scripts of the provider at this place make of a key: its facts, with what they add.
///
/// # Errors
/// One of them says no, or fails, of which the client gets no details.
pub(super) fn judge(
    pass: &Pass,
    (client, request): (&Client, &Request),
    (api_key, place): (&str, usize),
    facts: Arc<KeyFacts>,
) -> Result<Arc<KeyFacts>, Refusal> {
    if !pass.view.shared.scripts.iter().any(|script| script.place == place) {
        return Ok(facts);
    }
    // Its scripts were compiled before they came here: this cannot be, and nobody passes.
    let Some(vm) = &pass.view.vm else { return Err(DENIED) };
    let bytes = client.bytes();
    let head = &request.head;
    let headers: Vec<(&[u8], &[u8])> =
        head.fields.iter().map(|field| (field.name.of(bytes), field.value.of(bytes))).collect();
    let mut metadata = Map::new();
    for known in pass.keys().iter().chain([&facts]) {
        metadata.extend(known.metadata.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    let told;
    let data = match &facts.data {
        Some(data) => data,
        None => {
            told = data_of(&facts, api_key);
            &told
        }
    };
    let mut given = Map::new();
    for index in vm.of(place) {
        let input = ScriptInput {
            api_key,
            data,
            method: std::str::from_utf8(head.method_span.of(bytes)).unwrap_or_default(),
            path: std::str::from_utf8(head.path(bytes)).unwrap_or_default(),
            client_ip: request.from.client_text(),
            headers: &headers,
            metadata: &metadata,
            now_ms: pass.w.shelf.unix_ms(request.started),
        };
        let decided = vm.decide(index, &input, &mut |line| {
            if pass.w.shelf.may_log("script") {
                let provider = pass.view.shared.scripts.get(index).map(|script| &*script.provider);
                tracing::info!(provider, "script: {line}");
            }
        });
        match decided {
            Ok(Decided::Allow(more)) => {
                metadata.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
                given.extend(more);
            }
            Ok(Decided::Deny { status, code, message }) => {
                let mut refusal = DENIED;
                refusal.status = status.unwrap_or(refusal.status);
                refusal.code = code.unwrap_or(refusal.code);
                return Err(match message.filter(|message| !message.is_empty()) {
                    Some(message) => refusal.with_message(message),
                    None => refusal,
                });
            }
            Err(error) => return Err(failed(pass, &error)),
        }
    }
    Ok(match given.is_empty() {
        true => facts,
        false => Arc::new(with(&facts, given, api_key)),
    })
}

fn failed(pass: &Pass, error: &ScriptError) -> Refusal {
    if pass.w.shelf.may_log("script_failed") {
        let (provider, script) = (&*error.provider, &*error.script);
        tracing::warn!(provider, script, line = error.line, reason = %error.message,
            "a script failed: its client is denied");
    }
    DENIED
}

/// The facts of a key, with what scripts add. `user_id` and `name` are the key's own.
fn with(facts: &KeyFacts, given: Map<String, Value>, api_key: &str) -> KeyFacts {
    let mut facts = KeyFacts::clone(facts);
    let text = |name: &str| match given.get(name) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    facts.user_id = text("user_id").unwrap_or(facts.user_id);
    facts.name = text("name").unwrap_or(facts.name);
    facts.metadata = facts.metadata.with(given);
    // What is too large for records is null there, which its operator sees.
    facts.metadata.tell_records(api_key);
    facts
}

/// What a script sees of a key of the configuration: its fields, times in seconds since 1970.
fn data_of(facts: &KeyFacts, api_key: &str) -> Value {
    let texts = |list: &[crate::config::plan::IpRange]| -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    };
    let models: Vec<String> = facts.allowed_models.iter().map(ToString::to_string).collect();
    json!({
        "key": api_key,
        "name": facts.name,
        "user_id": facts.user_id,
        "status": facts.status,
        "total_quota": facts.total_quota,
        "used_quota": facts.used_quota,
        "quota_reset_period": facts.quota_reset_period,
        "allowed_ips": texts(&facts.allowed_ips),
        "denied_ips": texts(&facts.denied_ips),
        "allowed_models": models,
        "starts_at": facts.starts_at.map(|time| time.as_second()),
        "expires_at": facts.expires_at.map(|time| time.as_second()),
        "balance": facts.balance,
    })
}
