//! Every mistake is told with file, line, column, key, and what would be right.

use super::*;

/// Each text has one mistake, at this place, told with these words.
#[test]
fn each_mistake_is_told_where_it_is() {
    let cases = std::fs::read_to_string("tests/fixtures/config_mistakes.txt").unwrap();
    let mut count = 0;
    for case in cases.split("\n\n").skip(1) {
        let mut lines = case.lines();
        let mut line = || lines.next().unwrap_or_else(|| panic!("three lines: {case}"));
        let (text, at, words) = (line().replace("\\n", "\n"), line(), line());
        let told = error_of(&text);
        assert!(told.starts_with(&format!("t.yaml:{at}")), "{text}\n{told}");
        assert!(told.contains(words), "{text}\n{told}");
        count += 1;
    }
    assert!(count > 70, "{count}");
}

#[test]
fn what_has_no_effect_is_told() {
    for (text, path) in [
        ("auth: {storage: file, redis: {addr: 'r:1'}}", "auth.redis"),
        ("storage: {caches: [{name: a}]}", "storage.caches[0]"),
        ("storage: {databases: [{name: a, driver: sqlite, host: h}]}", "storage.databases[0].host"),
        (
            "rate_limit: {redis: {addr: 'r:1'}, global: {requests_per_second: 1}}",
            "rate_limit.redis",
        ),
        (
            "rate_limit: {global: {burst_size: 5, requests_per_minute: 5}}",
            "rate_limit.global.burst_size",
        ),
        ("auth: {storage: file, pipeline: [{type: builtin}]}", "auth.storage"),
        ("auth: {status_codes: {disabled: {allow: true}}}", "auth.status_codes.disabled.allow"),
        ("auth: {pipeline: [{type: builtin}]}\napi_keys: [{key: a}]", "api_keys"),
        ("log: {file: {path: /x}}", "log.file"),
        ("usage: {}", "usage"),
        ("auth:", "auth"),
        ("auth: {enabled: false}\napi_keys: [{key: a}]", "api_keys"),
        ("backends: [{url: 'http://a', health_path: /h}]", "backends[0].health_path"),
        (
            "health_check: {enabled: false}\nbackends: [{url: 'http://a', health_path: /h}]",
            "backends[0].health_path",
        ),
        ("backends: [{url: 'http://a'}]\nrouting: {load_balance: prefix_affinity}", "routing"),
        ("backends: [{url: 'http://a'}]\nrouting: {session_affinity: {body: user}}", "routing"),
        ("logging: {enabled: true}", "logging"),
        ("logging:", "logging"),
        (
            "backends: [{url: 'http://a', models: ['b*']}]\nrouting: {model_mapping: {x: a}}",
            "routing.model_mapping.x",
        ),
        (
            "backends: [{url: 'http://a'}]\nrouting: {model_mapping: {x: y, y: z}}",
            "routing.model_mapping.x",
        ),
    ] {
        let report = load(text).report;
        let told = |f: &Finding| f.path == path && f.class == Class::Warning;
        assert!(report.findings.iter().any(told), "{text}\n{report}");
    }
}

/// Catches: pool options that load for a reporter and do nothing, silently; a warning for those
/// who do have pools, or about what `check` prints.
#[test]
fn a_reporter_tells_that_it_has_one_connection() {
    let in_place = "usage:\n  reporters:\n\
        \x20 - {type: redis, redis: {pool_size: 10, min_idle_conns: 5}}\n\
        \x20 - {type: database, database: {driver: sqlite, max_open_conns: 25}}\n";
    let named = "storage:\n  databases: [{name: d, driver: sqlite, max_open_conns: 25}]\n\
        \x20 caches: [{name: c, pool_size: 10, min_idle_conns: 5}]\n\
        usage:\n  reporters:\n  - {type: redis, redis: {storage: c}}\n\
        \x20 - {type: database, database: {storage: d}}\n";
    for text in [in_place, named] {
        let Loaded { plan, report } = load(text);
        for key in ["pool_size", "min_idle_conns", "max_open_conns"] {
            let words = format!("`{key}` has no effect: a reporter has one connection");
            let told = |f: &&Finding| f.path.ends_with(key) && f.message == words;
            assert_eq!(report.findings.iter().filter(told).count(), 1, "{key}: {report}");
        }
        assert!(!report.has_ignored_keys(), "the file is not wrong: {report}");
        let ReporterKind::Redis(redis) = &plan.usage.reporters[0].kind else { panic!() };
        let ReporterKind::Database(database) = &plan.usage.reporters[1].kind else { panic!() };
        assert_eq!((redis.redis.pool.pool_size, database.sql.pool.max_open_conns), (1, 1));
        let again = load(&super::super::print(&plan).unwrap()).report;
        assert!(!again.lines(false).concat().contains("one connection"), "{again}");
    }
    let shared = "auth: {pipeline: [{type: redis, redis: {storage: c}}, {type: database, \
        database: {storage: d}}]}\n";
    let report = load(&format!("{shared}{named}")).report;
    assert!(!report.lines(false).concat().contains("one connection"), "{report}");
}

