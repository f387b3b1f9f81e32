//! `/admin/backends`, `/admin/stats`, `/admin/config`: the gateway that runs.

use super::{AdminAnswer, AdminApi, Answer, ApiFault, Call, Gateway, JSON};
use crate::control::key_store::form::{moment, shown, FieldFault};
use crate::control::reload::Cause;
use crate::control::supervisor::Event;
use crate::state::ask::Reply;
use crate::state::member::Member;
use crate::state::scrape::Page;
use serde_json::{json, Value};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A page is there within so long: workers that are busy take a second.
const PAGE_WAIT: Duration = Duration::from_secs(4);
/// A reload is done within so long; else its end is in the log.
const RELOAD_WAIT: Duration = Duration::from_secs(7);
/// The largest weight, as large as the configuration's.
const WEIGHT_MAX: u64 = 1_000_000;

/// The document that describes the API.
const OPENAPI: &str = include_str!("openapi.json");

fn gateway<'a>(api: &'a AdminApi, call: &Call<'_>) -> Result<&'a Gateway, ApiFault> {
    call.knows(&[])?;
    api.gateway.as_ref().ok_or_else(no_gateway)
}

pub(super) fn no_gateway() -> ApiFault {
    ApiFault::new(409, "not_possible", "no gateway runs here")
}

pub(super) fn openapi(_: &AdminApi, call: &Call<'_>) -> Answer {
    call.knows(&[])?;
    let body = OPENAPI.as_bytes().into();
    Ok(AdminAnswer { status: 200, content_type: JSON, fields: Vec::new(), body })
}

pub(super) fn backends(api: &AdminApi, call: &Call<'_>) -> Answer {
    let body = roster(gateway(api, call)?)?;
    Ok(AdminAnswer { status: 200, content_type: JSON, fields: Vec::new(), body })
}

fn roster(gateway: &Gateway) -> Result<Arc<[u8]>, ApiFault> {
    let page = gateway.pages.ask(Page::Backends).and_then(|reply| await_reply(reply, PAGE_WAIT));
    page.ok_or_else(|| ApiFault::new(503, "overloaded", "the workers do not answer"))
}

/// Blocks until the answer is there.
fn await_reply<A>(mut reply: Reply<A>, limit: Duration) -> Option<A> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let until = Instant::now() + limit;
    loop {
        if let Poll::Ready(answer) = Pin::new(&mut reply).poll(&mut context) {
            return answer.ok();
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        thread::park_timeout(left);
    }
}

/// The backend that the path names.
fn named(gateway: &Gateway, call: &Call<'_>) -> Result<Arc<Member>, ApiFault> {
    let view = gateway.board.view();
    let found = view.members().iter().find(|member| *member.name == *call.part());
    let none = || {
        let message = format!("there is no backend `{}`", shown(call.part()));
        ApiFault::new(404, "backend_not_found", message)
    };
    found.cloned().ok_or_else(none)
}

fn told(member: &Member) -> AdminAnswer {
    let state = json!({
        "name": &*member.name,
        "drained": member.is_drained(),
        "weight": member.weight(),
        "configured_weight": member.plan.weight,
        "inflight": member.inflight(),
    });
    AdminAnswer::json(200, &state)
}

fn no_body(call: &Call<'_>) -> Result<(), ApiFault> {
    match call.object_or_none()?.keys().next() {
        None => Ok(()),
        Some(name) => Err(FieldFault::new(name, "is no member of this").into()),
    }
}

pub(super) fn drain(api: &AdminApi, call: &Call<'_>) -> Answer {
    set_drained(api, call, true)
}

pub(super) fn undrain(api: &AdminApi, call: &Call<'_>) -> Answer {
    set_drained(api, call, false)
}

fn set_drained(api: &AdminApi, call: &Call<'_>, drained: bool) -> Answer {
    let member = named(gateway(api, call)?, call)?;
    no_body(call)?;
    if member.is_drained() != drained {
        tracing::info!(backend = %member.name, drained, "admin: a backend");
    }
    member.set_drained(drained);
    Ok(told(&member))
}

