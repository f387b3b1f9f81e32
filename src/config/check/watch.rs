//! `health_check` and `metrics`.

use crate::base::limits::METRICS_MODELS_MAX;
use crate::config::plan::endpoints::OWN_PATHS;
use crate::config::plan::{HealthCheck, Metrics};
use crate::config::raw::{Node, ValueKind};
use crate::config::section::Section;
use crate::config::value;
use std::net::SocketAddr;
use std::time::Duration;

/// What probes are like unless `health_check` says otherwise.
pub fn default_probes() -> HealthCheck {
    HealthCheck {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
        path: None,
        method: "GET".into(),
        expected_status: Vec::new(),
        unhealthy_threshold: 3,
        healthy_threshold: 2,
    }
}

/// Reads `health_check`.
pub fn health_check(s: &mut Section) -> HealthCheck {
    s.unsupported(&[("script", "probes are not scripted; set `path` and `expected_status`")]);
    let default = default_probes();
    let interval = s.duration("interval", default.interval);
    let timeout = s.duration("timeout", interval.min(default.timeout));
    if timeout > interval {
        s.warn("timeout", "is longer than the interval: probes of one backend wait for each other");
    }
    let methods = [("GET", "GET"), ("HEAD", "HEAD"), ("POST", "POST")];
    HealthCheck {
        interval,
        timeout,
        path: s.parsed("path", value::optional(value::url_path)).flatten(),
        method: s.choice("method", &methods, "GET").into(),
        expected_status: expected_status(s),
        unhealthy_threshold: s.int("unhealthy_threshold", 1..=1000, default.unhealthy_threshold),
        healthy_threshold: s.int("healthy_threshold", 1..=1000, default.healthy_threshold),
    }
}

/// Tells of every probe path and engine of a backend; nobody probes.
pub fn unprobed(root: &mut Section) {
    let desk = root.desk;
    for backend in root.items("backends").unwrap_or_default() {
        let ValueKind::Map(entries) = &backend.kind else { continue };
        let given = |key: &str| entries.iter().find(|e| e.key == key).map(|e| &e.value);
        match given("engine") {
            // What is read of its load goes by it too.
            Some(engine @ Node { kind: ValueKind::Text(text), .. })
                if !matches!(text.as_str(), "" | "auto") && given("metrics").is_none() =>
            {
                desk.warn(engine, "not used: there are no probes without `health_check`");
            }
            _ => {}
        }
        let path = given("health_path");
        // Null and "" stand for the path of `health_check`.
        match path {
            Some(path @ Node { kind: ValueKind::Text(text), .. }) if !text.is_empty() => {
                desk.warn(path, "not used: there are no probes without `health_check`");
            }
            _ => {}
        }
    }
}

/// `2xx`, a status, or a list of both. Any 2xx alone is the empty list.
fn expected_status(s: &mut Section) -> Vec<u16> {
    let status = |text: &str| match text.strip_suffix("xx") {
        Some(class) => value::int(class, 1..=5u16)
            .map(|class| (class * 100..=class * 100 + 99).collect())
            .map_err(|_| format!("{} must be a status such as 200, or 2xx", value::quoted(text))),
        None => value::int(text, 100..=599u16).map(|status| vec![status]),
    };
    let mut all: Vec<u16> =
        s.list("expected_status", status).unwrap_or_default().into_iter().flatten().collect();
    all.sort_unstable();
    all.dedup();
    if all == (200..=299).collect::<Vec<u16>>() {
        all.clear();
    }
    all
}

/// Upper bounds in milliseconds: those of the seeds, and on to the ten minutes that a long
/// generation takes.
const BUCKETS_MS: [u64; 14] =
    [10, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000];

/// Reads `metrics`, which is on unless it says `enabled: false`.
pub fn metrics(root: &mut Section, server: &[SocketAddr]) -> Option<Metrics> {
    if root.has("metrics") {
        return root.when_present("metrics", |s| Metrics {
            listen: super::own_listen(s, server),
            path: metrics_path(s).unwrap_or_else(|| "/metrics".into()),
            latency_buckets_ms: buckets(s),
            models: models(s),
            custom_labels: labels(s),
        });
    }
    Some(Metrics {
        listen: None,
        path: "/metrics".into(),
        latency_buckets_ms: BUCKETS_MS.to_vec(),
        models: Vec::new(),
        custom_labels: Vec::new(),
    })
}

/// Of our paths the first that is compared wins, and the page would never be seen.
fn metrics_path(s: &mut Section) -> Option<String> {
    s.parsed("path", |text| match value::request_path(text)? {
        own if OWN_PATHS.contains(&own.as_str()) => {
            Err(format!("{} says how llmproxy itself does: name another", value::quoted(own)))
        }
        path => Ok(path),
    })
}

/// A label for each: their number is what a scrape costs.
fn models(s: &mut Section) -> Vec<String> {
    let models = s.list("models", value::nonempty).unwrap_or_default();
    if models.len() > METRICS_MODELS_MAX {
        s.error("models", format!("must be {METRICS_MODELS_MAX} names at most"));
        return Vec::new();
    }
    models
}

/// Configured in seconds, kept in whole milliseconds as the metric counts.
fn buckets(s: &mut Section) -> Vec<u64> {
    let milliseconds = |text: &str| {
        let seconds = text.parse::<f64>().ok().filter(|s| (0.001..=86_400.0).contains(s));
        let ms = seconds.map(|s| (s * 1000.0).round() as u64);
        ms.ok_or_else(|| format!("{} must be seconds, from 0.001 to 86400", value::quoted(text)))
    };
    let Some(buckets) = s.list("latency_buckets", milliseconds) else {
        return BUCKETS_MS.to_vec();
    };
    if s.desk.has_errors() {
        return buckets;
    }
    if buckets.is_empty() || buckets.len() > 64 || !buckets.is_sorted_by(|a, b| a < b) {
        s.error("latency_buckets", "must be 1 to 64 seconds values, each above the one before");
        return BUCKETS_MS.to_vec();
    }
    buckets
}

fn labels(s: &mut Section) -> Vec<String> {
    let label = |text: &str| {
        let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        if text == "api_key" {
            return Err(
                "a key must not become a label: everyone who reads metrics would see it".into()
            );
        }
        if text.is_empty()
            || text.starts_with(|c: char| c.is_ascii_digit())
            || !text.bytes().all(fine)
        {
            return Err(format!("{} is not the name of a label", value::quoted(text)));
        }
        Ok(text.to_owned())
    };
    s.list("custom_labels", label).unwrap_or_default()
}
