//! Certificates from an authority: a real one, which looks whether the names are ours.

use crate::clients::is_there;
use crate::harness::acme::{HMAC_KEY, KID};
use crate::harness::metrics::Metrics;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{await_until, AcmeMood, AcmeServer, Backend, Config, Conn};
use crate::harness::{Proxy, SOON};
use crate::rig::OK;
use rustls::ClientConfig;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Certificates that live so long are not renewed in any test.
pub const LONG_S: u64 = 90 * 24 * 3600;

fn authority(test: &str, life_s: u64) -> Option<AcmeServer> {
    is_there(test, AcmeServer::is_there()).then(|| AcmeServer::start(life_s))
}

/// The configuration of a proxy with these properties of `acme`, and clients on this port.
pub fn yaml(authority: &AcmeServer, storage: &Path, port: u16, more: &str) -> String {
    let storage = storage.display();
    let lead = authority.properties();
    let acme = format!("{{{lead}, storage: \"{storage}\", domains: [localhost], {more}}}");
    let config = Config::new()
        .server(format!("tls: {{enabled: true, acme: {acme}}}"))
        .section("metrics: {listen: \"127.0.0.1:0\"}");
    config.yaml().replacen("127.0.0.1:0", &format!("127.0.0.1:{port}"), 1)
}

pub fn by_http(authority: &AcmeServer) -> String {
    format!("challenge: http-01, http_listen: \"127.0.0.1:{}\"", authority.http_port)
}

/// The metrics page, which is served without TLS.
fn metric(proxy: &Proxy, name: &str, labels: &[(&str, &str)]) -> f64 {
    let event = proxy.await_event("the page listens", |event| event["message"] == "metrics");
    let page: SocketAddr = event["addr"].as_str().unwrap().parse().unwrap();
    Metrics::parse(&Conn::open(page).get("/metrics").text()).sum(name, labels)
}

fn ends(proxy: &Proxy, result: &str) -> f64 {
    metric(proxy, "llmproxy_acme_orders_total", &[("result", result)])
}

/// Whether a client that trusts the authority is served.
pub fn is_served(proxy: &Proxy, client: &Arc<ClientConfig>) -> bool {
    let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(client));
    if !conn.try_send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") {
        return false;
    }
    let got = conn.stream().read_within(&mut [0; 12], SOON);
    matches!(got, Ok(n) if n > 0)
}

/// Waits for the first certificate: nobody is served before.
pub fn await_served(proxy: &Proxy, client: &Arc<ClientConfig>) {
    await_until("it has a certificate", 2 * SOON, || is_served(proxy, client));
}

fn files(folder: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        found.push((entry.file_name().into_string().unwrap(), mode));
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        }
    }
    found.sort();
    found
}

/// Catches: a challenge that is not answered, a handshake without a certificate that somebody else
/// than the authority signed, a bad nonce that ends an order, keys that others can read, an order
/// after each restart, a certificate that a reload forgets.
#[test]
fn a_first_certificate_is_fetched_and_found_again() {
    let Some(authority) = authority("a first certificate", LONG_S) else { return };
    let client = authority.client();
    for (tries, more) in
        [by_http(&authority), "challenge: tls-alpn-01".to_owned()].iter().enumerate()
    {
        let storage = Scratch::new();
        authority.set_mood(AcmeMood::BadNonce);
        let yaml = yaml(&authority, &storage.file("acme"), authority.tls_port, more);
        let proxy = Proxy::start(&yaml);
        await_served(&proxy, &client);
        assert_eq!((ends(&proxy, "issued"), authority.orders()), (1.0, tries + 1), "{more}");
        let next = metric(&proxy, "llmproxy_acme_next_order_timestamp_seconds", &[]);
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        assert!((next - now) > 59.0 * 86400.0 && (next - now) < 64.0 * 86400.0, "{next}");
        let found = files(&storage.file("acme"));
        let is_folder = |name: &str| name == "challenges" || name.starts_with("127.0.0.1");
        for (name, mode) in &found {
            assert_eq!(*mode, if is_folder(name) { 0o700 } else { 0o600 }, "{name}");
        }
        assert_eq!(found.iter().filter(|(name, _)| name == "localhost.pem").count(), 1);
        drop(proxy);
        let proxy = Proxy::start(&yaml);
        assert!(is_served(&proxy, &client), "at once");
        assert!(proxy.reload() && is_served(&proxy, &client), "a reload changes nothing of it");
        assert_eq!((ends(&proxy, "issued"), authority.orders()), (0.0, tries + 1), "{more}");
    }
}