/// Catches: a protection that somebody wrote down, that is off for want of a switch, and a start
/// that goes on in clear text or without a limit.
#[test]
fn what_protects_must_be_whole_or_said_to_be_off() {
    const SAYS: &str = "must say `enabled: true` or `enabled: false`";
    for (text, path, words) in [
        ("server:\n  tls: {cert_file: c, key_file: k}", "server.tls", SAYS),
        ("server: {tls: {}}", "server.tls", SAYS),
        ("server: {tls: }", "server.tls", SAYS),
        ("server: {cors: {allowed_origins: ['*']}}", "server.cors", SAYS),
        ("admin: {token: t}", "admin", SAYS),
        ("admin: {enabled: , token: t}", "admin", SAYS),
        ("auth: {enabled: false, admin: {token: t}}", "auth.admin", SAYS),
        ("hooks: {on_request: {script: 'return {}'}}", "hooks.on_request", SAYS),
        ("discovery: {sources: []}", "discovery", SAYS),
        ("logging: {request: {driver: sqlite}}", "logging.request", SAYS),
        ("api_keys:", "api_keys", "auth: {enabled: false}"),
        ("api_keys: []", "api_keys", "everyone could use"),
        ("api_keys: [{key: a, allowed_ips: }]", "api_keys[0].allowed_ips", "write `[]`"),
        ("api_keys: [{key: a, allowed_models: }]", "api_keys[0].allowed_models", "write `[]`"),
        ("api_keys: [{key: a, allowed_backends: [b]}]", "api_keys[0].allowed_backends", "limited"),
        ("api_keys: [{key: a, rate_limit: {}}]", "api_keys[0].rate_limit", "sets no limit"),
        ("rate_limit:", "rate_limit", "sets no limit"),
        ("rate_limit: {global: }", "rate_limit", "sets no limit"),
        ("rate_limit: {per_key: {burst_size: 1}}", "rate_limit.per_key", "sets no limit"),
        ("auth: {pipeline: [{type: file, script: ''}]}", "auth.pipeline[0].script", "nothing"),
        ("auth: {pipeline: [{type: file, script: {path: ''}}]}", "auth.pipeline[0].script.script", "path"),
        ("usage: {url: 'http://a', reporters: [{webhook: {url: 'http://a', hmac_secret: '${NO:-}'}}]}",
         "usage.reporters[0].webhook.hmac_secret", "is empty"),
        ("backends: [{url: 'https://a', tls: {ca_file: }}]", "backends[0].tls.ca_file", "is empty"),
        ("usage: {reporters: [{type: redis, redis: {tls: true, ca_file: ''}}]}",
         "usage.reporters[0].redis.ca_file", "is empty"),
        ("storage: {caches: [{name: a, addr: 'rediss://h', ca_file: '${NO:-}'}]}",
         "storage.caches[0].ca_file", "is empty"),
        ("backends: [{url: 'http://a', tls: {}}]", "backends[0].tls", "https://"),
        ("server: {tls: {enabled: true, cert_file: c, key_file: k, client_ca_file: ''}}",
         "server.tls.client_ca_file", "is empty"),
        ("server: {tls: {enabled: true, cert_file: c, key_file: k, client_ca_file: a}}",
         "server.tls.client_auth", "none, request or require"),
        ("auht: {enabled: true}", "auht", "did you mean `auth`?"),
        ("tls: {enabled: true}", "tls", "did you mean `server.tls`?"),
        ("server: {tsl: {enabled: true}}", "server.tsl", "did you mean `tls`?"),
        ("rate_limit: {per_backend: {}, global: {requests_per_second: 1}}", "rate_limit.per_backend", "limits are"),
        ("rate_limit: {per_user: {}, global: {requests_per_second: 1}}", "rate_limit.per_user", "sets no limit"),
        ("rate_limit: {global: {max_concurrent: 65536}}", "rate_limit.global.max_concurrent", "65535"),
        ("rate_limit: {storage: redis, redis_lease: 1ms, global: {requests_per_second: 1}}",
         "rate_limit.redis_lease", "10ms to 10s"),
        ("rate_limit: {storage: redis, redis_lease: 1m, global: {requests_per_second: 1}}",
         "rate_limit.redis_lease", "10ms to 10s"),
        ("counters: {entries: 10}", "counters.entries", "1024"),
    ] {
        let report = load_text("t.yaml", text, &env).err().unwrap_or_else(|| panic!("{text}"));
        let told = |f: &Finding| {
            f.class == Class::Error && f.path == path && f.message.contains(words)
        };
        assert!(report.findings.iter().any(told), "{text}\n{report}");
    }
}

