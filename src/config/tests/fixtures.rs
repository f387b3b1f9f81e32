//! The 18 YAML blocks of the documents the project grew from, byte for byte: each loads and means
//! what its author meant. One test per block.

use super::*;

fn fixture(name: &str) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/config").join(name);
    let loaded = load_file(&path, &env).unwrap_or_else(|report| panic!("{report}"));
    // No block has a key that nobody knows: a warning of that class is a hole in the schema.
    let unknown = |f: &Finding| f.class == Class::UnknownKey;
    assert!(!loaded.report.findings.iter().any(unknown), "{}", loaded.report);
    loaded
}

fn plan(name: &str) -> Plan {
    fixture(name).plan
}

fn warned(loaded: &Loaded, path: &str) -> bool {
    loaded.report.findings.iter().any(|f| f.path == path)
}

fn unbuilt(plan: &Plan, section: &str) -> bool {
    plan.unbuilt.iter().any(|line| line.starts_with(section))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn webhook(plan: &Plan) -> &Webhook {
    match &plan.usage.reporters[0].kind {
        ReporterKind::Webhook(webhook) => webhook,
        other => panic!("{other:?}"),
    }
}

fn models(backend: &Backend) -> Vec<String> {
    backend.models.iter().map(ModelPattern::to_string).collect()
}

fn ranges(ranges: &[IpRange]) -> Vec<String> {
    ranges.iter().map(IpRange::to_string).collect()
}

#[test]
fn s0_backends() {
    let Loaded { plan, report } = fixture("s0_backends.yaml");
    let weights: Vec<_> = plan.backends.iter().map(|b| (b.name.as_str(), b.weight)).collect();
    assert_eq!(weights, [("vllm:8000", 5), ("tgi:8081", 3)]);
    assert!(report.findings.is_empty() && plan.unbuilt.is_empty(), "it can start today");
}

#[test]
fn s1_scenario_1() {
    let plan = plan("s1_scenario_1.yaml");
    assert_eq!(plan.server.listen, ["[::]:8000".parse().unwrap()]);
    assert_eq!(plan.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [10, 10, 10]);
    // The flat usage hook is one webhook.
    assert_eq!(plan.usage.reporters.len(), 1);
    assert_eq!(webhook(&plan).url.reveal(), "http://billing.internal/api/usage");
    assert_eq!((webhook(&plan).timeout, webhook(&plan).retry), (secs(1), 2));
    // Probes without `enabled` are on.
    let probe = plan.health_check.as_ref().unwrap();
    assert_eq!((probe.interval, probe.timeout), (secs(5), secs(3)));
    assert_eq!(probe.path.as_deref(), Some("/health"));
    let retry = plan.routing.retry.as_ref().unwrap();
    assert_eq!((retry.max_retries, retry.initial_wait), (2, Duration::from_millis(500)));
    let rule = &plan.routing.fallback[0];
    assert_eq!(rule.primary, "gpu-1.internal:8000");
    assert_eq!(rule.fallback, ["gpu-2.internal:8000", "gpu-3.internal:8000"]);
    assert!(rule.models.is_empty());
    // Limits hold without authentication.
    assert!(plan.auth.is_none());
    let limit = plan.rate_limit.as_ref().unwrap();
    assert_eq!(limit.global.unwrap().requests_per_second, Some(500));
    assert_eq!(limit.global.unwrap().burst_size, Some(1000));
    assert_eq!(limit.per_key.unwrap().requests_per_second, Some(10));
    assert_eq!(limit.storage, LimitStorage::Memory);
    assert!(!unbuilt(&plan, "rate_limit") && !unbuilt(&plan, "routing.retry"));
}

#[test]
fn s1_scenario_2() {
    let plan = plan("s1_scenario_2.yaml");
    let auth = plan.auth.as_ref().unwrap();
    let kinds: Vec<_> = auth.pipeline.iter().map(|p| &p.kind).collect();
    assert_eq!(kinds, [&ProviderKind::File]);
    assert!(!unbuilt(&plan, "api_keys") && !unbuilt(&plan, "auth"));
    let keys: Vec<_> = plan.api_keys.iter().map(|k| (k.name.as_str(), k.total_quota)).collect();
    assert_eq!(keys, [("研发部门", 500_000), ("产品部门", 200_000), ("市场部门", 100_000)]);
    for (key, range) in plan.api_keys.iter().zip(["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"]) {
        // The period comes from `auth.defaults`.
        assert_eq!(key.quota_reset_period, ResetPeriod::Daily);
        assert_eq!(key.status, KeyState::Active);
        assert_eq!(ranges(&key.allowed_ips), [range]);
        assert!(key.user_id.starts_with("dept_") && key.key.reveal().ends_with("-team-001"));
    }
    let limit = plan.rate_limit.as_ref().unwrap();
    let per_key = Limits {
        requests_per_minute: Some(100),
        max_concurrent: Some(5),
        // No bucket per second at all, not one of size zero that refuses everything.
        ..Limits::default()
    };
    assert_eq!((limit.per_key, limit.global), (Some(per_key), None));
    assert_eq!((webhook(&plan).timeout, webhook(&plan).retry), (secs(2), 3));
    assert_eq!(plan.metrics.as_ref().unwrap().path, "/metrics");
}

#[test]
fn s1_scenario_3() {
    let plan = plan("s1_scenario_3.yaml");
    assert_eq!(plan.backends.len(), 12);
    assert_eq!(models(&plan.backends[0]), ["llama-3-70b*"]);
    let serving = |model: &str| {
        plan.backends.iter().filter(|b| b.models.iter().any(|p| p.matches(model))).count()
    };
    // The short names match no glob themselves: they are routed by what they are mapped to.
    let mapped = |model: &str| {
        let entry = plan.routing.model_mapping.iter().find(|(from, _)| from == model).unwrap();
        entry.1.clone()
    };
    assert_eq!(plan.routing.model_mapping.len(), 4);
    for (model, count) in [("llama-3-70b", 4), ("llama-3-8b", 2), ("mistral", 2), ("qwen", 4)] {
        assert_eq!(serving(&mapped(model)), count, "{model}");
    }
    assert_eq!((serving("mistral"), serving("qwen")), (0, 0));
    let retry = plan.routing.retry.as_ref().unwrap();
    assert_eq!((retry.max_retries, retry.initial_wait, retry.max_wait), (3, secs(1), secs(10)));
    let rule = &plan.routing.fallback[0];
    assert_eq!((rule.fallback.len(), rule.models[0].to_string()), (3, "llama-3-70b*".to_owned()));
    // Authentication and limiter share one address.
    let ProviderKind::Redis { redis } = &plan.auth.as_ref().unwrap().pipeline[0].kind else {
        panic!("{:?}", plan.auth)
    };
    assert_eq!((redis.server.addr.as_str(), redis.server.db), ("redis:6379", 0));
    assert_eq!(redis.key_pattern, "llmproxy:key:{api_key}");
    let limit = plan.rate_limit.as_ref().unwrap();
    let lease = Duration::from_millis(100);
    assert_eq!(limit.storage, LimitStorage::Redis { redis: redis.server.clone(), lease });
    let global = limit.global.unwrap();
    assert_eq!((global.requests_per_second, global.burst_size), (Some(1000), Some(2000)));
    let per_key = Limits {
        requests_per_second: Some(10),
        requests_per_minute: Some(500),
        tokens_per_minute: Some(100_000),
        max_concurrent: Some(5),
        burst_size: Some(20),
    };
    assert_eq!(limit.per_key, Some(per_key));
    assert_eq!(plan.health_check.as_ref().unwrap().timeout, secs(5));
}

#[test]
fn s1_scenario_4() {
    let loaded = fixture("s1_scenario_4.yaml");
    let plan = &loaded.plan;
    // Keys without `auth` are enforced, and that is said.
    let auth = plan.auth.as_ref().unwrap();
    assert_eq!(auth.pipeline[0].kind, ProviderKind::File);
    assert!(warned(&loaded, "api_keys"));
    // The strategy at the top level is read (no earlier version did).
    assert_eq!(plan.routing.load_balance, LoadBalance::LeastConnections);
    assert_eq!(models(&plan.backends[2]), ["mistral-7b"]);
    let allowed: Vec<_> = plan.api_keys.iter().map(|k| k.allowed_models.len()).collect();
    assert_eq!(allowed, [2, 1, 3]);
    // "Per day" stands in a comment only: never, and a notice for each key.
    for (i, key) in plan.api_keys.iter().enumerate() {
        assert_eq!(key.quota_reset_period, ResetPeriod::Never);
        assert!(warned(&loaded, &format!("api_keys[{i}].total_quota")));
    }
    let per_key = plan.rate_limit.as_ref().unwrap().per_key.unwrap();
    assert_eq!((per_key.requests_per_second, per_key.max_concurrent), (Some(5), Some(3)));
}

#[test]
fn s1_scenario_5() {
    let plan = plan("s1_scenario_5.yaml");
    let regions: Vec<_> = plan.backends.iter().map(|b| b.region.as_str()).collect();
    assert_eq!(regions, ["north", "east", "south", "south", "west"]);
    // Two rules without `models`: distinct primaries, so both can be reached.
    let primaries: Vec<_> = plan.routing.fallback.iter().map(|r| r.primary.as_str()).collect();
    assert_eq!(primaries, ["beijing.edge:8000", "shanghai.edge:8000"]);
    assert!(plan.routing.fallback.iter().all(|r| r.models.is_empty() && r.fallback.len() == 2));
    assert_eq!(plan.routing.load_balance, LoadBalance::LatencyBased);
    assert_eq!(plan.health_check.as_ref().unwrap().interval, secs(5));
    assert!(plan.unbuilt.is_empty(), "it can start today: {:?}", plan.unbuilt);
}

#[test]
fn s2_api_keys() {
    let plan = plan("s2_api_keys.yaml");
    let key = &plan.api_keys[0];
    assert_eq!(key.total_quota, 1_000_000, "`quota` is `total_quota`");
    let limit = Limits { requests_per_minute: Some(100), ..Limits::default() };
    assert_eq!(key.rate_limit, limit, "a number alone counts requests per minute");
    // Valid through the last day, UTC.
    assert_eq!(key.expires_at.unwrap().to_string(), "2027-01-01T00:00:00Z");
    assert_eq!(key.allowed_models.len(), 2);
    assert_eq!(ranges(&key.allowed_ips), ["192.168.1.0/24"]);
    assert!(plan.auth.is_some());
}

#[test]
fn s2_rate_limits() {
    let limit = plan("s2_rate_limits.yaml").rate_limit.unwrap();
    let rates = |requests, tokens| Limits {
        requests_per_minute: Some(requests),
        tokens_per_minute: tokens,
        ..Limits::default()
    };
    assert_eq!(limit.global, Some(rates(1000, Some(100_000))));
    assert_eq!(limit.per_key, Some(rates(100, Some(10_000))));
    let per_model: Vec<_> = limit.per_model.iter().map(|(p, l)| (p.to_string(), *l)).collect();
    assert_eq!(per_model, [("gpt-4".to_owned(), rates(50, None))]);
}

#[test]
fn s2_routing() {
    let loaded = fixture("s2_routing.yaml");
    let routing = &loaded.plan.routing;
    let mapping: Vec<_> =
        routing.model_mapping.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(mapping, [("gpt-4", "azure-gpt-4"), ("claude-3", "bedrock-claude-3")]);
    // Names, not URLs; that they are nobody's is a warning, not an error.
    let rule = &routing.fallback[0];
    assert_eq!((rule.primary.as_str(), rule.retry), ("vllm-1", Some(2)));
    assert_eq!(rule.fallback, ["vllm-2", "tgi-1"]);
    assert!(warned(&loaded, "routing.fallback[0].primary"));
    let cost = loaded.report.findings.iter().find(|f| f.path == "routing.cost_routing").unwrap();
    assert_eq!(cost.class, Class::UnsupportedKey);
    assert_eq!(cost.position, Some(raw::Position { line: 14, column: 3 }));
}

#[test]
fn s2_cache() {
    let Loaded { plan, report } = fixture("s2_cache.yaml");
    let classes: Vec<_> = report.findings.iter().map(|f| (f.path.as_str(), f.class)).collect();
    // One loud line for the whole section, and it does nothing.
    assert_eq!(classes, [("cache", Class::UnsupportedKey)]);
    assert_eq!(plan, load("").plan);
}

#[test]
fn s4_scenario_1() {
    let plan = plan("s4_scenario_1.yaml");
    let auth = plan.auth.as_ref().unwrap();
    assert_eq!(auth.header_names, ["Authorization", "X-API-Key"]);
    assert_eq!(auth.pipeline[0].kind, ProviderKind::File);
    assert_eq!(ranges(&plan.api_keys[0].allowed_ips), ["10.0.0.0/8"]);
    // `per_key` without `enabled` is on.
    let per_key = plan.rate_limit.as_ref().unwrap().per_key.unwrap();
    assert_eq!((per_key.requests_per_minute, per_key.max_concurrent), (Some(60), Some(3)));
    assert_eq!(per_key.requests_per_second, None);
}

#[test]
fn s4_scenario_2() {
    let plan = plan("s4_scenario_2.yaml");
    let rule = &plan.routing.fallback[0];
    assert_eq!(rule.fallback, ["gpu-2.internal:8000", "gpu-3.internal:8000"], "a flow list");
    assert_eq!(plan.routing.retry.as_ref().unwrap().max_retries, 2);
    let global = plan.rate_limit.as_ref().unwrap().global.unwrap();
    assert_eq!(global.requests_per_second, Some(500), "without `enabled`");
}

#[test]
fn s4_scenario_3() {
    let loaded = fixture("s4_scenario_3.yaml");
    let plan = &loaded.plan;
    assert!(plan.backends.is_empty(), "a fragment loads");
    assert_eq!(plan.server.listen, ["[::]:8000".parse().unwrap()]);
    assert_eq!(plan.api_keys.len(), 2);
    let per_key = plan.rate_limit.as_ref().unwrap().per_key.unwrap();
    assert_eq!((per_key.requests_per_minute, per_key.max_concurrent), (Some(100), Some(5)));
}

#[test]
fn s4_scenario_4() {
    let loaded = fixture("s4_scenario_4.yaml");
    let plan = &loaded.plan;
    let ProviderKind::Redis { redis } = &plan.auth.as_ref().unwrap().pipeline[0].kind else {
        panic!("{:?}", plan.auth)
    };
    // No address at all: the default one, and that is said.
    assert_eq!(redis.server.addr, "localhost:6379");
    assert!(warned(&loaded, "auth.storage"));
    let limit = plan.rate_limit.as_ref().unwrap();
    assert_eq!(limit.per_key.unwrap().tokens_per_minute, Some(100_000));
    assert_eq!(limit.global.unwrap().requests_per_second, Some(1000));
}

#[test]
fn s4_base() {
    let plan = plan("s4_base.yaml");
    let names: Vec<_> = plan.usage.reporters.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["billing", "database"]);
    // Inline url and timeout; `retry` beside the list is the default of each webhook.
    assert_eq!(webhook(&plan).url.reveal(), "https://your-billing.com/llm-usage");
    assert_eq!((webhook(&plan).timeout, webhook(&plan).retry), (secs(3), 2));
    let ReporterKind::Database(database) = &plan.usage.reporters[1].kind else { panic!() };
    assert_eq!((database.table.as_str(), database.sql.driver), ("usage_records", SqlDriver::Mysql));
    let SqlAddress::Server(server) = &database.sql.address else { panic!() };
    assert_eq!(server.place, SqlPlace::Tcp { host: "localhost".into(), port: 3306 });
    assert_eq!((server.user.as_str(), server.database.as_str()), ("user", "llmproxy"));
    assert_eq!(server.password.reveal(), "pass");
    let probe = plan.health_check.as_ref().unwrap();
    assert_eq!((probe.interval, probe.timeout), (secs(10), secs(5)));
    assert!(plan.unbuilt.is_empty(), "it can start today");
}

