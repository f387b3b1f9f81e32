//! Backends that are found by name servers, and by Consul.

use crate::discovery::{
    answers, await_in_use, await_looks, await_said, discovering, in_use, named, Says, Service,
};
use crate::harness::scratch::Scratch;
use crate::harness::tls::Authority;
use crate::harness::{Backend, Mood, NameServer, Record};
use crate::rig::{CHAT, CHATS, OK};
use serde_json::json;
use std::net::SocketAddr;

/// One that says its name at a port of its own choice, on this address of the loopback.
fn named_at(place: SocketAddr, name: &'static str) -> Option<Backend> {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
    Backend::start_at(place, move |served| {
        while served.request().is_some() {
            served.send(&answer);
        }
    })
}

/// Backends at so many addresses of the loopback, all on the same port.
fn on_one_port(names: [&'static str; 3]) -> ([Backend; 3], u16) {
    let all = || {
        let first = named(names[0]);
        let port = first.addr().port();
        let at = |n: u8| SocketAddr::from(([127, 0, 0, n], port));
        Some(([first, named_at(at(2), names[1])?, named_at(at(3), names[2])?], port))
    };
    // Somebody else may have the port at one of the other addresses.
    std::iter::repeat_with(all).flatten().next().unwrap()
}

fn dns(server: &NameServer, more: &str) -> String {
    format!(
        "{{type: dns, dns: {{resolver: \"{}\", interval: 100ms, timeout: 2s, {more}}}}}",
        server.addr()
    )
}

/// Catches: an address that is not used, one that is used on, a name of which only the first
/// address counts, requests that do not carry the name, and a bad answer that takes backends away.
#[test]
fn each_address_of_a_name_is_a_backend() {
    let ([a, _b, _c], port) = on_one_port(["a", "b", "c"]);
    let server = NameServer::start();
    server.set_addresses("vllm.test", &["127.0.0.1", "127.0.0.2"]);
    let source = dns(&server, &format!("name: vllm.test, port: {port}"));
    let proxy = discovering(&[source]).start();
    let name = |n: u8| format!("vllm.test/127.0.0.{n}:{port}");
    assert_eq!(in_use(&proxy), [name(1), name(2)]);
    let four = answers(&proxy, 4);
    assert_eq!((four.matches('a').count(), four.matches('b').count()), (2, 2), "{four}");
    let host = format!("vllm.test:{port}");
    assert_eq!(a.requests()[0].head.get("host"), Some(host.as_str()));
    // In another order it is the same set.
    server.set_addresses("vllm.test", &["127.0.0.2", "127.0.0.1"]);
    await_looks(&proxy, "success");
    await_said(&proxy, 1, "discovery: backends found");
    server.set_addresses("vllm.test", &["127.0.0.3", "127.0.0.2"]);
    await_in_use(&proxy, &[&name(2), &name(3)]);
    for mood in [Mood::Failing, Mood::Silent, Mood::Garbage] {
        server.set_mood(mood);
        await_looks(&proxy, "failure");
        assert_eq!(in_use(&proxy), [name(2), name(3)], "{mood:?}");
    }
    server.set_mood(Mood::Well);
    server.forget("vllm.test");
    await_looks(&proxy, "failure");
    server.set_addresses("vllm.test", &[]);
    await_looks(&proxy, "failure");
    assert_eq!(in_use(&proxy), [name(2), name(3)]);
    let before = server.asked().1;
    server.set_mood(Mood::Truncating);
    server.set_addresses("vllm.test", &["127.0.0.1"]);
    await_in_use(&proxy, &[&name(1)]);
    assert!(server.asked().1 > before, "it was asked by TCP");
    assert_eq!(answers(&proxy, 2), "aa");
}

/// Catches: a family of addresses that is asked for and left out, or the other way round.
#[test]
fn a_record_is_of_one_family_or_of_both() {
    let server = NameServer::start();
    server.set_addresses("e.test", &["192.0.2.1", "2001:db8::1"]);
    for (record, wanted) in [
        ("any", vec!["e.test/192.0.2.1:80", "e.test/[2001:db8::1]:80"]),
        ("a", vec!["e.test/192.0.2.1:80"]),
        ("aaaa", vec!["e.test/[2001:db8::1]:80"]),
    ] {
        let source = dns(&server, &format!("name: e.test, port: 80, record: {record}"));
        assert_eq!(in_use(&discovering(&[source]).start()), wanted, "{record}");
    }
}

/// Catches: addresses of IPv6 that are taken away because their server failed for a moment, or
/// keep news of those of IPv4 from being heard meanwhile; a server that never knew of IPv6 taken
/// for one that fails.
#[test]
fn a_server_that_fails_of_one_family_takes_nothing_away() {
    let server = NameServer::start();
    server.set_addresses("e.test", &["192.0.2.1", "2001:db8::1"]);
    let source = dns(&server, "name: e.test, port: 80");
    let proxy = discovering(std::slice::from_ref(&source)).start();
    let both = ["e.test/192.0.2.1:80", "e.test/[2001:db8::1]:80"];
    assert_eq!(in_use(&proxy), both);
    server.set_mood(Mood::FailingV6);
    await_looks(&proxy, "success");
    assert_eq!(in_use(&proxy), both);
    server.set_addresses("e.test", &["192.0.2.2"]);
    await_in_use(&proxy, &["e.test/192.0.2.2:80", both[1]]);
    server.set_mood(Mood::Well);
    server.set_addresses("e.test", &["192.0.2.1"]);
    await_in_use(&proxy, &both[..1]);
    server.set_mood(Mood::FailingV6);
    await_looks(&proxy, "success");
    assert_eq!(in_use(&discovering(&[source]).start()), both[..1]);
}

/// Catches: a weight or a port of a service that is not used, and a target that is not looked up.
#[test]
fn a_service_has_hosts_with_ports_and_weights() {
    let (a, b) = (named("a"), named("b"));
    let server = NameServer::start();
    let srv = |weight, backend: &Backend, target: &str| {
        Record::Srv(10, weight, backend.addr().port(), target.to_owned())
    };
    server.set("_llm._tcp.test", vec![srv(3, &a, "a.test"), srv(1, &b, "b.test")]);
    server.set_addresses("a.test", &["127.0.0.1"]);
    server.set_addresses("b.test", &["127.0.0.1"]);
    let proxy = discovering(&[dns(&server, "name: _llm._tcp.test, record: srv")]).start();
    assert_eq!(in_use(&proxy), [format!("a.test/{}", a.addr()), format!("b.test/{}", b.addr())]);
    let eight = answers(&proxy, 8);
    assert_eq!((eight.matches('a').count(), eight.matches('b').count()), (6, 2), "{eight}");
    let host = format!("a.test:{}", a.addr().port());
    assert_eq!(a.requests()[0].head.get("host"), Some(host.as_str()));
    // One host of two that has no address makes a part of the answer, which is not taken.
    server.forget("b.test");
    await_looks(&proxy, "failure");
    assert_eq!(in_use(&proxy).len(), 2);
}

/// Catches: a certificate that must be for an address instead of for the name, and an engine that
/// is asked without its key.
#[test]
fn engines_behind_a_name_have_its_certificate_and_a_key() {
    let (authority, scratch) = (Authority::new(), Scratch::new());
    let ca = scratch.write("ca.pem", authority.pem());
    let backend = Backend::start_tls(authority.server(&["vllm.test"]), |served| {
        while served.request().is_some() {
            served.send(OK);
        }
    });
    let server = NameServer::start();
    server.set_addresses("vllm.test", &["127.0.0.1"]);
    let port = backend.addr().port();
    let source = dns(&server, &format!("name: vllm.test, port: {port}, scheme: https, path: /x"));
    let common = format!("{{type: dns, common: {{api_key: k1, ca_file: \"{}\"}}", ca.display());
    let proxy = discovering(&[source.replacen("{type: dns", &common, 1)]).start();
    assert_eq!(proxy.post(CHATS, CHAT).status(), 200);
    let asked = backend.requests().remove(0).head;
    assert_eq!(asked.get("authorization"), Some("Bearer k1"));
    assert_eq!(asked.target(), "/x/v1/chat/completions");
}

/// Catches: an instance that is not used or not weighed, a question that asks for sick ones too,
/// and an agent that is away and takes the backends with it.
#[test]
fn instances_of_a_service_in_consul_are_backends() {
    let (a, b) = (named("a"), named("b"));
    let instance = |id: &str, backend: &Backend, weight: &str| {
        json!({
            "Node": {"Node": "n", "Address": "127.0.0.1"},
            "Service": {"ID": id, "Service": "vllm", "Address": "", "Port": backend.addr().port(),
                        "Meta": {"weight": weight}, "Weights": {"Passing": 1, "Warning": 1}},
            "Checks": [],
        })
    };
    let agent = Service::start(json!([instance("one", &a, "3"), instance("two", &b, "1")]));
    let source = format!(
        "{{type: consul, consul: {{addr: \"{}\", service: vllm, tag: gpu, token: t1, \
         timeout: 500ms, interval: 100ms}}}}",
        agent.backend.addr()
    );
    let proxy = discovering(&[source]).start();
    assert_eq!(in_use(&proxy), ["one", "two"]);
    let eight = answers(&proxy, 8);
    assert_eq!((eight.matches('a').count(), eight.matches('b').count()), (6, 2), "{eight}");
    let asked = agent.backend.requests().remove(0).head;
    assert_eq!(asked.target(), "/v1/health/service/vllm?passing=true&tag=gpu");
    assert_eq!(asked.get("x-consul-token"), Some("t1"));
    for says in [Says::Status(500, b"No cluster leader".to_vec()), Says::Nothing] {
        agent.say(says);
        await_looks(&proxy, "failure");
        assert_eq!(in_use(&proxy), ["one", "two"]);
    }
    agent.rows(json!([instance("two", &b, "1")]));
    await_in_use(&proxy, &["two"]);
    assert_eq!(answers(&proxy, 2), "bb");
}
