//! The exporter of spans: a thread that sends what the workers hand over to a receiver of OTLP. A
//! receiver that is slow or away costs no request anything: what waits is bounded, and the rest is
//! dropped and counted.

mod otlp;

use crate::base::limits::{SPANS_ANSWER_BYTES_MAX, SPANS_PER_REQUEST_MAX};
use crate::config::plan::{OtlpCompression, OtlpTraces};
use crate::store::http::{HttpService, Request};
use crate::usage::spans::{self, RequestSpan, SpanCounters, SpanQueue};
use crossbeam_channel::{bounded, select, Receiver, RecvTimeoutError, Sender, TryRecvError};
use flate2::write::GzEncoder;
use flate2::Compression;
use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Spans gather for so long, unless a request is full before. It is looked at so often.
const GATHER_TIME: Duration = Duration::from_secs(1);
const GATHER_LOOK: Duration = Duration::from_millis(50);
/// Between two tries: doubled from the first to the longest, unless the receiver names a time.
const WAIT_LEAST: Duration = Duration::from_secs(1);
const WAIT_MOST: Duration = Duration::from_secs(30);
/// A time that the receiver names counts up to this one.
const NAMED_MOST: Duration = Duration::from_secs(60);
/// Spans that a receiver did not take for so long are given up, as OpenTelemetry's collector does.
const TRIES_TIME: Duration = Duration::from_secs(5 * 60);
/// What waits at the end of the process gets so long.
const LAST_TIME: Duration = Duration::from_secs(3);
/// And the thread so much longer: it may stand in a try that began before.
const END_WAIT: Duration = Duration::from_secs(1);

/// The running exporter.
pub struct SpanExporter {
    /// Dropped to stop; nothing is ever sent.
    running: Option<Sender<Infallible>>,
    /// Closes when the thread ends.
    ended: Receiver<Infallible>,
}

impl SpanExporter {
    /// No more spans come: what waits is to be sent soon.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// Waits until it has done so, or the time for that is over.
    pub fn finish(mut self) {
        self.stop();
        if self.ended.recv_timeout(LAST_TIME + END_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("spans are lost: their receiver does not answer");
        }
    }
}

/// Starts the exporter of a plan that has one.
///
/// # Errors
/// There is no thread for it.
pub fn start(plan: Option<&OtlpTraces>) -> Result<Option<(SpanQueue, SpanExporter)>, String> {
    let Some(plan) = plan else { return Ok(None) };
    let (queue, spans) = spans::open();
    let (running, stopped) = bounded(0);
    let (until_end, ended) = bounded::<Infallible>(0);
    let counters = Arc::clone(queue.counters());
    let service = HttpService::new(&plan.endpoint);
    let mut export =
        Export { plan: plan.clone(), service, counters, stopped, last: None, is_failing: false };
    let body = move || {
        let _until_end = until_end;
        while let Some(first) = export.next(&spans) {
            super::survive("traces", || export.export(first, &spans));
        }
    };
    let thread = std::thread::Builder::new().name("traces".into()).spawn(body);
    thread.map_err(|e| format!("traces: {e}"))?;
    Ok(Some((queue, SpanExporter { running: Some(running), ended })))
}

/// What the thread has.
struct Export {
    plan: OtlpTraces,
    service: HttpService,
    counters: Arc<SpanCounters>,
    stopped: Receiver<Infallible>,
    /// The end of the process: until then spans are sent.
    last: Option<Instant>,
    /// The last try failed, which was told.
    is_failing: bool,
}

/// What a try came to.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// The receiver took all but so many.
    Taken(u64),
    /// It will never take them; why.
    Refused(String),
    /// It may later, after so long if it says so; why it did not.
    Later(String, Option<Duration>),
}

impl Export {
    /// The next span; `None`: the process ends, and nothing waits.
    fn next(&self, spans: &Receiver<Box<RequestSpan>>) -> Option<Box<RequestSpan>> {
        // Not the end of the channel: a connection that was cut may keep its sender for ever.
        select! {
            recv(spans) -> span => span.ok(),
            recv(self.stopped) -> _ => spans.try_recv().ok(),
        }
    }

    /// Sends a span and those that come within a moment.
    fn export(&mut self, first: Box<RequestSpan>, spans: &Receiver<Box<RequestSpan>>) {
        // To wake this thread costs the worker a system call: it sleeps while spans gather.
        let due = Instant::now() + GATHER_TIME;
        while spans.len() + 1 < SPANS_PER_REQUEST_MAX && Instant::now() < due {
            if self.wait(GATHER_LOOK) {
                break;
            }
        }
        let more = spans.try_iter().take(SPANS_PER_REQUEST_MAX - 1);
        let batch: Vec<_> = std::iter::once(first).chain(more).collect();
        let body = self.packed(otlp::body(&batch, &self.plan.service_name));
        self.deliver(&body, batch.len() as u64);
    }

