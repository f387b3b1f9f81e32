//! Several places at which clients come: with TLS and without, and Unix sockets.

use crate::harness::config::PLAIN;
use crate::harness::message::Ended;
use crate::harness::process::{program, run, Process};
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::stream::Stream;
use crate::harness::tls::Pki;
use crate::harness::{await_until, Backend, Config, Conn, Engine, Proxy, SOON};
use crate::rig::{CHAT, CHATS, OK, STREAM};
use rustix::process::Signal;
use std::fs;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The first byte of a record of TLS that says what went wrong.
const ALERT: u8 = 21;

/// Where it listens, as it tells it.
fn places(proxy: &Proxy, count: usize) -> Vec<String> {
    let told = || -> Vec<String> {
        let events = proxy.events();
        let heard = events.iter().filter(|event| event["message"] == "listening");
        heard.map(|event| event["addr"].as_str().unwrap().to_owned()).collect()
    };
    await_until("all listeners are told", SOON, || told().len() == count);
    told()
}

/// Catches: a listener that speaks what another one should, clear text that is sent on as if it
/// were TLS, and a place that only one of two workers serves.
#[test]
fn clear_text_and_tls_stand_side_by_side() {
    let (pki, backend) = (Pki::new(), Backend::answering(OK));
    let listeners = "listeners: [{listen: \"127.0.0.1:0\", tls: false}, \
                     {listen: \"127.0.0.1:0\", tls: true}]";
    let config = Config::backend_at(backend.url()).server(pki.server_line(""));
    let mut proxy = config.server(listeners).server("workers: 2").start();
    proxy.tls = Some(pki.client());
    let places = places(&proxy, 3);
    // Those of `listen` come first, then those in clear text.
    let at = |place: usize| -> SocketAddr { places[place].parse().unwrap() };
    for _ in 0..8 {
        for place in [0, 2] {
            let mut conn = Conn::open_tls(at(place), pki.client());
            assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
        }
        assert_eq!(Conn::open(at(1)).post(CHATS, "", CHAT).status(), 200);
    }
    // Nothing is answered in clear text where TLS is spoken.
    let (mut conn, mut first) = (Conn::open(at(2)), [0; 1]);
    conn.send("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    let got = conn.stream().read_within(&mut first, SOON).unwrap();
    assert!(got == 0 || first == [ALERT], "{first:?}");
    let schemes: Vec<String> = backend
        .requests()
        .iter()
        .map(|request| request.head.all("x-forwarded-proto").concat())
        .collect();
    assert_eq!(schemes.iter().filter(|scheme| *scheme == "http").count(), 8, "{schemes:?}");
    assert_eq!(schemes.iter().filter(|scheme| *scheme == "https").count(), 16, "{schemes:?}");
}

/// Starts one that cannot start. Gives its exit code, and what it said.
fn start(yaml: &str) -> (Option<i32>, String) {
    let scratch = Scratch::new();
    let file = scratch.write("config.yaml", yaml);
    let ran = llmproxy(&["--config", &file.display().to_string()]);
    (ran.code, ran.stderr)
}

/// A configuration with a Unix socket beside its address.
pub fn at_socket(backend: &str, path: &Path, more: &str) -> Config {
    let listeners = format!("listeners: [{{listen: \"unix:{}\"{more}}}]", path.display());
    Config::backend_at(backend).server(listeners)
}

/// Catches: a socket that anybody may open, one that a killed process left and that keeps the next
/// from its place, the socket of a process that runs or a file of somebody else's that is replaced,
/// and one that stays behind.
#[test]
fn a_unix_socket_is_ours_while_we_run() {
    let (backend, scratch) = (Backend::answering(OK), Scratch::new());
    let path = scratch.file("llm.sock");
    drop(UnixListener::bind(&path).unwrap());
    let config = at_socket(&backend.url(), &path, ", mode: \"0600\"").server("workers: 2");
    let proxy = config.start();
    assert_eq!(places(&proxy, 2)[1], format!("unix:{}", path.display()));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    for _ in 0..8 {
        assert_eq!(Conn::open(path.as_path()).post(CHATS, "", CHAT).status(), 200);
    }
    let second = at_socket(&backend.url(), &path, "").yaml();
    let (code, said) = start(&second);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("address in use: another process listens there"), "{said}");
    assert_eq!(Conn::open(path.as_path()).post(CHATS, "", CHAT).status(), 200);
    // One that is killed leaves its file.
    proxy.process.signal(Signal::KILL);
    proxy.process.wait(SOON);
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    let proxy = config.start();
    places(&proxy, 2);
    assert_eq!(Conn::open(path.as_path()).post(CHATS, "", CHAT).status(), 200);
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    assert!(!path.exists(), "it is taken away");
    fs::write(&path, "precious").unwrap();
    let (code, said) = start(&second);
    assert_eq!((code, fs::read_to_string(&path).unwrap().as_str()), (Some(1), "precious"));
    assert!(said.contains("something else is there"), "{said}");
}

