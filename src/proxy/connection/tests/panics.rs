//! What a panic leaves behind, wherever in a request it happens.

use super::super::*;
use crate::base::limits::{SCAN_BYTES, UNPACKING_MAX};
use crate::base::panic_point;
use crate::config::load_text;
use crate::config::plan::OnSpoolFailure;
use crate::proxy::drains::Drains;
use crate::proxy::pass::SpareBoxes;
use crate::proxy::shelf::Shelf;
use crate::proxy::slices::Slices;
use crate::proxy::upstreams::Upstreams;
use crate::rt;
use crate::rt::guard::guarded;
use crate::rt::patrol::Patrol;
use crate::rt::ring::Ring;
use crate::rt::turns::Turns;
use crate::state::board::{Board, View};
use crate::state::connections::Connections;
use crate::state::pulse::Pulse;
use crate::usage::counters::UsageCounters;
use crate::usage::flight::FlightRecorder;
use crate::usage::outbox::Outbox;
use crate::usage::record::Outcome;
use crate::usage::ring::entry::{Check, Entry};
use crate::usage::ring::file::RingFile;
use crate::usage::ring::spsc::{Consumer, Taken};
use crate::usage::spool::codec;
use crate::usage::spool::segment::Kind;
use crate::usage::spool::state::SpoolState;
use crate::usage::unpacker::Unpacker;
use flate2::write::GzEncoder;
use flate2::Compression;
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{mpsc, Arc};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is different from one scene to the next.
struct Scene {
    /// Where the panic is.
    place: &'static str,
    /// The record's outcome and error; `None`: there is no record.
    record: Option<(Outcome, Option<&'static str>)>,
    /// In which `ENGINE` stands for the engine's URL.
    config: &'static str,
    request: fn() -> Vec<u8>,
    /// The answer comes packed and in one piece, and is not unpacked before its client has it.
    is_packed: bool,
    /// The client leaves once it has seen an event.
    leaves: bool,
}

const ENGINE: &str = "backends: [{url: ENGINE}]";
/// Whose answers are read to the end.
const DRAINED: &str = "backends: [{url: ENGINE, on_client_abort: drain}]";
const HELD: &str = "backends: [{url: ENGINE}]
routing: {hold_preamble: 50ms, retry: {enabled: true}}";
/// Two at which nobody listens.
const DEAD: &str = "backends: [{url: \"http://127.0.0.1:1\"}, {url: \"http://127.0.0.1:2\"}]";
const DEAD_WITH_WAIT: &str = "backends: [{url: \"http://127.0.0.1:1\"}]
routing: {retry: {enabled: true, initial_wait: 10ms, max_wait: 10ms}}";

impl Scene {
    /// A stream from an engine, of which this record is left.
    fn stream(place: &'static str, record: Option<(Outcome, Option<&'static str>)>) -> Scene {
        let (is_packed, leaves) = (false, false);
        Scene { place, record, config: ENGINE, request: plain, is_packed, leaves }
    }

    /// One in which a request is that an engine has or might have.
    fn cut(place: &'static str) -> Scene {
        Scene::stream(place, Some((Outcome::Aborted, Some("internal_error"))))
    }

    /// One in which no engine was chosen yet: nobody is billed for that.
    fn early(place: &'static str) -> Scene {
        Scene::stream(place, None)
    }

    /// One in which all of the answer was there.
    fn whole(place: &'static str) -> Scene {
        Scene::stream(place, Some((Outcome::Complete, None)))
    }
}

/// All places, in the order in which a request comes by.
fn scenes() -> Vec<Scene> {
    vec![
        Scene::early("head"),
        Scene::early("body"),
        Scene { request: packed, ..Scene::early("unpacking") },
        Scene::early("reading facts"),
        Scene { request: large, ..Scene::early("slicing") },
        Scene::early("admission"),
        Scene::cut("choosing"),
        Scene::cut("connecting"),
        Scene::cut("asking"),
        Scene { config: HELD, ..Scene::cut("holding") },
        Scene { config: DEAD_WITH_WAIT, ..Scene::cut("waiting") },
        Scene { config: DEAD, ..Scene::cut("trying again") },
        Scene::cut("relaying"),
        Scene::whole("closing"),
        Scene { config: DRAINED, leaves: true, ..Scene::cut("reading on") },
        Scene { is_packed: true, ..Scene::cut("settling late") },
        Scene::whole("settling"),
        Scene::whole("counting"),
    ]
}

const BODY: &str = r#"{"model":"m","stream":true}"#;

