//! A receiver that is away for long: its records wait, and come in their order.
//! `LLMPROXY_BACKLOG` is how many (3 000 unless set).

use crate::harness::config::SPOOL;
use crate::harness::{await_until, Config, Engine};
use crate::load::CHAT;
use crate::receiver::Receiver;
use std::time::{Duration, Instant};

/// Catches: records lost, doubled or out of order after an outage, and requests that wait for a
/// receiver. The latencies are printed: a test asserts no times.
#[test]
fn a_backlog_is_drained_in_order() {
    let count = std::env::var("LLMPROXY_BACKLOG").map_or(3000, |count| count.parse().unwrap());
    let (engine, receiver) = (Engine::start(&["--log", "0"]), Receiver::start());
    let proxy = Config::backend_at(engine.url())
        .section(format!(
            "usage: {{spool: {{dir: {SPOOL}}}, reporters: [{{name: hook, type: webhook, webhook: \
             {{url: \"{}\", batch: array, concurrency: 1}}}}]}}",
            receiver.url()
        ))
        .section("log: {level: info, format: json, output: stdout}")
        .start();
    let mut client = proxy.connect();
    let mut ask = |from: usize, to: usize| -> Vec<Duration> {
        let one = |number: usize| {
            let begun = Instant::now();
            let id = format!("X-Request-Id: r{number:09}\r\nX-API-Key: one\r\n");
            let answer = client.post("/v1/chat/completions", &id, CHAT);
            assert_eq!(answer.status(), 200);
            begun.elapsed()
        };
        (from..to).map(one).collect()
    };
    let before = ask(0, count);
    receiver.set_down(true);
    let during = ask(count, 2 * count);
    println!("p99 before {:?}, during the outage {:?}", p99(before), p99(during));
    assert!(proxy.metric("llmproxy_reporter_queue", &[]) > 0.0);
    receiver.set_down(false);
    let since = Instant::now();
    await_until("the backlog is gone", Duration::from_secs(120), || {
        receiver.arrived().len() >= 2 * count
    });
    println!("{count} records drained after {:?}", since.elapsed());
    let arrived = receiver.arrived();
    let wanted: Vec<String> = (0..2 * count).map(|number| format!("r{number:09}")).collect();
    let mut distinct = arrived.clone();
    distinct.dedup();
    // What was under way when the receiver went may have come twice, side by side.
    assert!(arrived.len() <= wanted.len() + 500, "{} of {}", arrived.len(), wanted.len());
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct, wanted);
    assert!(is_in_order(&arrived), "out of order");
}

/// A batch may be repeated as a whole; apart from that, none comes before an earlier one.
fn is_in_order(arrived: &[String]) -> bool {
    let mut first_seen = Vec::new();
    let mut highest = "";
    for id in arrived {
        if id.as_str() > highest {
            highest = id;
            first_seen.push(id);
        }
    }
    first_seen.len() == arrived.iter().collect::<std::collections::HashSet<_>>().len()
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}
