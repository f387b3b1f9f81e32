//! The nine configurations that the project's documents give for real uses, word for word
//! (`tests/fixtures/config`), with mocks in the place of the hosts that they name: each does its
//! job, for those who may and against those who may not. Text is replaced: `http://HOST:PORT` of
//! each backend by the address of a mock, wherever it stands in the file, and what the test says.

mod stage;

use crate::clients::is_there;
use crate::harness::{await_until, Redis, SOON};
use crate::rig::{CHATS, STREAM};
use serde_json::json;
use stage::{
    assert_even, chat, file, file_that_waits_for, redis_with_keys, replaced, without, Scene, FREELY,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;

/// Scenario 1 of the first document, and 2 of the README: a chat service with three engines, of
/// which the first has a rule for when it fails. Keys are not checked, but each seat has a limit.
///
/// Catches: uneven shares, an engine that is down and costs a client its answer, another order than
/// that of the rule, a request that nobody is billed for, and a limit that does not hold.
#[test]
fn three_engines_with_a_rule_for_the_first() {
    let billing = "http://billing.internal/api/usage";
    for (name, billing, limit) in
        [("s1_scenario_1.yaml", billing, "20"), ("s4_scenario_2.yaml", "", "1000")]
    {
        let mut scene = Scene::set(&file_that_waits_for(name, &[]), billing);
        scene.asked_by((0..100).map(|seat| format!("seat-{seat}")));
        assert_even(&scene.shares("qwen-72b", 9), 3);
        scene.assert_limit("seat-100", "x-ratelimit-limit", limit, "qwen-72b");
        if name == "s1_scenario_1.yaml" {
            scene.assert_limited("seat-101", "qwen-72b");
            assert_eq!(scene.ask_as("seat-102", &chat("qwen-72b")).status(), 200);
        }
        let (first, second, third) =
            (scene.host("gpu-1"), scene.host("gpu-2"), scene.host("gpu-3"));
        let asked = || [first, second, third].map(|host| host.asked().len());
        first.is_down.store(true, SeqCst);
        let before = asked();
        let shares = scene.shares("qwen-72b", 6);
        assert_eq!(shares.len(), 2, "{shares:?}");
        let after = asked();
        assert!(after[0] > before[0], "it was asked");
        // What it failed at went to the next in the rule.
        let extra = [after[1] - before[1], after[2] - before[2]];
        assert_eq!((extra[0], extra[1]), (2 + after[0] - before[0], 2), "{name}: {shares:?}");
        second.is_down.store(true, SeqCst);
        assert_eq!(scene.shares("qwen-72b", 3), BTreeMap::from([(third.name.clone(), 3)]));
        if !billing.is_empty() {
            scene.await_record("qwen-72b");
        }
    }
}

/// Scenario 2: an assistant for the staff of a company, on two engines. Each department has a key
/// that is good in its own network, a quota for each day, and five requests at one time. The file
/// trusts no proxy, so the address of the connection counts: as it is, it lets no client of this
/// machine in, and with our address for the first department's network it lets in that one.
///
/// Catches: a key that is good elsewhere, uneven shares, a quota or a limit that does not hold,
/// records that do not come or name nobody, and metrics that are not where they should be.
#[test]
fn departments_with_networks_and_quotas() {
    let billing = "http://finance.internal/api/ai-usage";
    let text = file_that_waits_for("s1_scenario_2.yaml", &[]);
    let [dev, product, marketing] =
        ["dev", "product", "marketing"].map(|team| format!("sk-llmproxy-{team}-team-001"));
    let model = "llama-3-70b";
    let scene = Scene::set(&text, billing);
    for team in [&dev, &product, &marketing] {
        scene.ask_as(team, &chat(model)).assert_refused(403, "ip_not_allowed");
    }
    scene.assert_keys_are_asked_for(model);
    let mut scene = Scene::set(&replaced(&text, "10.0.1.0/24", "127.0.0.0/8"), billing);
    scene.asked_by([&dev]);
    scene.ask_as(&product, &chat(model)).assert_refused(403, "ip_not_allowed");
    assert_even(&scene.shares(model, 6), 2);
    scene.await_record(model);
    let records = scene.hook.records();
    assert!(records.iter().all(|record| record["user_id"] == "dept_dev"), "{records:?}");
    scene.assert_limit(&dev, "x-ratelimit-limit", "100", model);
    scene.ask_for_tokens(&dev, model, 500_000).assert_refused(429, "insufficient_quota");
    assert_eq!(scene.ask_for_tokens(&dev, model, 400_000).status(), 200, "more than the default");
    // Five at one time.
    scene.hosts.iter().for_each(|host| host.may_answer.store(0, SeqCst));
    let before = scene.heard();
    let mut five: Vec<_> = (0..5).map(|_| scene.begin(&dev, &chat(model))).collect();
    await_until("all are there", SOON, || scene.heard() == before + 5);
    scene.ask_as(&dev, &chat(model)).assert_refused(429, "concurrent_limit_exceeded");
    scene.hosts.iter().for_each(|host| host.may_answer.store(FREELY, SeqCst));
    assert!(five.iter_mut().all(|conn| conn.response().status() == 200));
    let page = scene.proxy.get("/metrics");
    assert!(page.status() == 200 && page.text().contains("llmproxy_usage_tokens_total"));
}

/// Scenario 3: twelve engines with four models, which clients call by short names. The customers'
/// keys are in Redis, and their limits are counted there.
///
/// Catches: a model that goes to the wrong engines or under the wrong name, a rule for other
/// models, records that have the engines' names instead of the clients', a key that is in Redis and
/// not known, or not there and let in, and limits that do not hold.
#[test]
fn four_models_under_short_names() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, keys) = redis_with_keys();
    let text = file_that_waits_for("s1_scenario_3.yaml", &[]);
    let text = replaced(&text, "redis:6379", &server.addr().to_string());
    let mut scene = Scene::set(&text, "http://billing-api:8080/api/v1/usage");
    scene.asked_by(keys[1..90].to_vec());
    assert_eq!(scene.hosts.len(), 12);
    assert_eq!(scene.proxy.metric("llmproxy_shared_limits_up", &[]), 1.0);
    scene.assert_keys_are_asked_for("qwen");
    scene.ask_as(&keys[0], &chat("qwen")).assert_refused(403, "key_disabled");
    for (model, served, host, hosts) in [
        ("llama-3-70b", "llama-3-70b-instruct", "llama70b", 4),
        ("llama-3-8b", "llama-3-8b-instruct", "llama8b", 2),
        ("mistral", "mistral-7b-instruct-v0.2", "mistral", 2),
        ("qwen", "qwen-72b-chat", "qwen", 4),
    ] {
        let shares = scene.shares(model, 4 * hosts);
        assert_even(&shares, hosts);
        assert!(shares.keys().all(|name| name.contains(host)), "{model}: {shares:?}");
        let theirs = scene.hosts.iter().filter(|it| it.name.contains(host));
        theirs.for_each(|it| assert!(it.asked().iter().all(|body| body["model"] == served)));
        scene.await_record(model);
    }
    let records = scene.hook.records();
    assert!(records.iter().all(|it| it["user_id"].as_str().unwrap().starts_with("sk-")));
    scene.ask(&chat("gpt-5")).assert_refused(404, "model_not_found");
    scene.assert_limit(&keys[90], "x-ratelimit-limit-tokens", "100000", "qwen");
    scene.assert_limited(&keys[91], "qwen");
    // Such a request needs a full bucket, and leaves a debt for as long as it runs.
    let qwen = scene.hosts.iter().filter(|host| host.name.contains("qwen"));
    qwen.clone().for_each(|host| host.may_answer.store(0, SeqCst));
    let before = scene.heard();
    let large = json!({"model": "qwen", "messages": [], "max_tokens": 100_000});
    let mut large = scene.begin(&keys[92], &large);
    await_until("it is there", SOON, || scene.heard() == before + 1);
    let refused = scene.ask_for_tokens(&keys[92], "qwen", 10_000);
    refused.assert_refused(429, "token_rate_limit_exceeded");
    qwen.for_each(|host| host.may_answer.store(FREELY, SeqCst));
    assert_eq!(large.response().status(), 200);
    scene.host("llama70b-1").is_down.store(true, SeqCst);
    let shares = scene.shares("llama-3-70b", 4);
    assert_eq!(shares.values().sum::<usize>(), 4);
    assert!(!shares.contains_key(&scene.host("llama70b-1").name), "{shares:?}");
    // Its failed request went to the second, as the rule says, beside the turn that this one had.
    assert_eq!(shares[&scene.host("llama70b-2").name], 2, "{shares:?}");
}

