//! Every mistake is told with file, line, column, key, and what would be right.

use super::*;

/// Each text has one mistake, at this place, told with these words.
#[test]
fn each_mistake_is_told_where_it_is() {
    for (text, at, words) in [
        ("server:\n  listen: 8000\n", "2:11: error: server.listen", ":8000"),
        ("listen: x:1\n", "1:9: error: listen", "127.0.0.1:8000"),
        ("server: {listen: ':70000'}\n", "1:18: error: server.listen", "0 to 65535"),
        ("server: {workers: 0}\n", "1:19: error: server.workers", "1 to 1024, or auto"),
        ("server: {cpu_affinity: [0, x]}\n", "1:24: error: server.cpu_affinity", "auto, or off"),
        ("server: {max_body_size: 2TiB}\n", "1:25: error: server.max_body_size", "1MiB"),
        ("server: {max_body_size: 2GiB}\n", "1:25: error: server.max_body_size", "to 1073741824"),
        ("server: {idle_timeout: soon}\n", "1:24: error: server.idle_timeout", "500ms, 30s"),
        ("server: {idle_timeout: 0}\n", "1:24: error: server.idle_timeout", "above zero"),
        ("server: {drain_timeout: -1s}\n", "1:25: error: server.drain_timeout", "unlimited"),
        ("server: {paths: [v1]}\n", "1:18: error: server.paths[0]", "begins with `/`"),
        ("server: {paths: [/*/x]}\n", "1:18: error: server.paths[0]", "last character"),
        ("server: {paths: []}\n", "1:17: error: server.paths", "at least one"),
        (
            "server: {trusted_proxies: [10.0.0.1/8]}",
            "1:28: error: server.trusted_proxies[0]",
            "10.0.0.0/8",
        ),
        (
            "server: {cors: {enabled: true, allowed_origins: ['*'], allow_credentials: true}}",
            "1:75: error: server.cors.allow_credentials",
            "name the origins",
        ),
        (
            "server: {tls: {enabled: true, key_file: k}}",
            "1:15: error: server.tls.cert_file",
            "required",
        ),
        (
            "server: {tls: {enabled: true, key_file: k, cert_file: c, client_auth: require}}",
            "1:15: error: server.tls.client_ca_file",
            "required",
        ),
        ("log: {level: loud}", "1:14: error: log.level", "error, warn"),
        ("log: {output: file}", "1:6: error: log.file", "path"),
        ("server: 5", "1:9: error: server", "section"),
        ("backends: http://a", "1:11: error: backends", "list"),
        ("backends: [http://a]", "1:12: error: backends[0]", "section"),
        ("backends: [{weight: 1}]", "1:12: error: backends[0].url", "required"),
        ("backends: [{url: [a]}]", "1:18: error: backends[0].url", "not a list"),
        ("backends: [{url: 'gpu:1'}]", "1:18: error: backends[0].url", "http://"),
        ("backends: [{url: 'http://a/?x'}]", "1:18: error: backends[0].url", "query"),
        ("backends: [{url: 'http://a', weight: many}]", "1:38: error: backends[0].weight", "10000"),
        (
            "backends: [{url: 'http://a', headers: {'A B': x}}]",
            "1:47: error: backends[0].headers[\"A B\"]",
            "HTTP field",
        ),
        (
            "backends: [{url: 'http://a', headers: {Content-Length: 3}}]",
            "1:56: error: backends[0].headers.Content-Length",
            "cannot be set",
        ),
        (
            "backends: [{url: 'http://a', headers: {A: \"x\\r\\ny\"}}]",
            "1:43: error: backends[0].headers.A",
            "line end",
        ),
        (
            "backends: [{url: 'http://a', api_key: \"x\\ny\"}]",
            "1:39: error: backends[0].api_key",
            "line end",
        ),
        (
            "backends: [{url: 'http://a', api_key: x, headers: {authorization: y}}]",
            "1:39: error: backends[0].api_key",
            "twice",
        ),
        (
            "backends: [{url: 'http://a', name: n}, {url: 'http://b', name: n}]",
            "1:64: error: backends[1].name",
            "another backend",
        ),
        (
            "backends: [{url: 'http://a', models: ['a*b']}]",
            "1:39: error: backends[0].models[0]",
            "final `*`",
        ),
        ("backends: [{url: 'http://a', name: 1.10}]", "1:36: error: backends[0].name", "quotes"),
        (
            "health_check: {unhealthy_threshold: 0}",
            "1:37: error: health_check.unhealthy_threshold",
            "1 to 1000",
        ),
        (
            "health_check: {expected_status: 9xx}",
            "1:33: error: health_check.expected_status",
            "2xx",
        ),
        ("health_check: {method: PUSH}", "1:24: error: health_check.method", "GET, HEAD, POST"),
        ("health_check: {enabled: yes}", "1:25: error: health_check.enabled", "true or false"),
        ("metrics: {custom_labels: [api_key]}", "1:27: error: metrics.custom_labels[0]", "label"),
        (
            "metrics: {latency_buckets: [1, 1]}",
            "1:28: error: metrics.latency_buckets",
            "above the one before",
        ),
        ("usage: {reporters: [{type: webhook}]}", "1:21: error: usage.reporters[0].webhook", "url"),
        ("usage: {url: 'ftp://a'}", "1:14: error: usage.url", "http://"),
        (
            "usage: {reporters: [{type: fax}]}",
            "1:28: error: usage.reporters[0].type",
            "webhook, database, builtin",
        ),
        (
            "usage_hook: {url: 'http://a', retry: 101}",
            "1:38: error: usage_hook.retry",
            "from 0 to 100",
        ),
        (
            "usage: {reporters: [{type: database, database: {driver: mysql, dsn: x}}]}",
            "1:69: error: usage.reporters[0].database.dsn",
            "@tcp(",
        ),
        (
            "usage: {reporters: [{type: database, database: {driver: sqlite, table: 'a;b'}}]}",
            "1:72: error: usage.reporters[0].database.table",
            "letters",
        ),
        ("routing: {load_balance: best}", "1:25: error: routing.load_balance", "least_connections"),
        (
            "routing: {retry: {multiplier: 0.5}}",
            "1:31: error: routing.retry.multiplier",
            "1 to 100",
        ),
        ("routing: {retry: {retry_on: [teapot]}}", "1:30: error: routing.retry.retry_on[0]", "5xx"),
        (
            "routing: {retry: {initial_wait: 2s, max_wait: 1s}}",
            "1:47: error: routing.retry.max_wait",
            "initial_wait",
        ),
        (
            "routing: {fallback: [{fallback: [a]}]}",
            "1:22: error: routing.fallback[0].primary",
            "required",
        ),
        ("auth: {mode: any}", "1:14: error: auth.mode", "first_match, all"),
        ("auth: {skip_paths: ['']}", "1:21: error: auth.skip_paths[0]", "/public"),
        ("auth: {pipeline: [{name: a}]}", "1:19: error: auth.pipeline[0].type", "required"),
        ("auth: {storage: mysql}", "1:17: error: auth.storage", "redis"),
        (
            "auth: {pipeline: [{type: redis, redis: {key_pattern: x}}]}",
            "1:54: error: auth.pipeline[0].redis.key_pattern",
            "{api_key}",
        ),
        ("auth: {pipeline: [{type: lua, lua: {script: a, path: b}}]}", "", "give one"),
        ("api_keys: [{name: a}]", "1:12: error: api_keys[0].key", "required"),
        ("api_keys: [{key: 'a b'}]", "1:18: error: api_keys[0].key", "visible"),
        ("api_keys: [{key: a}, {key: a}]", "1:28: error: api_keys[1].key", "twice"),
        (
            "api_keys: [{key: a, status: banned}]",
            "1:29: error: api_keys[0].status",
            "active, enabled, disabled",
        ),
        (
            "api_keys: [{key: a, quota_reset_period: hourly}]",
            "1:41: error: api_keys[0].quota_reset_period",
            "weekly",
        ),
        (
            "api_keys: [{key: a, expires_at: soon}]",
            "1:33: error: api_keys[0].expires_at",
            "2026-12-31",
        ),
        (
            "api_keys: [{key: a, starts_at: 2026-02-01, expires_at: 2026-01-01}]",
            "1:56: error: api_keys[0].expires_at",
            "after",
        ),
        (
            "api_keys: [{key: a, allowed_ips: [10.0.0.300]}]",
            "1:35: error: api_keys[0].allowed_ips[0]",
            "10.0.0.0/8",
        ),
        ("rate_limit: {storage: disk}", "1:23: error: rate_limit.storage", "memory, redis"),
        (
            "rate_limit: {global: {requests_per_second: -1}}",
            "1:44: error: rate_limit.global.requests_per_second",
            "0 or more",
        ),
        ("admin: {enabled: true}", "1:8: error: admin.token", "required"),
        ("hooks: {on_request: {enabled: true}}", "1:21: error: hooks.on_request.script", "path"),
        ("discovery: {enabled: true, sources: [{type: dns}]}", "", "kubernetes"),
        (
            "storage: {databases: [{name: a, driver: sqlite}, {name: a, driver: sqlite}]}",
            "1:50: error: storage.databases[1]",
            "another store",
        ),
        ("log: {output: '${MISSING}'}", "1:15: error: log.output", "MISSING is not set"),
    ] {
        let line = error_of(text);
        assert!(line.starts_with(&format!("t.yaml:{at}")), "{text}\n{line}");
        assert!(line.contains(words), "{text}\n{line}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = "log: {level: loud}\nserver: {workers: 0}\nbackends: [{url: x, weight: y}]\n";
    let report = load_text("t.yaml", text, &env).unwrap_err();
    let starts: Vec<_> =
        report.lines(false).iter().map(|l| l.split(": error").next().unwrap().to_owned()).collect();
    assert_eq!(starts, ["t.yaml:1:14", "t.yaml:2:19", "t.yaml:3:18", "t.yaml:3:29"]);
}

#[test]
fn an_unknown_key_is_a_warning_with_the_nearest_key() {
    let text = "backends:\n- url: http://a\n  wieght: 3\n  colour: red\nhealth_chek: {}\n";
    let report = load(text).report;
    assert_eq!(
        report.lines(false),
        [
            "t.yaml:3:3: warning: backends[0].wieght: unknown key, ignored; did you mean `weight`?",
            "t.yaml:4:3: warning: backends[0].colour: unknown key, ignored",
            "t.yaml:5:1: warning: health_chek: unknown key, ignored; did you mean `health_check`?",
        ]
    );
    assert!(report.has_ignored_keys());
    assert!(report.lines(true).iter().all(|line| line.contains(": error: ")));
}

#[test]
fn a_section_that_is_off_stops_nothing() {
    let text = "auth:\n  enabled: false\n  redis: {password: '${MISSING}', colour: red}\n\
                rate_limit: {enabled: false, storage: disk}\n";
    let Loaded { plan, report } = load(text);
    assert!(plan.auth.is_none() && plan.rate_limit.is_none() && plan.unbuilt.is_empty());
    let off = report.findings.iter().filter(|f| f.message.contains("switched off")).count();
    assert_eq!(off, 2, "{report}");
    assert!(report.findings.iter().any(|f| f.class == Class::UnknownKey), "typos show even there");
}

#[test]
fn what_is_dangerous_is_said_aloud() {
    let text = "backends:\n- {url: 'https://a', weight: 0, tls: {insecure_skip_verify: true}}\n\
                - {url: 'https://a'}\nserver: {max_header_bytes: 1048576}\n";
    let Loaded { plan, report } = load(text);
    let lines = report.lines(false).concat();
    for part in ["INSECURE", "counts as 1", "also the URL", "65536 bytes are the most"] {
        assert!(lines.contains(part), "{part}: {lines}");
    }
    assert_eq!(plan.backends[0].weight, 1);
    assert_eq!(plan.backends[1].name, "a:443#2");
    assert_eq!(plan.server.max_header_bytes, 65536);
}

#[test]
fn a_secret_in_a_variable_is_not_repeated_by_an_error() {
    let env = |_: &str| Some("hunter2\n".to_owned());
    let text = "backends: [{url: '${A}', api_key: '${A}', weight: '${A}'}]\nlog: {level: '${A}'}";
    let report = load_text("t.yaml", text, &env).unwrap_err();
    assert_eq!(report.findings.len(), 4);
    assert!(!report.to_string().contains("hunter2"), "{report}");
}