#[test]
fn s4_routing() {
    let routing = plan("s4_routing.yaml").routing;
    assert_eq!(routing.load_balance, LoadBalance::LeastConnections, "under its old name");
    let retry = routing.retry.unwrap();
    assert_eq!((retry.multiplier, retry.max_retries), (2.0, 3));
}

#[test]
fn s4_auth() {
    let plan = plan("s4_auth.yaml");
    let auth = plan.auth.as_ref().unwrap();
    assert_eq!(auth.mode, AuthMode::FirstMatch);
    let names: Vec<_> = auth.pipeline.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["redis_auth", "config_file"]);
    let script = |i: usize| match &auth.pipeline[i].script.as_ref().unwrap().source {
        ScriptSource::Script(code) => code.clone(),
        other => panic!("{other:?}"),
    };
    assert!(script(0).contains("tonumber(data.balance or 0) <= 0"));
    assert!(script(1).contains("data.status ~= \"active\""));
    let ProviderKind::Redis { redis } = &auth.pipeline[0].kind else { panic!() };
    assert_eq!(redis.key_pattern, "llmproxy:key:{api_key}");
    assert_eq!(auth.pipeline[1].kind, ProviderKind::File);
    let key = &plan.api_keys[0];
    assert_eq!(key.quota_reset_period, ResetPeriod::Daily);
    assert_eq!(key.expires_at.unwrap().to_string(), "2026-12-31T23:59:59Z");
}

#[test]
fn s4_rate_limit() {
    let loaded = fixture("s4_rate_limit.yaml");
    let limit = loaded.plan.rate_limit.as_ref().unwrap();
    let LimitStorage::Redis { redis, .. } = &limit.storage else { panic!("{limit:?}") };
    assert_eq!(redis.addr, "localhost:6379", "no address anywhere");
    assert!(warned(&loaded, "rate_limit.storage"));
    assert_eq!(limit.global.unwrap().burst_size, Some(2000));
    assert_eq!(limit.per_key.unwrap().requests_per_minute, Some(500));
}