/// Catches: a gateway that must have an address, a check of a container's health that finds one
/// without dead, or one that is dead alive.
#[test]
fn a_unix_socket_may_be_the_only_place() {
    let (backend, scratch) = (Backend::answering(OK), Scratch::new());
    let (path, pki) = (scratch.file("llm.sock"), Pki::new());
    let balancer = "trusted_proxies: [\"unix:\"]\n  proxy_protocol: true";
    for (more, tls) in [("", false), (balancer, false), (pki.server_line("").as_str(), true)] {
        let yaml = format!(
            "server:\n  workers: 1\n  cpu_affinity: \"off\"\n  listeners: [{{listen: \
             \"unix:{}\", tls: {tls}}}]\n  {more}\nbackends: [{{url: \"{}\"}}]\n\
             log: {{format: json, output: stdout}}\n",
            path.display(),
            backend.url()
        );
        let file = scratch.write("config.yaml", yaml).display().to_string();
        let health = || llmproxy(&["health", "--config", &file]);
        assert_eq!(health().code, Some(1));
        let process = Process::start(&program("llmproxy"), &["--config", &file]);
        process.await_line(SOON, |line| line.contains("\"listening\"").then_some(()));
        let ran = health();
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "/health: ok\n"), "{ran:?}");
        if !tls {
            let mut conn = Conn::open(path.as_path());
            if more == balancer {
                conn.send("PROXY UNKNOWN\r\n");
            }
            assert_eq!(conn.post(CHATS, "", CHAT).status(), 200);
        }
        process.signal(Signal::TERM);
        assert_eq!(process.wait(SOON).code(), Some(0));
        let ran = health();
        assert!(ran.code == Some(1) && ran.stderr.contains("/health: "), "{ran:?}");
    }
}

const KEYS: &str = "auth: {enabled: true}\napi_keys:\n  \
                    - {key: sk-local, allowed_ips: [\"unix:\"]}\n  \
                    - {key: sk-any, allowed_ips: [0.0.0.0/0, \"::/0\"]}\n  \
                    - {key: sk-none, denied_ips: [\"unix:\"]}\n  \
                    - {key: sk-far, allowed_ips: [192.0.2.0/24]}";

fn asked(path: &Path, first: &str, key: &str, fields: &str) -> (u16, String) {
    let mut conn = Conn::open(path);
    conn.send(first);
    let fields = format!("Authorization: Bearer {key}\r\n{fields}");
    let answer = conn.post(CHATS, &fields, CHAT);
    (answer.status(), answer.text())
}

