//! The metrics page: every name that dashboards use, labels that no client can multiply, and what a
//! scraper expects of it.

use crate::clients::is_there;
use crate::harness::config::PLAIN;
use crate::harness::metrics::Metrics;
use crate::harness::{Config, Conn, Engine, Proxy, SOON};
use crate::rig::{Rig, CHAT, CHATS, STREAM};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

const USAGE: &str =
    r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}"#;

/// Every family, its type, and the labels that its series have.
const FAMILIES: &[(&str, &str, &[&str])] = &[
    ("llmproxy_log_dropped_total", "counter", &[]),
    ("llmproxy_idle_closed_total", "counter", &["side"]),
    ("llmproxy_requests_total", "counter", &["path", "stream", "backend", "status"]),
    ("llmproxy_latency_ms", "histogram", &["path", "stream", "backend"]),
    ("llmproxy_webhook_success_total", "counter", &[]),
    ("llmproxy_webhook_failure_total", "counter", &[]),
    ("llmproxy_usage_tokens_total", "counter", &["type"]),
    ("llmproxy_tokens_total", "counter", &["type", "model", "backend"]),
    ("llmproxy_ttft_ms", "histogram", &["backend", "model"]),
    ("llmproxy_inter_token_seconds", "histogram", &["backend"]),
    (
        "gen_ai_server_request_duration_seconds",
        "histogram",
        &["gen_ai_operation_name", "server_address"],
    ),
    (
        "gen_ai_server_time_to_first_token_seconds",
        "histogram",
        &["gen_ai_request_model", "server_address"],
    ),
    ("gen_ai_server_time_per_output_token_seconds", "histogram", &["server_address"]),
    (
        "gen_ai_client_token_usage",
        "histogram",
        &["gen_ai_operation_name", "gen_ai_token_type", "gen_ai_request_model", "server_address"],
    ),
    ("llmproxy_upstream_connect_seconds", "histogram", &[]),
    ("llmproxy_inflight", "gauge", &["backend"]),
    ("llmproxy_backend_up", "gauge", &["backend"]),
    ("llmproxy_backend_full", "gauge", &["backend"]),
    ("llmproxy_backend_picked_total", "counter", &["backend"]),
    ("llmproxy_backend_failures_total", "counter", &["backend"]),
    ("llmproxy_backend_info", "gauge", &["backend", "engine"]),
    ("llmproxy_backend_ejections_total", "counter", &["backend"]),
    ("llmproxy_preambles_held_total", "counter", &["result"]),
    ("llmproxy_retries_total", "counter", &["reason"]),
    ("llmproxy_fallback_total", "counter", &[]),
    ("llmproxy_spilled_total", "counter", &[]),
    ("llmproxy_auth_cache_total", "counter", &["result"]),
    ("llmproxy_affinity_total", "counter", &["kind", "result"]),
    ("llmproxy_affinity_lost_total", "counter", &[]),
    ("llmproxy_affinity_evicted_total", "counter", &[]),
    ("llmproxy_queue_waiting", "gauge", &[]),
    ("llmproxy_queue_total", "counter", &["result"]),
    ("llmproxy_queue_wait_seconds", "histogram", &[]),
    ("llmproxy_rejected_total", "counter", &["reason"]),
    ("llmproxy_client_abort_total", "counter", &["phase"]),
    ("llmproxy_faults_total", "counter", &["backend", "kind"]),
    ("llmproxy_upstream_connections_total", "counter", &["reused"]),
    ("llmproxy_upstream_idle", "gauge", &[]),
    ("llmproxy_usage_missing_total", "counter", &[]),
    ("llmproxy_usage_odd_total", "counter", &["reason"]),
    ("llmproxy_events_unjudged_total", "counter", &[]),
    ("llmproxy_sse_keepalives_total", "counter", &[]),
    ("llmproxy_sse_early_heads_total", "counter", &[]),
    ("llmproxy_backend_refuses_stream_usage", "gauge", &["backend"]),
    ("llmproxy_backend_unasked_answers_total", "counter", &["backend"]),
    ("llmproxy_stream_usage_models_forgotten_total", "counter", &["backend"]),
    ("llmproxy_usage_ring_bytes", "gauge", &[]),
    ("llmproxy_usage_rings_volatile", "gauge", &[]),
    ("llmproxy_usage_dropped_total", "counter", &["kind"]),
    ("llmproxy_usage_bodies_dropped_total", "counter", &[]),
    ("llmproxy_usage_lines_mended_total", "counter", &[]),
    ("llmproxy_reporter_retries_total", "counter", &["reporter"]),
    ("llmproxy_reporter_delivered_total", "counter", &["reporter"]),
    ("llmproxy_reporter_dead_letters_total", "counter", &["reporter"]),
    ("llmproxy_reporter_dead_letters_waiting", "gauge", &["reporter"]),
    ("llmproxy_reporter_up", "gauge", &["reporter"]),
    ("llmproxy_reporter_tries_total", "counter", &["reporter"]),
    ("llmproxy_reporter_failures_total", "counter", &["reporter"]),
    ("llmproxy_reporter_queue", "gauge", &["reporter"]),
    ("llmproxy_reporter_lag_seconds", "gauge", &["reporter"]),
    ("llmproxy_usage_unpacked_total", "counter", &["result"]),
    ("llmproxy_journal_failing", "gauge", &[]),
    ("llmproxy_journal_bytes", "gauge", &["place"]),
    ("llmproxy_journal_entries_total", "counter", &[]),
    ("llmproxy_journal_commits_total", "counter", &[]),
    ("llmproxy_journal_errors_total", "counter", &["kind"]),
    ("llmproxy_journal_dropped_total", "counter", &["kind"]),
    ("llmproxy_journal_damaged_bytes_total", "counter", &[]),
    ("llmproxy_journal_damaged_places_total", "counter", &[]),
    ("llmproxy_journal_folders_adopted", "gauge", &[]),
    ("llmproxy_journal_folders_lost_total", "counter", &[]),
    ("llmproxy_journal_aborted_total", "counter", &[]),
    ("llmproxy_access_log_dropped_total", "counter", &[]),
    ("llmproxy_trace_spans_total", "counter", &["result"]),
    ("llmproxy_metrics_pages_refused_total", "counter", &[]),
    ("llmproxy_connections_total", "counter", &[]),
    ("llmproxy_crowded_closed_total", "counter", &["kind"]),
    ("llmproxy_bodies_waited_total", "counter", &["step"]),
    ("llmproxy_connections_refused_total", "counter", &[]),
    ("llmproxy_connections_open", "gauge", &[]),
    ("llmproxy_drains", "gauge", &[]),
    ("llmproxy_accept_pauses_total", "counter", &[]),
    ("llmproxy_tls_handshakes_total", "counter", &["version"]),
    ("llmproxy_tls_handshakes_failed_total", "counter", &["reason"]),
    ("llmproxy_large_reads_denied_total", "counter", &["kind"]),
    ("llmproxy_panics_total", "counter", &[]),
    ("llmproxy_requests_active", "gauge", &[]),
    ("llmproxy_buffers", "gauge", &["state"]),
    ("llmproxy_buffered_bytes", "gauge", &[]),
    ("llmproxy_buffered_bytes_max", "gauge", &[]),
    ("llmproxy_workers", "gauge", &["driver"]),
    ("llmproxy_workers_silent", "gauge", &[]),
    ("llmproxy_config_info", "gauge", &["sha256"]),
    ("llmproxy_counters_used", "gauge", &["part"]),
    ("llmproxy_counters_entries", "gauge", &["part"]),
    ("llmproxy_counters_replaced_total", "counter", &[]),
    ("llmproxy_counters_full_total", "counter", &[]),
    ("llmproxy_config_last_reload_success_timestamp_seconds", "gauge", &[]),
    ("llmproxy_config_last_reload_successful", "gauge", &[]),
    ("llmproxy_config_reload_failure_total", "counter", &[]),
    ("llmproxy_upgrade_failure_total", "counter", &[]),
    ("llmproxy_config_reload_success_total", "counter", &[]),
    ("llmproxy_build_info", "gauge", &["version", "arch", "profile"]),
    ("process_cpu_seconds_total", "counter", &[]),
    ("process_start_time_seconds", "gauge", &[]),
    ("process_resident_memory_bytes", "gauge", &[]),
    ("process_virtual_memory_bytes", "gauge", &[]),
    ("process_open_fds", "gauge", &[]),
    ("process_max_fds", "gauge", &[]),
    ("process_threads", "gauge", &[]),
];

