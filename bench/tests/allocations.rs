//! A forwarded event costs no allocation: a worker runs in this process, one stream goes through
//! it event by event, and the worker's thread is counted meanwhile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops loudly")]

mod counting;

use bench::EVENT;
use llmproxy::config;
use llmproxy::control::log::{self, Reopen};
use llmproxy::control::supervisor;
use llmproxy::proxy::worker;
use llmproxy::rt::listen;
use llmproxy::state::stop::Stop;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::Duration;

const WARM_UP_EVENTS: usize = 200;
const EVENTS: usize = 200;
const BATCHES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(10);
const EVENT_END: &[u8] = b"\n\n\r\n";

#[test]
fn a_forwarded_event_allocates_nothing() {
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = start_worker(engine.local_addr().unwrap());
    let mut client = TcpStream::connect(proxy).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json";
    write!(client, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut engine = stream_of(&engine);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked";
    write!(engine, "{head}\r\n\r\n").unwrap();

    let chunk = [format!("{:x}\r\n", EVENT.len()).as_bytes(), EVENT, b"\r\n"].concat();
    let mut forward = |events: usize| {
        for _ in 0..events {
            engine.write_all(&chunk).unwrap();
            receive_event(&mut client);
        }
    };
    forward(WARM_UP_EVENTS);
    assert!(counting::counted() > 0, "the worker's thread is not the one that is counted");
    let batch = |_| {
        let before = counting::counted();
        forward(EVENTS);
        counting::counted() - before
    };
    // What the worker does now and then besides (sweeps, probes of others) is not an event's.
    let counts: Vec<u64> = (0..BATCHES).map(batch).collect();
    assert_eq!(counts.iter().min(), Some(&0), "allocations in {EVENTS} events each: {counts:?}");
}

/// A worker as `main` starts it, with metering on; gives its address.
fn start_worker(engine: SocketAddr) -> SocketAddr {
    let text = format!(
        "{{server: {{listen: '127.0.0.1:0', workers: 1}},
           backends: [{{name: engine, url: 'http://{engine}'}}],
           metrics: {{path: /metrics}},
           usage: {{reporters: [{{name: test, type: webhook, webhook: {{url: 'http://{engine}'}}}}]}}}}"
    );
    let loaded = config::load_text("test", &text, &|_| None);
    let plan = Arc::new(loaded.unwrap_or_else(|report| panic!("{:?}", report.lines(false))).plan);
    let stop = Arc::new(Stop::default());
    let log = log::start(&plan.log, Reopen::default()).unwrap();
    let control = supervisor::start(&plan, &stop, None, (&log, Reopen::default()));
    let mut control = control.unwrap_or_else(|error| panic!("{error}"));
    let listener = listen::bind(plan.server.listen).unwrap();
    let address = listen::local_address(&listener).unwrap();
    let (ready, started) = crossbeam_channel::bounded(1);
    let start = worker::Start {
        index: 0,
        cpu: None,
        plan,
        fleet: Arc::clone(&control.fleet),
        listener,
        connections: Arc::new(llmproxy::state::connections::Connections::new(10)),
        stop,
        mailbox: control.mailboxes.pop().unwrap(),
        pages: control.pages.clone(),
        heartbeat: Arc::new(AtomicU64::new(0)),
        usage: control.usage.clone(),
        access: None,
        seed: 1,
        ready,
    };
    std::thread::spawn(move || {
        counting::count_this_thread();
        worker::run(start)
    });
    started.recv().unwrap().unwrap();
    // It lives as long as the worker, which lives as long as this process.
    Box::leak(Box::new((control, log)));
    address
}

/// The engine's side of the client's request; health probes are answered on the way.
fn stream_of(engine: &TcpListener) -> TcpStream {
    loop {
        let (mut connection, _) = engine.accept().unwrap();
        connection.set_nodelay(true).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut request = [0; 4096];
        let length = connection.read(&mut request).unwrap();
        if request[..length].starts_with(b"POST /v1/chat/completions") {
            return connection;
        }
        let _ = connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    }
}

/// Reads to the end of the next event.
fn receive_event(client: &mut TcpStream) {
    let mut bytes = [0; 4096];
    let mut length = 0;
    while !bytes[..length].ends_with(EVENT_END) {
        let read = client.read(&mut bytes[length..]).unwrap();
        assert!(read > 0, "the stream ended");
        length += read;
    }
}