/// The keys of the three teams in scenario 4.
const NLP: &str = "sk-llmproxy-team-nlp-001";
const CV: &str = "sk-llmproxy-team-cv-001";
const MULTIMODAL: &str = "sk-llmproxy-team-multimodal-001";

/// Scenario 4: teams of researchers who share three engines, one for each model.
///
/// Catches: a model that goes elsewhere, or to a team that may not have it; a strategy at the top
/// level that is not read; keys that nobody checks since the file has no `auth`; a quota or a limit
/// that does not hold.
#[test]
fn one_engine_for_each_model() {
    let billing = "http://stats.internal/api/usage";
    let text = file_that_waits_for("s1_scenario_4.yaml", &[]);
    let mut scene = Scene::set(&text, billing);
    for (model, host, team) in [
        ("llama-3-70b", "cluster-1", CV),
        ("qwen-72b", "cluster-2", NLP),
        ("mistral-7b", "cluster-3", MULTIMODAL),
    ] {
        let name = scene.host(host).name.clone();
        scene.asked_by([team]);
        assert_eq!(scene.shares(model, 3), BTreeMap::from([(name, 3)]));
        scene.await_record(model);
    }
    scene.assert_keys_are_asked_for("llama-3-70b");
    scene.ask_as(CV, &chat("qwen-72b")).assert_refused(403, "model_not_allowed");
    scene.ask_as(NLP, &chat("mistral-7b")).assert_refused(403, "model_not_allowed");
    // Nobody has it: it tells no team which models there are that it may not have.
    scene.ask_as(MULTIMODAL, &chat("gpt-5")).assert_refused(403, "model_not_allowed");
    let much = scene.ask_for_tokens(MULTIMODAL, "mistral-7b", 2_000_000);
    much.assert_refused(429, "insufficient_quota");
    scene.assert_limited(NLP, "qwen-72b");
}

