//! `routing` and, since it holds defaults of theirs, the reading of `backends`.

use super::backend::{backends, Timeouts};
use crate::base::limits::{
    MODEL_NAME_BYTES_MAX, QUEUE_WAITING_MAX, RETRIES_MAX, SESSION_HEADERS_MAX,
};
use crate::config::desk::Desk;
use crate::config::plan::{
    Backend, EngineMetrics, Fallback, LoadBalance, ModelPattern, OnClientAbort, Queue,
    ResponseHeader, Retry, RetryOn, Routing, SessionAffinity, SessionKey,
};
use crate::config::raw::Node;
use crate::config::section::Section;
use crate::config::value;
use std::time::Duration;

/// What a `queue` says that says nothing: as many as a gateway for a few engines meets in a burst,
/// and for as long as people wait.
const QUEUE_WAITING: u32 = 1000;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads both sections.
pub fn routing(root: &mut Section) -> (Routing, Vec<Backend>) {
    let mut rules = Vec::new();
    let mut names = Vec::new();
    let routing = root.when_present("routing", |s| {
        rules = s.sections("fallback");
        names = s.named("model_mapping");
        read(s)
    });
    let on = routing.is_some();
    let Timeouts { connect, first_byte } = Timeouts::default();
    let mut routing = routing.unwrap_or(Routing {
        load_balance: LoadBalance::RoundRobin,
        session_affinity: None,
        timeout: first_byte,
        connect_timeout: connect,
        model_mapping: Vec::new(),
        retry: None,
        fallback: Vec::new(),
        sse_keepalive: Duration::ZERO,
        hold_preamble: Duration::ZERO,
        early_head: false,
        queue: None,
        response_headers: Vec::new(),
    });
    let backends = backends(root, "backends", Timeouts::of(&routing));
    let mapping = model_mapping(root.desk, &names);
    let rules: Vec<Fallback> = rules.iter_mut().map(|s| rule(s, &backends)).collect();
    if !routing.hold_preamble.is_zero() && routing.retry.is_none() && rules.is_empty() {
        let why = "nothing is held: without routing.retry or routing.fallback nothing is retried";
        root.warn("routing", format!("hold_preamble: {why}"));
    }
    if backends.len() == 1 && !root.has("discovery") {
        warn_of_one(root, &routing);
    }
    if routing.early_head && routing.sse_keepalive.is_zero() {
        root.warn("routing", "early_head: no head goes early without routing.sse_keepalive");
    }
    let drains = |backend: &Backend| backend.on_client_abort == OnClientAbort::Drain;
    let all_drain = !backends.is_empty() && backends.iter().all(drains);
    if routing.early_head && all_drain && !root.has("discovery") {
        let why = "no head goes early: all backends have on_client_abort: drain";
        root.warn("routing", format!("early_head: {why}"));
    }
    if routing.queue.is_some() && backends.iter().all(|backend| backend.max_concurrent == 0) {
        let why = "nothing ever waits: no backend has max_concurrent";
        root.warn("routing", format!("queue: {why}"));
    }
    let is_blind = matches!(routing.load_balance, LoadBalance::RoundRobin | LoadBalance::Random);
    if is_blind && backends.iter().any(|backend| backend.metrics != EngineMetrics::Off) {
        let why = "what backends[].metrics reads is only shown: this strategy goes by no load";
        root.warn("routing", format!("load_balance: {why}"));
    }
    if on {
        // What is found later may serve anything.
        let known = if root.has("discovery") { &[][..] } else { &backends };
        warn_of_mapping(root.desk, (&names, &mapping), known);
        routing.fallback = rules;
        routing.model_mapping = mapping;
    }
    (routing, backends)
}

