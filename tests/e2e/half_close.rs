//! `server.half_close: serve`: a client that shuts its sending side behind a request still gets its
//! answer. (That the default cancels at a FIN, in each phase, is shown in `abort`.)

use crate::harness::backend::Served;
use crate::harness::client::post_bytes;
use crate::harness::{await_until, pause, Backend, Config, Conn, Proxy, Webhook, SOON};
use crate::rig::{leave, quiet, Leave, CHAT, CHATS, STREAM};
use std::net::Shutdown;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
use std::time::Duration;

/// How far a request is when its client shuts its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The engine does not answer who connects.
    Connecting,
    /// The engine has the head, and takes nothing of a large body.
    Sending,
    /// The engine has the request and says nothing.
    Waiting,
    /// A first event is out.
    Relay,
}

const PHASES: [Phase; 4] = [Phase::Connecting, Phase::Sending, Phase::Waiting, Phase::Relay];
/// More than the buffers of two kernels take.
const LARGE_BYTES: usize = 16 << 20;

/// Catches: a whole request answered with nothing because its client said that it sends no more,
/// and an engine that is told to stop by a FIN that is passed on.
#[test]
fn a_client_that_only_reads_gets_the_rest_of_its_answer() {
    for phase in PHASES {
        let (stage, mut conn) = Stage::at(phase);
        conn.shutdown(Shutdown::Write);
        stage.await_turns();
        stage.backend.open();
        if phase == Phase::Sending {
            stage.go_on();
        }
        if phase != Phase::Relay {
            stage.go_on();
            conn.head();
            conn.read_until("data: 1");
        }
        stage.go_on();
        conn.read_until("data: 2");
        let (_, ended) = conn.rest();
        assert_eq!(ended, crate::harness::message::Ended::Whole, "{phase:?}");
        conn.assert_ends();
        let record = stage.hook.await_records(1, SOON).remove(0);
        assert_eq!(record["status"], "complete", "{phase:?}: {record}");
        quiet(&stage.proxy);
        // Its engine's connection lives: nobody passed the FIN on.
        (0..3).for_each(|_| stage.go_on());
        assert_eq!(stage.ask(STREAM).response().status(), 200);
        assert_eq!(stage.backend.connections(), 1, "{phase:?}");
    }
}

/// Catches: pipelined requests forgotten because a FIN stands behind them.
#[test]
fn every_request_before_a_fin_is_answered() {
    let backend = Backend::answering(crate::rig::OK);
    let proxy = Config::backend_at(backend.url()).server("half_close: serve").start();
    let mut conn = proxy.connect();
    conn.send(post_bytes(CHATS, "", CHAT).repeat(3));
    conn.shutdown(Shutdown::Write);
    for _ in 0..3 {
        assert_eq!(conn.response().text(), "ok");
    }
    conn.assert_ends();
}

/// Catches: work begun for half a request.
#[test]
fn a_fin_inside_a_request_ends_it() {
    let backend = Backend::answering(crate::rig::OK);
    let proxy = Config::backend_at(backend.url()).server("half_close: serve").start();
    let whole = post_bytes(CHATS, "", CHAT);
    for part in [&whole[..20], &whole[..whole.len() - 5]] {
        let mut conn = proxy.connect();
        conn.send(part);
        conn.shutdown(Shutdown::Write);
        conn.assert_closes();
    }
    assert_eq!(backend.connections(), 0);
    quiet(&proxy);
}

/// Catches: an engine that works for nobody although its client has certainly left.
#[test]
fn a_client_that_resets_frees_the_engine() {
    for phase in PHASES {
        let (stage, conn) = Stage::at(phase);
        leave(conn, Leave::Rst);
        // It was not told to go on: what ends its wait is that the proxy cuts it.
        let record = stage.hook.await_records(1, SOON).remove(0);
        assert_eq!(record["status"], "client_left", "{phase:?}: {record}");
        match phase {
            Phase::Connecting => stage.backend.open(),
            // It finds out when it reads on.
            Phase::Sending => stage.go_on(),
            Phase::Waiting | Phase::Relay => {}
        }
        if phase != Phase::Connecting {
            await_until("the engine is cut", SOON, || stage.was_left());
        }
        quiet(&stage.proxy);
        let had = usize::from(matches!(phase, Phase::Waiting | Phase::Relay));
        assert_eq!(stage.backend.requests().len(), had, "{phase:?}");
    }
}

