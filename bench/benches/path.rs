//! Nanoseconds per call of what a worker does for an event or a request besides parsing: the tap,
//! the choice of a backend, the hand-over of a record: `cargo bench -p bench --bench path`.

use bench::{measure, EVENT};
use llmproxy::base::fnv;
use llmproxy::base::id::RequestIds;
use llmproxy::config;
use llmproxy::config::plan::{KeyForm, LoadBalance, Spool};
use llmproxy::llm::dialect::Dialect;
use llmproxy::llm::request::BodyScan;
use llmproxy::llm::tokens::Oddities;
use llmproxy::proxy::relay::tap::{Expected, Reading, Tap};
use llmproxy::proxy::route::affinity::{self, Hints, Sessions};
use llmproxy::proxy::route::strategy::Balancer;
use llmproxy::proxy::route::tiers::{pick, Tier};
use llmproxy::proxy::route::TriedMembers;
use llmproxy::state::board::View;
use llmproxy::state::engine_cache::CacheOf;
use llmproxy::state::member;
use llmproxy::state::meters::Times;
use llmproxy::usage::counters::UsageCounters;
use llmproxy::usage::journal::Journal;
use llmproxy::usage::outbox::Outbox;
use llmproxy::usage::record::{Outcome, UsageRecord};
use llmproxy::usage::ring::place;
use llmproxy::usage::spool::{self, Opened, Planned};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;

const STRATEGIES: [LoadBalance; 5] = [
    LoadBalance::RoundRobin,
    LoadBalance::LeastConnections,
    LoadBalance::LatencyBased,
    LoadBalance::Random,
    LoadBalance::PrefixAffinity,
];

fn main() {
    let mut tap = Tap::default();
    let dialect = Dialect::OpenAi;
    let reading = Reading::Usage;
    tap.expect(&Expected { dialect, reading, event_stream: true, ndjson: false, encoding: None });
    let mut times = Times::default();
    measure("tap, one event and its time", EVENT.len(), || {
        tap.see(black_box(EVENT));
        tap.tick(&mut times);
    });
    let slice = EVENT.repeat(64);
    measure("tap, 64 events in one read", slice.len(), || {
        tap.see(black_box(&slice));
        tap.tick(&mut times);
    });

    for backends in [1, 32, 512] {
        let urls: Vec<_> = (0..backends).map(|n| format!("http://192.0.2.1:{}", n + 1)).collect();
        let Ok(loaded) = config::load_backends(&urls, &[]) else { continue };
        let plan = loaded.plan;
        let tls = plan.backends.iter().map(|_| None).collect();
        let view = View::new(Arc::new(plan), tls, None);
        for strategy in STRATEGIES {
            let balancer = Balancer::new(strategy, &vec![1; backends], (0, 1));
            let places = (0..backends as u32).collect();
            let tiers = [Tier { places, balancer: RefCell::new(balancer), sessions: None }];
            measure(&format!("pick among {backends}, {strategy:?}"), 0, || {
                let tried = black_box(TriedMembers::default());
                assert!(pick(&tiers, view.members(), (&tried, &Hints::NONE)).is_ok());
            });
        }
        let named = view.members().iter().map(|member| (&*member.name, member.plan.weight));
        let balancer = Balancer::new(LoadBalance::RoundRobin, &vec![1; backends], (0, 1));
        let (places, sessions) = ((0..backends as u32).collect(), Some(Sessions::new(named)));
        let tiers = [Tier { places, balancer: RefCell::new(balancer), sessions }];
        let mut session = 0;
        measure(&format!("pick among {backends}, by session"), 0, || {
            session += 1;
            let mut hints = Hints::NONE;
            hints.session = Some(black_box(session));
            let tried = TriedMembers::default();
            assert!(pick(&tiers, view.members(), (&tried, &hints)).is_ok());
        });
    }

    prefixes();
    session_names();
    let mut ids = RequestIds::new(1);
    measure("request id", 0, || {
        black_box(ids.next_id());
    });
    measure("record, make", 0, || {
        black_box(record(&mut ids));
    });
    hand_over(&mut ids);
}

