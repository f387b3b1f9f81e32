//! What a gateway says of itself at two times, and what happened between them. Pure.

use super::page::{MetricsPage, TimeBuckets, UNBOUNDED};
use crate::control::roster::{Condition, Roster, RosterEntry};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Both pages of a gateway, read at a time.
pub struct TopSight {
    /// When.
    pub at: Instant,
    /// What process it is, and its backends.
    pub roster: Roster,
    /// Its figures.
    pub page: MetricsPage,
}

/// A count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Flow {
    /// Since the start of the process.
    pub total: u64,
    /// In the last interval; `null`: there is none yet.
    pub per_second: Option<f64>,
}

/// Times of the last interval, in milliseconds; `null`: nothing was timed in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Half of them took no longer.
    pub p50: Option<f64>,
    /// 95 % of them took no longer.
    pub p95: Option<f64>,
}

/// What waits for receivers of usage records.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct TopJournal {
    /// Records that wait for the reporter that is furthest behind.
    pub waiting: u64,
    /// The age of the oldest of all that wait, in seconds.
    pub oldest_s: u64,
    /// Reporters whose receivers are away.
    pub away: Vec<String>,
    /// The disk takes no records.
    pub failing: bool,
}

/// A backend.
#[derive(Debug, PartialEq, Serialize)]
pub struct TopBackend {
    /// Its name.
    pub name: String,
    /// Whether it gets requests.
    pub state: Condition,
    /// Requests there now.
    pub inflight: u32,
    /// And at most; 0 = any number.
    pub max_concurrent: u32,
    /// Its share, as configured.
    pub weight: u32,
    /// Its share now.
    pub weight_now: f64,
    /// Tries that it got.
    pub tries: Flow,
    /// Tries that it did not serve.
    pub failed: Flow,
    /// To the first byte of a streamed answer.
    pub first_token_ms: Spread,
}

/// All that is shown.
#[derive(Debug, PartialEq, Serialize)]
pub struct TopSnapshot {
    /// The version of the program.
    pub llmproxy: String,
    /// The number of the process.
    pub pid: u32,
    /// Since its start.
    pub uptime_s: f64,
    /// Workers, by the driver they run on.
    pub workers: BTreeMap<String, u64>,
    /// Workers that did not answer: no figures per second then, since theirs are missing.
    pub workers_silent: u64,
    /// Connections of clients.
    pub connections: u64,
    /// Requests between head and last byte.
    pub inflight: u64,
    /// Requests that wait for room at a backend.
    pub queued: u64,
    /// How long the last interval was; `null`: there is none yet.
    pub interval_s: Option<f64>,
    /// Requests that were settled.
    pub requests: Flow,
    /// Tokens that engines read.
    pub prompt_tokens: Flow,
    /// Tokens that engines wrote.
    pub completion_tokens: Flow,
    /// To the first byte of a streamed answer.
    pub first_token_ms: Spread,
    /// Between two reads of a streamed answer.
    pub inter_token_ms: Spread,
    /// Requests that the proxy refused, by the reason.
    pub refused: BTreeMap<String, Flow>,
    /// Usage records.
    pub journal: TopJournal,
    /// In the order of the configuration.
    pub backends: Vec<TopBackend>,
}

/// The same times under two names, with bounds of their own: microseconds of the unit, the name of
/// the buckets, and the label of a backend.
type Histogram = [(f64, &'static str, &'static str); 2];
const FIRST_TOKEN: Histogram = [
    (1e3, "llmproxy_ttft_ms_bucket", "backend"),
    (1e6, "gen_ai_server_time_to_first_token_seconds_bucket", "server_address"),
];
const INTER_TOKEN: Histogram = [
    (1e6, "llmproxy_inter_token_seconds_bucket", "backend"),
    (1e6, "gen_ai_server_time_per_output_token_seconds_bucket", "server_address"),
];

impl TopSnapshot {
    /// What is there now, and what happened since an earlier sight of the same process.
    pub fn of(now: &TopSight, before: Option<&TopSight>) -> TopSnapshot {
        let both = Both { now, before: before.filter(|before| is_comparable(before, now)) };
        let page = &now.page;
        let count = |name: &str| page.sum(name) as u64;
        let tokens = |kind| both.flow("llmproxy_usage_tokens_total", Some(("type", kind)));
        let reasons = page.by("llmproxy_rejected_total", "reason");
        let refused = reasons.into_keys().map(|reason| {
            let flow = both.flow("llmproxy_rejected_total", Some(("reason", reason)));
            (reason.to_owned(), flow)
        });
        let workers = page.by("llmproxy_workers", "driver").into_iter();
        TopSnapshot {
            llmproxy: now.roster.llmproxy.clone(),
            pid: now.roster.pid,
            uptime_s: now.roster.uptime_s,
            workers: workers.map(|(driver, n)| (driver.to_owned(), n as u64)).collect(),
            workers_silent: count(SILENT),
            connections: count("llmproxy_connections_open"),
            inflight: count("llmproxy_requests_active"),
            queued: count("llmproxy_queue_waiting"),
            interval_s: both.seconds(),
            requests: both.flow("llmproxy_requests_total", None),
            prompt_tokens: tokens("prompt"),
            completion_tokens: tokens("completion"),
            first_token_ms: both.spread(&FIRST_TOKEN, None),
            inter_token_ms: both.spread(&INTER_TOKEN, None),
            refused: refused.collect(),
            journal: TopJournal::of(page),
            backends: now.roster.backends.iter().map(|entry| both.backend(entry)).collect(),
        }
    }
}

