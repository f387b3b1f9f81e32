//! Whose request it is behind other proxies: fields of the head, and the PROXY protocol.

use crate::harness::config::PLAIN;
use crate::harness::{Backend, Config, Proxy};
use crate::rig::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}";
/// Of the two keys, each is for one client alone.
const KEYS: &str = "api_keys:\n  - {key: sk-seven, allowed_ips: [192.0.2.7]}\n  \
                    - {key: sk-local, allowed_ips: [127.0.0.1]}";

fn behind(server: &[&str]) -> (Proxy, Backend) {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url()).section(KEYS);
    let config = server.iter().fold(config, |config, line| config.server(*line));
    (config.start(), backend)
}

fn asked(key: &str, fields: &str) -> String {
    format!(
        "POST {CHATS} HTTP/1.1\r\nHost: gw\r\nAuthorization: Bearer {key}\r\n{fields}\
         Content-Length: {}\r\n\r\n{CHAT}",
        CHAT.len()
    )
}

/// Catches: an address that a client makes up, and that an IP list goes by.
#[test]
fn fields_count_from_trusted_peers_alone() {
    let forged = ["X-Forwarded-For: 192.0.2.7\r\n", "Forwarded: for=192.0.2.7\r\n"];
    let (proxy, backend) = behind(&[]);
    for fields in forged {
        let mut conn = proxy.connect();
        conn.send(asked("sk-seven", fields)).response().assert_refused(403, "ip_not_allowed");
        let own = proxy.connect().send(asked("sk-local", fields)).response();
        assert_eq!(own.status(), 200);
    }
    let sent = backend.requests();
    assert_eq!(sent[0].head.all("x-forwarded-for"), ["127.0.0.1"], "the client's own is not sent");
    assert_eq!(sent[1].head.get("forwarded"), None);

    let (proxy, backend) = behind(&["trusted_proxies: [127.0.0.0/8]"]);
    let mut conn = proxy.connect();
    for (fields, status) in [
        ("X-Forwarded-For: 192.0.2.7\r\n", 200),
        ("X-Forwarded-For: 192.0.2.8\r\n", 403),
        ("X-Forwarded-For: 192.0.2.7, 192.0.2.8\r\n", 403),
        ("X-Forwarded-For: 192.0.2.8\r\nX-Forwarded-For: 192.0.2.7\r\n", 200),
        ("Forwarded: for=192.0.2.8, for=\"192.0.2.7:4711\";proto=https\r\n", 200),
        ("X-Forwarded-For: 192.0.2.7, garbage\r\n", 403),
        ("X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.9\r\n", 403),
        // The connection's next request is not the one before.
        ("", 403),
    ] {
        let got = conn.send(asked("sk-seven", fields)).response();
        assert_eq!(got.status(), status, "{fields:?}: {}", got.text());
    }
    let head = &backend.requests()[0].head;
    assert_eq!(head.all("x-forwarded-for"), ["192.0.2.7, 127.0.0.1"]);
}

/// Catches: a balancer whose word is not heard, or that anybody can play.
#[test]
fn the_proxy_protocol_says_whose_a_connection_is() {
    // The header comes before the handshake, in clear text: tls_listener.rs tries that.
    let lines =
        [PLAIN, "trusted_proxies: [127.0.0.0/8]", "proxy_protocol: true", "header_timeout: 1s"];
    let (proxy, backend) = behind(&lines);
    let v2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x12\x34\0\x50";
    let local: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    let v1: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n";
    for (header, key) in [
        (v1, "sk-seven"),
        (v2, "sk-seven"),
        (local, "sk-local"),
        (b"PROXY UNKNOWN\r\n", "sk-local"),
    ] {
        let mut conn = proxy.connect();
        // In two pieces: it need not come in one.
        let (first, second) = header.split_at(header.len() / 2);
        conn.send(first);
        conn.send(second);
        for _ in 0..2 {
            let got = conn.send(asked(key, "")).response();
            assert_eq!(got.status(), 200, "{header:?}: {}", got.text());
        }
    }
    assert_eq!(backend.requests()[0].head.all("x-forwarded-for"), ["192.0.2.7"]);
    // The peer is the client now, and nobody trusts that one.
    let mut conn = proxy.connect();
    conn.send(b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 80\r\n");
    let forged = asked("sk-seven", "X-Forwarded-For: 192.0.2.7\r\n");
    conn.send(forged).response().assert_refused(403, "ip_not_allowed");
    for bad in [asked("sk-local", "").as_str(), "PROXY TCP4 1.1.1.1\r\n", "\r\n\r\n\0\r\nQUIP\n"] {
        let mut conn = proxy.connect();
        conn.send(bad);
        conn.assert_closes();
    }
    // What never comes is not waited for.
    let mut conn = proxy.connect();
    conn.send("PROXY TCP4 1.1");
    conn.assert_closes();
    assert_eq!(backend.requests().len(), 8);
}

/// Catches: probes of a machine that is no balancer, and are cut off.
#[test]
fn others_need_no_header() {
    let (proxy, _backend) = behind(&["trusted_proxies: [192.0.2.0/24]", "proxy_protocol: true"]);
    assert_eq!(proxy.get("/health").status(), 200);
    let mut conn = proxy.connect();
    conn.send("PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n");
    assert_eq!(conn.response().status(), 400, "it is no word of a balancer of ours");
}
