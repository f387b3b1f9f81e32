//! The story of one connection: receive, decide, play, note.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::bad::Then;
use super::knobs::{Knobs, Split};
use super::log::Entry;
use super::message::{Due, Message};
use super::receive::{Body, Framing, Inbox, Request};
use super::reply::{self, Received, Reply};
use super::server::Worker;
use super::watch::{Left, Watch};
use crate::net::Socket;
use crate::script::{checksum, Dialect};

/// Serves requests until either side closes.
pub async fn serve(socket: Socket, number: u64, worker: Rc<Worker>) {
    let counters = &worker.shared.log.counters;
    counters.connections_accepted.fetch_add(1, Relaxed);
    counters.connections_open.fetch_add(1, Relaxed);
    let mut connection =
        Connection { socket, number, worker: worker.clone(), inbox: Inbox::default(), served: 0 };
    let after = loop {
        match connection.exchange().await {
            Ok(After::Keep) => {}
            Ok(after) => break after,
            Err(_) => {
                worker.shared.log.counters.broken.fetch_add(1, Relaxed);
                break After::Close;
            }
        }
    };
    worker.shared.log.counters.connections_open.fetch_sub(1, Relaxed);
    if after == After::Reset {
        connection.socket.reset();
    }
}

/// What becomes of a connection after an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
    Reset,
}

/// How playing an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    /// All is said, and nothing more will be
    Closed,
    Died,
    Left(Left),
}

struct Connection {
    socket: Socket,
    number: u64,
    worker: Rc<Worker>,
    inbox: Inbox,
    served: u32,
}

impl Connection {
    async fn exchange(&mut self) -> io::Result<After> {
        let options = &self.worker.shared.options;
        let Some(request) = self.inbox.head(&self.socket, options.idle_close).await? else {
            return Ok(After::Close);
        };
        let wants_echo = || request.knobs.iter().any(|(name, _)| name == "echo");
        let is_kept = self.worker.shared.log.is_on() || self.worker.knobs().echo || wants_echo();
        let head = match is_kept {
            true => lossy(self.inbox.pending().get(..request.head_len).unwrap_or_default()),
            false => String::new(),
        };
        self.inbox.consume(request.head_len);
        if request.expects_continue && request.framing != Framing::Length(0) {
            self.socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let body = self.inbox.body(&self.socket, request.framing).await?;
        self.served += 1;
        let is_last = options.requests_per_connection.is_some_and(|n| self.served >= n);
        let reply = {
            let bytes = self.inbox.body_bytes(&body);
            reply::decide(
                &self.worker,
                &Received { request: &request, head: &head, body: bytes },
                is_last,
            )
        };
        let id = self.note_request(&request, head, &body, reply.is_control);
        self.inbox.consume_body(body);
        self.respond(reply, id).await
    }

    /// Counts the request and opens its log entry; gives the entry's id, 0 when there is none.
    fn note_request(&self, request: &Request, head: String, body: &Body, control: bool) -> u64 {
        let log = &self.worker.shared.log;
        if control {
            return 0;
        }
        let is_probe = matches!(request.method.as_str(), "GET" | "HEAD");
        let counter = if is_probe { &log.counters.probes } else { &log.counters.requests };
        counter.fetch_add(1, Relaxed);
        if !log.is_on() {
            return 0;
        }
        let bytes = self.inbox.body_bytes(body);
        log.open(Entry {
            id: 0,
            conn: self.number,
            head,
            body_len: bytes.len(),
            body_hash: checksum(bytes),
            body_chunked: request.framing == Framing::Chunked,
            body_start: lossy(bytes.get(..4096).unwrap_or(bytes)),
            started_ms: 0.0,
            started_unix_ms: 0.0,
            events_sent: 0,
            served: false,
            ended: "open",
            cancelled_after_ms: None,
            cancelled_unix_ms: None,
            half_closed: false,
        })
    }

    async fn respond(&mut self, reply: Reply, id: u64) -> io::Result<After> {
        let started = Instant::now();
        let counters = &self.worker.shared.log.counters;
        if reply.message.is_stream {
            counters.streams.fetch_add(1, Relaxed);
        }
        let mut watch = Watch::new(&self.socket);
        let mut play = Play { watch: &mut watch, reply: &reply, started, worker: &self.worker, id };
        let (end, head_sent) = play.run().await;
        let log = &self.worker.shared.log;
        let after = match end {
            End::Complete | End::Closed => {
                log_end(&self.worker, id, "complete");
                if reply.message.closes || end == End::Closed {
                    After::Close
                } else {
                    After::Keep
                }
            }
            End::Died => {
                log_end(&self.worker, id, "died");
                if reply.knobs.die_by_fin {
                    After::Close
                } else {
                    After::Reset
                }
            }
            End::Left(left) => {
                self.note_leave(id, started);
                if left == Left::Fin && watch.is_listening(harmless(&reply, head_sent)).await {
                    log.counters.half_closed.fetch_add(1, Relaxed);
                    if log.is_on() {
                        log.update(id, |entry| entry.half_closed = true);
                    }
                }
                After::Close
            }
        };
        let early = std::mem::take(&mut watch.early);
        drop(watch);
        self.inbox.append(&early);
        Ok(after)
    }

    fn note_leave(&self, id: u64, started: Instant) {
        let log = &self.worker.shared.log;
        log.counters.cancelled.fetch_add(1, Relaxed);
        if id != 0 {
            log.update(id, |entry| {
                entry.ended = "cancelled";
                entry.cancelled_after_ms = Some(started.elapsed().as_secs_f64() * 1e3);
                entry.cancelled_unix_ms = Some(crate::sys::unix_ms());
            });
        }
    }
}

/// Bytes that mean nothing to a client at this point of an answer.
fn harmless(reply: &Reply, head_sent: bool) -> &'static [u8] {
    match (head_sent, reply.message.is_stream) {
        (false, _) => b"HTTP/1.1 102 Processing\r\n\r\n",
        (true, true) => b"3\r\n:\n\n\r\n",
        (true, false) => b"\n",
    }
}

