//! Old and other names of settings: each means its canonical one, and two of them must agree.

use super::*;

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_alias_means_its_canonical_key() {
    for (alias, canonical) in [
        ("listen: ':1'", "server: {listen: ':1'}"),
        ("server: {read_timeout: 7s}", "server: {header_timeout: 7s, body_timeout: 7s}"),
        ("server: {read_timeout: 7s, body_timeout: 9s}", "server: {header_timeout: 7s, body_timeout: 9s}"),
        ("load_balance_strategy: random", "routing: {load_balance: random}"),
        ("routing: {load_balance_strategy: random}", "routing: {load_balance: random}"),
        ("routing: {strategy: random}", "routing: {load_balance: random}"),
        ("routing: {load_balance: least_conn}", "routing: {load_balance: least_connections}"),
        ("routing: {load_balance: weighted}", "routing: {load_balance: round_robin}"),
        ("routing: {load_balance: weighted_round_robin}", "routing: {load_balance: round_robin}"),
        ("usage_hook: {reporters: [{url: 'http://a'}]}", "usage: {reporters: [{webhook: {url: 'http://a'}}]}"),
        (
            "usage_hook: {url: 'http://a', timeout: 1s, retry: 5}",
            "usage: {reporters: [{name: default, webhook: {url: 'http://a', timeout: 1s, retry: 5}}]}",
        ),
        (
            "usage: {retry: 7, reporters: [{name: a, url: 'http://a'}, {name: b, webhook: {url: 'http://b', retry: 1}}]}",
            "usage: {reporters: [{name: a, webhook: {url: 'http://a', retry: 7}}, {name: b, webhook: {url: 'http://b', retry: 1}}]}",
        ),
        (
            "usage: {reporters: [{url: 'http://a', timeout: 1s, retry: 0, method: PUT, headers: {A: b}}]}",
            "usage: {reporters: [{webhook: {url: 'http://a', timeout: 1s, retry: 0, method: PUT, headers: {A: b}}}]}",
        ),
        ("auth: {storage: file}", "auth: {pipeline: [{type: file}]}"),
        (
            "auth: {storage: redis, redis: {addr: 'r:1', db: 2}}",
            "auth: {pipeline: [{type: redis, redis: {addr: 'r:1', db: 2}}]}",
        ),
        ("auth: {pipeline: [{type: file, lua_script: x}]}", "auth: {pipeline: [{type: file, script: x}]}"),
        (
            "auth: {pipeline: [{type: file, lua_script_file: /x}]}",
            "auth: {pipeline: [{type: file, script: {path: /x}}]}",
        ),
        (
            "auth: {pipeline: [{type: file, script_file: /x}]}",
            "auth: {pipeline: [{type: file, script: {path: /x}}]}",
        ),
        (
            "storage: {caches: [{name: c, addr: 'r:1'}]}\nauth: {pipeline: [{type: redis, redis: {storage: c}}]}",
            "auth: {pipeline: [{type: redis, redis: {addr: 'r:1'}}]}",
        ),
        (
            "storage: {databases: [{name: d, driver: sqlite}]}\nusage: {reporters: [{type: database, database: {storage: d}}]}",
            "usage: {reporters: [{type: database, database: {driver: sqlite}}]}",
        ),
        (
            "storage: {caches: [{name: c, addr: 'r:1'}]}\nrate_limit: {storage: c, global: {requests_per_second: 1}}",
            "rate_limit: {storage: redis, redis: {addr: 'r:1'}, global: {requests_per_second: 1}}",
        ),
        (
            "storage: {caches: [{name: c, addr: 'r:1'}]}\nrate_limit: {storage: redis, redis: c, global: {requests_per_second: 1}}",
            "rate_limit: {storage: redis, redis: {addr: 'r:1'}, global: {requests_per_second: 1}}",
        ),
        ("rate_limits: {global: {requests_per_minute: 5}}", "rate_limit: {global: {requests_per_minute: 5}}"),
        ("api_keys: [{key: a, quota: 5}]", "api_keys: [{key: a, total_quota: 5}]"),
        ("api_keys: [{key: a, rate_limit: 5}]", "api_keys: [{key: a, rate_limit: {requests_per_minute: 5}}]"),
        (
            "auth: {pipeline: [{type: static, static: {keys: [{key: a, quota: 5}]}}]}",
            "auth: {pipeline: [{type: static, static: {keys: [{key: a, total_quota: 5}]}}]}",
        ),
        ("api_keys: [{key: a, status: enabled}]", "api_keys: [{key: a}]"),
        ("api_keys: [{key: a, status: 1}]", "api_keys: [{key: a, status: disabled}]"),
        ("api_keys: [{key: a, status: 2}]", "api_keys: [{key: a, status: quota_exceeded}]"),
        ("api_keys: [{key: a, status: 3}]", "api_keys: [{key: a, status: expired}]"),
        ("auth: {enabled: false, admin: {enabled: true, token: t}}", "admin: {enabled: true, token: t}"),
        ("admin: {auth: {enabled: true, token: t}}", "admin: {enabled: true, token: t}"),
        ("backends: [{id: a, url: 'http://a', timeout: 9s}]", "backends: [{name: a, url: 'http://a', first_byte_timeout: 9s}]"),
        ("routing: {timeout: 9s, connect_timeout: 1s}\nbackends: [{url: 'http://a'}]", "routing: {timeout: 9s, connect_timeout: 1s}\nbackends: [{url: 'http://a', first_byte_timeout: 9s, connect_timeout: 1s}]"),
        ("backends: [{url: 'http://a', headers: {host: b}}]", "backends: [{url: 'http://a', host: b}]"),
        ("backends: [{url: 'http://a', api_key: k}]", "backends: [{url: 'http://a', headers: {Authorization: Bearer k}}]"),
    ] {
        let loaded = load(alias);
        assert!(!loaded.report.has_ignored_keys(), "{alias}\n{}", loaded.report);
        assert_eq!(loaded.plan, load(canonical).plan, "{alias}");
    }
}

