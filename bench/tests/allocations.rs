//! Neither a forwarded event nor a request of a kept connection costs an allocation: a worker runs
//! in this process, they go through it one by one, and the worker's thread is counted meanwhile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops loudly")]

mod counting;

use bench::EVENT;
use llmproxy::config;
use llmproxy::control::log::{self, Reopen};
use llmproxy::control::reload::Reloads;
use llmproxy::control::supervisor::{self, ControlDoors};
use llmproxy::proxy::worker;
use llmproxy::rt::listen::{self, Place};
use llmproxy::state::stop::Stop;
use llmproxy::usage::unpacker::Unpacker;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

const WARM_UP_EVENTS: usize = 200;
const EVENTS: usize = 200;
/// Of these one must allocate nothing. On a busy machine some need a few more things at once than
/// all before them did: each such thing is made once, and stays. What every request or event
/// allocates shows in every batch.
const BATCHES: usize = 30;
const PATIENCE: Duration = Duration::from_secs(10);
/// Requests of a batch.
const REQUESTS: usize = 100;
const ANSWER: &str = concat!(
    r#"{"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion","#,
    r#""created":1700000000,"model":"org/model","choices":[{"index":0,"message":{"#,
    r#""role":"assistant","content":"Hello."},"finish_reason":"stop"}],"usage":{"#,
    r#""prompt_tokens":12,"total_tokens":15,"completion_tokens":3}}"#
);
/// Keys are checked, against all that a key of the file can be held to.
const KEY: &str = "\r\nauthorization: Bearer sk-a";
const HEAD: &str =
    "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\ncontent-type: application/json";
const EVENT_END: &[u8] = b"\n\n\r\n";

/// One test at a time: all workers of the process are counted together.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_forwarded_event_allocates_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = engine.local_addr().unwrap();
    let mut client = connect(start_worker(address, address));
    let body = r#"{"model":"m","stream":true,"messages":[]}"#;
    let head = format!("{HEAD}{KEY}");
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
    batches_allocate_nothing(|| forward(EVENTS));
}

/// With a record to a webhook for each request.
#[test]
fn a_request_of_a_kept_connection_allocates_nothing() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (engine, _) = serve(ANSWER, None);
    let (go, held) = channel();
    let (webhook, records) = serve("", Some(held));
    let mut client = connect(start_worker(engine, webhook));
    let body = r#"{"model":"org/model","messages":[{"role":"user","content":"Say hello."}]}"#;
    let head = format!("{HEAD}{KEY}");
    let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut forward = |requests: usize| {
        for _ in 0..requests {
            client.write_all(request.as_bytes()).unwrap();
            receive_to(&mut client, ANSWER.as_bytes());
        }
    };
    let await_record = || records.recv_timeout(PATIENCE).unwrap();
    // More records are under way at once than later on.
    forward(REQUESTS);
    go.send(()).unwrap();
    (0..REQUESTS).for_each(|_| await_record());
    // One by one, each until its record has arrived: so few are under way at once, however late
    // the threads of the journal and of the reporter get a processor.
    batches_allocate_nothing(|| {
        for _ in 0..REQUESTS {
            forward(1);
            await_record();
        }
    });
}

fn batches_allocate_nothing(mut run: impl FnMut()) {
    assert!(counting::counted() > 0, "the worker's thread is not the one that is counted");
    let mut counts = Vec::new();
    while counts.last() != Some(&0) {
        assert!(counts.len() < BATCHES, "allocations in batches: {counts:?}");
        let before = counting::counted();
        run();
        counts.push(counting::counted() - before);
    }
}

fn connect(proxy: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(proxy).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

/// Answers every request on every connection with this body, the first one when `held` says so;
/// gives the address and a signal for each POST that was answered.
fn serve(body: &'static str, held: Option<Receiver<()>>) -> (SocketAddr, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (answered, told) = channel();
    let held = Arc::new(Mutex::new(held));
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (held, answered) = (Arc::clone(&held), answered.clone());
            std::thread::spawn(move || serve_one(connection.unwrap(), body, &held, &answered));
        }
    });
    (address, told)
}

