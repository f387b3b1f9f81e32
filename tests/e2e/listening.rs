//! Where the proxy listens: one address, every address of both families, or a list.

use crate::harness::{Config, Engine, Proxy};
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// A proxy that listens so, before one engine, with two workers.
fn listening(engine: &Engine, listen: &str) -> Proxy {
    let yaml = Config::backend_at(engine.url()).server("workers: 2").yaml();
    Proxy::start(&yaml.replace("listen: \"127.0.0.1:0\"", &format!("listen: {listen}")))
}

fn addresses(proxy: &Proxy, count: usize) -> Vec<SocketAddr> {
    let heard = |event: &Value| event["message"] == "listening";
    proxy.await_event("all listeners are told", |event| {
        heard(event) && proxy.events().iter().filter(|event| heard(event)).count() >= count
    });
    let all: Vec<SocketAddr> = proxy
        .events()
        .iter()
        .filter(|event| heard(event))
        .map(|event| event["addr"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!(all.len(), count, "{all:?}");
    all
}

fn answers(proxy: &Proxy, address: SocketAddr) {
    assert_eq!(proxy.connect_at(address).get("/health").status(), 200, "{address}");
}

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Catches: a port without a host that only IPv4 reaches, or IPv6, as the machine's settings say.
#[test]
fn a_port_alone_is_every_address_of_both_families() {
    let engine = Engine::start(&[]);
    for listen in ["\":0\"", "\"[::]:0\""] {
        let proxy = listening(&engine, listen);
        let port = addresses(&proxy, 1)[0].port();
        answers(&proxy, (Ipv4Addr::LOCALHOST, port).into());
        if has_ipv6() {
            answers(&proxy, (Ipv6Addr::LOCALHOST, port).into());
        }
    }
}

/// Catches: a list of which only the first address is served, or only by one worker.
#[test]
fn every_address_of_a_list_is_served() {
    let engine = Engine::start(&[]);
    let proxy = listening(&engine, "[\"127.0.0.1:0\", \"127.0.0.1:0\"]");
    let all = addresses(&proxy, 2);
    assert_ne!(all[0], all[1]);
    for address in all {
        // Two workers: the kernel gives neither all of sixteen.
        (0..16).for_each(|_| answers(&proxy, address));
    }
}

/// Catches: the two lines that nginx' users write, of which the second is "in use".
#[test]
fn both_families_can_be_named_one_by_one() {
    let engine = Engine::start(&[]);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = listening(&engine, &format!("[\"0.0.0.0:{free}\", \"[::]:{free}\"]"));
    answers(&proxy, (Ipv4Addr::LOCALHOST, free).into());
    if has_ipv6() {
        addresses(&proxy, 2);
        answers(&proxy, (Ipv6Addr::LOCALHOST, free).into());
    }
}
