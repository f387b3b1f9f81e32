//! One connection: connect, exchange, again.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::codec::{Answer, Wrong};
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
    heard: Cell<Instant>,
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

/// How an exchange ended, if not well.
enum Failure {
    /// A kept connection was closed before any byte of the answer
    Stale,
    /// Left on purpose
    Aborted,
    /// By kind
    Error(String),
}

impl Failure {
    fn kind(kind: &str) -> Self {
        Failure::Error(kind.to_string())
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
        let mut exchange = Exchange {
            cx: &cx,
            socket: &socket,
            request,
            start,
            watched: &self.watched,
            seen: Seen::default(),
        };
        let result = match exchange.send(number).await {
            Ok(()) => exchange.receive().await,
            Err(e) => Err(fault(&e)),
        };
        let is_untouched = exchange.seen.bytes == 0 && !self.watched.is_late.get();
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

fn fault(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::kind("reset"),
        kind => Failure::Error(kind.to_string().replace(' ', "_")),
    }
}

/// What one exchange received so far.
#[derive(Default)]
struct Seen {
    /// Bytes of head and body
    bytes: usize,
    /// Bytes of the body
    body: usize,
    events: u64,
    /// The last body byte was a line end
    at_line_end: bool,
    differs: bool,
}

struct Exchange<'a> {
    cx: &'a Context,
    socket: &'a Socket,
    request: &'a Prepared,
    start: Instant,
    watched: &'a Watched,
    seen: Seen,
}

impl Exchange<'_> {
    async fn send(&self, number: u64) -> io::Result<()> {
        let Prepared { head, id_at, body, .. } = self.request;
        let own;
        let head = match id_at {
            None => head,
            Some(at) => {
                let mut head = head.clone();
                let id = format!("{:04x}{number:012x}", self.cx.thread);
                if let Some(place) = head.get_mut(*at..at + id.len()) {
                    place.copy_from_slice(id.as_bytes());
                }
                own = head;
                &own
            }
        };
        let sent = match self.socket.try_write_two(head, body) {
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        if sent < head.len() {
            self.socket.write_all(head.get(sent..).unwrap_or_default()).await?;
        }
        let body_sent = sent.saturating_sub(head.len());
        self.socket.write_all(body.get(body_sent..).unwrap_or_default()).await
    }

    /// Reads the answer; gives whether the connection must be closed.
    async fn receive(&mut self) -> Result<bool, Failure> {
        let plan = &self.cx.plan;
        let abort_at = plan.abort_after_ms.map(|ms| self.start + Duration::from_millis(ms));
        let pace = plan.read_bytes_per_sec.map(|rate| rate.max(1));
        let at_once = pace.map_or(usize::MAX, |rate| (rate / 20).max(64) as usize);
        let mut answer = Answer::default();
        let mut last_event: Option<Instant> = None;
        while !answer.is_done() {
            self.readable(abort_at).await?;
            let read = self.read(&mut answer, at_once)?;
            let now = Instant::now();
            self.watched.heard.set(now);
            let Some(events) = read.events else { break };
            self.note(now, events, read.is_first, &mut last_event);
            if plan.abort_after_events.is_some_and(|n| self.seen.events >= n) {
                return Err(Failure::Aborted);
            }
            if let Some(rate) = pace {
                let pause = Duration::from_secs_f64(read.bytes as f64 / rate as f64);
                monoio::time::sleep(pause).await;
            }
        }
        let head = answer.head().ok_or_else(|| Failure::kind("eof"))?;
        if !(200..300).contains(&head.status) {
            // The answer itself was whole, yet the request was not served.
            return Err(Failure::Error(format!("status_{}", head.status)));
        }
        let whole = self.request.expected.as_ref().is_none_or(|all| all.len() == self.seen.body);
        if self.seen.differs || !whole {
            return Err(Failure::kind("mismatch"));
        }
        Ok(head.closes)
    }

    async fn readable(&self, abort_at: Option<Instant>) -> Result<(), Failure> {
        let Some(at) = abort_at else {
            return self.socket.readable().await.map_err(|e| fault(&e));
        };
        let left = at.saturating_duration_since(Instant::now());
        match monoio::time::timeout(left, self.socket.readable()).await {
            Ok(ready) => ready.map_err(|e| fault(&e)),
            Err(_) => Err(Failure::Aborted),
        }
    }

    /// Reads once. No events at all means that the connection ended.
    fn read(&mut self, answer: &mut Answer, at_once: usize) -> Result<Read, Failure> {
        let mut scratch = self.cx.scratch.borrow_mut();
        let room = scratch.len().min(at_once);
        let into = scratch.get_mut(..room).unwrap_or_default();
        let count = match self.socket.try_read(into) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Read { bytes: 0, events: Some(0), is_first: false })
            }
            Err(e) => return Err(fault(&e)),
        };
        if count == 0 {
            answer.end().map_err(wrong)?;
            return Ok(Read { bytes: 0, events: None, is_first: false });
        }
        let (body_before, events_before) = (self.seen.body, self.seen.events);
        let is_lines = self.cx.plan.is_lines();
        let expected = self.request.expected.as_deref();
        let seen = &mut self.seen;
        seen.bytes += count;
        let bytes = into.get(..count).unwrap_or_default();
        answer.feed(bytes, |body| seen.body(body, is_lines, expected)).map_err(wrong)?;
        let is_first = body_before == 0 && seen.body > 0;
        self.cx.stats.borrow_mut().bytes += (seen.body - body_before) as u64;
        Ok(Read { bytes: count, events: Some(seen.events - events_before), is_first })
    }

    /// Records times and counts of one read.
    fn note(&self, now: Instant, events: u64, is_first: bool, last_event: &mut Option<Instant>) {
        let is_measured = self.start >= self.cx.measured_from.get();
        let mut stats = self.cx.stats.borrow_mut();
        if is_first && is_measured {
            record(&mut stats.ttft_us, now - self.start);
        }
        if events > 0 {
            stats.events += events;
            self.cx.progress.events.fetch_add(events, Relaxed);
            if let (Some(last), true) = (last_event.replace(now), is_measured) {
                record(&mut stats.gap_us, now - last);
            }
        }
    }
}

struct Read {
    bytes: usize,
    events: Option<u64>,
    is_first: bool,
}

impl Seen {
    /// Counts events in body bytes and compares them with what must come.
    fn body(&mut self, bytes: &[u8], is_lines: bool, expected: Option<&[u8]>) {
        if let Some(expected) = expected {
            let wanted = expected.get(self.body..).and_then(|rest| rest.get(..bytes.len()));
            self.differs |= wanted != Some(bytes);
        }
        self.body += bytes.len();
        let mut after_last_end = None;
        for at in memchr::memchr_iter(b'\n', bytes) {
            // An event ends with an empty line; a JSON line ends with its line.
            let is_empty_line = match at.checked_sub(1) {
                None => self.at_line_end,
                Some(before) => after_last_end == Some(before + 1),
            };
            if is_lines || is_empty_line {
                self.events += 1;
            }
            after_last_end = Some(at + 1);
        }
        self.at_line_end = bytes.last() == Some(&b'\n');
    }
}

fn wrong(wrong: Wrong) -> Failure {
    Failure::kind(match wrong {
        Wrong::StatusLine => "bad_status_line",
        Wrong::Field => "bad_field",
        Wrong::HeadTooLong => "head_too_long",
        Wrong::Framing => "bad_framing",
        Wrong::ChunkSize => "bad_chunk_size",
        Wrong::ChunkEnd => "bad_chunk_end",
        Wrong::Eof => "eof",
        Wrong::Extra => "extra_bytes",
    })
}
