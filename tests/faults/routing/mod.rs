//! One engine of three fails in every way that engines fail, under load, and clients get answers.
//! Each scenario prints a line, with times, of the table in docs/health.md (which
//! `scripts/faults --routing` makes). Asserted is what no clock decides: that no client got an
//! error that another engine could have spared it, that nothing was generated twice, that every
//! byte is as it was sent, that each request has one record, that the engine gets its share again
//! in a time that any machine keeps, and that one which fails is asked in vain only so often.
//!
//! `LLMPROXY_OUTAGE_MS` is how long a fault lasts (1500 unless set).

mod crowd;
mod gate;
mod stage;

use crate::harness::{await_until, pause, NameServer, SOON};
use crate::load::CHAT;
use crate::receiver::Receiver;
use crowd::Group;
use gate::Gate;
use rustix::process::Signal;
use stage::{common, config, engine_at, engines, Findings, Stage, GROUPS, ODD, RETRY};
use std::time::{Duration, Instant, SystemTime};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn outage() -> Duration {
    let asked = std::env::var("LLMPROXY_OUTAGE_MS").ok();
    Duration::from_millis(asked.map_or(1500, |millis| millis.parse().unwrap()))
}

/// Three engines that are well, with what a scenario adds to its configuration.
fn three(routing: &str) -> Stage {
    let (engines, receiver) = (engines(&[]), Receiver::start());
    let urls: Vec<_> = engines.iter().map(|engine| engine.url()).collect();
    let config = config(&urls, &receiver, routing, "");
    Stage::start(engines, (receiver, &config), (&GROUPS, NAMES, 3))
}

/// Breaks the odd engine for a while, mends it, and waits until it has its share again.
fn play(
    name: &str,
    mut stage: Stage,
    fault: impl FnOnce(&mut Stage),
    mend: impl FnOnce(&mut Stage),
) -> Findings {
    let began = Instant::now();
    fault(&mut stage);
    pause(outage());
    let ended = Instant::now();
    let used_for = stage.used_for(began, ended);
    mend(&mut stage);
    let back = stage.await_share(ended);
    let mut findings = stage.finish(Some(used_for), Some(back));
    findings.lasted = ended - began;
    tell(name, &findings);
    findings
}

/// The same by knobs of the mock engine, that are set back afterwards.
fn with_knobs(name: &str, routing: &str, fault: &str, mend: &str) -> Findings {
    play(name, three(routing), |it| it.engines[ODD].set(fault), |it| it.engines[ODD].set(mend))
}

/// Milliseconds since 1970, as the mock engines write them.
fn unix_ms() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() * 1e3
}

/// The line of the table.
fn tell(name: &str, it: &Findings) {
    let time = |time: Option<Duration>| match time {
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
        None => "-".to_owned(),
    };
    println!(
        "| {name} | {} | {} | {} | {} | {} | {} | {} |",
        it.requests,
        it.failed.len(),
        it.cut,
        it.twice,
        it.doubled,
        time(it.used_for),
        time(it.back_after)
    );
}

/// Nobody got an error, and nothing was generated twice. But for what was taken away from an engine
/// that was found dead: if it was not, it may go on for a moment until it sees that nobody listens.
fn assert_spared(it: &Findings) {
    assert_spared_after(it, &["backend_ejected"]);
}

/// The same, where what was given up for these reasons may have been generated all the same.
fn assert_spared_after(it: &Findings, reasons: &[&str]) {
    assert!(it.failed.is_empty(), "{:?} of {}", it.failed, it.requests);
    let retries = |reason: &&str| it.metrics.sum("llmproxy_retries_total", &[("reason", *reason)]);
    let moved: f64 = reasons.iter().map(retries).sum();
    assert!(it.doubled as f64 <= moved, "{} generated twice, {moved} moved", it.doubled);
}

/// The same, and no answer was cut: the fault leaves those that had begun alone.
fn assert_unnoticed(it: &Findings) {
    assert_spared(it);
    assert_eq!(it.cut, 0);
}

/// The engine was found out by what it answers, and left alone: five bad answers in a row, and what
/// else was on its way then, is all that it may cost; an ejection lasts for as long as it says, and
/// is none of several in a moment.
fn assert_left_alone(it: &Findings) {
    let on_their_way: u32 = GROUPS.iter().map(|group| group.count).sum();
    assert!(it.twice <= 5 + on_their_way as usize, "{} were sent there in vain", it.twice);
    let most = 1 + (it.lasted.as_secs() / 5) as usize;
    assert!((1..=most).contains(&it.ejected), "{} within {:?}", it.ejected, it.lasted);
}

