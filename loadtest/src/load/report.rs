//! Results as JSON and as a table.

use hdrhistogram::Histogram;
use serde_json::{json, Value};

use super::plan::Plan;
use super::run::Outcome;

/// The results as one JSON object; times are microseconds.
pub fn to_json(plan: &Plan, outcome: &Outcome) -> Value {
    let (all, measured) = (&outcome.all, &outcome.measured);
    let per_second = |count: u64| match measured.seconds {
        0.0 => 0.0,
        seconds => count as f64 / seconds,
    };
    json!({
        "mode": if plan.rate.is_some() { "open" } else { "closed" },
        "stream": plan.stream,
        "verified": plan.verify,
        "connections": plan.connections,
        "active": plan.active(),
        "seconds": measured.seconds,
        "requests": all.ok,
        "errors": all.failed(),
        "errors_by_kind": all.errors,
        "aborted": all.aborted,
        "unfinished": all.unfinished,
        "rps": per_second(measured.ok),
        "events": all.events,
        "events_per_second": per_second(measured.events),
        "bytes": all.bytes,
        "bytes_per_second": per_second(measured.bytes),
        "measured_requests": measured.ok,
        "measured_events": measured.events,
        "connects": all.connects,
        "stale_reconnects": all.stale,
        "connections_max": all.open_max,
        "ttft_us": times(&all.ttft_us),
        "gap_us": times(&all.gap_us),
        "total_us": times(&all.total_us),
    })
}

fn times(histogram: &Histogram<u64>) -> Value {
    json!({
        "count": histogram.len(),
        "mean": histogram.mean(),
        "min": histogram.min(),
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

/// The results for people.
pub fn to_table(outcome: &Outcome) -> String {
    let (all, measured) = (&outcome.all, &outcome.measured);
    let seconds = measured.seconds.max(f64::MIN_POSITIVE);
    let mut text = format!(
        "{:.2} s   {} ok   {} failed   {} aborted   {} unfinished   {} stale reconnects\n\
         {:.0} requests/s   {:.0} events/s   {:.2} MB/s\n",
        measured.seconds,
        all.ok,
        all.failed(),
        all.aborted,
        all.unfinished,
        all.stale,
        measured.ok as f64 / seconds,
        measured.events as f64 / seconds,
        measured.bytes as f64 / seconds / 1e6,
    );
    for (kind, count) in &all.errors {
        text.push_str(&format!("  {kind}: {count}\n"));
    }
    text.push_str("milliseconds       p50       p90       p99     p99.9       max     count\n");
    for (name, histogram) in
        [("first byte", &all.ttft_us), ("gap", &all.gap_us), ("total", &all.total_us)]
    {
        text.push_str(&format!("{name:<11}"));
        for quantile in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let ms = histogram.value_at_quantile(quantile) as f64 / 1000.0;
            text.push_str(&format!("{ms:>10.3}"));
        }
        text.push_str(&format!("{:>10}\n", histogram.len()));
    }
    text
}
