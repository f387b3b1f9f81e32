use super::*;
use crate::control::roster::Opinion;
use std::sync::LazyLock;
use std::time::Duration;

static BASE: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A name that would clear a terminal.
const ODD: &str = "gpu\u{1b}[2J";

fn entry(name: &str, state: Condition) -> RosterEntry {
    let well = || Opinion { well: true, since_s: 1.0, why: None };
    RosterEntry {
        name: name.into(),
        url: "http://a".into(),
        addresses: Vec::new(),
        engine: "vllm".into(),
        models: Vec::new(),
        region: String::new(),
        backup: false,
        state,
        probes: well(),
        requests: well(),
        next_try_s: None,
        full_s: None,
        weight: 10,
        weight_now: 10.0,
        inflight: 3,
        max_concurrent: 16,
        picked: 0,
        failed: 0,
        first_token_median_ms: None,
        first_token_lately_ms: None,
    }
}

/// A process with two backends, so many seconds after the first sight of all.
pub fn sight(pid: u32, uptime_s: f64, at_s: u64, page: &str) -> TopSight {
    let odd = RosterEntry {
        inflight: 0,
        max_concurrent: 0,
        weight_now: 2.5,
        ..entry(ODD, Condition::Ejected)
    };
    let roster = Roster {
        version: 1,
        llmproxy: "1.2.3".into(),
        pid,
        uptime_s,
        config_sha256: String::new(),
        load_balance: String::new(),
        region: String::new(),
        backends: vec![entry("gpu-1", Condition::Up), odd],
    };
    TopSight { at: *BASE + Duration::from_secs(at_s), roster, page: MetricsPage::read(page) }
}