/// Catches: requests that fail because an engine's process is gone.
#[test]
fn an_engine_is_killed() {
    let name = "is killed, and started again";
    assert_spared(&play(name, three(RETRY), Stage::kill, |it| it.revive(&[])));
}

/// Catches: clients that get an error, or wait for minutes, because an engine hangs; answers that
/// had begun there and are given up, though it goes on.
#[test]
fn an_engine_hangs() {
    // Probes find out, which takes two of their timeouts.
    let stage = three(RETRY);
    let stop = |it: &mut Stage| {
        it.engines[ODD].process.signal(Signal::STOP);
        pause(outage());
    };
    let go = |it: &mut Stage| it.engines[ODD].process.signal(Signal::CONT);
    assert_unnoticed(&play("hangs (SIGSTOP), and goes on", stage, stop, go));
}

/// Catches: a backend that is not there at the start and takes its share of requests with it.
#[test]
fn an_engine_is_not_there_at_the_start() {
    let (mut engines, receiver) = (engines(&[]), Receiver::start());
    let urls: Vec<_> = engines.iter().map(|engine| engine.url()).collect();
    let config = config(&urls, &receiver, RETRY, "");
    let gone = engines.remove(ODD).addr();
    let began = Instant::now();
    let mut stage = Stage::start(engines, (receiver, &config), (&GROUPS, NAMES, 2));
    stage.gone = Some(gone);
    pause(outage());
    let ended = Instant::now();
    let used_for = stage.used_for(began, ended);
    stage.revive(&[]);
    let back = stage.await_share(ended);
    let findings = stage.finish(Some(used_for), Some(back));
    tell("is not there at the start (port closed), and comes", &findings);
    assert_unnoticed(&findings);
}

/// Catches: requests that fail because an engine resets each connection as soon as it is made.
#[test]
fn an_engine_resets_whoever_connects() {
    let (engines, receiver) = (engines(&[]), Receiver::start());
    let gate = Gate::before(engines[ODD].addr());
    let urls = [engines[0].url(), engines[1].url(), gate.url()];
    let config = config(&urls, &receiver, RETRY, "");
    let stage = Stage::start(engines, (receiver, &config), (&GROUPS, NAMES, 3));
    let (shut, open) = (|_: &mut Stage| gate.set_shut(true), |_: &mut Stage| gate.set_shut(false));
    let findings = play("resets whoever connects", stage, shut, open);
    // The engine goes on with what it had when the gate was shut behind it.
    assert_spared_after(&findings, &["backend_ejected", "backend_closed"]);
}

/// Catches: a generation that is begun at an engine that dies under it, and lost to the client.
#[test]
fn an_engine_resets_each_request() {
    let knobs = ("die-before-head=1", "die-before-head=0");
    assert_unnoticed(&with_knobs("resets each request", RETRY, knobs.0, knobs.1));
}

/// Catches: a request that an engine may have worked on and that is sent to another one, though
/// nobody has said that it may be.
#[test]
fn what_an_engine_may_have_worked_on_is_not_sent_again_unasked() {
    let name = "the same, without `routing.retry`";
    let findings = with_knobs(name, "", "die-before-head=1", "die-before-head=0");
    assert_eq!(findings.doubled, 0);
    assert!(!findings.failed.is_empty(), "nobody met the engine: this proves nothing");
    assert!(findings.failed.iter().all(|fate| *fate == crowd::Fate::Failed(502)));
    let retries = |reason| findings.metrics.sum("llmproxy_retries_total", &[("reason", reason)]);
    // Moved away from an engine that was found dead under them, or met a kept connection that had
    // just been closed.
    let allowed = ["backend_ejected", "reuse_race", "connect_failed"].map(retries);
    assert_eq!(findings.metrics.sum("llmproxy_retries_total", &[]), allowed.iter().sum::<f64>());
}

/// Catches: an engine that answers nothing but errors, and gets its share for ever.
#[test]
fn an_engine_answers_500() {
    let name = "answers 500; its probes answer 200";
    let findings = with_knobs(name, RETRY, "status=500", "status=0");
    assert_unnoticed(&findings);
    assert_left_alone(&findings);
}