/// What `prefix_affinity` costs a request beside the reading of its body and the pick: the
/// milestones of its prompt, who has read them, and that whoever was picked has.
fn prefixes() {
    let backends = "{url: 'http://192.0.2.1'}, {url: 'http://192.0.2.2'}";
    let text = format!("{{backends: [{backends}], routing: {{load_balance: prefix_affinity}}}}");
    let Ok(loaded) = config::load_text("bench", &text, &|_| None) else { return };
    let plan = loaded.plan;
    let tls = plan.backends.iter().map(|_| None).collect();
    let view = View::new(Arc::new(plan), tls, None);
    for bytes in [1_000, 200_000] {
        let words = r#"Which of the two is it, \"this\" or that?\n"#.repeat(20);
        let turns = vec![format!(r#"{{"role":"user","content":"{words}"}}"#); bytes / words.len()];
        let body = format!(r#"{{"model":"m","messages":[{}]}}"#, turns.join(","));
        let mut scan = BodyScan::new(body.as_bytes()).with_prompt();
        let (Some(Ok(_)), Some(spans)) = (scan.step(usize::MAX), scan.prompt().copied()) else {
            continue;
        };
        let (Some(table), Some(member)) = (&view.prefixes, view.members().first()) else { return };
        measure(&format!("prefix_affinity, {} KB", bytes / 1000), body.len(), || {
            let milestones = spans.milestones(black_box(body.as_bytes()), "m", table.key());
            let now = member::now();
            black_box(spans.is_read_anew(body.as_bytes()));
            black_box(Hints::find((&milestones, CacheOf::model("m")), &view, now));
            affinity::learn(&milestones, 0, (&view, member), now);
        });
    }
}

/// What `session_affinity` costs a request beside the reading of its body and the pick, where the
/// session is named in the body: `user`, and a member of `metadata`.
fn session_names() {
    let words = r#"{"role":"user","content":"Which of the two is it?"}"#;
    let name = "8c5f9e0a-3a52-4a5e-9d0c-0d5a3f6f7e11";
    for (by, member) in [
        ("user", format!(r#""user":"{name}""#)),
        ("metadata.user_id", format!(r#""metadata":{{"trace":"{name}","user_id":"{name}"}}"#)),
    ] {
        let body = format!(r#"{{"model":"m","messages":[{words}],{member}}}"#);
        let mut scan = BodyScan::new(body.as_bytes()).with_prompt();
        let (Some(Ok(_)), Some(spans)) = (scan.step(usize::MAX), scan.prompt().copied()) else {
            continue;
        };
        measure(&format!("session_affinity, {by}"), 0, || {
            let name = spans.session(black_box(body.as_bytes()), by).unwrap_or_default();
            black_box(fnv::hash(name.iter().copied()));
        });
    }
}

/// Records put into a ring, from which the journal takes them into memory: what a worker does for
/// each, and what finds the ring full because the journal is slow.
fn hand_over(ids: &mut RequestIds) {
    let in_memory = Spool { enabled: false, ..Spool::default() };
    let (Ok(Planned { own: Opened { writer, keeper, state, doorbell, .. }, .. }), Ok(rings)) =
        (spool::open_planned(&in_memory, &[]), place::make(&in_memory, None, 1))
    else {
        println!("record, put into a ring: the spool could not be opened");
        return;
    };
    let Some(ring) = rings.first().cloned() else { return };
    let counters = Arc::new(UsageCounters::new(&[]));
    let outbox = Outbox::new(ring, Arc::clone(&doorbell), counters, state);
    let Ok(journal) = Journal::start((rings, doorbell), writer, keeper) else {
        println!("record, put into a ring: no thread could be started");
        return;
    };
    let record = record(ids);
    measure("record, open and close in a ring", 0, || {
        let opening = outbox.open(black_box(&record.borrowed()));
        outbox.close(black_box(&record.borrowed()), opening.unwrap_or_default());
    });
    journal.stop();
}

fn record(ids: &mut RequestIds) -> UsageRecord {
    UsageRecord {
        request_id: ids.next_id(),
        client_request_id: None,
        timestamp_ms: 1_700_000_000_000,
        user_id: None,
        key_name: None,
        key_metadata: None,
        key_id: None,
        api_key: None,
        key_form: KeyForm::None,
        model: Some("meta-llama/Llama-3.1-8B-Instruct".into()),
        method: "POST".into(),
        path: "/v1/chat/completions".into(),
        backend: Some("engine".into()),
        backend_url: None,
        status_code: 200,
        is_stream: true,
        usage: None,
        counted: None,
        usage_missing_reason: None,
        latency_ms: 1_000,
        ttft_ms: Some(100),
        first_byte_ms: Some(90),
        audio_seconds: None,
        quota_tokens: None,
        oddities: Oddities::default(),
        engine_error: None,
        retry_count: 0,
        fallback_used: false,
        outcome: Outcome::Complete,
        error: None,
        upstream_id: Some("chatcmpl-0123456789abcdef0123456789abcdef".into()),
        request_bytes: 1_024,
        response_bytes: 20_000,
        events: 100,
        request_body: None,
    }
}