/// Names that Prometheus would rather have in seconds. Existing dashboards have them so.
const IN_MILLISECONDS: [&str; 2] = ["llmproxy_latency_ms", "llmproxy_ttft_ms"];

/// A page on which every family has a series.
fn full_page() -> (Rig, Metrics) {
    let limits = "rate_limit: {global: {requests_per_second: 100000}}";
    // There is a family more where certificates are shown.
    let rig = Rig::with("", |config| config.section(limits).server(PLAIN));
    for body in [CHAT, STREAM, USAGE] {
        rig.ask(body, "x-mock-gap-ms: 5\r\n").response();
    }
    rig.proxy.get("/nowhere");
    rig.ask(STREAM, "x-mock-die-after: 2\r\n").response();
    drop(rig.ask(STREAM, "x-mock-stall-before-head: 1\r\n"));
    rig.proxy.await_metric("llmproxy_client_abort_total", &[], 1.0);
    rig.engine.set("refuse-stream-options=400");
    rig.ask(STREAM, "").response();
    let page = rig.proxy.metrics();
    (rig, page)
}

/// Catches: a name, a type or a label that a dashboard or an alert goes by, changed or lost.
#[test]
fn every_family_is_there_with_its_labels() {
    let (_rig, page) = full_page();
    for (name, kind, labels) in FAMILIES.iter().copied() {
        assert!(page.text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        assert!(page.text.contains(&format!("# HELP {name} ")), "{name} has no help");
        let suffix = if kind == "histogram" { "_count" } else { "" };
        let full = format!("{name}{suffix}");
        let sample = page.samples.iter().find(|sample| sample.name == full);
        let sample = sample.unwrap_or_else(|| panic!("{name} has no series: {}", page.text));
        let names: Vec<&str> = sample.labels.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, labels, "{name}");
    }
    let known: BTreeSet<&str> = FAMILIES.iter().map(|(name, ..)| *name).collect();
    let types = page.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let found: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(found.difference(&known).collect::<Vec<_>>(), Vec::<&&str>::new(), "not listed");
}

