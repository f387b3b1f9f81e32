//! The certificates that clients of TLS are shown: which one, and what becomes of their files.

use crate::harness::metrics::Metrics;
use crate::harness::scratch::Scratch;
use crate::harness::tls::Pki;
use crate::harness::{await_until, Backend, Config, Conn, Proxy, SOON};
use crate::rig::OK;
use rustls::version::{TLS12, TLS13};
use std::fs;
use std::os::unix::fs::symlink;
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

const NOT_RENEWED: &str = "certificates are not renewed: those in use stay";

fn times_told(proxy: &Proxy, message: &str) -> usize {
    proxy.events().iter().filter(|event| event["message"] == message).count()
}

/// Catches: a certificate that is renewed and not shown before somebody reloads, and a half-written
/// pair that takes the one in use away.
#[test]
fn renewed_files_are_shown_without_a_reload() {
    let pki = Pki::new();
    let other = pki.more("other", &["other.example"]);
    let (cert, key) = (pki.path("cert.pem"), pki.path("key.pem"));
    let pair = format!("cert_file: \"{cert}\", key_file: \"{key}\"");
    let proxy = serving(&pki, &format!("{{enabled: true, {pair}, certificates: [{other}]}}"));
    let first = shown(&pki, &proxy, "localhost");
    pki.renew();
    await_until("it is shown", SOON, || shown(&pki, &proxy, "localhost") != first);
    let before = shown(&pki, &proxy, "other.example");
    pki.more("other", &["other.example"]);
    await_until("so is the other", SOON, || shown(&pki, &proxy, "other.example") != before);
    let (second, told) = (shown(&pki, &proxy, "localhost"), times_told(&proxy, NOT_RENEWED));
    pki.spoil();
    await_until("it is told", SOON, || times_told(&proxy, NOT_RENEWED) > told);
    assert_eq!(shown(&pki, &proxy, "localhost"), second, "the key is another's");
    pki.renew();
    await_until("the whole pair is shown", SOON, || shown(&pki, &proxy, "localhost") != second);
    assert_eq!(proxy.reloads().0, 0, "nobody asked for a reload");
}

/// Catches: a Secret of Kubernetes that is swapped and not seen, since no file in its folder
/// changes.
#[test]
fn the_swap_of_a_mounted_secret_is_seen() {
    let (pki, scratch) = (Pki::new(), Scratch::new());
    let folder = scratch.path().to_owned();
    let put = |version: &str| {
        pki.renew();
        fs::create_dir(folder.join(version)).unwrap();
        for file in ["cert.pem", "key.pem"] {
            fs::copy(pki.path(file), folder.join(version).join(file)).unwrap();
        }
        symlink(version, folder.join("..data_tmp")).unwrap();
        fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    put("..1");
    for file in ["cert.pem", "key.pem"] {
        symlink(format!("..data/{file}"), folder.join(file)).unwrap();
    }
    let [cert, key] = ["cert.pem", "key.pem"].map(|file| folder.join(file).display().to_string());
    let tls = format!("{{enabled: true, cert_file: \"{cert}\", key_file: \"{key}\"}}");
    let proxy = serving(&pki, &tls);
    for (new, old) in [("..2", "..1"), ("..3", "..2")] {
        let before = shown(&pki, &proxy, "localhost");
        put(new);
        fs::remove_dir_all(folder.join(old)).unwrap();
        await_until(new, SOON, || shown(&pki, &proxy, "localhost") != before);
    }
}

/// Catches: an authority of clients that is taken out of its file and whose clients still get in.
#[test]
fn the_authorities_of_clients_are_watched_too() {
    let (pki, other) = (Pki::new(), crate::harness::tls::Authority::new());
    fs::write(pki.path("clients.pem"), pki.authority().pem()).unwrap();
    let (cert, key, clients) = (pki.path("cert.pem"), pki.path("key.pem"), pki.path("clients.pem"));
    let tls = format!(
        "{{enabled: true, cert_file: \"{cert}\", key_file: \"{key}\", client_auth: require, \
         client_ca_file: \"{clients}\"}}"
    );
    let mut proxy = serving(&pki, &tls);
    let known = pki.client_known_by(pki.authority());
    proxy.tls = Some(Arc::clone(&known));
    let is_served = || {
        let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(&known));
        conn.try_send("GET /health HTTP/1.1\r\nHost: test\r\n\r\n")
            && matches!(conn.stream().read_within(&mut [0; 8], SOON), Ok(n) if n > 0)
    };
    assert!(is_served());
    fs::write(pki.path("clients.pem"), other.pem()).unwrap();
    await_until("it is a stranger now", SOON, || !is_served());
}

/// Catches: an operator who is not told when a certificate ends.
#[test]
fn the_end_of_a_certificate_is_on_the_page() {
    let pki = Pki::new();
    let more = pki.more("more", &["more.example"]);
    let proxy = serving(&pki, &format!("{{enabled: true, certificates: [{more}]}}"));
    let metrics = proxy_metrics(&pki, &proxy);
    let source = pki.path("more.pem");
    let labels = [("name", "more.example"), ("source", source.as_str())];
    // Those of rcgen last until 4096-01-01 unless told otherwise.
    let ends = metrics.sum("llmproxy_tls_certificate_expiry_seconds", &labels);
    assert_eq!(ends, 67_090_118_400.0);
}

fn proxy_metrics(pki: &Pki, proxy: &Proxy) -> Metrics {
    let mut conn = Conn::open_tls_to("more.example", proxy.addr(), pki.client());
    Metrics::parse(&conn.get("/metrics").text())
}