#[test]
fn what_is_off_on_purpose_or_empty_is_not_told() {
    for text in [
        "admin: {enabled: false, token: t}",
        "server: {tls: {enabled: false}, cors: {enabled: false}}\nadmin: {enabled: false}",
        "api_keys: []\nauth: {enabled: false}",
        "hooks:",
        "logging: {enabled: false, request: {storage: main}}",
        "logging: {access: {enabled: false}}",
        "auth: {enabled: false}",
        "usage: {reporters: [{webhook: {url: 'http://a'}}]}",
        "health_check:\nbackends: [{url: 'http://a', health_path: /h}]",
        "backends: [{url: 'http://a', health_path: ''}]",
    ] {
        let report = load(&format!("{text}\n")).report;
        assert!(report.findings.is_empty(), "{text}\n{report}");
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

/// Catches: an address that `check` takes and a start refuses, or that no server ever accepts.
#[test]
fn an_address_is_read_as_its_reporter_reads_it() {
    let of = |driver: &str, dsn: &str| {
        format!(
            "backends: [{{url: 'http://a'}}]\nusage: {{reporters: [{{type: database, database: \
             {{driver: {driver}, dsn: \"{dsn}\"}}}}]}}\n"
        )
    };
    for (driver, dsn, name) in [
        ("mysql", "u:hunter2@tcp(h)/d?tls=preferred", "tls"),
        ("mysql", "u:hunter2@tcp(h)/d?charset=latin1", "charset"),
        ("postgres", "postgres://u:hunter2@h/d?sslmode=allow", "sslmode"),
        ("postgres", "postgres://u:hunter2@h/d?sslrootcert=/no/such", "sslrootcert"),
        ("postgres", "host=a hostaddr=1.2.3.4 password=hunter2", "hostaddr"),
    ] {
        let said = error_of(&of(driver, dsn));
        assert!(said.contains("dsn") && said.contains(name), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
    for (driver, dsn, name) in [
        ("mysql", "u:hunter2@tcp(h)/d?parseTime=true&readTimeout=1s", "readTimeout"),
        ("postgres", "postgres://u:hunter2@h/d?pool_max_conns=4", "pool_max_conns"),
        ("postgres", "postgres://u:hunter2@h/d?serach_path=x", "serach_path"),
    ] {
        let said = load(&of(driver, dsn)).report.to_string();
        assert!(said.contains(name) && !said.contains("hunter2"), "{said}");
    }
}

/// Catches: a path in the file that no request can match, in silence; a chat under another name.
#[test]
fn paths_that_can_never_match_are_errors() {
    for (path, words) in [
        ("/v1/%63hat/completions", "write `/v1/chat/completions`"),
        ("/v1/%63*", "write `/v1/c`"),
        ("/v1/models/a%2fb", "write `/v1/models/a%2Fb`"),
        ("/v1/chat%2Fcompletions", "below /v1/models/ only"),
        ("/a;b", "can never match: The path has a backslash"),
        ("/v1/../metrics", "can never match: The path has a dot segment"),
        ("/v1//x", "can never match: The path has two slashes"),
        ("/v1/%", "can never match: The path has a `%` without"),
        ("/a*b", "a `*` may only be the last"),
    ] {
        let error = error_of(&format!("server: {{paths: ['{path}']}}\n"));
        assert!(error.contains("server.paths") && error.contains(words), "{path}: {error}");
        if !path.contains('*') {
            let error = error_of(&format!("metrics: {{path: '{path}'}}\n"));
            assert!(error.contains("metrics.path") && error.contains(words), "{path}: {error}");
        }
    }
    let error = error_of("metrics: {path: /ready}\n");
    assert!(error.contains("name another"), "{error}");
    let text = "server: {paths: ['/v1/chat/completions/', /own/, '/v1/models/a%2Fb', '/*']}";
    let loaded = load(text);
    let paths = ["/v1/chat/completions", "/own/", "/v1/models/a%2Fb", "/*"];
    assert_eq!(loaded.plan.server.paths, paths);
    let report = load("server: {paths: [/health, /metrics, /v1/models]}").report;
    for path in ["/health", "/metrics"] {
        let told = |f: &&Finding| f.message.contains(&format!("`{path}`"));
        assert_eq!(report.findings.iter().filter(told).count(), 1, "{report}");
    }
}

/// Catches: a misspelt region, for which all requests go to the far one that comes first.
#[test]
fn a_region_in_which_no_backend_is_is_doubted() {
    for (server, backend, is_doubted) in [
        ("us", "us", false),
        ("us", "su", true),
        ("us", "", true),
        ("", "us", false),
        ("", "", false),
    ] {
        let backends = format!("backends: [{{url: 'http://a', region: '{backend}'}}]");
        let report = load(&format!("server: {{region: '{server}'}}\n{backends}\n")).report;
        let doubts =
            report.lines(false).into_iter().filter(|line| line.contains("no backend is in"));
        assert_eq!(doubts.count(), usize::from(is_doubted), "{server}, {backend}");
    }
}
