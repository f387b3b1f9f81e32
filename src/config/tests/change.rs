//! What a reload would change, and what of it needs a restart.

use super::*;
use crate::config::change::{compare, Changes};
use std::collections::BTreeSet;

fn between(old: &str, new: &str) -> Changes {
    compare(&load(old).plan, &load(new).plan)
}

fn lines(old: &str, new: &str) -> Vec<String> {
    between(old, new).lines()
}

const TWO: &str = "backends: [{name: a, url: 'http://a'}, {name: b, url: 'http://b', weight: 2}]\n";

#[test]
fn each_change_of_a_backend_is_told_once() {
    for (new, told) in [
        (TWO, &[][..]),
        (
            "backends: [{name: b, url: 'http://b', weight: 5}, {name: c, url: 'http://c'}]",
            &[
                "backend c (http://c): added",
                "backend a (http://a): removed",
                "backends[b].weight: 2 -> 5",
            ],
        ),
        (
            "backends: [{name: z, url: 'http://a'}, {name: b, url: 'http://b', weight: 2}]",
            &["backend a: renamed to z"],
        ),
        (
            "backends: [{name: z, url: 'http://a'}, {name: b, url: 'http://b', idle_timeout: 9s}]",
            &[
                "backend a: renamed to z",
                "backends[b].idle_timeout: 120s -> 9s",
                "backends[b].weight: 2 -> 1",
            ],
        ),
    ] {
        assert_eq!(lines(TWO, new), told, "{new}");
    }
}

#[test]
fn lists_show_what_comes_and_goes() {
    let with = |paths: &str| format!("server: {{paths: [{paths}]}}");
    let of = |new| lines(&with("/v1/models, /ping"), &with(new)).concat();
    assert_eq!(of("/ping, /version"), "server.paths: -/v1/models +/version");
    assert_eq!(of("/ping, /v1/models"), "server.paths: in another order");
}

/// Catches: a new token that passes for the old one, and one that is shown.
#[test]
fn a_secret_that_changes_is_noticed_and_not_shown() {
    let with = |secret: &str| {
        format!(
            "backends: [{{name: a, url: 'http://a', api_key: {secret}}}]\nusage: {{reporters: \
             [{{name: w, webhook: {{url: 'http://w/?{secret}', hmac_secret: {secret}}}}}, {{name: \
             d, type: database, database: {{driver: mysql, dsn: 'u:{secret}@tcp(h)/d'}}}}]}}\n"
        )
    };
    assert!(between(&with("hunter2"), &with("hunter2")).is_empty());
    let told = lines(&with("hunter2"), &with("hunter3"));
    let wanted = [
        "backends[a].headers.Authorization: ***, changed",
        "usage.reporters[d].database.password: ***, changed (needs a restart)",
        "usage.reporters[w].webhook.hmac_secret: ***, changed (needs a restart)",
        "usage.reporters[w].webhook.url: http://w/?***, changed (needs a restart)",
    ];
    assert_eq!(told, wanted);
    assert!(!super::super::print(&load(&with("hunter2")).plan).unwrap().contains('\u{f8ff}'));
}

/// What needs a restart, each with a value that is not the default.
const BOOT: &str = "server: {listen: ':9', workers: 3, cpu_affinity: [0], pid_file: /p}\n\
                    log: {output: stderr, flight_recorder: 7}\nlogging: {access: {}}\nmetrics: {listen: '127.0.0.1:1'}\n\
                    usage: {api_key: none, spool: {dir: /x}, reporters: [{type: builtin}]}\n";

#[test]
fn what_needs_a_restart_stays_and_the_rest_applies() {
    let running = load("").plan;
    let both = format!("{BOOT}routing: {{}}\nbackends: [{{url: 'http://a'}}]\n");
    let mut next = load(&both.replace("workers: 3", "workers: 3, max_body_size: 1MiB")).plan;
    let kept = next.keep_boot_of(&running);
    let all = [
        "server.listen",
        "server.pid_file",
        "server.workers",
        "server.cpu_affinity",
        "log.output",
        "log.flight_recorder",
        "logging.access",
        "usage.reporters",
        "usage.api_key",
        "usage.spool",
        "metrics.listen",
    ];
    assert_eq!(kept, all);
    assert_eq!(next.server.max_body_size, 1 << 20);
    assert_eq!(next.backends.len(), 1);
    assert_eq!(next.metrics.as_ref().unwrap().listen, None);
    assert!(next.usage.reporters.is_empty() && next.log == running.log);
    assert!(next.keep_boot_of(&running).is_empty(), "it is what runs now");
}

