//! The certificates that clients of TLS are shown: which one, and what becomes of their files.

use crate::harness::tls::Pki;
use crate::harness::{Backend, Config, Conn, Proxy};
use crate::rig::OK;
use rustls::version::{TLS12, TLS13};
use std::sync::Arc;

fn serving(pki: &Pki, tls: &str) -> Proxy {
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url()).server(format!("tls: {tls}"));
    let mut proxy = config.start();
    proxy.tls = Some(pki.client());
    proxy
}

/// The certificate that a client is shown which asks for this name and takes no other for it.
fn shown(pki: &Pki, proxy: &Proxy, name: &str) -> Vec<u8> {
    let mut conn = Conn::open_tls_to(name, proxy.addr(), pki.client());
    assert_eq!(conn.get("/health").status(), 200, "{name}");
    conn.tls_session().peer_certificates().unwrap()[0].to_vec()
}

/// Catches: a gateway for several names that shows each client the first certificate, and one
/// without a certificate for all.
#[test]
fn each_name_has_its_certificate() {
    let pki = Pki::new();
    let a = pki.more("a", &["a.example", "*.a.example"]);
    let b = pki.more("b", &["b.example", "gpu.a.example"]);
    let list = format!("certificates: [{a}, {b}]");
    let proxy = serving(&pki, &format!("{{enabled: true, {list}}}"));
    let names = ["a.example", "x.a.example", "b.example", "gpu.a.example"];
    let [a, stars, b, gpu] = names.map(|name| shown(&pki, &proxy, name));
    assert!(a == stars && b == gpu && a != b);
    // The pair comes before the list, and is for all that the others are not for.
    let (cert, key) = (pki.path("cert.pem"), pki.path("key.pem"));
    let tls = format!("{{enabled: true, cert_file: \"{cert}\", key_file: \"{key}\", {list}}}");
    let proxy = serving(&pki, &tls);
    let first = shown(&pki, &proxy, "localhost");
    assert!(first != a && first != b && shown(&pki, &proxy, "b.example") == b);
}

/// Catches: a version that the configuration excludes and that is spoken, or the other way round.
#[test]
fn nothing_older_than_was_said_is_spoken() {
    let pki = Pki::new();
    let (cert, key) = (pki.path("cert.pem"), pki.path("key.pem"));
    for (floor, old) in [("\"1.2\"", true), ("1.3", false)] {
        let pair = format!("cert_file: \"{cert}\", key_file: \"{key}\"");
        let tls = format!("{{enabled: true, {pair}, min_version: {floor}}}");
        let proxy = serving(&pki, &tls);
        for (version, is_spoken) in [(&TLS12, old), (&TLS13, true)] {
            let config = pki.client_of(&[version]);
            let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(&config));
            let is_sent = conn.try_send("GET /health HTTP/1.1\r\nHost: test\r\n\r\n");
            assert_eq!(is_sent, is_spoken, "{floor}: {version:?}");
        }
    }
}
