//! How the backends of a process are, in JSON: what the admin socket says, and what
//! `llmproxy backends` reads.

use super::metrics::Facts;
use crate::base::uptime::uptime;
use crate::state::member::{self, Member, Witness};
use crate::state::meters::Times;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The version of the form. It stays when something is added to it.
pub const ROSTER_VERSION: u32 = 1;

/// A process, and its backends.
#[derive(Debug, Serialize, Deserialize)]
pub struct Roster {
    /// [`ROSTER_VERSION`] of whoever wrote it.
    pub version: u32,
    /// The version of the program.
    pub llmproxy: String,
    /// The number of the process.
    pub pid: u32,
    /// Since its start, in seconds.
    pub uptime_s: f64,
    /// Of the configuration in use.
    pub config_sha256: String,
    /// `routing.load_balance`.
    pub load_balance: String,
    /// `server.region`.
    pub region: String,
    /// In the order of the configuration; those that were taken out of it and still have requests
    /// come last.
    pub backends: Vec<RosterEntry>,
}

/// A backend.
#[derive(Debug, Serialize, Deserialize)]
pub struct RosterEntry {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Where it is connected to now; empty while its name is not known.
    pub addresses: Vec<String>,
    /// What engine it is, as configured or found out; `auto`: not known.
    #[serde(default)]
    pub engine: String,
    /// Models that it serves; empty = all.
    pub models: Vec<String>,
    /// Where it stands.
    pub region: String,
    /// It is a standby.
    pub backup: bool,
    /// Whether it gets requests, and why not.
    pub state: Condition,
    /// What probes say.
    pub probes: Opinion,
    /// What the requests that were sent there say.
    pub requests: Opinion,
    /// Of an ejected one: a request may try it after so many seconds; 0: the next one may. `null`:
    /// one does now, or it is not ejected.
    pub next_try_s: Option<f64>,
    /// It said that it is full, for so many more seconds.
    pub full_s: Option<f64>,
    /// Its share, as configured.
    pub weight: u32,
    /// Its share now, while it starts slowly.
    pub weight_now: f64,
    /// Requests there now.
    pub inflight: u32,
    /// And at most; 0 = any number.
    pub max_concurrent: u32,
    /// Tries that it got.
    pub picked: u64,
    /// Tries that it did not serve: no answer, half of one, an error in it, 429 or 5xx.
    pub failed: u64,
    /// Half of all streams had their first token within so many milliseconds.
    pub first_token_median_ms: Option<f64>,
    /// The same time as it was lately, in the mean.
    pub first_token_lately_ms: Option<f64>,
}

/// Whether a backend gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It does.
    Up,
    /// It gets less than its share, and soon all of it (`slow_start`).
    Starting,
    /// It has as many as it may, or has said that it is full.
    Full,
    /// Requests found it dead.
    Ejected,
    /// Probes find it dead.
    Unhealthy,
    /// An administrator wants no new requests there.
    Drained,
    /// It was taken out of the configuration, and has requests that are not over.
    Leaving,
    /// What a newer version says.
    #[serde(other)]
    Other,
}

/// What somebody says of a backend.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opinion {
    /// It is well.
    pub well: bool,
    /// For so many seconds.
    pub since_s: f64,
    /// What was found then; `null`: it was so from the start, or since it came.
    pub why: Option<String>,
}

/// The JSON, with a line feed behind it.
pub(super) fn render(mut facts: Facts) -> Vec<u8> {
    facts.name_all();
    // Writing what has text for keys to memory cannot fail.
    let mut json = serde_json::to_vec(&Roster::of(&facts)).unwrap_or_default();
    json.push(b'\n');
    json
}

impl Roster {
    fn of(facts: &Facts) -> Roster {
        let view = &facts.view;
        let mut first_tokens = HashMap::<_, Times>::new();
        for (series, times) in &facts.meters.ttft {
            first_tokens.entry(series.backend).or_default().absorb(times);
        }
        let is_leaving = |member: &Member| view.member(member.id()).is_none();
        let entry = |member: &Member| RosterEntry {
            picked: facts.meters.picked.get(&member.id()).copied().unwrap_or_default(),
            first_token_median_ms: first_tokens
                .get(&Some(member.id()))
                .and_then(|times| times.median_ms().map(rounded)),
            ..RosterEntry::of(member, is_leaving(member))
        };
        let load_balance = serde_json::to_value(view.plan.routing.load_balance);
        let load_balance = load_balance.ok().and_then(|name| name.as_str().map(str::to_owned));
        Roster {
            version: ROSTER_VERSION,
            llmproxy: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_s: rounded(uptime().as_secs_f64()),
            config_sha256: facts.reloads.sha256(),
            load_balance: load_balance.unwrap_or_default(),
            region: view.plan.server.region.clone(),
            backends: facts.shown().into_iter().map(|member| entry(member)).collect(),
        }
    }
}