fn request(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn plain() -> Vec<u8> {
    request("", BODY.as_bytes())
}

fn packed() -> Vec<u8> {
    request("Content-Encoding: gzip\r\n", &gzip(BODY.as_bytes()))
}

/// Too large to be read in one go.
fn large() -> Vec<u8> {
    let prompt = "x".repeat(SCAN_BYTES);
    request("", BODY.replace("\"m\"", &format!("\"m\",\"prompt\":\"{prompt}\"")).as_bytes())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// What a worker shares that has this configuration, and its journal ring.
fn shared(config: &str, unpacker: Unpacker) -> (Rc<Shared>, Arc<RingFile>) {
    let plan = load_text("test", config, &|_| None).unwrap().plan;
    let tls = plan.backends.iter().map(|_| None).collect();
    let board = Board::new(View::new(Arc::new(plan), tls, None));
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
        spans: None,
        flight: FlightRecorder::new(1, 16).unwrap().of_worker(0),
        unpacker,
        drains: Rc::new(Drains::default()),
        connections: Arc::new(Connections::new(9)),
        retries: crate::proxy::retry_budget::RetryBudget::new(1, std::time::Instant::now()),
        stop: Arc::default(),
        pages: crate::state::ask::queue(1).0,
        admin_desk: None,
        models: crate::state::ask::queue(1).0,
        live: Cell::new(0),
        spare_boxes: SpareBoxes::default(),
        active: Rc::default(),
    };
    (Rc::new(shared), ring)
}

/// An engine that answers one request, or none. Each event of a stream comes once the client has
/// seen the one before, or never will: so each is a step of its own.
fn engine(is_packed: bool, is_seen: mpsc::Receiver<()>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        let Ok((mut socket, _)) = listener.accept() else { return };
        let mut bytes = [0; 4096];
        // A proxy that has panicked says nothing, and takes nothing.
        if !socket.read(&mut bytes).is_ok_and(|read| read > 0) {
            return;
        }
        if is_packed {
            let body = gzip(br#"{"usage":{"prompt_tokens":1,"completion_tokens":1}}"#);
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\
                 Content-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all(&[head.as_bytes(), &body].concat());
            return;
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let _ = socket.write_all(head.as_bytes());
        for _ in 0..2 {
            let _ = socket.write_all(b"a\r\ndata: {}\n\n\r\n");
            let _ = is_seen.recv_timeout(Duration::from_secs(60));
        }
        let _ = socket.write_all(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
    };
    (address, std::thread::spawn(serve))
}

/// A client that asks once, says whenever it has seen an event, and reads until its connection
/// ends, or leaves before that. The engine waits for a client that has left until its thread is
/// joined.
fn client(scene: &Scene, seen: mpsc::Sender<()>) -> (Socket, JoinHandle<mpsc::Sender<()>>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (request, leaves) = ((scene.request)(), scene.leaves);
    let ask = move || {
        theirs.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // A proxy that panics at the head takes no body.
        let _ = theirs.write_all(&request);
        let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = theirs.read(&mut bytes) {
            answer.extend_from_slice(&bytes[..read]);
            if answer.ends_with(b"\n\n\r\n") {
                if leaves {
                    break;
                }
                let _ = seen.send(());
            }
        }
        seen
    };
    (Socket::from_fd(ours.into()).unwrap(), std::thread::spawn(ask))
}

/// A client's connection and its one request, at one of whose steps there is a panic. With the end
/// of `gate` packed answers are unpacked.
async fn served(
    w: &Rc<Shared>,
    scene: &Scene,
    seen: mpsc::Sender<()>,
    gate: mpsc::Sender<()>,
) -> JoinHandle<mpsc::Sender<()>> {
    let (sweeping, pulse) = (Rc::clone(w), Arc::<Pulse>::default());
    rt::spawn(async move {
        loop {
            sweeping.patrol.next_sweep(false, pulse.sleep()).await;
        }
    });
    let (socket, client) = client(scene, seen);
    let peer = ([192, 0, 2, 7].into(), ListenerSpeech::AsServer);
    let serving = serve(w.enter_live(), socket, peer, false).unwrap();
    panic_point::arm(scene.place, 0);
    let is_well = guarded(Box::pin(serving)).await;
    // What is settled late is settled by a task of its own.
    assert_eq!(is_well, scene.is_packed, "{}: passed?", scene.place);
    drop(gate);
    // Sockets are closed by the ring, which must run for that.
    rt::sleep(Duration::from_millis(1)).await;
    for _ in 0..60_000 {
        if w.drains.count() == 0 {
            break;
        }
        rt::sleep(Duration::from_millis(1)).await;
    }
    let panics = w.shelf.meters.borrow().panics;
    assert_eq!(panics, u64::from(scene.is_packed), "{}: passed late?", scene.place);
    client
}

/// Whatever a request may hold on its way, and that others wait for.
fn held(w: &Shared) -> [usize; 6] {
    let inflight = w.view().members.iter().map(|member| member.inflight()).sum::<u32>();
    let turns = (w.unpacking.taken(), w.slices.turns.taken());
    [inflight as usize, w.active.get(), w.live.get(), turns.0, turns.1, w.drains.count()]
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
/// place, a turn, a request in flight or an active one that is counted for ever.
#[test]
fn a_panic_at_any_step_leaves_one_record_and_holds_nothing() {
    for scene in scenes() {
        let place = scene.place;
        let (seen, is_seen) = mpsc::channel();
        let (gate, gated) = mpsc::channel();
        let (address, engine) = engine(scene.is_packed, is_seen);
        let config = scene.config.replace("ENGINE", &format!("\"http://{address}\""));
        let unpacker = Unpacker::start_with(move |packed| {
            let _ = gated.recv();
            packed.read()
        });
        let client = Ring::build().unwrap().block_on(async move {
            let (w, ring) = shared(&config, unpacker.unwrap());
            let client = served(&w, &scene, seen, gate).await;
            let wanted = scene.record.map(|(outcome, error)| (outcome, error.map(str::to_owned)));
            assert_eq!(ends(ring), Vec::from_iter(wanted), "{place}");
            assert_eq!(held(&w), [0; 6], "{place}");
            client
        });
        drop(client.join().unwrap());
        // Where nobody came, nobody will.
        let _ = TcpStream::connect(address);
        engine.join().unwrap();
    }
}