/// Catches: probes that are believed against all evidence.
#[test]
fn an_engine_that_probes_find_well_answers_nothing() {
    let name = "answers 502; its probes answer 200";
    let findings = with_knobs(name, RETRY, "status=502", "status=0");
    assert_unnoticed(&findings);
    assert_left_alone(&findings);
}

/// Catches: requests that fail because a probe is wrong.
#[test]
fn an_engine_that_probes_find_dead_is_well() {
    let (sick, well) = (503, 200);
    assert_unnoticed(&play(
        "answers; its probes answer 503",
        three(RETRY),
        |it| it.engines[ODD].set_health(sick),
        |it| it.engines[ODD].set_health(well),
    ));
}

/// Catches: errors that engines tell inside a 200, and that reach clients.
#[test]
fn an_engine_fails_inside_its_answers() {
    let held = format!("hold_preamble: 2s, {RETRY}");
    let (fault, mend) = ("error=in-stream&error-after=0", "error=off");
    let name = "tells of an error inside a 200, with `hold_preamble: 2s`";
    let findings = with_knobs(name, &held, fault, mend);
    assert_unnoticed(&findings);
    assert_left_alone(&findings);
    let name = "the same, without `hold_preamble`";
    let findings = with_knobs(name, RETRY, fault, mend);
    assert_spared(&findings);
    assert_left_alone(&findings);
    assert!(findings.cut > 0, "streams began");
    let failures = findings.metrics.sum("llmproxy_backend_failures_total", &[("backend", "c")]);
    assert_eq!(failures, findings.cut as f64, "they are held against it");
}

/// Catches: an engine that says that it is full, and whose clients hear of it though others are
/// not.
#[test]
fn an_engine_is_full() {
    for (status, wait) in [(503, 1), (429, 1), (503, 0), (429, 0)] {
        let how = if wait > 0 { "with `Retry-After: 1`" } else { "and names no time" };
        let name = format!("is full: {status} {how}");
        let fault = format!("status={status}&retry-after={wait}");
        let findings = with_knobs(&name, RETRY, &fault, "status=0&retry-after=0");
        assert_unnoticed(&findings);
        let name = [("backend", "c")];
        let ejections = findings.metrics.sum("llmproxy_backend_ejections_total", &name);
        assert_eq!(ejections, 0.0, "it is not sick");
    }
}

/// Catches: an engine that is slow and gets as many requests as the others, until all clients wait
/// for it.
#[test]
fn an_engine_is_slow() {
    let stage = three(&format!("load_balance: least_connections, {RETRY}"));
    let began = Instant::now();
    stage.engines[ODD].set("ttft-ms=200&gap-ms=100");
    await_until("it has less than its share", SOON, || {
        pause(outage());
        stage.share(Instant::now() - outage(), Instant::now()) < 0.25
    });
    let (ended, share) = (Instant::now(), stage.share(began, Instant::now()));
    stage.engines[ODD].set("ttft-ms=20&gap-ms=10");
    let back = stage.await_share(ended);
    let findings = stage.finish(None, Some(back));
    let name =
        format!("is ten times slower, with `least_connections`: {:.0} % of tries", 100.0 * share);
    tell(&name, &findings);
    assert_unnoticed(&findings);
}

/// Catches: a request that meets a connection which the engine closes at that moment, and fails.
/// `LLMPROXY_KEEPALIVE_MS` is for how long the engines keep connections (300 unless set); clients
/// pause for just as long.
#[test]
fn engines_close_idle_connections_as_they_are_used() {
    let kept = std::env::var("LLMPROXY_KEEPALIVE_MS").map_or(300, |kept| kept.parse().unwrap());
    let (engines, receiver) = (engines(&["--idle-close-ms", &kept.to_string()]), Receiver::start());
    let urls: Vec<_> = engines.iter().map(|engine| engine.url()).collect();
    let config = config(&urls, &receiver, "", ", keepalive_timeout: 60s");
    // Some a little earlier, some a little later.
    let rests = (0..12).map(|n| Duration::from_millis(kept + n) - Duration::from_millis(6));
    let groups: Vec<_> = rests.map(|rest| Group { count: 2, body: CHAT, rest }).collect();
    let stage = Stage::start(engines, (receiver, &config), (&groups, NAMES, 3));
    pause(2 * outage() + Duration::from_millis(2 * kept));
    let findings = stage.finish(None, None);
    let raced = findings.metrics.sum("llmproxy_retries_total", &[("reason", "reuse_race")]) as u64;
    tell(
        &format!(
            "closes idle connections after {kept} ms, when they are used again: {raced} met that"
        ),
        &findings,
    );
    assert_unnoticed(&findings);
}