/// Ends the load with the test, however that ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Catches: a certificate that is not renewed, an authority that is down and takes the old one
/// along, a handshake that fails while certificates change, and orders without end meanwhile.
#[test]
fn renewals_disturb_nobody_even_if_they_fail_at_first() {
    const LIFE_S: u64 = 45;
    let Some(authority) = authority("renewals", LIFE_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    let yaml = yaml(&authority, storage.path(), authority.tls_port, &by_http(&authority));
    let proxy = Proxy::start(&yaml);
    await_served(&proxy, &client);
    let before = metric(&proxy, "llmproxy_tls_handshakes_failed_total", &[]);
    let shown = || {
        let mut conn = Conn::open_tls(proxy.addr(), Arc::clone(&client));
        conn.get("/health");
        conn.tls_session().peer_certificates().unwrap()[0].to_vec()
    };
    let first = shown();
    authority.set_mood(AcmeMood::Down);
    let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert!(is_served(&proxy, &client));
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        await_until("it fails", 3 * SOON, || ends(&proxy, "unreached") > 0.0);
        authority.set_mood(AcmeMood::Well);
        await_until("it is renewed", SOON, || ends(&proxy, "issued") > 1.0);
        await_until("the new one is shown", SOON, || shown() != first);
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    assert!(served.load(Ordering::Relaxed) > 0);
    assert_eq!(metric(&proxy, "llmproxy_tls_handshakes_failed_total", &[]), before);
    assert_eq!(authority.orders(), 2);
}

/// Catches: an authority that is about to revoke a certificate, and whose wish to have it renewed
/// nobody hears, or that is heard for each certificate that follows.
#[test]
fn an_authority_may_ask_for_an_earlier_renewal() {
    // Ours would be after 133 s; it is asked after 10 s for the first time.
    const LIFE_S: u64 = 200;
    let Some(authority) = authority("an earlier renewal", LIFE_S) else { return };
    authority.advise();
    let (client, storage) = (authority.client(), Scratch::new());
    let yaml = yaml(&authority, storage.path(), authority.tls_port, &by_http(&authority));
    let proxy = Proxy::start(&yaml);
    await_served(&proxy, &client);
    proxy.await_event("it asks for it", |event| {
        event["message"] == "acme: the authority asks for an earlier renewal"
    });
    await_until("it is renewed", SOON, || ends(&proxy, "issued") == 2.0);
    await_until("it is asked about the new one", SOON, || {
        let advised = authority.advised();
        advised.iter().any(|mark| *mark != advised[0])
    });
    assert_eq!(authority.orders(), 2);
}

/// Catches: an authority that wants fewer orders and gets more.
#[test]
fn a_limit_of_the_authority_is_waited_for() {
    const WAIT: Duration = Duration::from_secs(3);
    let Some(authority) = authority("limits of the authority", LONG_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    authority.set_mood(AcmeMood::RateLimited(WAIT.as_secs()));
    let yaml = yaml(&authority, storage.path(), authority.tls_port, &by_http(&authority));
    let proxy = Proxy::start(&yaml);
    await_until("it is limited", SOON, || authority.tries() == 1);
    let since = Instant::now();
    await_until("it asks again", SOON, || authority.tries() == 2);
    // The answer was on its way when the request had been seen.
    assert!(since.elapsed() > WAIT - Duration::from_secs(1), "{:?}", since.elapsed());
    await_served(&proxy, &client);
    assert_eq!((ends(&proxy, "rate_limited"), ends(&proxy, "issued")), (1.0, 1.0));
}

/// Catches: a full disk that costs one certificate after the other of those that an authority gives
/// in a week, and one that is not tried again.
#[test]
fn what_could_not_be_kept_is_not_ordered() {
    let Some(authority) = authority("a full disk", LONG_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    authority.set_mood(AcmeMood::Down);
    let yaml = yaml(&authority, storage.path(), authority.tls_port, &by_http(&authority));
    let proxy = Proxy::start(&yaml);
    await_until("it is not reached", SOON, || ends(&proxy, "unreached") > 0.0);
    // From now on no file of the process gets longer than this, which is what a full disk does.
    let limit = |bytes: &str| {
        let pid = proxy.process.pid().to_string();
        let args = ["--pid", &pid, &format!("--fsize={bytes}:unlimited")];
        let ran = crate::harness::process::run(Path::new("/usr/bin/prlimit"), &args, SOON);
        assert_eq!(ran.code, Some(0), "{ran:?}");
    };
    limit("1000");
    authority.set_mood(AcmeMood::Well);
    await_until("the disk is full", SOON, || ends(&proxy, "internal") > 0.0);
    assert_eq!((authority.tries(), ends(&proxy, "issued")), (0, 0.0));
    let failed = || metric(&proxy, "llmproxy_acme_failed_in_row", &[("name", "localhost")]);
    await_until("both are counted", SOON, || failed() >= 2.0);
    limit("unlimited");
    await_served(&proxy, &client);
    assert_eq!(authority.orders(), 1);
    await_until("none in a row", SOON, || failed() == 0.0);
    let left = files(storage.path());
    assert!(left.iter().all(|(name, _)| !name.starts_with(".probe")), "{left:?}");
}

/// Catches: an authority that lost its accounts and is never asked as somebody new, because the
/// first that it is told is another address.
#[test]
fn an_account_that_is_gone_is_made_anew() {
    let Some(authority) = authority("an account that is gone", LONG_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    let with = |email: &str| {
        let more = format!("{}, email: {email}", by_http(&authority));
        yaml(&authority, storage.path(), authority.tls_port, &more)
    };
    let proxy = Proxy::start(&with("one@example.com"));
    await_served(&proxy, &client);
    drop(proxy);
    for email in ["one@example.com", "two@example.com"] {
        let folder = std::fs::read_dir(storage.path()).unwrap().next().unwrap().unwrap().path();
        std::fs::remove_file(folder.join("localhost.pem")).unwrap();
        let before = std::fs::read_to_string(folder.join("account.json")).unwrap();
        authority.set_mood(AcmeMood::NoAccount);
        let proxy = Proxy::start(&with(email));
        await_served(&proxy, &client);
        assert_eq!((ends(&proxy, "issued"), ends(&proxy, "refused")), (1.0, 0.0));
        let after = std::fs::read_to_string(folder.join("account.json")).unwrap();
        assert!(after != before && after.contains(email), "{email}");
    }
    assert_eq!(authority.orders(), 3);
}

/// Catches: an authority of customers that cannot be used at all, a key that is not the one that
/// was given, and one that is told in the log.
#[test]
fn an_account_is_bound_to_the_customer_s() {
    if !is_there("an account that is bound", AcmeServer::is_there()) {
        return;
    }
    let authority = AcmeServer::start_bound(LONG_S);
    let client = authority.client();
    let other = HMAC_KEY.chars().rev().collect::<String>();
    for (key, is_right) in [("", false), (other.as_str(), false), (HMAC_KEY, true)] {
        let storage = Scratch::new();
        let mut more = by_http(&authority);
        if !key.is_empty() {
            more.push_str(&format!(", eab: {{kid: {KID}, hmac_key: \"{key}\"}}"));
        }
        let proxy = Proxy::start(&yaml(&authority, storage.path(), authority.tls_port, &more));
        if is_right {
            await_served(&proxy, &client);
            continue;
        }
        await_until("it is refused", SOON, || ends(&proxy, "refused") == 1.0);
        let told = proxy.await_event("why", |event| event["message"] == "acme: no certificate");
        let why = told["why"].as_str().unwrap();
        let told = why.to_lowercase().replace(' ', "");
        assert!(told.contains("externalaccountbinding"), "{why}");
    }
    assert_eq!(authority.orders(), 1);
}

/// Catches: two instances that order the same certificate, one that does not find what the other
/// one put there, a token that only the instance has that ordered.
#[test]
fn instances_that_share_a_folder_take_turns() {
    let Some(authority) = authority("instances take turns", LONG_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    let answers = yaml(&authority, storage.path(), authority.tls_port, &by_http(&authority));
    let orders =
        yaml(&authority, storage.path(), 0, "challenge: http-01, http_listen: \"127.0.0.1:0\"");
    // The authority asks the other one, whichever orders.
    let proxies = [&orders, &answers, &orders].map(|yaml| Proxy::start(yaml));
    proxies.iter().for_each(|proxy| await_served(proxy, &client));
    assert_eq!(authority.orders(), 1);
    let issued: f64 = proxies.iter().map(|proxy| ends(proxy, "issued")).sum();
    assert_eq!(issued, 1.0);
}

/// Catches: an authority that finds nobody under a name, and of which nobody learns why; a restart
/// that asks again at once; a client that is served with a certificate of ours alone.
#[test]
fn why_there_is_no_certificate_is_told_and_remembered() {
    let Some(authority) = authority("no certificate", LONG_S) else { return };
    let (client, storage) = (authority.client(), Scratch::new());
    authority.names.forget("localhost");
    let more = by_http(&authority);
    let yaml = yaml(&authority, storage.path(), authority.tls_port, &more)
        .replace("[localhost]", "[nobody.test]");
    for start in 0..2 {
        let proxy = Proxy::start(&yaml);
        if start == 0 {
            await_until("it is refused", 2 * SOON, || ends(&proxy, "refused") == 1.0);
            let told = proxy.await_event("why", |event| event["message"] == "acme: no certificate");
            assert!(told["why"].as_str().unwrap().contains("nobody.test"), "{told}");
        }
        assert!(!is_served(&proxy, &client));
        assert_eq!(ends(&proxy, "refused"), if start == 0 { 1.0 } else { 0.0 });
    }
    assert_eq!(authority.orders(), 1);
}

/// Catches: a start with a folder in which no certificate can be kept, or with a key that is none,
/// and a check that says that all is well.
#[test]
fn what_cannot_be_used_is_told_at_the_start() {
    let scratch = Scratch::new();
    let (file, folder) = (scratch.write("file", ""), scratch.file("folder"));
    for (storage, more, key) in [
        (&file, "", "server.tls.acme.storage"),
        (&folder, "eab: {kid: a, hmac_key: no/base64url}", "server.tls.acme.eab.hmac_key"),
    ] {
        let storage = storage.display();
        let lead = "domains: [a.example], http_listen: \"127.0.0.1:0\"";
        let acme = format!("{{{lead}, storage: \"{storage}\", {more}}}");
        let config = Config::backend_at("http://127.0.0.1:1")
            .server(format!("tls: {{enabled: true, acme: {acme}}}"));
        let path = scratch.write("config.yaml", config.yaml());
        let path = path.to_string_lossy();
        for args in [vec!["--config", &*path], vec!["check", &*path]] {
            let ran = llmproxy(&args);
            assert_ne!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
            assert!(ran.stderr.contains(key), "{args:?}: {}", ran.stderr);
            assert!(!ran.stderr.contains("no/base64url"), "{}", ran.stderr);
        }
    }
}

/// Catches: a browser that is left alone without TLS, and a key that goes on to be sent in the
/// clear.
#[test]
fn without_tls_there_is_the_way_to_it_and_nothing_else() {
    let Some(authority) = authority("the plain listener", LONG_S) else { return };
    let storage = Scratch::new();
    let backend = Backend::answering(OK);
    authority.set_mood(AcmeMood::Html);
    let yaml = yaml(&authority, storage.path(), 0, &by_http(&authority));
    let proxy = Proxy::start(&format!("{yaml}\nbackends: [{{url: \"{}\"}}]\n", backend.url()));
    let plain = SocketAddr::from(([127, 0, 0, 1], authority.http_port));
    let ask = |request: &str| {
        let mut conn = Conn::open(plain);
        let answer = conn.send(request).response();
        conn.assert_closes();
        answer
    };
    let sent_on = ask("GET /v1/models?a=b HTTP/1.1\r\nHost: localhost:80\r\n\r\n");
    assert_eq!(sent_on.status(), 308);
    assert_eq!(sent_on.head.get("location"), Some("https://localhost/v1/models?a=b"));
    assert_eq!(ask("GET / HTTP/1.1\r\nHost: elsewhere.test\r\n\r\n").status(), 404);
    let post = "POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(ask(post).status(), 403);
    let token = "GET /.well-known/acme-challenge/none HTTP/1.1\r\nHost: localhost\r\n\r\n";
    assert_eq!(ask(token).status(), 404);
    assert!(backend.requests().is_empty());
    // What stands in the place of the authority, and is none, is told as such.
    let told = proxy.await_event("why", |event| event["message"] == "acme: no certificate");
    assert_eq!(told["why"], "it answered 502", "{told}");
}
