//! Loads whole texts and looks at what came of them.

mod aliases;
mod change;
mod cures;
mod errors;
mod example;
mod fixtures;
mod nesting;
mod print;
mod random;

use super::*;
use crate::config::plan::*;
use std::time::Duration;

fn env(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "hunter2".to_owned())
}

fn load(text: &str) -> Loaded {
    load_text("t.yaml", text, &env).unwrap_or_else(|report| panic!("{report}\n{text}"))
}

/// The only line of a report that has one.
fn error_of(text: &str) -> String {
    let report = load_text("t.yaml", text, &env).err().unwrap_or_else(|| panic!("loads: {text}"));
    let errors: Vec<String> =
        report.lines(false).into_iter().filter(|line| line.contains(": error: ")).collect();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.concat()
}

#[test]
fn nothing_configured_is_all_defaults() {
    let Loaded { plan, report } = load("");
    assert_eq!(plan.server.listen, ["[::]:8000".parse().unwrap()]);
    assert_eq!(plan.server.max_body_size, 32 << 20);
    assert!(plan.server.workers >= 1);
    assert!(plan.backends.is_empty() && plan.health_check.is_none() && plan.auth.is_none());
    assert_eq!(plan.metrics.unwrap().path, "/metrics");
    assert!(plan.unbuilt.is_empty());
    assert!(report.findings.is_empty(), "{report}");
}

#[test]
fn a_simple_file_means_what_it_says() {
    let Loaded { plan, report } = load(
        "server: {listen: '[::1]:9000', workers: 2}\n\
         backends:\n\
         - {name: a, url: 'http://gpu-1:8000/base/', weight: 3, api_key: '${TOKEN}'}\n\
         - url: unix:/run/e.sock\n\
         health_check: {interval: 2s}\n\
         usage: {reporters: [{webhook: {url: 'http://b/x?t=${TOKEN}'}}]}\n\
         log: {level: debug, format: text, output: stderr}\n",
    );
    assert!(report.findings.is_empty(), "{report}");
    assert_eq!((plan.server.listen[0].port(), plan.server.workers), (9000, 2));
    let a = &plan.backends[0];
    assert_eq!((a.name.as_str(), a.weight, a.base_path.as_str()), ("a", 3, "/base"));
    assert_eq!(a.endpoint, Endpoint::Tcp { host: "gpu-1".into(), port: 8000 });
    assert_eq!(a.headers[0].1.reveal(), "Bearer hunter2");
    assert_eq!(plan.backends[1].endpoint, Endpoint::Unix("/run/e.sock".into()));
    assert_eq!(plan.health_check.unwrap().timeout, Duration::from_secs(2));
    let ReporterKind::Webhook(webhook) = &plan.usage.reporters[0].kind else { panic!() };
    assert_eq!(webhook.url.reveal(), "http://b/x?t=hunter2");
}

#[test]
fn an_error_names_file_line_column_key_and_limit() {
    assert_eq!(
        error_of("backends:\n  - url: http://a\n  - url: http://b\n    weight: 99999\n"),
        "t.yaml:4:13: error: backends[1].weight: `99999` must be a whole number from 1 to 10000"
    );
}

/// Catches: a start that says what `auto` does of a number that was written by hand.
#[test]
fn a_number_of_workers_that_was_written_is_not_called_auto() {
    for (text, auto) in [("", true), ("workers: auto", true), ("workers: 1", false)] {
        let mut server = load(&format!("server: {{{text}}}")).plan.server;
        server.workers = 8;
        assert_eq!((server.leaves_cpus(16), server.leaves_cpus(8)), (auto, false), "{text}");
    }
}

/// Catches: a setting that loads and does nothing, and of which nobody is told.
#[test]
fn what_does_nothing_is_told() {
    const TWO: &str = "backends: [{url: 'http://a:1', MORE}, {url: 'http://b:1', MORE}]\n";
    let told = |more: &str, rest: &str, line: &str| {
        let Loaded { report, .. } = load(&format!("{}{rest}", TWO.replace("MORE", more)));
        report.lines(true).into_iter().filter(|told| told.contains(line)).count()
    };
    let strategy = |name: &str| format!("routing: {{load_balance: {name}}}");
    let shown = "is only shown";
    assert_eq!(told("metrics: auto", "", shown), 1);
    assert_eq!(told("metrics: /m", &strategy("random"), shown), 1);
    assert_eq!(told("metrics: auto", &strategy("least_connections"), shown), 0);
    assert_eq!(told("metrics: off", "", shown), 0);
    let (off, unprobed) = ("health_check: {enabled: false}", "there are no probes");
    assert_eq!(told("engine: vllm", off, unprobed), 2);
    assert_eq!(told("engine: vllm", "", unprobed), 0);
    assert_eq!(told("engine: auto", off, unprobed), 0);
    assert_eq!(told("engine: vllm, metrics: auto", off, unprobed), 0);
    let (early, drained) =
        ("routing: {early_head: true, sse_keepalive: 15s}", "no head goes early");
    assert_eq!(told("on_client_abort: drain", early, drained), 1);
    assert_eq!(told("on_client_abort: close", early, drained), 0);
}