fn read(s: &mut Section) -> Routing {
    s.unsupported(&[
        ("cost_routing", "LLMProxy does not account for money"),
        ("script", "routing is not scripted"),
        ("script_file", "routing is not scripted"),
        ("request_transform", "requests are forwarded byte for byte"),
        ("response_transform", "answers are forwarded byte for byte"),
        ("backend_header", "clients do not choose their backend"),
    ]);
    let policies = [
        ("round_robin", LoadBalance::RoundRobin),
        ("least_connections", LoadBalance::LeastConnections),
        ("latency_based", LoadBalance::LatencyBased),
        ("random", LoadBalance::Random),
        ("prefix_affinity", LoadBalance::PrefixAffinity),
        ("weighted", LoadBalance::RoundRobin),
        ("weighted_round_robin", LoadBalance::RoundRobin),
        ("least_conn", LoadBalance::LeastConnections),
    ];
    Routing {
        load_balance: s.choice("load_balance", &policies, LoadBalance::RoundRobin),
        session_affinity: s.when_present("session_affinity", session_affinity),
        timeout: s.duration("timeout", Timeouts::default().first_byte),
        connect_timeout: s.duration("connect_timeout", Timeouts::default().connect),
        model_mapping: Vec::new(),
        retry: s.when_present("retry", retry),
        fallback: Vec::new(),
        sse_keepalive: s.duration_or_zero("sse_keepalive"),
        hold_preamble: s.duration_or_zero("hold_preamble"),
        early_head: s.boolean("early_head", false),
        queue: s.when_present("queue", queue),
        response_headers: s.list("response_headers", response_header).unwrap_or_default(),
    }
}

fn queue(s: &mut Section) -> Queue {
    Queue {
        max_waiting: s.int("max_waiting", 1..=QUEUE_WAITING_MAX, QUEUE_WAITING),
        timeout: s.duration("timeout", QUEUE_TIMEOUT),
    }
}

fn session_affinity(s: &mut Section) -> SessionAffinity {
    let name = |text: &str| value::header_name(text).map(|name| name.to_ascii_lowercase());
    let key = |text: &str| {
        let known = SessionKey::ALL.into_iter().find(|key| key.name() == text);
        known.ok_or_else(|| {
            let all = SessionKey::ALL.map(SessionKey::name).join(", ");
            format!("{} is not one of: {all}", value::quoted(text))
        })
    };
    let body = s.list("body", key).unwrap_or_default();
    let default = if body.is_empty() { vec!["x-session-id".to_owned()] } else { Vec::new() };
    let header = s.list("header", name).unwrap_or(default);
    if header.len() > SESSION_HEADERS_MAX {
        s.error("header", format!("has more than {SESSION_HEADERS_MAX} names"));
    }
    if header.iter().any(|name| name == "x-request-id") {
        s.warn("header", "x-request-id is another one for each request: nothing stays together");
    }
    let names_none = |s: &mut Section, key| s.items(key).is_none_or(<[Node]>::is_empty);
    if s.has("header") && names_none(s, "header") && names_none(s, "body") {
        s.error("header", "names nothing by which requests are known that belong together");
    }
    SessionAffinity { header, body }
}

/// Tells of rules by which one of one is chosen.
fn warn_of_one(root: &Section, routing: &Routing) {
    let why = "there is one backend, which gets all requests anyhow";
    if routing.load_balance == LoadBalance::PrefixAffinity {
        root.warn("routing", format!("load_balance: prefix_affinity: {why}"));
    }
    if routing.session_affinity.is_some() {
        root.warn("routing", format!("session_affinity: {why}"));
    }
}

fn response_header(text: &str) -> Result<ResponseHeader, String> {
    match text.to_ascii_lowercase().as_str() {
        "x-llmproxy-backend" => Ok(ResponseHeader::Backend),
        "server-timing" => Ok(ResponseHeader::ServerTiming),
        _ => {
            Err(format!("{} is not one of: x-llmproxy-backend, server-timing", value::quoted(text)))
        }
    }
}

/// The names that stand in the mapping, each with what it is mapped to.
type Names<'a> = [(String, &'a Node)];

fn model_mapping(desk: &Desk, names: &Names<'_>) -> Vec<(String, String)> {
    let mut mapping = Vec::new();
    for (asked, node) in names {
        let Some(served) = desk.text(node) else { continue };
        for name in [asked, &served] {
            if name.is_empty() {
                desk.error(node, "both names of a model must be given");
            } else if name.len() > MODEL_NAME_BYTES_MAX {
                desk.error(node, format!("a name has more than {MODEL_NAME_BYTES_MAX} bytes"));
            } else if name.contains(char::is_control) {
                desk.error(node, "the name of a model has no control characters");
            }
        }
        mapping.push((asked.clone(), served));
    }
    mapping
}