fn log_end(worker: &Worker, id: u64, how: &'static str) {
    if id != 0 {
        worker.shared.log.update(id, |entry| entry.ended = how);
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One answer being played to a client that is watched.
struct Play<'a, 'b> {
    watch: &'b mut Watch<'a>,
    reply: &'b Reply,
    started: Instant,
    worker: &'b Worker,
    id: u64,
}

impl Play<'_, '_> {
    /// Plays to the end, and says whether any byte was sent.
    async fn run(&mut self) -> (End, bool) {
        let knobs = &self.reply.knobs;
        let first = self.started + self.reply.delay;
        if knobs.stall_before_head {
            return (End::Left(self.watch.left().await), false);
        }
        if knobs.die_before_head {
            return match self.watch.until(first).await {
                Ok(()) => (End::Died, false),
                Err(left) => (End::Left(left), false),
            };
        }
        if let Some((bytes, then)) = &self.reply.bad {
            return (self.break_http(first, bytes, *then).await, true);
        }
        let (mut at, mut events) = (0, 0);
        let message: &Message = &self.reply.message;
        for unit in &message.units {
            let due = match unit.due {
                Due::AtOnce => self.started,
                Due::Step(step) => first + self.reply.gap * step,
            };
            let waited = match message.is_stream && at > 0 && self.reply.comment.is_some() {
                true => self.until_with_comments(due).await,
                false => self.watch.until(due).await,
            };
            let bytes = message.bytes.get(at..unit.end).unwrap_or_default();
            let sent = match waited {
                Ok(()) => self.write(bytes).await,
                Err(left) => Err(left),
            };
            if let Err(left) = sent {
                return (End::Left(left), at > 0);
            }
            if self.id != 0 && at == 0 && knobs.status.is_none() && knobs.error.is_none() {
                self.worker.shared.log.update(self.id, |entry| entry.served = true);
            }
            at = unit.end;
            events += unit.events;
            if self.id != 0 && unit.events > 0 {
                self.worker.shared.log.update(self.id, |entry| entry.events_sent = events);
            }
            if knobs.die_after.is_some_and(|n| events >= n) {
                return (End::Died, true);
            }
            if knobs.stall_after.is_some_and(|n| events >= n) {
                log_end(self.worker, self.id, "stalled");
                return (End::Left(self.watch.left().await), true);
            }
        }
        (End::Complete, true)
    }

    async fn until_with_comments(&mut self, due: Instant) -> Result<(), Left> {
        let Some(every) = self.reply.comment else { return self.watch.until(due).await };
        loop {
            let next = Instant::now() + every;
            self.watch.until(due.min(next)).await?;
            if next >= due {
                return Ok(());
            }
            let comment: &[u8] = match self.worker.shared.options.dialect {
                Dialect::Vllm => b"e\r\n: keep-alive\n\n\r\n",
                _ => b"3\r\n:\n\n\r\n",
            };
            self.watch.write(comment).await?;
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Left> {
        let knobs: &Knobs = &self.reply.knobs;
        let size = match knobs.split {
            Split::Exact | Split::Merged => return self.watch.write(bytes).await,
            Split::Bytes => 1,
            Split::Parts(parts) => bytes.len().div_ceil(parts.max(1) as usize).max(1),
        };
        for part in bytes.chunks(size) {
            self.watch.write(part).await?;
            if knobs.split_ms > 0.0 {
                let pause = Duration::from_secs_f64(knobs.split_ms / 1e3);
                self.watch.until(Instant::now() + pause).await?;
            }
        }
        Ok(())
    }

    async fn break_http(&mut self, first: Instant, bytes: &[u8], then: Then) -> End {
        let mut sent = match self.watch.until(first).await {
            Ok(()) => self.write(bytes).await,
            Err(left) => Err(left),
        };
        if let Then::Repeat(last) = then {
            let tail = bytes.len().saturating_sub(last);
            while sent.is_ok() {
                sent = self.watch.write(bytes.get(tail..).unwrap_or_default()).await;
                if sent.is_ok() {
                    // A pause, so that one endless answer does not starve the others.
                    sent = self.watch.until(Instant::now() + Duration::from_millis(1)).await;
                }
            }
        }
        match (sent, then) {
            (Err(left), _) => End::Left(left),
            (Ok(()), Then::Close) => End::Closed,
            (Ok(()), _) => End::Complete,
        }
    }
}
