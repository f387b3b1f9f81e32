//! What `check` prints is a configuration itself, without its secrets.

use super::*;
use crate::config::plan::AdminListen;

fn printed(plan: &Plan) -> String {
    super::super::print(plan).unwrap()
}

/// What a printed plan means. The number of workers is printed, and not that it was left to us.
pub fn meant(plan: &Plan, text: &str) -> Loaded {
    let mut loaded = load(text);
    loaded.plan.server.workers_auto = plan.server.workers_auto;
    loaded.plan.server.cpu_affinity_auto = plan.server.cpu_affinity_auto;
    loaded
}

/// Prints, loads what was printed, and compares.
fn survives(name: &str, text: &str) {
    let plan = load(text).plan;
    let first = printed(&plan);
    // Masked keys are all alike, and two equal keys are an error: give each a value.
    let mut values = first.split("***").map(str::to_owned).enumerate();
    let unmasked = values.by_ref().map(|(i, part)| format!("{part}s{i}")).collect::<String>();
    let unmasked = unmasked.rsplit_once('s').map_or("", |(text, _)| text);
    let again = meant(&plan, unmasked);
    assert!(!again.report.has_ignored_keys(), "{name}: {}\n{first}", again.report);
    assert_eq!(first, printed(&again.plan), "{name}");
    if !first.contains("***") {
        assert_eq!(plan, again.plan, "{name}");
    }
}

#[test]
fn a_printed_plan_loads_and_means_the_same() {
    survives("nothing", "");
    survives("example", &example::example());
    survives("all of the example", &example::uncommented());
    survives("bare", example::BARE);
    survives(
        "stores",
        "storage: {caches: [{name: a, addr: 'rediss://u:p@[::1]/3', ca_file: /ca}]}\n\
         usage: {reporters: [{type: redis, redis: {storage: a}}, {type: database, database: \
         {driver: postgres, dsn: 'postgres://u:p@a:1,[::1]:2/d?options=-c%20a%3Db'}}]}\n",
    );
    survives("admin", "admin: {enabled: true, token: t, listen: main}");
    for entry in std::fs::read_dir("tests/fixtures/config").unwrap() {
        let path = entry.unwrap().path();
        survives(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
    }
}

/// Catches: the API where clients come though nobody asked for that, and the other way round; a
/// way to it that is open and of which nothing is said.
#[test]
fn the_admin_api_is_where_it_is_asked_for() {
    let of = |listen: &str| {
        let text = format!("admin: {{enabled: true, token: t{listen}}}");
        let loaded = load(&text);
        let is_open = loaded.report.to_string().contains("is open to the network");
        (loaded.plan.admin.unwrap().listen, is_open)
    };
    let own = |text: &str| AdminListen::Own(text.parse().unwrap());
    assert_eq!(of(""), (own("127.0.0.1:8001"), false));
    assert_eq!(of(", listen: '127.0.0.1:9'"), (own("127.0.0.1:9"), false));
    assert_eq!(of(", listen: main"), (AdminListen::Main, true));
    assert_eq!(of(", listen: main, allowed_ips: [192.0.2.1]"), (AdminListen::Main, false));
    assert!(printed(&load("admin: {enabled: true, token: t, listen: main}").plan).contains("main"));
}

#[test]
fn what_is_off_is_printed_as_off() {
    let text = "metrics: {enabled: false}\nserver: {drain_timeout: unlimited, cpu_affinity: off}\n\
                health_check: {enabled: false}\nusage: {include_request_body: 1MiB}\n\
                log: {output: file, file: {path: /var/log/x}}\nlogging: {access: {format: combined}}\n";
    let plan = load(text).plan;
    assert!(plan.metrics.is_none() && plan.health_check.is_none());
    assert!(plan.server.drain_timeout.is_none() && plan.server.cpu_affinity.is_empty());
    assert_eq!(plan.usage.request_body_max, Some(1 << 20));
    assert_eq!(meant(&plan, &printed(&plan)).plan, plan);
}

#[test]
fn no_secret_is_printed() {
    let text = "backends: [{url: http://a, api_key: hunter2, headers: {X-Token: hunter2}}]\n\
        auth:\n  redis: {password: hunter2}\n  pipeline:\n  - {type: redis}\n\
        \x20 - {type: webhook, webhook: {url: 'http://a/?t=hunter2', headers: {A: hunter2}}}\n\
        \x20 - {type: static, static: {keys: [{key: hunter2}]}}\n  - {type: file}\n\
        api_keys: [{key: hunter2}]\nadmin: {enabled: true, token: hunter2}\n\
        tracing: {otlp: {endpoint: 'https://d/v1/traces?k=hunter2', headers: {D: hunter2}}}\n\
        rate_limit: {storage: redis, global: {requests_per_second: 1}}\n\
        usage:\n  reporters:\n  - {webhook: {url: 'https://b/?hunter2', headers: {B: hunter2}}}\n\
        \x20 - {type: database, database: {driver: mysql, dsn: 'u:hunter2@tcp(h)/d'}}\n\
        discovery:\n  enabled: true\n  sources:\n\
        \x20 - {type: http, http: {url: 'http://c/?hunter2', headers: {C: hunter2}}}\n\
        \x20 - {type: consul, common: {api_key: hunter2}, consul: {service: x, token: hunter2}}\n\
        \x20 - {type: etcd, etcd: {prefix: /x, password: hunter2}}\n";
    let plan = load(text).plan;
    for shown in [printed(&plan), format!("{plan:?}")] {
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("***"));
    }
}