/// Catches: the same where each kept connection ends in that way, so that it is met for certain.
#[test]
fn engines_reset_connections_as_they_are_used_again() {
    let (engines, receiver) = (engines(&[]), Receiver::start());
    let gates: Vec<_> = engines.iter().map(|it| Gate::for_one_request(it.addr())).collect();
    let urls: Vec<_> = gates.iter().map(Gate::url).collect();
    let config = config(&urls, &receiver, RETRY, "");
    let stage = Stage::start(engines, (receiver, &config), (&GROUPS, NAMES, 3));
    pause(outage());
    let findings = stage.finish(None, None);
    let raced = findings.metrics.sum("llmproxy_retries_total", &[("reason", "reuse_race")]);
    assert!(raced > 0.0, "nobody met that");
    tell(&format!("resets kept connections as they are used again: {raced} met that"), &findings);
    assert_unnoticed(&findings);
}

/// Catches: a request that is lost with a connection which the engine closes behind so many.
#[test]
fn engines_close_connections_after_a_few_answers() {
    let (engines, receiver) = (engines(&["--max-requests", "5"]), Receiver::start());
    let urls: Vec<_> = engines.iter().map(|engine| engine.url()).collect();
    let config = config(&urls, &receiver, "", "");
    let stage = Stage::start(engines, (receiver, &config), (&GROUPS, NAMES, 3));
    pause(outage());
    let findings = stage.finish(None, None);
    tell("closes each connection after 5 answers", &findings);
    assert_unnoticed(&findings);
}

/// Catches: requests that go on to an address that a name has no more, or that are cut because of
/// it; one that is new and gets none.
#[test]
fn a_name_leads_elsewhere() {
    let place = |number: usize, port: u16| format!("127.0.2.{number}:{port}");
    let first = engine_at(&place(1, 0), &[]);
    let port = first.addr().port();
    let mut engines = vec![first];
    engines.extend((2..=4).map(|number| engine_at(&place(number, port), &[])));
    let (receiver, server) = (Receiver::start(), NameServer::start());
    server.set_addresses("llm.test", &["127.0.2.1", "127.0.2.2", "127.0.2.3"]);
    let source = format!(
        "discovery: {{enabled: true, sources: [{{type: dns, dns: {{resolver: \"{}\", interval: 100ms, \
         name: llm.test, port: {port}}}}}]}}",
        server.addr()
    );
    let config = common(&receiver, RETRY).section(source);
    let name = |number: usize| -> &'static str {
        Box::leak(format!("llm.test/{}", place(number, port)).into_boxed_str())
    };
    let names = [name(1), name(2), name(4)];
    let stage = Stage::start(engines, (receiver, &config), (&GROUPS, names, 2));
    let (began, began_ms) = (Instant::now(), unix_ms());
    server.set_addresses("llm.test", &["127.0.2.1", "127.0.2.2", "127.0.2.4"]);
    let back = stage.await_share(began);
    // The counters of who is gone are gone too; it knows itself when it was asked last.
    let last = stage.engines[2].posts().pop().unwrap()["started_unix_ms"].as_f64().unwrap();
    let used_for = Duration::from_secs_f64((last - began_ms).max(0.0) / 1000.0);
    let findings = stage.finish(Some(used_for), Some(back));
    tell("has another address, which its name says", &findings);
    assert_unnoticed(&findings);
}

/// Catches: an engine that is started anew and gets requests while it loads its model.
#[test]
fn an_engine_is_started_anew_and_loads() {
    let stage = three(RETRY);
    let restart = |it: &mut Stage| {
        it.kill();
        it.revive(&["--health", "503", "--status", "503"]);
    };
    let loaded = |it: &mut Stage| {
        let engine = it.engines.last().unwrap();
        engine.set("status=0");
        engine.set_health(200);
    };
    assert_spared(&play("is started anew, and loads its model", stage, restart, loaded));
}
