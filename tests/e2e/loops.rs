//! Backends that lead back to the proxy.

use crate::harness::config::PLAIN;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::{Backend, Config};
use crate::rig::{rejected, CHAT, CHATS, OK};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// Catches: a proxy that starts with itself as a backend.
#[test]
fn a_backend_that_is_the_proxy_itself_is_refused_at_start() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (listen, host) in [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("0.0.0.0", "127.0.0.2"),
        ("0.0.0.0", "0.0.0.0"),
        // A name, as far as is known before it is looked up.
        ("127.0.0.1", BY_NAME),
    ] {
        let scratch = Scratch::new();
        let yaml = format!(
            "server: {{listen: '{listen}:{port}', workers: 1}}\n\
             backends: [{{name: me, url: 'http://{host}:{port}'}}]\n"
        );
        let path = scratch.write("config.yaml", yaml);
        let path = path.to_string_lossy();
        let ran = llmproxy(&["--config", &path]);
        assert_eq!(ran.code, Some(1), "{listen} {host}: {ran:?}");
        let said = format!(
            "the backend `me` (http://{host}:{port}) is this proxy itself, \
             which listens on {listen}:{port}"
        );
        assert!(ran.stderr.contains(&said), "{listen} {host}: {ran:?}");
        let ran = llmproxy(&["check", &path]);
        let is_told = ran.stderr.contains(&said) && ran.stderr.contains("it would not start");
        assert_eq!((ran.code == Some(1), is_told), (host != BY_NAME, host != BY_NAME), "{ran:?}");
        let ran = llmproxy(&["check", "--connect", &path]);
        let told = ran.stderr.contains("is this proxy itself, which listens on");
        assert!(ran.code == Some(1) && told, "{listen} {host}: {ran:?}");
    }
}

/// What the system's resolver takes for 127.0.0.1, and no reader of addresses does.
const BY_NAME: &str = "127.1";

/// Hands every connection on, in clear text, to a proxy that is not there yet when this begins to
/// listen.
fn forwarder() -> (String, std::sync::mpsc::Sender<std::net::SocketAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let Ok(target) = told.recv() else { return };
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(target).unwrap());
            let ends = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || pump(client, server));
            std::thread::spawn(move || pump(ends.1, ends.0));
        }
    });
    (url, tell)
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
}

/// Catches: a loop that no address shows, and that eats all connections in seconds.
#[test]
fn a_request_that_comes_back_is_a_508() {
    let (url, tell) = forwarder();
    let proxy = Config::backend_at(url).server(PLAIN).start();
    tell.send(proxy.addr()).unwrap();
    for _ in 0..3 {
        proxy.post(CHATS, CHAT).assert_refused(508, "loop_detected");
    }
    // Each came back once, and not a second time.
    assert_eq!(rejected(&proxy, "loop_detected"), 3.0);
}

/// Catches: what other proxies wrote into `Via` lost or changed, our own name missing, or taken for
/// that of another process.
#[test]
fn via_is_kept_and_ours_comes_last() {
    let (one, two) = (Backend::answering(OK), Backend::answering(OK));
    let (first, second) =
        (Config::backend_at(one.url()).start(), Config::backend_at(two.url()).start());
    let via = |backend: &Backend| {
        let received = backend.requests().pop().unwrap();
        received.head.all("via").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let ask = |proxy: &crate::harness::Proxy, fields: &str| {
        assert_eq!(proxy.connect().post(CHATS, fields, CHAT).status(), 200);
    };
    ask(&first, "");
    let [name] = via(&one).try_into().unwrap();
    assert!(name.starts_with("1.1 llmproxy-"), "{name}");
    ask(&second, &format!("Via: 1.0 fred, 1.1 b (c)\r\nVia: {name}\r\n"));
    let [before, middle, last] = via(&two).try_into().unwrap();
    assert_eq!((before.as_str(), middle.as_str()), ("1.0 fred, 1.1 b (c)", name.as_str()));
    assert!(last.starts_with("1.1 llmproxy-") && last != name, "{last}");
}

/// Catches: a backend that leads back, which answers its probes well and swallows its share of the
/// requests although another one could serve them.
#[test]
fn a_backend_that_leads_back_is_passed_over_and_ejected() {
    let engine = Backend::answering(OK);
    let (url, tell) = forwarder();
    let inner = Config::backend_at(url).server(PLAIN).start();
    let inner_url = format!("http://{}", inner.addr());
    // Named, so that nobody asks what it is: these questions come round, too.
    let circle = Config::new().backend(inner_url, "name: circle, engine: vllm");
    let outer = circle.backend(engine.url(), "").server(PLAIN).start();
    tell.send(outer.addr()).unwrap();
    for _ in 0..12 {
        assert_eq!(outer.post(CHATS, CHAT).text(), "ok");
    }
    let event = outer.await_event("the ejection", |event| event["message"] == "backend is ejected");
    assert_eq!(event["backend"], "circle", "{event}");
    assert_eq!(
        rejected(&outer, "loop_detected"),
        5.0,
        "one for each that was sent into the circle"
    );
}

/// Catches: a probe that does not show a backend that is this very process.
#[test]
fn a_probe_that_comes_back_is_no_good_answer() {
    let (url, tell) = forwarder();
    let proxy = Config::backend_at(url).server(PLAIN).health_check().start();
    tell.send(proxy.addr()).unwrap();
    proxy.await_event("the verdict", |event| {
        event["message"] == "backend is unhealthy" && event["why"] == "status 508"
    });
}