/// Scenario 4 with ten teams, of which one asks for as much as it can, and a queue before an engine
/// that answers one at a time. What a team waits for is how many are served before it.
///
/// Catches: a team that waits for the hog, and more than twice as long as when the hog is quiet,
/// with the limits of the file and without them.
#[test]
fn ten_teams_and_one_of_them_a_hog() {
    let teams: Vec<String> = (1..10).map(|n| format!("team-{n}")).collect();
    let keys: String = teams.iter().map(|team| format!("  - {{key: {team}}}\n")).collect();
    let text = file("s1_scenario_4.yaml");
    let text = replaced(&text, "api_keys:\n", &format!("api_keys:\n{keys}"));
    let models = "    models: [\"llama-3-70b\"]\n";
    let text = replaced(&text, models, &format!("{models}    max_concurrent: 1\n"));
    let text = format!("{text}routing: {{queue: {{timeout: 60s}}}}\n");
    let billing = "http://stats.internal/api/usage";
    let limitless = without(&text, &["rate_limit"]);
    for (text, most, of) in [(&text, 3, 30), (&limitless, 30, 30)] {
        let quiet = served_in_turn(&Scene::set(text, billing), &teams, 1, 1);
        let busy = served_in_turn(&Scene::set(text, billing), &teams, most, of);
        let place = |order: &[String], who: &str| order.iter().position(|it| it == who).unwrap();
        for team in &teams {
            let (before, after) = (place(&quiet, team), place(&busy, team));
            assert!(after <= 2 * before, "{team}: {before}, then {after}: {busy:?}");
        }
    }
}

/// Who is served, in order, when a hog sends so many, of which so many are let in, and then each
/// team sends one.
fn served_in_turn(scene: &Scene, teams: &[String], let_in: usize, of: usize) -> Vec<String> {
    let host = scene.host("cluster-1");
    host.may_answer.store(0, SeqCst);
    let begin = |key: &str, name: &str| {
        let body = json!({"model": "llama-3-70b", "messages": [], "user": name});
        scene.begin(key, &body)
    };
    let await_waiting =
        |count: usize| scene.proxy.await_metric("llmproxy_queue_waiting", &[], count as f64);
    let mut conns = vec![begin(NLP, "hog")];
    await_until("one is there", SOON, || host.asked().len() == 1);
    for number in 1..of {
        let mut conn = begin(NLP, "hog");
        if number >= let_in {
            assert_eq!(conn.response().status(), 429);
            continue;
        }
        await_waiting(number);
        conns.push(conn);
    }
    for team in teams {
        conns.push(begin(team, team));
        await_waiting(conns.len() - 1);
    }
    for served in 1..=conns.len() {
        await_until("the next one is there", SOON, || host.asked().len() == served);
        host.may_answer.store(1, SeqCst);
    }
    assert!(conns.iter_mut().all(|conn| conn.response().status() == 200));
    host.asked().iter().map(|body| body["user"].as_str().unwrap().to_owned()).collect()
}

