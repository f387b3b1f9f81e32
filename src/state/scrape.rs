//! How a worker's meters reach a scrape: the control plane leaves a request in each worker's
//! mailbox, the worker answers with a copy at its next sweep. No counter is shared or locked.

use super::meters::Meters;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::time::{Duration, Instant};

/// Longest wait of a scrape for a worker that does not answer (it sweeps every 100 ms).
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// The worker's end.
pub struct Mailbox {
    requests: Receiver<Sender<Box<Meters>>>,
}

/// The control plane's end: one per worker.
#[derive(Clone)]
pub struct Scraper {
    workers: Vec<Sender<Sender<Box<Meters>>>>,
}

/// Makes the mailboxes of so many workers.
pub fn mailboxes(workers: usize) -> (Scraper, Vec<Mailbox>) {
    let (senders, boxes) = (0..workers)
        .map(|_| {
            let (sender, requests) = bounded(1);
            (sender, Mailbox { requests })
        })
        .unzip();
    (Scraper { workers: senders }, boxes)
}

impl Mailbox {
    /// Answers a request that waits, if any. `copy` is called only then.
    pub fn answer(&self, copy: impl FnOnce() -> Box<Meters>) {
        if let Ok(reply) = self.requests.try_recv() {
            // The scrape may have given up: nothing is lost, the meters stay with the worker.
            let _ = reply.try_send(copy());
        }
    }
}

impl Scraper {
    /// Asks all workers and sums up what they answer within a second. Blocks: control plane only.
    /// The second value is the number of workers that did not answer.
    pub fn collect(&self) -> (Meters, usize) {
        let (reply, answers) = bounded(self.workers.len());
        let asked = self.workers.iter().filter(|w| w.try_send(reply.clone()).is_ok()).count();
        drop(reply);
        let deadline = Instant::now() + ANSWER_WAIT;
        let mut sum = Meters::default();
        let mut answered = 0;
        while answered < asked {
            let Ok(meters) = answers.recv_deadline(deadline) else { break };
            sum.absorb(&meters);
            answered += 1;
        }
        (sum, self.workers.len() - answered)
    }
}

/// Content-Type of the page.
pub const PAGE_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A worker's wish for the rendered metrics page; answered by the control plane's metrics thread.
pub type PageRequest = futures_channel::oneshot::Sender<Vec<u8>>;