/// Catches: a client that closed in earnest served to the end: the first byte that is sent to it
/// comes back as a reset.
#[test]
fn a_client_that_closed_is_found_out_by_what_is_sent_to_it() {
    let backend = Backend::start(|served| {
        served.request();
        served.begin_events();
        while served.chunk("data: 1\n\n") {
            pause(Duration::from_millis(10));
        }
    });
    let hook = Webhook::start();
    let config = Config::backend_at(backend.url()).server("half_close: serve");
    let proxy = config.webhook(&hook.url(), "").start();
    let mut conn = proxy.connect();
    conn.start_post(CHATS, "", STREAM);
    conn.head();
    drop(conn);
    let record = hook.await_records(1, SOON).remove(0);
    assert_eq!(record["status"], "client_left", "{record}");
    quiet(&proxy);
}

/// An engine that takes each step when it is told to, the proxy before it, and a client.
struct Stage {
    backend: Backend,
    proxy: Proxy,
    hook: Webhook,
    seen: Arc<Seen>,
}

/// What the engine may do, and what it saw.
#[derive(Default)]
struct Seen {
    steps: AtomicU32,
    heads: AtomicU32,
    leaves: AtomicU32,
}

impl Seen {
    /// The engine's side of a connection; false when the proxy left it.
    fn serve(&self, served: &mut Served, phase: Phase) -> bool {
        let mut taken = 0;
        let mut is_told = |served: &mut Served, is_body_read: bool| {
            taken += 1;
            while self.steps.load(Ordering::Relaxed) < taken {
                // To look whether the proxy left would be to read the body.
                match is_body_read {
                    true if served.left_within(Duration::from_millis(5)) => return false,
                    true => {}
                    false => pause(Duration::from_millis(5)),
                }
            }
            true
        };
        while let Some(head) = served.head() {
            let number = self.heads.fetch_add(1, Ordering::Relaxed);
            if phase == Phase::Sending && number == 0 {
                is_told(served, false);
            }
            if served.body_of(head).is_none() || !is_told(served, true) {
                return false;
            }
            served.begin_events();
            served.chunk("data: 1\n\n");
            if !is_told(served, true) {
                return false;
            }
            served.chunk("data: 2\n\n");
            served.chunk("data: [DONE]\n\n");
            served.send("0\r\n\r\n");
        }
        true
    }
}

impl Stage {
    /// A stage, and a client whose request is as far as that.
    fn at(phase: Phase) -> (Stage, Conn) {
        let seen = Arc::new(Seen::default());
        let engine = Arc::clone(&seen);
        let script = move |served: &mut Served| {
            if !engine.serve(served, phase) {
                engine.leaves.fetch_add(1, Ordering::Relaxed);
            }
        };
        let backend = match phase {
            Phase::Connecting => Backend::start_closed(script),
            _ => Backend::start(script),
        };
        let hook = Webhook::start();
        let config =
            Config::new().backend(backend.url(), "connect_timeout: 1m").webhook(&hook.url(), "");
        let proxy = config.server("half_close: serve").start();
        let stage = Stage { backend, proxy, hook, seen };
        let large = STREAM.replace("Count.", &"x".repeat(LARGE_BYTES));
        let mut conn = stage.ask(if phase == Phase::Sending { &large } else { STREAM });
        match phase {
            Phase::Connecting => {
                // The scrape is one; the other has its head in, and its worker has turned since.
                stage.proxy.await_metric("llmproxy_requests_active", &[], 2.0);
                stage.await_turns();
            }
            Phase::Sending => await_until("the engine has the head", SOON, || {
                stage.seen.heads.load(Ordering::Relaxed) > 0
            }),
            Phase::Waiting => await_until("the engine has the request", SOON, || {
                !stage.backend.requests().is_empty()
            }),
            Phase::Relay => {
                stage.go_on();
                conn.head();
                conn.read_until("data: 1");
            }
        }
        (stage, conn)
    }

    /// A client that posted this.
    fn ask(&self, body: &str) -> Conn {
        let mut conn = self.proxy.connect();
        conn.start_post(CHATS, "", body);
        conn
    }

    /// The engine may take another step.
    fn go_on(&self) {
        self.seen.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The proxy's only worker came by twice since: it has heard what was to be heard.
    fn await_turns(&self) {
        for _ in 0..2 {
            assert_eq!(self.proxy.get("/health").status(), 200);
        }
    }

    fn was_left(&self) -> bool {
        self.seen.leaves.load(Ordering::Relaxed) > 0
    }
}