/// Tells of names that lead nowhere.
fn warn_of_mapping(
    desk: &Desk,
    (names, mapping): (&Names<'_>, &[(String, String)]),
    backends: &[Backend],
) {
    let serves = |backend: &Backend, model: &str| {
        backend.models.is_empty() || backend.models.iter().any(|pattern| pattern.matches(model))
    };
    for (asked, node) in names {
        let Some((_, served)) = mapping.iter().find(|(known, _)| known == asked) else { continue };
        let told = value::quoted(served);
        if !backends.is_empty() && !backends.iter().any(|backend| serves(backend, served)) {
            desk.warn(node, format!("no backend serves {told}"));
        }
        let is_chain = |(other, further): &(String, String)| other == served && further != served;
        if mapping.iter().any(is_chain) {
            let advice = "the mapping is one step: give the last name";
            desk.warn(
                node,
                format!("{told} is itself mapped, which does not count here; {advice}"),
            );
        }
    }
}

fn retry(s: &mut Section) -> Retry {
    let initial_wait = s.duration("initial_wait", Duration::from_secs(1));
    let max_wait = s.duration("max_wait", Duration::from_secs(10).max(initial_wait));
    if max_wait < initial_wait {
        s.error("max_wait", "must not be shorter than initial_wait");
    }
    let factor = |text: &str| {
        let value = text.parse::<f64>().ok().filter(|f| (1.0..=100.0).contains(f));
        value.ok_or_else(|| format!("{} must be a number from 1 to 100", value::quoted(text)))
    };
    use RetryOn::{ConnectFailure, Status};
    let default = vec![ConnectFailure, Status(502), Status(503), Status(504)];
    Retry {
        max_retries: s.int("max_retries", 0..=RETRIES_MAX, 3),
        initial_wait,
        max_wait,
        multiplier: s.parsed("multiplier", factor).unwrap_or(2.0),
        timeout: s.duration("timeout", Duration::from_secs(300)),
        retry_on: s.list("retry_on", retry_on).unwrap_or(default),
    }
}

fn retry_on(text: &str) -> Result<RetryOn, String> {
    match text {
        "connect_failure" => Ok(RetryOn::ConnectFailure),
        "timeout" => Ok(RetryOn::Timeout),
        "5xx" => Ok(RetryOn::ServerError),
        _ => value::int(text, 400..=599u16).map(RetryOn::Status).map_err(|_| {
            format!(
                "{} is not one of: connect_failure, timeout, 5xx, a status from 400 to 599",
                value::quoted(text)
            )
        }),
    }
}

/// A rule names backends by name or by URL; in the plan it names them by name.
fn rule(s: &mut Section, backends: &[Backend]) -> Fallback {
    let desk = s.desk;
    let named = |node: &Node| {
        let text = desk.parse(node, value::nonempty)?;
        let same = |b: &&Backend| {
            b.name == text || b.url.trim_end_matches('/') == text.trim_end_matches('/')
        };
        let known = backends.iter().find(same).map(|b| b.name.clone());
        if known.is_none() {
            desk.warn(node, format!("{} is none of the backends", value::quoted(&text)));
        }
        Some(known.unwrap_or(text))
    };
    if !s.given("primary") {
        s.required("primary");
    }
    let rule = Fallback {
        primary: s.get("primary").and_then(named).unwrap_or_default(),
        fallback: s.items("fallback").unwrap_or_default().iter().filter_map(named).collect(),
        models: s.list("models", ModelPattern::parse).unwrap_or_default(),
        retry: s.int_opt("retry", 0..=RETRIES_MAX),
    };
    if rule.fallback.is_empty() {
        s.warn("fallback", "the rule names nothing to fall back to");
    }
    if rule.fallback.contains(&rule.primary) {
        s.warn("fallback", "names the primary itself, which has just failed");
    }
    rule
}