pub(super) fn weight(api: &AdminApi, call: &Call<'_>) -> Answer {
    let member = named(gateway(api, call)?, call)?;
    let object = call.object()?;
    if let Some(name) = object.keys().find(|name| *name != "weight") {
        return Err(FieldFault::new(name, "is no member of this").into());
    }
    let wrong = || {
        let message = format!("must be from 1 to {WEIGHT_MAX}, or null for the configured one");
        FieldFault::new("weight", message)
    };
    let weight = match object.get("weight").ok_or_else(wrong)? {
        Value::Null => None,
        value => {
            let number = value.as_u64().filter(|number| (1..=WEIGHT_MAX).contains(number));
            Some(number.ok_or_else(wrong)? as u32)
        }
    };
    member.set_weight(weight);
    tracing::info!(backend = %member.name, weight = member.weight(), "admin: a backend's weight");
    Ok(told(&member))
}

pub(super) fn stats(api: &AdminApi, call: &Call<'_>) -> Answer {
    let gateway = gateway(api, call)?;
    let roster: Value = serde_json::from_slice(&roster(gateway)?).unwrap_or_default();
    let backends = roster["backends"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sum = |name: &str| backends.iter().filter_map(|it| it[name].as_u64()).sum::<u64>();
    let up = backends.iter().filter(|it| matches!(it["state"].as_str(), Some("up" | "starting")));
    let [reloaded, not_reloaded] = gateway.reloads.counts();
    let by_status: serde_json::Map<_, _> =
        api.store.count()?.into_iter().map(|(status, count)| (status, json!(count))).collect();
    let keys: i64 = by_status.values().filter_map(Value::as_i64).sum();
    let stats = json!({
        "version": roster["llmproxy"],
        "pid": roster["pid"],
        "uptime_s": roster["uptime_s"],
        "config_sha256": roster["config_sha256"],
        "config_loaded_at": moment((gateway.reloads.last_success_s() * 1e3) as i64),
        "reloads": {"succeeded": reloaded, "failed": not_reloaded},
        "backends": {"total": backends.len(), "up": up.count()},
        "requests": {"inflight": sum("inflight"), "picked": sum("picked"), "failed": sum("failed")},
        "keys": {"total": keys, "by_status": by_status},
    });
    Ok(AdminAnswer::json(200, &stats))
}

pub(super) fn config(api: &AdminApi, call: &Call<'_>) -> Answer {
    let gateway = gateway(api, call)?;
    let plan = Arc::clone(&gateway.board.view().plan);
    let config = serde_json::to_value(&*plan)
        .map_err(|error| ApiFault::new(500, "internal_error", error.to_string()))?;
    let (sha256, config) = (gateway.reloads.sha256(), json!(config));
    Ok(AdminAnswer::json(200, &json!({"sha256": sha256, "config": config})))
}

pub(super) fn reload(api: &AdminApi, call: &Call<'_>) -> Answer {
    let gateway = gateway(api, call)?;
    no_body(call)?;
    let told = gateway.reloads.told_of_next();
    Event::Reload(Cause::Admin).tell(&gateway.supervisor);
    let Ok(outcome) = told.recv_timeout(RELOAD_WAIT) else {
        let answer = json!({"reloaded": null, "message": "not done yet: its end is in the log"});
        return Ok(AdminAnswer::json(202, &answer));
    };
    if !outcome.succeeded {
        let why = outcome.lines.join("\n");
        let message = format!("the configuration is not reloaded, nothing changes:\n{why}");
        return Err(ApiFault::new(422, "config_not_usable", message));
    }
    Ok(AdminAnswer::json(
        200,
        &json!({
            "reloaded": true,
            "sha256": gateway.reloads.sha256(),
            "changes": outcome.lines,
            "needs_restart": outcome.restart_keys,
        }),
    ))
}
