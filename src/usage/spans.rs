//! The hand-over of spans, one for each request that is traced, from the workers to the thread that
//! exports them: bounded, never waiting. A span is the request's record, and where it stands in its
//! trace.

use super::counters::count;
use super::flight::picked::PickedBy;
use super::record::UsageRecord;
use crate::base::limits::SPANS_WAITING_MAX;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Duration;

/// One request that is over, in its trace.
#[derive(Debug, Clone, Default)]
pub struct RequestSpan {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span in it.
    pub span_id: [u8; 8],
    /// The client's span, if it named one.
    pub parent_id: Option<[u8; 8]>,
    /// When it began, nanoseconds since 1970.
    pub start_ns: u64,
    /// To the last byte of the answer.
    pub latency: Duration,
    /// To the first token.
    pub first_token: Option<Duration>,
    /// Tries that were followed by another one.
    pub tries: Vec<SpanTry>,
    /// Label of the path, from a fixed set.
    pub route: &'static str,
    /// What the backend is known to be.
    pub engine: Option<&'static str>,
    /// What the engine calls the model, where that is another name than the client's.
    pub served_model: Option<String>,
    /// What happened; without the key and the body.
    pub record: UsageRecord,
}

/// A try that came to nothing.
#[derive(Debug, Clone)]
pub struct SpanTry {
    /// When its backend was picked, after the request began.
    pub began: Duration,
    /// Why that one.
    pub picked_by: PickedBy,
    /// When that was known, after the request began.
    pub at: Duration,
    /// Name of its backend.
    pub backend: Arc<str>,
    /// Why there was another one.
    pub reason: TryFailure,
}

/// How a try failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryFailure {
    /// A fault, by its code.
    Code(&'static str),
    /// An answer of this status.
    Status(u16),
}

/// What became of spans.
#[derive(Debug, Default)]
pub struct SpanCounters {
    /// The receiver took them.
    pub exported: AtomicU64,
    /// There was no room for them.
    pub dropped: AtomicU64,
    /// The receiver refused them.
    pub refused: AtomicU64,
    /// The receiver was away for too long.
    pub given_up: AtomicU64,
}

impl SpanCounters {
    /// Each with its label.
    pub fn all(&self) -> [(&'static str, u64); 4] {
        [
            ("dropped", &self.dropped),
            ("exported", &self.exported),
            ("given_up", &self.given_up),
            ("refused", &self.refused),
        ]
        .map(|(result, count)| (result, count.load(Relaxed)))
    }
}

/// A worker's end. Cloned for each worker.
#[derive(Debug, Clone)]
pub struct SpanQueue {
    sender: Sender<Box<RequestSpan>>,
    counters: Arc<SpanCounters>,
}

/// Makes both ends.
pub fn open() -> (SpanQueue, Receiver<Box<RequestSpan>>) {
    let (sender, spans) = bounded(SPANS_WAITING_MAX);
    (SpanQueue { sender, counters: Arc::default() }, spans)
}

impl SpanQueue {
    /// Hands a span over. When the receiver cannot keep up, it is dropped and counted.
    pub fn offer(&self, span: Box<RequestSpan>) {
        if self.sender.try_send(span).is_err() {
            count(&self.counters.dropped);
        }
    }

    /// What became of all spans.
    pub fn counters(&self) -> &Arc<SpanCounters> {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a worker that waits for a receiver that is slow, and spans that are lost without a
    /// word.
    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, spans) = open();
        (0..SPANS_WAITING_MAX + 3).for_each(|_| queue.offer(Box::default()));
        assert_eq!(spans.len(), SPANS_WAITING_MAX);
        let dropped = |queue: &SpanQueue| queue.counters().dropped.load(Relaxed);
        assert_eq!(dropped(&queue), 3);
        // At the end of the process nobody takes them any more.
        drop(spans);
        queue.offer(Box::default());
        assert_eq!(dropped(&queue), 4);
    }
}