/// Catches: spans that go on being made, or are lost, behind a reload that says otherwise.
#[test]
fn how_many_requests_are_traced_applies_and_where_spans_go_stays() {
    let otlp = |more: &str| format!("tracing: {{otlp: {{endpoint: 'http://{more}}}}}");
    let running = load(&otlp("a', sample_ratio: 0.5")).plan;
    let mut next = load(&otlp("a', sample_ratio: 0.25")).plan;
    assert!(next.keep_boot_of(&running).is_empty());
    assert_eq!(next.tracing.as_ref().unwrap().sample_ratio, 0.25);
    let mut next = load(&otlp("b', sample_ratio: 0.25")).plan;
    assert_eq!(next.keep_boot_of(&running), ["tracing.otlp"]);
    let kept = next.tracing.unwrap();
    assert_eq!((kept.endpoint.reveal(), kept.sample_ratio), ("http://a/v1/traces", 0.25));
    let mut off = load("").plan;
    assert!(off.keep_boot_of(&running).is_empty() && off.tracing.is_none());
    let mut on = load(&otlp("a'")).plan;
    assert_eq!(on.keep_boot_of(&off), ["tracing.otlp"]);
    assert!(on.tracing.is_none());
}

/// Catches: a key that a reload keeps and that `check --against` says it applies.
#[test]
fn each_key_that_stays_is_said_to() {
    let changes = between("usage: {}", BOOT);
    let restart: BTreeSet<&str> = changes.restart_keys().collect();
    let live: Vec<_> = changes.keys.iter().filter(|c| !c.needs_restart).collect();
    assert!(live.is_empty(), "{live:#?}");
    assert!(restart.contains("server.listen") && restart.contains("usage.spool.dir"));
    let listen = lines(BOOT, &BOOT.replace("':9'", "':8'"));
    assert_eq!(listen, ["server.listen: [::]:9 -> [::]:8 (needs a restart)"]);
}

/// Catches: CPUs that nobody chose, named as a change of their own because there are more workers;
/// and such that somebody chose, not named.
#[test]
fn what_follows_from_another_key_is_no_change() {
    let told = lines("server: {workers: 1}", "server: {workers: 2}");
    assert_eq!(told, ["server.workers: 1 -> 2 (needs a restart)"]);
    let mut next = load("server: {workers: 2}").plan;
    assert_eq!(next.keep_boot_of(&load("server: {workers: 1}").plan), ["server.workers"]);
    let chosen = between("server: {workers: 1}", "server: {workers: 1, cpu_affinity: off}");
    assert_eq!(chosen.restart_keys().collect::<Vec<_>>(), ["server.cpu_affinity"]);
}

/// Catches: a page of metrics that moves to where the clients are, and so to everybody.
#[test]
fn a_page_of_metrics_stays_where_it_is() {
    let page = |text: &str| load(text).plan.metrics;
    for (running, new, kept) in [
        ("metrics: {listen: '127.0.0.1:1'}", "metrics: {path: /m}", Some("127.0.0.1:1")),
        ("metrics: {listen: '127.0.0.1:1'}", "metrics: {enabled: false}", Some("127.0.0.1:1")),
        ("metrics: {enabled: false}", "metrics: {listen: '127.0.0.1:1'}", None),
    ] {
        let mut next = load(new).plan;
        assert_eq!(next.keep_boot_of(&load(running).plan), ["metrics.listen"], "{new}");
        let listen = next.metrics.as_ref().map(|m| m.listen);
        assert_eq!(listen, kept.map(|text| Some(text.parse().unwrap())), "{new}");
    }
    let mut next = load("metrics: {path: /m}").plan;
    assert_eq!(next.keep_boot_of(&load("").plan), [""; 0]);
    assert_eq!(next.metrics, page("metrics: {path: /m}"));
}

#[test]
fn whatever_a_file_says_is_no_change_of_itself() {
    for text in [example::example(), example::uncommented(), String::new()] {
        assert!(between(&text, &text).is_empty());
    }
    let far = between("", &example::uncommented());
    assert!(far.keys.len() > 100 && far.lines().iter().all(|line| line.chars().count() < 300));
}
