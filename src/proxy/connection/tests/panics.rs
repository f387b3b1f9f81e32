//! What a panic leaves behind, wherever in a request it happens.

use super::super::*;
use crate::base::limits::UNPACKING_MAX;
use crate::base::panic_point;
use crate::config::load_backends;
use crate::config::plan::OnSpoolFailure;
use crate::proxy::drains::Drains;
use crate::proxy::shelf::Shelf;
use crate::proxy::slices::Slices;
use crate::proxy::turns::Turns;
use crate::proxy::upstreams::Upstreams;
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::patrol::Patrol;
use crate::rt::ring::Ring;
use crate::state::board::{Board, View};
use crate::state::connections::Connections;
use crate::state::pulse::Pulse;
use crate::usage::counters::UsageCounters;
use crate::usage::outbox::Outbox;
use crate::usage::record::Outcome;
use crate::usage::ring::entry::{Check, Entry};
use crate::usage::ring::file::RingFile;
use crate::usage::ring::spsc::{Consumer, Taken};
use crate::usage::spool::codec;
use crate::usage::spool::segment::Kind;
use crate::usage::spool::state::SpoolState;
use crate::usage::unpacker::Unpacker;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a worker shares whose one backend is there, and its journal ring.
fn shared(backend: SocketAddr) -> (Rc<Shared>, Arc<RingFile>) {
    let plan = load_backends(&[format!("http://{backend}")], &[]).unwrap().plan;
    let board = Board::new(View::new(Arc::new(plan), vec![None], None));
    let ring = Arc::new(RingFile::anonymous(1 << 16).unwrap());
    let state = Arc::new(SpoolState::new(OnSpoolFailure::Serve, &[]));
    let counters = Arc::new(UsageCounters::new(&[]));
    let outbox = Outbox::new(ring.clone(), Arc::default(), counters, state);
    let shared = Shared {
        shelf: Shelf::new(1),
        upstreams: Upstreams::new(Arc::new(board), 0),
        patrol: Patrol::start().unwrap(),
        unpacking: Turns::new(UNPACKING_MAX),
        slices: Slices::default(),
        usage: Some(outbox),
        access: None,
        unpacker: Unpacker::start().unwrap(),
        drains: Rc::new(Drains::default()),
        connections: Arc::new(Connections::new(9)),
        retries: crate::proxy::retry_budget::RetryBudget::new(1, std::time::Instant::now()),
        stop: Arc::default(),
        pages: crate::state::ask::queue(1).0,
        models: crate::state::ask::queue(1).0,
        live: Cell::new(0),
        active: Rc::default(),
    };
    (Rc::new(shared), ring)
}

/// An engine that answers one request with a stream of some events, or not at all. Each comes once
/// the client has seen the one before, or never will: so each is a step of its own.
fn engine(is_seen: mpsc::Receiver<()>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let Ok((mut socket, _)) = listener.accept() else { return };
        let mut bytes = [0; 4096];
        // A proxy that has panicked says nothing.
        if socket.read(&mut bytes).is_ok_and(|read| read > 0) {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            let _ = socket.write_all(head.as_bytes());
            for _ in 0..2 {
                let _ = socket.write_all(b"a\r\ndata: {}\n\n\r\n");
                let _ = is_seen.recv_timeout(Duration::from_secs(60));
            }
            let _ = socket.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        }
    };
    (address, std::thread::spawn(serve))
}

/// A client that asks once, says whenever it has seen an event, and reads until its connection
/// ends.
fn client(seen: mpsc::Sender<()>) -> (Socket, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let ask = move || {
        let body = r#"{"model":"m","stream":true}"#;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        theirs.write_all(head.as_bytes()).unwrap();
        let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = theirs.read(&mut bytes) {
            answer.extend_from_slice(&bytes[..read]);
            if answer.ends_with(b"\n\n\r\n") {
                let _ = seen.send(());
            }
        }
    };
    (Socket::from_fd(ours.into()).unwrap(), std::thread::spawn(ask))
}

/// A client's connection and its one request, at one of whose steps there is a panic.
async fn served(w: Rc<Shared>, place: &'static str, seen: mpsc::Sender<()>) -> JoinHandle<()> {
    let (sweeping, pulse) = (Rc::clone(&w), Arc::<Pulse>::default());
    rt::spawn(async move {
        loop {
            sweeping.patrol.next_sweep(false, pulse.sleep()).await;
        }
    });
    let (socket, client) = client(seen);
    let serving = serve(w.enter_live(), socket, [192, 0, 2, 7].into(), false).unwrap();
    panic_point::arm(place, 0);
    let is_well = guarded(Box::pin(serving)).await;
    assert!(!is_well, "{place} was never passed");
    // Sockets are closed by the ring, which must run for that.
    rt::sleep(Duration::from_millis(1)).await;
    let inflight = w.view().members.iter().map(|member| member.inflight()).sum::<u32>();
    assert_eq!(inflight, 0, "{place}: a place that is never free again");
    client
}

/// The ends that the journal finds: outcome and error.
fn ends(ring: Arc<RingFile>) -> Vec<(Outcome, Option<String>)> {
    let (mut taken, mut ring) = (Taken::default(), Consumer::new(ring));
    ring.take(&mut taken);
    let is_close = |entry: &Entry<'_>| entry.header.kind == Kind::Close.byte();
    let closes = taken.walk(Check::Each).filter(is_close);
    let record = |payload: &[u8]| codec::decode(payload).unwrap();
    let told = closes.map(|entry| record(entry.payload));
    told.map(|record| (record.outcome, record.error.map(|error| error.into_owned()))).collect()
}

/// Catches: a request that no record is made of, or two, because of a panic at any of its steps; a
/// place, a request in flight or an active one that is counted for ever.
#[test]
fn a_panic_at_any_step_leaves_one_record_and_holds_nothing() {
    let aborted = || vec![(Outcome::Aborted, Some("internal_error".to_owned()))];
    let complete = || vec![(Outcome::Complete, None)];
    for (place, wanted) in [
        // Nobody is billed for what no engine was chosen for.
        ("head", vec![]),
        ("admission", vec![]),
        ("choosing", aborted()),
        ("connecting", aborted()),
        ("asking", aborted()),
        ("relaying", aborted()),
        ("closing", complete()),
        ("settling", complete()),
        ("counting", complete()),
    ] {
        let (seen, is_seen) = mpsc::channel();
        let (address, engine) = engine(is_seen);
        let client = Ring::build().unwrap().block_on(async move {
            let (w, ring) = shared(address);
            let client = served(Rc::clone(&w), place, seen).await;
            assert_eq!(ends(ring), wanted, "{place}");
            let inflight = w.view().members[0].inflight();
            assert_eq!((inflight, w.active.get(), w.live.get()), (0, 0, 0), "{place}");
            client
        });
        client.join().unwrap();
        // Where nobody came, nobody will.
        let _ = TcpStream::connect(address);
        engine.join().unwrap();
    }
}