const BEFORE: &str = "\
llmproxy_requests_total{path=\"a\",backend=\"gpu-1\"} 60
llmproxy_requests_total{path=\"b\",backend=\"none\"} 40
llmproxy_usage_tokens_total{type=\"prompt\"} 1000
llmproxy_usage_tokens_total{type=\"completion\"} 2000
llmproxy_ttft_ms_bucket{le=\"10.0\",backend=\"gpu-1\"} 5
llmproxy_ttft_ms_bucket{le=\"+Inf\",backend=\"gpu-1\"} 7
gen_ai_server_time_to_first_token_seconds_bucket{le=\"0.02\",server_address=\"gpu-1\"} 6
gen_ai_server_time_to_first_token_seconds_bucket{le=\"+Inf\",server_address=\"gpu-1\"} 7
llmproxy_inter_token_seconds_bucket{le=\"+Inf\",backend=\"gpu-1\"} 0
llmproxy_rejected_total{reason=\"rate_limited\"} 2
llmproxy_rejected_total{reason=\"backends_full\"} 8
llmproxy_backend_picked_total{backend=\"gpu-1\"} 40
llmproxy_backend_picked_total{backend=\"gpu\u{1b}[2J\"} 4
llmproxy_backend_failures_total{backend=\"gpu-1\"} 1
llmproxy_backend_failures_total{backend=\"gpu\u{1b}[2J\"} 2
";

const NOW: &str = "\
llmproxy_workers{driver=\"io_uring\"} 4
llmproxy_workers_silent 0
llmproxy_connections_open 12
llmproxy_requests_active 3
llmproxy_queue_waiting 1
llmproxy_requests_total{path=\"a\",backend=\"gpu-1\"} 68
llmproxy_requests_total{path=\"b\",backend=\"none\"} 42
llmproxy_usage_tokens_total{type=\"prompt\"} 1100
llmproxy_usage_tokens_total{type=\"completion\"} 2250
llmproxy_ttft_ms_bucket{le=\"10.0\",backend=\"gpu-1\"} 5
llmproxy_ttft_ms_bucket{le=\"+Inf\",backend=\"gpu-1\"} 17
gen_ai_server_time_to_first_token_seconds_bucket{le=\"0.02\",server_address=\"gpu-1\"} 16
gen_ai_server_time_to_first_token_seconds_bucket{le=\"+Inf\",server_address=\"gpu-1\"} 17
llmproxy_inter_token_seconds_bucket{le=\"0.01\",backend=\"gpu-1\"} 0
llmproxy_inter_token_seconds_bucket{le=\"0.02\",backend=\"gpu-1\"} 30
llmproxy_inter_token_seconds_bucket{le=\"+Inf\",backend=\"gpu-1\"} 30
llmproxy_rejected_total{reason=\"rate_limited\"} 4
llmproxy_rejected_total{reason=\"backends_full\"} 9
llmproxy_reporter_queue{reporter=\"ho\u{1b}k\"} 8
llmproxy_reporter_queue{reporter=\"b\"} 3
llmproxy_reporter_lag_seconds{reporter=\"ho\u{1b}k\"} 90
llmproxy_reporter_up{reporter=\"ho\u{1b}k\"} 0
llmproxy_reporter_up{reporter=\"b\"} 1
llmproxy_backend_picked_total{backend=\"gpu-1\"} 48
llmproxy_backend_picked_total{backend=\"gpu\u{1b}[2J\"} 6
llmproxy_backend_failures_total{backend=\"gpu-1\"} 1
llmproxy_backend_failures_total{backend=\"gpu\u{1b}[2J\"} 3
";

/// A gateway that has something of everything to show, over two seconds.
pub fn busy() -> TopSnapshot {
    TopSnapshot::of(&sight(7, 7500.0, 2, NOW), Some(&sight(7, 7498.0, 0, BEFORE)))
}

fn flow(total: u64, per_second: f64) -> Flow {
    Flow { total, per_second: Some(per_second) }
}

/// Catches: a count of another series, a rate over another time than it was counted in.
#[test]
fn what_happened_between_two_sights_is_counted() {
    let it = busy();
    assert_eq!((it.interval_s, it.requests), (Some(2.0), flow(110, 5.0)));
    assert_eq!((it.prompt_tokens, it.completion_tokens), (flow(1100, 50.0), flow(2250, 125.0)));
    assert_eq!(it.refused["rate_limited"], flow(4, 1.0));
    // All ten of this time lie between 10 and 20 ms, of which each name tells one bound.
    let wanted = Spread { p50: Some(15.0), p95: Some(19.5) };
    assert_eq!((it.first_token_ms, it.inter_token_ms), (wanted, wanted));
    let [first, odd] = &it.backends[..] else { panic!() };
    assert_eq!(
        (first.tries, first.failed, first.first_token_ms),
        (flow(48, 4.0), flow(1, 0.0), wanted)
    );
    assert_eq!((odd.tries, odd.failed), (flow(6, 1.0), flow(3, 0.5)));
    assert_eq!(odd.first_token_ms, Spread::default());
    let away = vec!["ho\u{1b}k".to_owned()];
    assert_eq!(it.journal, TopJournal { waiting: 8, oldest_s: 90, away, failing: false });
}

/// Catches: figures of a process that ended taken for those of its successor, a division by no
/// time, and a flood of requests when a worker that was silent is heard again.
#[test]
fn what_cannot_be_compared_gives_no_rate() {
    let now = sight(7, 7500.0, 2, NOW);
    let silent = format!("{BEFORE}llmproxy_workers_silent 1\n");
    for before in [
        None,
        Some(sight(8, 7498.0, 0, BEFORE)),
        Some(sight(7, 7501.0, 0, BEFORE)),
        Some(sight(7, 7500.0, 2, BEFORE)),
        Some(sight(7, 7499.0, 3, BEFORE)),
        Some(sight(7, 7498.0, 0, &silent)),
    ] {
        let it = TopSnapshot::of(&now, before.as_ref());
        assert_eq!((it.interval_s, it.requests.per_second), (None, None));
        assert_eq!((it.requests.total, it.first_token_ms), (110, Spread::default()));
        assert!(it.backends.iter().all(|backend| backend.tries.per_second.is_none()));
    }
}

/// Catches: a negative rate of a backend that came back under its name and counts anew, and times
/// that are told of it.
#[test]
fn a_counter_that_began_anew_counts_from_nothing() {
    let before = "llmproxy_backend_picked_total{backend=\"gpu-1\"} 500\n\
                  llmproxy_ttft_ms_bucket{le=\"10.0\",backend=\"gpu-1\"} 90\n\
                  llmproxy_ttft_ms_bucket{le=\"+Inf\",backend=\"gpu-1\"} 100\n";
    let now = "llmproxy_backend_picked_total{backend=\"gpu-1\"} 6\n\
               llmproxy_ttft_ms_bucket{le=\"10.0\",backend=\"gpu-1\"} 0\n\
               llmproxy_ttft_ms_bucket{le=\"20.0\",backend=\"gpu-1\"} 4\n\
               llmproxy_ttft_ms_bucket{le=\"+Inf\",backend=\"gpu-1\"} 4\n";
    let it = TopSnapshot::of(&sight(7, 9.0, 2, now), Some(&sight(7, 7.0, 0, before)));
    assert_eq!(it.backends[0].tries, flow(6, 3.0));
    assert_eq!(it.first_token_ms.p50, Some(15.0));
    // What was there before and is gone gives nothing.
    let none = TopSnapshot::of(&sight(7, 9.0, 2, ""), Some(&sight(7, 7.0, 0, before)));
    assert_eq!((none.backends[0].tries, none.first_token_ms), (flow(0, 0.0), Spread::default()));
}

/// Catches: a quantile of no times, one beyond all bounds, one that is not where the times are.
#[test]
fn quantiles_are_told_from_buckets() {
    let buckets = |counts: &[(u64, f64)]| counts.iter().copied().collect::<TimeBuckets>();
    assert_eq!(quantile_ms(&TimeBuckets::new(), 0.5), None);
    assert_eq!(quantile_ms(&buckets(&[(10_000, 0.0), (UNBOUNDED, 0.0)]), 0.5), None);
    let mixed = buckets(&[(10_000, 4.0), (20_000, 4.0), (40_000, 8.0), (UNBOUNDED, 10.0)]);
    assert_eq!(quantile_ms(&mixed, 0.4), Some(10.0));
    assert_eq!(quantile_ms(&mixed, 0.5), Some(25.0));
    assert_eq!(quantile_ms(&mixed, 0.95), Some(40.0), "nobody knows how much longer");
    assert_eq!(quantile_ms(&buckets(&[(UNBOUNDED, 3.0)]), 0.5), Some(0.0));
}