impl TopJournal {
    fn of(page: &MetricsPage) -> TopJournal {
        let up = page.by("llmproxy_reporter_up", "reporter");
        let away = up.into_iter().filter(|(_, up)| *up == 0.0).map(|(name, _)| name.to_owned());
        TopJournal {
            waiting: page.largest("llmproxy_reporter_queue") as u64,
            oldest_s: page.largest("llmproxy_reporter_lag_seconds") as u64,
            away: away.collect(),
            failing: page.sum("llmproxy_journal_failing") > 0.0,
        }
    }
}

const SILENT: &str = "llmproxy_workers_silent";

/// Whether differences between two sights say what happened between them: they are of one process,
/// and no worker's counts are missing from either.
fn is_comparable(before: &TopSight, now: &TopSight) -> bool {
    let is_whole = |sight: &TopSight| sight.page.sum(SILENT) == 0.0;
    before.roster.pid == now.roster.pid
        && before.roster.uptime_s <= now.roster.uptime_s
        && before.at < now.at
        && is_whole(before)
        && is_whole(now)
}

struct Both<'a> {
    now: &'a TopSight,
    before: Option<&'a TopSight>,
}

impl Both<'_> {
    fn seconds(&self) -> Option<f64> {
        self.before.map(|before| (self.now.at - before.at).as_secs_f64())
    }

    /// A counter: the sum of its series, or of those with a label.
    fn flow(&self, name: &str, of: Option<(&str, &str)>) -> Flow {
        let value = |page: &MetricsPage| match of {
            None => page.sum(name),
            Some((label, value)) => page.by(name, label).get(value).copied().unwrap_or_default(),
        };
        let (now, before) = (value(&self.now.page), self.before.map(|sight| value(&sight.page)));
        let rate = before.zip(self.seconds()).map(|(before, s)| grown(before, now) / s);
        Flow { total: now as u64, per_second: rate.filter(|rate| rate.is_finite()) }
    }

    fn spread(&self, histogram: &Histogram, backend: Option<&str>) -> Spread {
        let Some(before) = self.before else { return Spread::default() };
        let all = |page: &MetricsPage| {
            let mut all = TimeBuckets::new();
            for (unit_us, name, label) in histogram {
                // The same times twice: their counts are not added up.
                all.extend(page.buckets(name, *unit_us, backend.map(|name| (*label, name))));
            }
            all
        };
        let (now, before) = (all(&self.now.page), all(&before.page));
        let lately = difference(&before, &now);
        Spread { p50: quantile_ms(&lately, 0.5), p95: quantile_ms(&lately, 0.95) }
    }

    fn backend(&self, entry: &RosterEntry) -> TopBackend {
        let of = Some(("backend", entry.name.as_str()));
        TopBackend {
            name: entry.name.clone(),
            state: entry.state,
            inflight: entry.inflight,
            max_concurrent: entry.max_concurrent,
            weight: entry.weight,
            weight_now: entry.weight_now,
            tries: self.flow("llmproxy_backend_picked_total", of),
            failed: self.flow("llmproxy_backend_failures_total", of),
            first_token_ms: self.spread(&FIRST_TOKEN, Some(&entry.name)),
        }
    }
}

/// How much a counter grew. One that is smaller than before began anew: a backend came back under
/// its name.
fn grown(before: f64, now: f64) -> f64 {
    if now < before {
        now
    } else {
        now - before
    }
}

/// What came into the buckets between two readings. A bound that was not there before tells nothing
/// unless nothing was.
fn difference(before: &TimeBuckets, now: &TimeBuckets) -> TimeBuckets {
    let count = |buckets: &TimeBuckets| buckets.get(&UNBOUNDED).copied().unwrap_or_default();
    let is_anew = count(now) < count(before);
    let mut most = 0.0;
    let grown = |(bound, n): (&u64, &f64)| {
        let before = before.get(bound).copied().unwrap_or_default();
        most = f64::max(most, if is_anew { *n } else { n - before });
        (*bound, most)
    };
    now.iter().map(grown).collect()
}

/// The time that so large a share of all took at most, told from buckets: within one, times are
/// taken for evenly spread. `None`: there are none.
fn quantile_ms(buckets: &TimeBuckets, share: f64) -> Option<f64> {
    let all = buckets.get(&UNBOUNDED).copied().filter(|all| *all > 0.0)?;
    let wanted = all * share;
    let (mut low, mut below) = (0.0, 0.0);
    for (bound, upto) in buckets.iter().filter(|(bound, _)| **bound != UNBOUNDED) {
        let high = *bound as f64 / 1e3;
        if *upto >= wanted {
            let within = upto - below;
            let part = if within > 0.0 { (wanted - below) / within } else { 1.0 };
            return Some(low + (high - low) * part);
        }
        (low, below) = (high, *upto);
    }
    // Longer than the last bound: by how much is not known.
    Some(low)
}

#[cfg(test)]
pub(super) mod tests;