/// Catches: a page that a scraper cannot read, or reads with a warning.
#[test]
fn promtool_finds_nothing_but_the_milliseconds() {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let child = command.stdout(Stdio::piped()).spawn();
    if !is_there("promtool_finds_nothing_but_the_milliseconds", child.is_ok()) {
        return;
    }
    let mut child = child.unwrap();
    let (_rig, page) = full_page();
    child.stdin.take().unwrap().write_all(page.text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let complaints: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let allowed: BTreeSet<String> = IN_MILLISECONDS
        .iter()
        .map(|name| format!("{name} metric names should not contain abbreviated units"))
        .collect();
    let allowed: BTreeSet<&str> = allowed.iter().map(String::as_str).collect();
    assert_eq!(complaints, allowed, "{text}");
}

/// Catches: histograms that do not add up, or bounds other than the seeds'.
#[test]
fn histograms_add_up() {
    let (_rig, page) = full_page();
    let bounds: BTreeSet<&str> = page
        .samples
        .iter()
        .filter(|sample| sample.name == "llmproxy_latency_ms_bucket")
        .filter_map(|sample| sample.labels.iter().find(|(name, _)| name == "le"))
        .map(|(_, bound)| bound.as_str())
        .collect();
    for bound in ["10", "50", "100", "200", "500", "1000", "2000", "5000", "10000", "600000"] {
        let spelled = [bound.to_owned(), format!("{bound}.0")];
        assert!(spelled.iter().any(|b| bounds.contains(b.as_str())), "{bound}: {bounds:?}");
    }
    for name in IN_MILLISECONDS {
        let count = page.sum(&format!("{name}_count"), &[]);
        assert!(count > 0.0, "{name}");
        assert_eq!(page.sum(&format!("{name}_bucket"), &[("le", "+Inf")]), count, "{name}");
        let mut last = ("", 0.0);
        let buckets = page.samples.iter().filter(|s| s.name == format!("{name}_bucket"));
        for sample in buckets {
            let series = sample.labels.iter().find(|(k, _)| k == "backend");
            let series = series.map_or("", |(_, value)| value.as_str());
            let at_end = sample.labels.iter().any(|(k, v)| k == "le" && v == "+Inf");
            assert!(series != last.0 || sample.value >= last.1, "{name} falls: {sample:?}");
            last = if at_end { ("", 0.0) } else { (series, sample.value) };
        }
    }
}

/// Catches: names of OpenTelemetry that show other figures than our own beside them.
#[test]
fn other_names_show_the_same_figures() {
    let (_rig, page) = full_page();
    let first = "gen_ai_server_time_to_first_token_seconds";
    let count = page.sum(&format!("{first}_count"), &[]);
    assert!(count > 0.0, "{}", page.text);
    assert_eq!(count, page.sum("llmproxy_ttft_ms_count", &[]));
    let (ours, theirs) =
        (page.sum("llmproxy_ttft_ms_sum", &[]), page.sum(&format!("{first}_sum"), &[]));
    assert!((ours - theirs * 1000.0).abs() < 0.001, "{ours} ms, {theirs} s");
    let duration = "gen_ai_server_request_duration_seconds_count";
    let chats = [("path", "/v1/chat/completions")];
    let asked = page.sum(duration, &[("gen_ai_operation_name", "chat")]);
    assert_eq!(asked, page.sum("llmproxy_latency_ms_count", &chats));
    let gaps = "gen_ai_server_time_per_output_token_seconds_count";
    assert_eq!(page.sum(gaps, &[]), page.sum("llmproxy_inter_token_seconds_count", &[]));
    let tokens = "gen_ai_client_token_usage";
    for (theirs, ours) in [("input", "prompt"), ("output", "completion")] {
        let kind = [("gen_ai_token_type", theirs)];
        let chats =
            page.sum(&format!("{tokens}_sum"), &[kind[0], ("gen_ai_operation_name", "chat")]);
        assert!(chats > 0.0, "{theirs}: {}", page.text);
        let sum = page.sum(&format!("{tokens}_sum"), &kind);
        assert!(sum > 0.0, "{theirs}: {}", page.text);
        assert_eq!(sum, page.sum("llmproxy_tokens_total", &[("type", ours)]), "{theirs}");
        // Of each request one, in the bucket that holds it and in all that are larger.
        let (count, all) = (format!("{tokens}_count"), [kind[0], ("le", "67108864.0")]);
        assert_eq!(page.sum(&count, &kind), page.sum(&format!("{tokens}_bucket"), &all));
        let none = [kind[0], ("le", "1.0")];
        assert_eq!(page.sum(&format!("{tokens}_bucket"), &none), 0.0, "{theirs}");
    }
}

/// Catches: a series for each path that a client thinks of, until memory is full.
#[test]
fn clients_cannot_make_series() {
    let rig = Rig::new();
    rig.proxy.get("/health");
    let series = |page: &Metrics| page.samples.len();
    rig.proxy.post("/v1/first", CHAT);
    rig.proxy.get("/first");
    rig.proxy.await_metric("llmproxy_requests_total", &[("path", "other")], 2.0);
    let before = rig.proxy.metrics();
    for n in 0..50 {
        rig.proxy.post(&format!("/v1/{n}"), CHAT.replace("\"m\"", &format!("\"m{n}\"")));
        rig.proxy.get(&format!("/{n}?model={n}"));
        rig.proxy.connect().send(format!("M{n} / HTTP/1.1\r\nHost: h{n}\r\n\r\n")).response();
    }
    rig.proxy.await_metric("llmproxy_requests_total", &[], 152.0);
    let after = rig.proxy.metrics();
    // The refusal of the odd methods is new, in two families.
    assert!(series(&after) <= series(&before) + 4, "{}", after.text);
}

/// Catches: a page that clients can read although it has an address of its own.
#[test]
fn the_page_can_have_its_own_address() {
    let engine = Engine::start(&[]);
    let config = Config::backend_at(engine.url());
    let proxy = config.section("metrics: {listen: \"127.0.0.1:0\", path: /m}").start();
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    proxy.get("/m").assert_refused(404, "unknown_path");
    proxy.get("/metrics").assert_refused(404, "unknown_path");
    let answer = Conn::open(page).get("/m");
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.head.get("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(Metrics::parse(&answer.text()).sum("llmproxy_backend_up", &[]) > 0.0);
    assert_eq!(Conn::open(page).get("/v1/models").status(), 404);
    assert_eq!(engine.stat("probes"), 0, "it forwards nothing");
}

/// Catches: numbers of one worker taken for those of all.
#[test]
fn two_workers_serve_and_are_summed_up() {
    let rig = Rig::with("", |config| config.server("workers: 2"));
    let mut clients: Vec<Conn> = (0..40).map(|_| rig.proxy.connect()).collect();
    for client in &mut clients {
        for body in [CHAT, STREAM] {
            assert_eq!(client.post(CHATS, "", body).status(), 200);
        }
    }
    rig.proxy.await_metric("llmproxy_requests_total", &[("path", CHATS)], 80.0);
    let page = rig.proxy.metrics();
    assert_eq!(page.sum("llmproxy_workers", &[]), 2.0);
    assert_eq!(page.sum("llmproxy_workers_silent", &[]), 0.0);
    // The scrape is one.
    assert_eq!(page.sum("llmproxy_connections_open", &[]), 41.0);
    assert_eq!(page.sum("llmproxy_latency_ms_count", &[]), 80.0);
    assert_eq!(rig.hook.await_records(80, SOON).len(), 80);
    assert_eq!(per_worker_sockets(&rig.proxy), 2);
}

/// Listening sockets of a proxy: one for each worker.
fn per_worker_sockets(proxy: &Proxy) -> usize {
    let port = format!(":{:04X}", proxy.addr().port());
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", proxy.process.pid())).unwrap();
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Column 1 is the local address, 3 the state; 0A is LISTEN.
    fields.filter(|f| f.len() > 3 && f[1].ends_with(&port) && f[3] == "0A").count()
}

/// Catches: figures of the process that are another one's, or nothing.
#[test]
fn the_process_tells_of_itself() {
    let proxy = Config::backend_at("http://127.0.0.1:1").start();
    let page = proxy.metrics();
    let value = |name: &str| page.sum(name, &[]);
    let now = crate::rig::unix_ms() / 1e3;
    let started = value("process_start_time_seconds");
    // The kernel counts from a boot time in whole seconds.
    assert!(started <= now + 2.0 && started > now - 600.0, "{started} {now}");
    assert!(value("process_open_fds") >= 5.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    // The kernel counts in hundredths of a second; each page is work.
    crate::harness::await_until("it has worked for one", SOON, || {
        proxy.metric("process_cpu_seconds_total", &[]) > 0.0
    });
    assert!(value("process_threads") >= 2.0);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(page.sum("llmproxy_build_info", &version), 1.0);
}

/// Catches: records of other reporters in the counters of webhooks.
#[test]
fn webhooks_are_counted_by_themselves() {
    let (engine, scratch) = (Engine::start(&[]), crate::harness::scratch::Scratch::new());
    let file = scratch.file("usage.jsonl");
    let usage = format!(
        "usage: {{reporters: [{{name: lines, type: file, file: {{path: \"{}\"}}}}]}}",
        file.display()
    );
    let proxy = Config::backend_at(engine.url()).section(usage).start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    proxy.await_metric("llmproxy_reporter_delivered_total", &[("reporter", "lines")], 1.0);
    assert_eq!(proxy.metric("llmproxy_webhook_success_total", &[]), 0.0);
}