/// Catches: a client of a Unix socket that is taken for one of an address, whose word counts though
/// nobody trusts it, or that no list can name.
#[test]
fn clients_of_a_unix_socket_are_told_apart() {
    let (backend, scratch) = (Backend::answering(OK), Scratch::new());
    let (path, log) = (scratch.file("llm.sock"), scratch.file("access.log"));
    let access = format!("logging: {{access: {{output: file, file: {{path: {log:?}}}}}}}");
    let config = at_socket(&backend.url(), &path, "").section(KEYS);
    let proxy = config.clone().section(access).start();
    places(&proxy, 2);
    let told = "X-Forwarded-For: 192.0.2.7\r\n";
    let refused = [("sk-far", told), ("sk-any", ""), ("sk-none", "")];
    assert_eq!(asked(&path, "", "sk-local", told).0, 200);
    for (key, fields) in refused {
        let (status, text) = asked(&path, "", key, fields);
        assert!(status == 403 && text.contains("ip_not_allowed"), "{key}: {text}");
    }
    let by_address =
        |key: &str| proxy.connect().post(CHATS, &format!("Authorization: Bearer {key}\r\n"), CHAT);
    by_address("sk-local").assert_refused(403, "ip_not_allowed");
    assert!(by_address("sk-any").status() == 200 && by_address("sk-none").status() == 200);
    await_until("each has a line", SOON, || {
        fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 7)
    });
    let text = fs::read_to_string(&log).unwrap();
    assert_eq!(text.matches("\"client\":\"unix:\"").count(), 4, "{text}");
    assert_eq!(backend.requests()[0].head.all("x-forwarded-for"), ["unix:"]);
    drop(proxy);

    // As behind an nginx on the same machine.
    let proxy = config.clone().server("trusted_proxies: [\"unix:\"]").start();
    places(&proxy, 2);
    assert_eq!(asked(&path, "", "sk-far", told).0, 200);
    let last = backend.requests().pop().unwrap();
    assert_eq!(last.head.all("x-forwarded-for"), ["192.0.2.7, unix:"]);
    assert_eq!(asked(&path, "", "sk-local", told).0, 403);
    assert_eq!(asked(&path, "", "sk-local", "").0, 200, "its own word");
    drop(proxy);

    // As behind an HAProxy.
    let config = config.server("trusted_proxies: [\"unix:\", 127.0.0.0/8]");
    // What a balancer says comes before a handshake.
    let proxy = config.server("proxy_protocol: true").server(PLAIN).start();
    places(&proxy, 2);
    let told = "PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n";
    assert_eq!(asked(&path, told, "sk-far", "").0, 200);
    assert_eq!(asked(&path, "PROXY UNKNOWN\r\n", "sk-local", "").0, 200);
    // Nobody at an address can say that it came by the socket.
    let forged = "PROXY TCP4 0.0.0.0 127.0.0.1 4711 80\r\n";
    let mut conn = proxy.connect();
    conn.send(forged);
    let fields = "Authorization: Bearer sk-local\r\nX-Forwarded-For: 0.0.0.0\r\n";
    conn.post(CHATS, fields, CHAT).assert_refused(403, "ip_not_allowed");
}

/// Catches: limits that are not counted for clients without an address, or for each of their
/// connections anew.
#[test]
fn clients_of_a_unix_socket_share_their_limits() {
    let (backend, scratch) = (Backend::answering(OK), Scratch::new());
    let path = scratch.file("llm.sock");
    let limit = "rate_limit: {per_key: {requests_per_minute: 3}}";
    let proxy = at_socket(&backend.url(), &path, "").section(limit).start();
    places(&proxy, 2);
    let statuses = [0; 4].map(|_| Conn::open(path.as_path()).post(CHATS, "", CHAT).status());
    assert_eq!(statuses, [200, 200, 200, 429]);
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200, "others have their own");
}

/// What a client does over a Unix socket.
fn all_goes_well(engine: &Engine, place: &str, connect: impl Fn() -> Conn) {
    let mut conn = connect();
    let mut left = connect();
    left.start_post(CHATS, "x-mock-tokens: 1000\r\nx-mock-gap-ms: 20\r\n", STREAM);
    assert_eq!(left.head().status(), 200);
    left.read_until("data:");
    for _ in 0..3 {
        conn.start_post(CHATS, "x-mock-tokens: 5\r\nx-mock-gap-ms: 20\r\n", STREAM);
        assert_eq!(conn.head().status(), 200, "{place}");
        // Each event comes when the engine says it: not all at the end.
        conn.read_until("data:");
        let (pieces, ended) = conn.rest();
        let text: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.bytes).collect();
        assert!(ended == Ended::Whole && text.ends_with(b"data: [DONE]\n\n"), "{place}");
        // Two at a time, whose answers come in order.
        conn.send(
            "GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        );
        assert_eq!([conn.response().status(), conn.response().status()], [200, 404], "{place}");
    }
    let before = engine.stat("cancelled");
    drop(left);
    await_until("its engine is free", SOON, || engine.stat("cancelled") > before);
    let answer = conn.post(CHATS, "Connection: close\r\n", CHAT);
    assert_eq!(answer.status(), 200);
    conn.assert_closes();
}