    /// Waits so long; true when the process ends.
    fn wait(&mut self, time: Duration) -> bool {
        match self.stopped.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => false,
            _ => self.is_last(),
        }
    }

    /// True when the process ends.
    fn is_last(&mut self) -> bool {
        let is_last = self.stopped.try_recv() == Err(TryRecvError::Disconnected);
        if is_last {
            self.last.get_or_insert_with(|| Instant::now() + LAST_TIME);
        }
        is_last
    }

    /// Sends a body until it is taken, or refused, or the time for it is over.
    fn deliver(&mut self, body: &[u8], count: u64) {
        let (began, mut wait) = (Instant::now(), WAIT_LEAST);
        loop {
            let is_last = self.is_last();
            let left = self.last.map(|last| last.saturating_duration_since(Instant::now()));
            let limit = self.plan.timeout.min(left.unwrap_or(Duration::MAX));
            let sent = match limit.is_zero() {
                true => Sent::Later("the process ends".to_owned(), None),
                false => self.send(body, limit),
            };
            let named = match sent {
                Sent::Taken(refused) => {
                    self.hear(None);
                    add(&self.counters.refused, refused.min(count));
                    return add(&self.counters.exported, count.saturating_sub(refused));
                }
                Sent::Refused(why) => {
                    self.hear(Some(&why));
                    return add(&self.counters.refused, count);
                }
                Sent::Later(why, named) => {
                    self.hear(Some(&why));
                    named
                }
            };
            let next =
                named.map_or_else(|| spread(wait), |named| named.clamp(WAIT_LEAST, NAMED_MOST));
            if is_last || began.elapsed() + next > TRIES_TIME {
                return add(&self.counters.given_up, count);
            }
            self.wait(next);
            wait = (wait * 2).min(WAIT_MOST);
        }
    }

    /// One try, of at most so long.
    fn send(&self, body: &[u8], limit: Duration) -> Sent {
        let mut request =
            Request::builder().method("POST").header("content-type", "application/json");
        if self.plan.compression == OtlpCompression::Gzip {
            request = request.header("content-encoding", "gzip");
        }
        for (name, value) in &self.plan.headers {
            request = request.header(name, value.reveal());
        }
        match self.service.send(request, body, limit) {
            Ok(mut answer) => {
                let rest = answer.body_mut().with_config().limit(SPANS_ANSWER_BYTES_MAX as u64);
                let said = rest.read_to_vec().unwrap_or_default();
                let named = answer.headers().get("retry-after").and_then(|v| v.to_str().ok());
                judge(answer.status().as_u16(), named, &said)
            }
            Err(trouble) => Sent::Later(trouble.into_words(), None),
        }
    }

    /// The body as it is sent.
    fn packed(&self, body: Vec<u8>) -> Vec<u8> {
        if self.plan.compression == OtlpCompression::None {
            return body;
        }
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory cannot fail.
        let _ = packer.write_all(&body);
        packer.finish().unwrap_or_default()
    }

    /// How the receiver is doing is told when that changes.
    fn hear(&mut self, trouble: Option<&str>) {
        let place = self.service.place();
        match (trouble, self.is_failing) {
            (Some(why), false) => tracing::warn!(%place, %why, "spans are not taken"),
            (None, true) => tracing::info!(%place, "spans are taken again"),
            _ => {}
        }
        self.is_failing = trouble.is_some();
    }
}

/// What OTLP says of answers: four statuses mean that it may be tried again.
fn judge(status: u16, retry_after: Option<&str>, answer: &[u8]) -> Sent {
    let why = format!("it answered {status}");
    match status {
        200..=299 => Sent::Taken(otlp::refused(answer)),
        429 | 502..=504 => {
            let named = retry_after.and_then(|seconds| seconds.trim().parse().ok());
            Sent::Later(why, named.map(Duration::from_secs))
        }
        _ => Sent::Refused(why),
    }
}

/// Between half of a time and all of it: those who failed together do not come back together.
fn spread(time: Duration) -> Duration {
    let share = getrandom::u32().unwrap_or(u32::MAX);
    time / 2 + (time / 2).mul_f64(f64::from(share) / f64::from(u32::MAX))
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: spans that are sent for ever though they are refused, or lost for a hiccup.
    #[test]
    fn a_status_tells_whether_to_try_again() {
        assert_eq!(judge(200, None, b"{}"), Sent::Taken(0));
        let partly = br#"{"partialSuccess":{"rejectedSpans":"2"}}"#;
        assert_eq!(judge(202, None, partly), Sent::Taken(2));
        for status in [429, 502, 503, 504] {
            let why = format!("it answered {status}");
            assert_eq!(judge(status, None, b""), Sent::Later(why.clone(), None));
            let named = Some(Duration::from_secs(7));
            assert_eq!(judge(status, Some(" 7 "), b""), Sent::Later(why, named));
        }
        for status in [301, 400, 401, 404, 413, 415, 500, 501] {
            assert!(matches!(judge(status, Some("7"), b""), Sent::Refused(_)), "{status}");
        }
    }

    #[test]
    fn waits_are_spread() {
        let all: Vec<_> = (0..100).map(|_| spread(Duration::from_secs(2))).collect();
        let range = Duration::from_secs(1)..=Duration::from_secs(2);
        assert!(all.iter().all(|wait| range.contains(wait)), "{all:?}");
        assert!(all.iter().any(|wait| *wait != all[0]), "{all:?}");
    }
}