/// Scenario 5: engines in five towns, with rules that lead across regions.
///
/// Catches: a region that keeps requests away although nobody said where the gateway stands, and a
/// rule that does not lead to another region.
#[test]
fn engines_in_many_regions() {
    let scene = Scene::set(&file_that_waits_for("s1_scenario_5.yaml", &[]), "");
    await_until("all are asked", SOON, || {
        scene.answering("qwen-14b");
        scene.hosts.iter().all(|host| !host.asked().is_empty())
    });
    for (down, others) in
        [("beijing", ["shanghai", "guangzhou"]), ("shanghai", ["beijing", "shenzhen"])]
    {
        let host = scene.host(down);
        host.is_down.store(true, SeqCst);
        let (before, next) = (host.asked().len(), scene.host(others[0]));
        await_until("it is asked", SOON, || {
            let had = next.asked().len();
            let who = scene.answering("qwen-14b");
            assert_ne!(who, host.name);
            let is_asked = host.asked().len() > before;
            // Whoever the rule names first has its request.
            assert!(!is_asked || (who == next.name && next.asked().len() == had + 1), "{who}");
            is_asked
        });
        host.is_down.store(false, SeqCst);
    }
}

/// Scenario 1 of the README: programmers' assistants on one engine, with a key that is good in
/// their network, by either of two fields.
///
/// Catches: a single engine that is not asked, or not for streams; a key that is good elsewhere,
/// or not read where the file says; a quota or a limit that does not hold.
#[test]
fn one_engine() {
    let (key, model) = ("sk-llmproxy-dev-001", "qwen-coder");
    let text = file_that_waits_for("s4_scenario_1.yaml", &[]);
    let scene = Scene::set(&text, "");
    scene.ask_as(key, &chat(model)).assert_refused(403, "ip_not_allowed");
    scene.assert_keys_are_asked_for(model);
    let mut scene = Scene::set(&replaced(&text, "10.0.0.0/8", "127.0.0.0/8"), "");
    scene.asked_by([key]);
    assert_eq!(scene.answering(model), "http://vllm-coder:8000");
    let streamed = scene.proxy.connect().post(CHATS, &format!("X-API-Key: {key}\r\n"), STREAM);
    assert_eq!(streamed.status(), 200);
    assert_eq!(scene.heard(), 2);
    scene.assert_limit(key, "x-ratelimit-limit", "60", model);
    scene.ask_for_tokens(key, model, 1_000_000).assert_refused(429, "insufficient_quota");
}

/// Scenario 3 of the README: rules for keys alone, as a part of a file.
///
/// Catches: a part that is not valid for itself; a start that nobody is served by, unasked; a
/// client that is told of engines before it is known.
#[test]
fn a_part_without_backends() {
    let text = file_that_waits_for("s4_scenario_3.yaml", &["no backends"]);
    let scene = Scene::set(&replaced(&text, "10.0.1.0/24", "127.0.0.0/8"), "");
    scene.assert_keys_are_asked_for("m");
    let elsewhere = scene.ask_as("sk-llmproxy-product-team-001", &chat("m"));
    elsewhere.assert_refused(403, "ip_not_allowed");
    scene.ask_as("sk-llmproxy-dev-team-001", &chat("m")).assert_refused(503, "no_backend");
}

/// Scenario 4 of the README: an API for customers, on two engines, with retries. Their keys are in
/// Redis: the file names no address of it, so that of this machine's is meant.
///
/// Catches: an engine that is down and costs a client its answer; keys that are not those in Redis.
#[test]
fn two_engines_with_retries() {
    if !is_there("redis-server", Redis::is_there()) {
        return;
    }
    let (server, keys) = redis_with_keys();
    let text = file_that_waits_for("s4_scenario_4.yaml", &[]);
    let ours = format!("storage: \"redis\"\n  redis: {{addr: '{}'}}\n", server.addr());
    let mut scene = Scene::set(&replaced(&text, "storage: \"redis\"\n", &ours), "");
    scene.asked_by(keys[1..90].to_vec());
    scene.assert_keys_are_asked_for("m");
    scene.ask_as(&keys[0], &chat("m")).assert_refused(403, "key_disabled");
    assert_even(&scene.shares("m", 6), 2);
    scene.assert_limit(&keys[90], "x-ratelimit-limit-tokens", "100000", "m");
    scene.assert_limited(&keys[91], "m");
    scene.host("server-1").is_down.store(true, SeqCst);
    let other = scene.host("server-2").name.clone();
    assert_eq!(scene.shares("m", 4), BTreeMap::from([(other, 4)]));
}