/// Catches: streams that are withheld, connections that are not kept, and a client whose leaving
/// nobody sees, where no address is; with either driver; a name without a file that is none.
#[test]
fn streams_and_kept_connections_are_as_over_tcp() {
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let path = scratch.file("llm.sock");
    for driver in ["MONOIO_FORCE_LEGACY_DRIVER=1", "NOTHING=1"] {
        let name = format!("llmproxy-e2e-{}-{}", std::process::id(), driver.len());
        let (first, second) = (format!("unix:{}", path.display()), format!("unix:@{name}"));
        let listeners = format!("listeners: [{{listen: \"{first}\"}}, {{listen: \"{second}\"}}]");
        let config = Config::backend_at(engine.url()).server(listeners).server("workers: 2");
        let proxy = Proxy::start_through(&["env", driver], &config.yaml());
        assert_eq!(places(&proxy, 3)[1..], [first, second]);
        all_goes_well(&engine, driver, || Conn::open(path.as_path()));
        all_goes_well(&engine, &name, || {
            let address = UnixAddr::from_abstract_name(&name).unwrap();
            Conn::over(Stream::Unix(UnixStream::connect_addr(&address).unwrap()))
        });
        let (code, said) = start(&config.yaml());
        assert!(code == Some(1) && said.contains("in use"), "{said}");
        proxy.process.signal(Signal::TERM);
        assert_eq!(proxy.process.wait(SOON).code(), Some(0));
    }
}

/// Catches: bytes of large bodies that are lost or held, where the client is no TCP socket.
#[test]
fn large_bodies_pass_a_unix_socket() {
    let scratch = Scratch::new();
    let path = scratch.file("llm.sock");
    let backend = Backend::start(|served| {
        while let Some(request) = served.request() {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
            let length = format!("Content-Length: {}\r\n\r\n", request.body.len());
            served.send([head.as_bytes(), length.as_bytes(), &request.body].concat());
        }
    });
    let proxy = at_socket(&backend.url(), &path, "").start();
    places(&proxy, 2);
    let mut conn = Conn::open(path.as_path());
    for n in 1..=3 {
        let input: String = (0..n * 300_000).map(|at: usize| format!("{:x}", at % 7919)).collect();
        let body = format!("{{\"model\":\"m\",\"input\":\"{input}\"}}");
        let answer = conn.post("/v1/embeddings", "", &body);
        assert!(answer.status() == 200 && answer.text() == body, "{n}");
    }
}

/// Catches: what curl does with `--unix-socket` that our own client does not.
#[test]
fn curl_asks_by_a_unix_socket() {
    if !Path::new("/usr/bin/curl").exists() {
        return crate::harness::skip("curl is not installed");
    }
    let (engine, scratch) = (Engine::start(&[]), Scratch::new());
    let path = scratch.file("llm.sock");
    let proxy = at_socket(&engine.url(), &path, "").start();
    places(&proxy, 2);
    let socket = path.display().to_string();
    let told = "\n%{http_version} %{http_code} %{num_connects}";
    let url = format!("http://llmproxy{CHATS}");
    let args = ["-sSN", "--unix-socket", &socket, "-w", told, "-d", STREAM, &url];
    let ran = run(Path::new("curl"), &args, Duration::from_secs(60));
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.ends_with("data: [DONE]\n\n\n1.1 200 1"), "{ran:?}");
}
