//! Requests that go where others of their session were before them.

use crate::affinity::{config, counted, home, Held, NO_PROBES};
use crate::harness::{await_until, Backend, Config, SOON};
use crate::rig::{CHAT, CHATS, OK};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;

/// Catches: a session that changes its backend without need, with each worker, or with a reload;
/// sessions that move though theirs is there.
#[test]
fn a_session_stays_with_its_backend_and_moves_with_no_other() {
    let backends = [(); 3].map(|()| Backend::answering(OK));
    let urls = backends.each_ref().map(Backend::url);
    let by = "session_affinity: {header: [X-Conversation, x-session-id], body: metadata.user_id}";
    let proxy = config(&urls, by).section(NO_PROBES).start();
    let homes = || -> Vec<String> {
        let of = |n| home(&proxy, &format!("x-session-id: session {n}\r\n"), CHAT);
        (0..24).map(of).collect()
    };
    let first = homes();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
    assert_eq!(homes(), first);
    assert!(proxy.reload_with(&config(&urls[..2], by).section(NO_PROBES)));
    let without: Vec<_> = homes();
    for (before, now) in first.iter().zip(&without) {
        assert!(now != "c" && (before == "c" || before == now), "{first:?} {without:?}");
    }
    assert!(proxy.reload_with(&config(&urls, by).section(NO_PROBES)));
    assert_eq!(homes(), first, "they are at home again");
    assert_eq!(counted(&proxy, "session", "hit"), 96.0);
    // What the head does not say may stand in the body; what nobody says is for the strategy.
    let body = r#"{"model":"m","metadata":{"user_id":"session 7"},"messages":[]}"#;
    assert_eq!(home(&proxy, "", body), first[7]);
    assert_eq!(home(&proxy, "x-conversation: session 3\r\nx-session-id: no\r\n", body), first[3]);
    let others: BTreeSet<_> = (0..12).map(|_| home(&proxy, "", CHAT)).collect();
    assert_eq!(others.len(), 3);
    assert_eq!(counted(&proxy, "session", "miss"), 12.0);
}

/// Catches: a session whose requests are refused, or wait, because its backend is full.
#[test]
fn a_session_goes_elsewhere_while_its_backend_is_full() {
    let held = [(); 2].map(|()| Held::start());
    let by = "routing: {load_balance: least_connections, session_affinity: {body: user}}";
    let proxy = Config::new()
        .server("workers: 2")
        .backend(held[0].backend.url(), "name: a, max_concurrent: 2")
        .backend(held[1].backend.url(), "name: b, max_concurrent: 2")
        .section(by)
        .section(NO_PROBES)
        .start();
    let body = r#"{"model":"m","user":"ann","messages":[]}"#;
    let load = || held.each_ref().map(|held| held.now.load(SeqCst));
    let ask = |_| {
        let mut client = proxy.connect();
        client.start_post(CHATS, "", body);
        client
    };
    let mut clients: Vec<_> = (0..2).map(ask).collect();
    await_until("it is full", SOON, || load().contains(&2));
    clients.extend((0..2).map(ask));
    await_until("both are", SOON, || load() == [2, 2]);
    proxy.post(CHATS, body).assert_refused(429, "backends_full");
    assert_eq!(
        (counted(&proxy, "session", "hit"), counted(&proxy, "session", "spilled")),
        (2.0, 2.0)
    );
    held.iter().for_each(|held| held.let_go.store(true, SeqCst));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
}
