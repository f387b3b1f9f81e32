//! One connection: connect, exchange, again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::{Exchange, Failure};
use super::gate::Gate;
use super::plan::{Plan, Prepared};
use super::stats::{record, Stats};
use crate::net::Socket;

/// Counts for the progress line, shared by all threads.
#[derive(Debug, Default)]
pub struct Progress {
    /// Exchanges that ended well
    pub ok: AtomicU64,
    /// Exchanges that failed
    pub failed: AtomicU64,
    /// Events received
    pub events: AtomicU64,
}

/// What all connections of a thread share.
pub struct Context {
    /// What to do
    pub plan: Plan,
    /// Who may send
    pub gate: Gate,
    /// What was seen
    pub stats: RefCell<Stats>,
    /// For the progress line
    pub progress: Arc<Progress>,
    /// The requests, sent in turn
    pub requests: Vec<Prepared>,
    /// Exchanges that start earlier belong to the warm-up
    pub measured_from: Cell<Instant>,
    /// Connections that run
    pub running: Cell<usize>,
    /// Exchanges under way
    pub busy: Cell<u64>,
    /// Connections open now
    pub open: Cell<u64>,
    /// Number of the next request of this thread
    pub next: Cell<u64>,
    /// The thread, as part of request ids
    pub thread: usize,
    /// All reads of the thread go here first
    pub scratch: RefCell<Vec<u8>>,
    /// Exchanges that the watchdog looks at
    pub watched: RefCell<Vec<Rc<Watched>>>,
}

/// What the watchdog needs of one connection.
pub struct Watched {
    socket: RefCell<Option<Rc<Socket>>>,
    /// When the last byte came
    pub heard: Cell<Instant>,
    is_late: Cell<bool>,
}

impl Watched {
    /// Cuts the connection when an exchange was silent for longer than `limit`.
    pub fn check(&self, limit: Duration) {
        if self.heard.get().elapsed() < limit {
            return;
        }
        if let Some(socket) = self.socket.borrow().as_ref() {
            self.is_late.set(true);
            socket.shutdown();
        }
    }
}

/// Runs one connection until the gate closes.
pub async fn run(cx: Rc<Context>, index: usize) {
    let heard = Cell::new(Instant::now());
    let watched = Rc::new(Watched { socket: RefCell::default(), heard, is_late: Cell::default() });
    cx.watched.borrow_mut().push(watched.clone());
    let mut client = Client { cx: cx.clone(), index, socket: None, served: 0, watched };
    // Idle connections are part of the load, so each is made before its first turn.
    let _ = client.connect().await;
    while let Some(start) = cx.gate.enter().await {
        cx.busy.set(cx.busy.get() + 1);
        client.exchange(start).await;
        cx.busy.set(cx.busy.get() - 1);
        cx.gate.leave();
    }
    client.close();
    cx.running.set(cx.running.get() - 1);
}

struct Client {
    cx: Rc<Context>,
    index: usize,
    socket: Option<Rc<Socket>>,
    served: u64,
    watched: Rc<Watched>,
}

impl Client {
    async fn exchange(&mut self, start: Instant) {
        let number = self.cx.next.get();
        self.cx.next.set(number + 1);
        let mut result = self.attempt(start, number).await;
        if let Err(Failure::Stale) = result {
            // The close may have crossed the request: allowed, counted, and tried once again.
            self.cx.stats.borrow_mut().stale += 1;
            result = self.attempt(start, number).await;
        }
        self.watched.socket.replace(None);
        if result.is_err() || self.cx.plan.no_keepalive {
            self.close();
        }
        let is_measured = start >= self.cx.measured_from.get();
        let mut stats = self.cx.stats.borrow_mut();
        match result {
            Ok(()) => {
                self.cx.progress.ok.fetch_add(1, Relaxed);
                if is_measured {
                    stats.ok += 1;
                    record(&mut stats.total_us, start.elapsed());
                }
            }
            Err(Failure::Aborted) => {
                self.cx.progress.ok.fetch_add(1, Relaxed);
                stats.aborted += u64::from(is_measured);
            }
            Err(failure) => {
                let kind = match (self.watched.is_late.replace(false), &failure) {
                    (true, _) => "timeout",
                    (false, Failure::Error(kind)) => kind,
                    (false, _) => "closed_unanswered",
                };
                self.cx.progress.failed.fetch_add(1, Relaxed);
                // Failures count even in the warm-up: none may hide there.
                stats.fail(kind);
            }
        }
    }

    async fn connect(&mut self) -> Result<Rc<Socket>, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let targets = &self.cx.plan.target;
        let address = targets.get(self.index % targets.len().max(1));
        let address = address.ok_or_else(|| Failure::kind("no_target"))?;
        match Socket::connect(address, Duration::from_secs(5)).await {
            Ok(socket) => {
                let socket = Rc::new(socket);
                self.socket = Some(socket.clone());
                self.served = 0;
                self.cx.open.set(self.cx.open.get() + 1);
                let mut stats = self.cx.stats.borrow_mut();
                stats.connects += 1;
                stats.open_max = stats.open_max.max(self.cx.open.get());
                Ok(socket)
            }
            Err(e) => {
                // A refused connection fails at once; without a pause it would be a busy loop.
                monoio::time::sleep(Duration::from_millis(20)).await;
                Err(Failure::Error(format!("connect_{}", e.kind()).replace(' ', "_")))
            }
        }
    }

    fn close(&mut self) {
        if self.socket.take().is_some() {
            self.cx.open.set(self.cx.open.get() - 1);
        }
    }

    async fn attempt(&mut self, start: Instant, number: u64) -> Result<(), Failure> {
        let socket = self.connect().await?;
        let is_reused = self.served > 0;
        self.served += 1;
        self.watched.heard.set(Instant::now());
        self.watched.socket.replace(Some(socket.clone()));
        let cx = self.cx.clone();
        let turn = number as usize % cx.requests.len().max(1);
        let request = cx.requests.get(turn).ok_or_else(|| Failure::kind("no_request"))?;
        let mut exchange = Exchange::new(&cx, &socket, request, start, &self.watched);
        let result = exchange.run(number).await;
        let is_untouched = exchange.is_untouched() && !self.watched.is_late.get();
        match result {
            Ok(closes) => {
                if closes {
                    self.close();
                }
                Ok(())
            }
            Err(Failure::Error(kind)) if is_reused && is_untouched && is_cut(&kind) => {
                self.close();
                Err(Failure::Stale)
            }
            Err(failure) => Err(failure),
        }
    }
}

fn is_cut(kind: &str) -> bool {
    matches!(kind, "eof" | "reset")
}
