//! One exchange: a request out, an answer in, everything noted on the way.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::client::{Context, Watched};
use super::codec::{Answer, Wrong};
use super::plan::Prepared;
use super::stats::record;
use crate::net::Socket;

/// How an exchange ended, if not well.
pub enum Failure {
    /// A kept connection was closed before any byte of the answer
    Stale,
    /// Left on purpose
    Aborted,
    /// By kind
    Error(String),
}

impl Failure {
    /// By its kind.
    pub fn kind(kind: &str) -> Self {
        Failure::Error(kind.to_string())
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

/// One request and its answer.
pub struct Exchange<'a> {
    cx: &'a Context,
    socket: &'a Socket,
    request: &'a Prepared,
    start: Instant,
    watched: &'a Watched,
    seen: Seen,
}

impl<'a> Exchange<'a> {
    /// An exchange that is meant to start at `start`.
    pub fn new(
        cx: &'a Context,
        socket: &'a Socket,
        request: &'a Prepared,
        start: Instant,
        watched: &'a Watched,
    ) -> Self {
        Exchange { cx, socket, request, start, watched, seen: Seen::default() }
    }

    /// Sends the request and reads the answer; gives whether the connection must be closed.
    pub async fn run(&mut self, number: u64) -> Result<bool, Failure> {
        self.send(number).await.map_err(|e| fault(&e))?;
        self.receive().await
    }

    /// Nothing of an answer has come.
    pub fn is_untouched(&self) -> bool {
        self.seen.bytes == 0
    }

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

fn fault(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::kind("reset"),
        kind => Failure::Error(kind.to_string().replace(' ', "_")),
    }
}