#[test]
fn log_rotation_is_known_in_both_spellings_and_not_done() {
    let text =
        "log: {output: file, file: {path: /x, max_size_mb: 5, max_backups: 2, rotate: daily}}";
    let report = load(text).report;
    let unsupported = |f: &&Finding| f.class == Class::UnsupportedKey;
    assert_eq!(report.findings.iter().filter(unsupported).count(), 3, "{report}");
}

#[test]
fn two_names_of_one_setting_must_agree() {
    for (text, want) in [
        (
            "listen: ':1'\nserver:\n  listen: ':2'\n",
            "t.yaml:1:9: error: listen: is another name of `server.listen`, and the two say \
             different things (the other at 3:11)",
        ),
        (
            "load_balance_strategy: random\nrouting: {strategy: weighted}\n",
            "t.yaml:2:21: error: routing.strategy: is another name of `load_balance_strategy`",
        ),
        (
            "usage: {url: 'http://a'}\nusage_hook: {url: 'http://b'}\n",
            "t.yaml:2:19: error: usage_hook.url: is another name of `usage.url`",
        ),
        (
            "rate_limit: {storage: memory, per_model: {}}\nrate_limits: {storage: redis}\n",
            "t.yaml:2:24: error: rate_limits.storage: is",
        ),
        (
            "api_keys: [{key: a, quota: 1, total_quota: 2}]\n",
            "t.yaml:1:28: error: api_keys[0].quota: is",
        ),
        (
            "admin: {enabled: true, token: a, auth: {token: b}}\n",
            "t.yaml:1:48: error: admin.auth.token: is",
        ),
        (
            "backends: [{url: 'http://a', timeout: 1s, first_byte_timeout: 2s}]\n",
            "t.yaml:1:39: error: backends[0].timeout: is",
        ),
    ] {
        let line = error_of(text);
        assert!(line.starts_with(want), "{line}");
    }
    // Equal is fine, and sections under two names are united.
    let plan = load("listen: ':1'\nserver: {listen: ':1', workers: 1}\n").plan;
    assert_eq!((plan.server.listen[0].port(), plan.server.workers), (1, 1));
    let limit = load("rate_limit: {global: {requests_per_second: 1}}\nrate_limits: {per_key: {requests_per_second: 2}}\n").plan.rate_limit.unwrap();
    assert!(limit.global.is_some() && limit.per_key.is_some());
}

#[test]
fn presence_is_enough_except_where_it_would_be_dangerous() {
    let plan =
        load("health_check:\nrate_limit: {global: {requests_per_second: 1}}\nrouting:\n  retry:\nauth:\nlogging:\n  access:\n").plan;
    assert!(plan.health_check.is_some() && plan.rate_limit.is_some() && plan.auth.is_some());
    assert!(plan.routing.retry.is_some() && plan.log.access.is_some());
    let text =
        "admin: {enabled: false, token: t}\nhooks: {on_request: {enabled: false, script: x}}\n\
                discovery: {enabled: false, sources: []}\n\
                server: {cors: {enabled: false}, tls: {enabled: false}}\n\
                logging: {request: {enabled: false, driver: sqlite}}\n";
    let Loaded { plan, report } = load(text);
    assert!(plan.admin.is_none() && plan.hooks.is_empty() && plan.discovery.is_none());
    assert!(plan.server.cors.is_none() && plan.server.tls.is_none() && plan.log.request.is_none());
    assert!(!report.has_ignored_keys(), "{report}");
}

#[test]
fn variables_are_expanded_everywhere_but_in_scripts() {
    let text = "backends: [{url: 'http://${NONE:-gpu}:8000', headers: {X: '${TOKEN}'}, weight: '${NONE:-4}'}]\n\
        auth: {pipeline: [{type: file, script: 'return \"${TOKEN}\"'}]}\n\
        health_check: {enabled: '${NONE:-false}'}\n";
    let plan = load(text).plan;
    assert_eq!((plan.backends[0].url.as_str(), plan.backends[0].weight), ("http://gpu:8000", 4));
    assert_eq!(plan.backends[0].headers[0].1.reveal(), "hunter2");
    assert!(plan.health_check.is_none());
    let script = plan.auth.unwrap().pipeline.remove(0).script.unwrap();
    assert_eq!(script.source, ScriptSource::Script("return \"${TOKEN}\"".into()));
}
