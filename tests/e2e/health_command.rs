//! `llmproxy health`: what the health check of a container runs.

use crate::harness::config::PLAIN;
use crate::harness::process::Ran;
use crate::harness::proxy::llmproxy;
use crate::harness::scratch::Scratch;
use crate::harness::tls::{everywhere, Pki};
use crate::harness::{Backend, Config, Proxy, SOON};
use crate::rig::OK;
use rustix::process::Signal;
use std::net::TcpListener;

/// Asks whoever listens at an address, by a configuration that names it.
fn health(server: &str, more: &[&str]) -> Ran {
    let scratch = Scratch::new();
    let yaml = format!("server: {{{server}}}\nbackends: [{{url: 'http://127.0.0.1:1'}}]\n");
    let file = scratch.write("health.yaml", yaml);
    llmproxy(&[&["health", "--config", &file.to_string_lossy()], more].concat())
}

fn at(proxy: &Proxy) -> String {
    format!("listen: '{}'{}", proxy.addr(), over_tls())
}

/// What all proxies have where every one of them is to serve over TLS.
fn over_tls() -> String {
    everywhere().map_or_else(String::new, |pki| format!(", {}", pki.server_line("")))
}

/// Catches: a container that lives and is killed for it, or that is left when it is gone.
#[test]
fn it_says_whether_the_gateway_lives() {
    let backend = Backend::answering(OK);
    let proxy = Config::backend_at(backend.url()).start();
    let place = at(&proxy);
    let ran = health(&place, &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "/health: ok\n"), "{ran:?}");
    // The address of every interface is asked at the loopback.
    let at_all = format!("listen: ':{}'{}", proxy.addr().port(), over_tls());
    assert_eq!(health(&at_all, &[]).code, Some(0));
    proxy.process.signal(Signal::TERM);
    proxy.process.wait(SOON);
    let ran = health(&place, &[]);
    assert!(ran.code == Some(1) && ran.stderr.contains("/health: "), "{ran:?}");
}

/// Catches: `--ready` that asks for the same as without.
#[test]
fn it_says_whether_the_gateway_is_ready() {
    // Nobody listens there any more.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let proxy = Config::backend_at(format!("http://{gone}")).health_check().start();
    proxy.await_metric("llmproxy_backend_up", &[], 0.0);
    let ran = health(&at(&proxy), &["--ready"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("/ready: status 503"), "{ran:?}");
    assert_eq!(health(&at(&proxy), &[]).code, Some(0));
}

/// Catches: a question that waits for ever for the header of a balancer, which the gateway wants.
#[test]
fn it_speaks_as_a_balancer_where_it_counts_as_one() {
    let rules = "proxy_protocol: true, trusted_proxies: [127.0.0.0/8]";
    let backend = Backend::answering(OK);
    let config = Config::backend_at(backend.url());
    let config = rules.split(", ").fold(config, |config, line| config.server(line));
    // Before the handshake, where there is one.
    let pki = Pki::new();
    for tls in [PLAIN.to_owned(), pki.server_line("")] {
        let proxy = config.clone().server(tls.as_str()).start();
        let ran = health(&format!("listen: '{}', {tls}, {rules}", proxy.addr()), &[]);
        assert_eq!(ran.code, Some(0), "{tls}: {ran:?}");
    }
}

/// Catches: a hang before somebody who accepts and says nothing, or who is no gateway.
#[test]
fn who_does_not_answer_is_not_well() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = health(&format!("listen: '{}'", silent.local_addr().unwrap()), &[]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let odd = Backend::answering("220 mail.example.com ESMTP\r\n\r\n");
    let ran = health(&format!("listen: '{}'", odd.addr()), &[]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(health("listen: nonsense", &[]).code, Some(2));
}