fn serve_one(
    mut connection: TcpStream,
    body: &str,
    held: &Mutex<Option<Receiver<()>>>,
    answered: &Sender<()>,
) {
    connection.set_nodelay(true).unwrap();
    let head = "HTTP/1.1 200 OK\r\nserver: engine\r\ncontent-type: application/json";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            head += &line;
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        if let Some(held) = held.lock().unwrap().take() {
            held.recv().unwrap();
        }
        if connection.write_all(answer.as_bytes()).is_err() {
            return;
        }
        if head.starts_with("POST") {
            let _ = answered.send(());
        }
    }
}

/// A worker as `main` starts it, with metering on; gives its address.
fn start_worker(engine: SocketAddr, webhook: SocketAddr) -> SocketAddr {
    static LOG: OnceLock<log::Logging> = OnceLock::new();
    let spool = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(webhook.port().to_string());
    let spool = spool.display();
    let text = format!(
        "{{server: {{listen: '127.0.0.1:0', workers: 1}},
           backends: [{{name: engine, url: 'http://{engine}'}}],
           metrics: {{path: /metrics}},
           api_keys: [{{key: sk-a, name: a, user_id: u, allowed_models: ['org/*', m], allowed_ips: [127.0.0.0/8]}}],
           auth: {{forward_identity: {{}}}},
           usage: {{spool: {{dir: '{spool}'}}, reporters: [{{name: test, type: webhook, webhook: {{url: 'http://{webhook}'}}}}]}}}}"
    );
    let loaded = config::load_text("test", &text, &|_| None);
    let plan = Arc::new(loaded.unwrap_or_else(|report| panic!("{:?}", report.lines(false))).plan);
    let stop = Arc::new(Stop::default());
    let log = LOG.get_or_init(|| log::start(&plan.log, Reopen::default()).unwrap());
    let reloads = Arc::new(Reloads::new(""));
    let (events, _) = supervisor::events();
    let log = (log, Reopen::default());
    let control = {
        let (doors, failures) = (ControlDoors::default(), Arc::default());
        supervisor::start(&plan, &stop, doors, log, (&reloads, failures, events))
    };
    let mut control = control.unwrap_or_else(|error| panic!("{error}"));
    let place = Place::all(&plan.server.listen)[0];
    let listener = listen::bind(place).unwrap();
    let address = place.on_port_of(&listener).unwrap().address;
    let (ready, started) = crossbeam_channel::bounded(1);
    let start = worker::WorkerStart {
        index: 0,
        cpu: None,
        board: Arc::clone(&control.board),
        listeners: vec![(listener, llmproxy::config::plan::ListenerSpeech::AsServer)],
        connections: Arc::new(llmproxy::state::connections::Connections::new(10)),
        stop,
        mailbox: control.mailboxes.pop().unwrap(),
        pages: control.pages.clone(),
        admin_desk: control.admin_desk.clone(),
        models: control.models.clone(),
        pulse: control.pulses.remove(0),
        budget: Arc::clone(&control.budget),
        usage: control.usage.pop(),
        access: None,
        spans: None,
        flight: control.flight.of_worker(0),
        unpacker: Unpacker::start().unwrap(),
        seed: 1,
        ready,
    };
    std::thread::spawn(move || {
        counting::count_this_thread();
        worker::run(start)
    });
    started.recv().unwrap().unwrap();
    // It lives as long as the worker, which lives as long as this process.
    Box::leak(Box::new(control));
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

fn receive_event(client: &mut TcpStream) {
    receive_to(client, EVENT_END);
}

/// Reads until these bytes end what has come.
fn receive_to(client: &mut TcpStream, end: &[u8]) {
    let mut bytes = [0; 4096];
    let mut length = 0;
    while !bytes[..length].ends_with(end) {
        let read = client.read(&mut bytes[length..]).unwrap();
        assert!(read > 0, "the stream ended");
        length += read;
    }
}