impl RosterEntry {
    /// What the member alone tells.
    fn of(member: &Member, is_leaving: bool) -> RosterEntry {
        let (plan, now) = (&member.plan, member::now());
        let weight_now = member.weight_at(|| now) as f64 / 100.0;
        let is_out = member.repute().is_out();
        let state = match () {
            () if is_leaving => Condition::Leaving,
            () if member.is_drained() => Condition::Drained,
            () if !member.passes_probes() => Condition::Unhealthy,
            () if is_out => Condition::Ejected,
            () if member.is_full() || member.is_spared() => Condition::Full,
            () if weight_now < f64::from(member.weight()) => Condition::Starting,
            () => Condition::Up,
        };
        RosterEntry {
            name: plan.name.clone(),
            url: plan.url.clone(),
            addresses: member.addresses().iter().map(ToString::to_string).collect(),
            engine: member.engine().name().to_owned(),
            models: plan.models.iter().map(|pattern| pattern.text().to_owned()).collect(),
            region: plan.region.clone(),
            backup: plan.backup,
            state,
            probes: Opinion::of(member, Witness::Probes, member.passes_probes()),
            requests: Opinion::of(member, Witness::Requests, !is_out),
            next_try_s: member.repute().next_try().map(|at| seconds(at.0.saturating_sub(now.0))),
            full_s: member
                .is_spared()
                .then(|| seconds(member.fullness().until().saturating_sub(now.0))),
            weight: member.weight(),
            weight_now,
            inflight: member.inflight(),
            max_concurrent: plan.max_concurrent,
            picked: 0,
            failed: member.failures(),
            first_token_median_ms: None,
            first_token_lately_ms: member.latency().expected(None, now).map(rounded),
        }
    }
}

impl Opinion {
    fn of(member: &Member, witness: Witness, well: bool) -> Opinion {
        let remark = member.last_remark(witness);
        let since = remark.as_ref().map_or(member.came(), |remark| remark.at);
        Opinion {
            well,
            since_s: seconds(member::now().0.saturating_sub(since.0)),
            why: remark.map(|remark| remark.why.clone()),
        }
    }
}

fn seconds(tenths: u32) -> f64 {
    f64::from(tenths) / 10.0
}

/// To a tenth.
fn rounded(number: f64) -> f64 {
    (number * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::fault::Fault;
    use crate::config::plan::Backend;
    use crate::state::repute::Evidence;
    use std::time::Duration;

    fn entry(member: &Member) -> RosterEntry {
        RosterEntry::of(member, false)
    }

    /// Catches: a backend that gets no requests and is said to be up, and one of which nobody
    /// learns why, or when it is tried again.
    #[test]
    fn what_keeps_requests_from_a_backend_is_said() {
        let plan = Backend { max_concurrent: 1, weight: 4, ..Backend::sample("a") };
        let member = Member::new(plan, None);
        let first = entry(&member);
        assert_eq!((first.state, first.weight_now, first.failed), (Condition::Up, 4.0, 0));
        assert!(first.probes.well && first.probes.why.is_none() && first.next_try_s.is_none());
        assert!(member.enter());
        assert_eq!((entry(&member).state, entry(&member).inflight), (Condition::Full, 1));
        member.leave();
        member.fullness().spare_for(Duration::from_secs(30));
        let full = entry(&member);
        assert!(full.state == Condition::Full && full.full_s.is_some_and(|s| s > 20.0), "{full:?}");
        member.fullness().spare_for(Duration::ZERO);
        for _ in 0..3 {
            member.hear_served(false);
            member.hear(Evidence::NoConnection(Fault::ConnectFailed));
        }
        member.remark(Witness::Requests, "dead".into());
        let ejected = entry(&member);
        assert_eq!((ejected.state, ejected.failed), (Condition::Ejected, 3));
        assert!(ejected.next_try_s.is_some_and(|s| s > 0.0 && s <= 6.0), "{ejected:?}");
        assert_eq!((ejected.requests.well, ejected.requests.why.as_deref()), (false, Some("dead")));
        member.set_passes_probes(false);
        let sick = entry(&member);
        assert!(
            sick.state == Condition::Unhealthy && !sick.probes.well && sick.probes.why.is_none()
        );
        assert_eq!(RosterEntry::of(&member, true).state, Condition::Leaving);
    }

    /// Catches: a reader that fails at what a newer gateway says.
    #[test]
    fn what_a_newer_version_adds_is_passed_over() {
        let member = Member::new(Backend::sample("a"), None);
        let mut json = serde_json::to_value(entry(&member)).unwrap();
        json["state"] = "dreaming".into();
        json["mood"] = "fine".into();
        let read: RosterEntry = serde_json::from_value(json).unwrap();
        assert_eq!(read.state, Condition::Other);
    }
}
