use super::*;
use crate::http::head::Parse;
use crate::http::request::RequestHead;
use proptest::prelude::*;

fn told(peer: &str, lines: &str) -> String {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let mut head = RequestHead::default();
    let parsed = head.parse(text.as_bytes(), 64 * 1024);
    assert!(matches!(parsed, Ok(Parse::Done { .. })), "{lines:?}: {parsed:?}");
    let is_trusted = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 10,
        IpAddr::V6(ip) => ip.segments()[0] == 0xfd00,
    };
    client(peer.parse().unwrap(), &head.fields, text.as_bytes(), is_trusted).to_string()
}

/// Catches: an address that the client made up.
#[test]
fn the_rightmost_untrusted_hop_is_the_client() {
    for (peer, lines, client) in [
        ("192.0.2.1", "X-Forwarded-For: 198.51.100.1\r\n", "192.0.2.1"),
        ("192.0.2.1", "Forwarded: for=198.51.100.1\r\n", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "X-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
        ("::ffff:10.0.0.1", "X-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1, 198.51.100.1, 10.0.0.2\r\n", "198.51.100.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n", "2.2.2.2"),
        ("10.0.0.1", "X-Forwarded-For: 2.2.2.2\r\nX-Forwarded-For: 10.9.9.9\r\n", "2.2.2.2"),
        ("10.0.0.1", "X-Forwarded-For: 10.0.0.3, 10.0.0.2\r\n", "10.0.0.3"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1, nonsense\r\n", "10.0.0.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1, nonsense, 10.0.0.2\r\n", "10.0.0.2"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1, 010.1.1.1\r\n", "10.0.0.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1,,\r\n", "1.1.1.1"),
        ("10.0.0.1", "X-Forwarded-For:\r\n", "10.0.0.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1:4711\r\n", "1.1.1.1"),
        ("10.0.0.1", "X-Forwarded-For: [2001:db8::1]:4711\r\n", "2001:db8::1"),
        ("10.0.0.1", "X-Forwarded-For: [2001:db8::1]\r\n", "2001:db8::1"),
        ("10.0.0.1", "X-Forwarded-For: 2001:db8::1\r\n", "2001:db8::1"),
        ("10.0.0.1", "X-Forwarded-For: ::ffff:1.1.1.1\r\n", "1.1.1.1"),
        ("10.0.0.1", "X-Forwarded-For: fe80::1%eth0\r\n", "10.0.0.1"),
        ("fd00::1", "X-Forwarded-For: 2.2.2.2, fd00::2\r\n", "2.2.2.2"),
        ("10.0.0.1", "Forwarded: for=1.1.1.1;proto=https;by=10.0.0.1\r\n", "1.1.1.1"),
        ("10.0.0.1", "Forwarded: proto=https; For=\"[2001:db8::1]:80\"\r\n", "2001:db8::1"),
        ("10.0.0.1", "Forwarded: for=9.9.9.9, for=1.1.1.1, for=10.0.0.2\r\n", "1.1.1.1"),
        ("10.0.0.1", "Forwarded: for=1.1.1.1, for=_hidden\r\n", "10.0.0.1"),
        ("10.0.0.1", "Forwarded: for=1.1.1.1, for=unknown, for=10.0.0.2\r\n", "10.0.0.2"),
        ("10.0.0.1", "Forwarded: for=1.1.1.1, proto=http\r\n", "10.0.0.1"),
        ("10.0.0.1", "Forwarded: for=1.1.1.1;for=2.2.2.2\r\n", "10.0.0.1"),
        ("10.0.0.1", "Forwarded: for=\"1.1.1.1, for=2.2.2.2\r\n", "10.0.0.1"),
        ("10.0.0.1", "Forwarded: by=\"a,b\\\",\";for=2.2.2.2\r\n", "2.2.2.2"),
        // The proxy writes one of them, and its client the other.
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=2.2.2.2\r\n", "10.0.0.1"),
        ("10.0.0.1", "X-Forwarded-For: 1.1.1.1\r\nForwarded: for=1.1.1.1\r\n", "1.1.1.1"),
        ("10.0.0.1", "X-Real-IP: 1.1.1.1\r\n", "10.0.0.1"),
    ] {
        assert_eq!(told(peer, lines), client, "{peer} {lines:?}");
    }
}

/// Catches: a way that is so long that its end is forgotten, or its beginning believed.
#[test]
fn a_long_way_counts_from_its_right_end() {
    let many = "9.9.9.9, ".repeat(200);
    assert_eq!(told("10.0.0.1", &format!("X-Forwarded-For: {many}1.1.1.1\r\n")), "1.1.1.1");
    let trusted = "10.0.0.2, ".repeat(200);
    let lines = format!("X-Forwarded-For: 1.1.1.1, {trusted}10.0.0.3\r\n");
    assert_eq!(told("10.0.0.1", &lines), "10.0.0.2");
}

proptest! {
    /// Whatever stands left of what the proxy wrote changes nothing.
    #[test]
    fn nothing_that_a_client_writes_counts(
        forged in "[0-9a-f:., \"=;\\[\\]for]{0,40}",
        is_standard in any::<bool>(),
    ) {
        let own = match is_standard {
            true => format!("Forwarded: {forged}\r\nForwarded: for=192.0.2.7\r\n"),
            false => format!("X-Forwarded-For: {forged}\r\nX-Forwarded-For: 192.0.2.7\r\n"),
        };
        prop_assert_eq!(told("10.0.0.1", &own), "192.0.2.7");
        prop_assert_eq!(told("192.0.2.1", &own), "192.0.2.1");
    }
}
