//! How a worker's meters reach a scrape: the control plane leaves a request in each worker's
//! mailbox and calls it, the worker answers with a copy at its next sweep. No counter is shared or
//! locked.

use super::ask::Ask;
use super::meters::Meters;
use super::pulse::Pulse;
use crate::base::id::RequestId;
use crossbeam_channel::{bounded, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest wait of a scrape for a worker that does not answer (it sweeps every 100 ms).
const ANSWER_WAIT: Duration = Duration::from_secs(1);

/// A copy, and the number of the worker that it is of.
type Copy = (usize, Box<Meters>);

/// The worker's end.
pub struct Mailbox {
    worker: usize,
    requests: Receiver<Sender<Copy>>,
    last: Sender<Copy>,
}

/// The control plane's end: one per worker.
pub struct Scraper {
    workers: Vec<(Sender<Sender<Copy>>, Arc<Pulse>)>,
    last: Receiver<Copy>,
    known: Vec<Meters>,
}

/// Makes the mailboxes of the workers that have these pulses.
pub fn mailboxes(pulses: &[Arc<Pulse>]) -> (Scraper, Vec<Mailbox>) {
    let (leave, last) = bounded(pulses.len());
    let (senders, boxes) = pulses
        .iter()
        .enumerate()
        .map(|(worker, pulse)| {
            let (sender, requests) = bounded(1);
            let mailbox = Mailbox { worker, requests, last: leave.clone() };
            ((sender, Arc::clone(pulse)), mailbox)
        })
        .unzip();
    let known = pulses.iter().map(|_| Meters::default()).collect();
    (Scraper { workers: senders, last, known }, boxes)
}

impl Mailbox {
    /// Answers a request that waits, if any. `copy` is called only then.
    pub fn answer(&self, copy: impl FnOnce() -> Box<Meters>) {
        if let Ok(reply) = self.requests.try_recv() {
            // The scrape may have given up: nothing is lost, the meters stay with the worker.
            let _ = reply.try_send((self.worker, copy()));
        }
    }

    /// Leaves the last copy: the worker ends.
    pub fn leave(&self, copy: Box<Meters>) {
        let _ = self.last.try_send((self.worker, copy));
    }
}

impl Scraper {
    /// Asks all workers and sums up what they answer within a second. For one that does not, or
    /// has ended, its last copy counts: a counter must never go backwards. Blocks: control plane
    /// only. The second value is the number of workers that did not answer.
    pub fn collect(&mut self) -> (Meters, usize) {
        let (reply, answers) = bounded(self.workers.len());
        let ask = |(worker, pulse): &&(Sender<Sender<Copy>>, Arc<Pulse>)| {
            let asked = worker.try_send(reply.clone()).is_ok();
            pulse.call();
            asked
        };
        let asked = self.workers.iter().filter(ask).count();
        drop(reply);
        let deadline = Instant::now() + ANSWER_WAIT;
        let mut answered = 0;
        while answered < asked {
            let Ok(copy) = answers.recv_deadline(deadline) else { break };
            self.remember(copy);
            answered += 1;
        }
        while let Ok(copy) = self.last.try_recv() {
            self.remember(copy);
        }
        let mut sum = Meters::default();
        self.known.iter().for_each(|meters| sum.absorb(meters));
        (sum, self.workers.len() - answered)
    }

    fn remember(&mut self, (worker, meters): Copy) {
        if let Some(known) = self.known.get_mut(worker) {
            *known = *meters;
        }
    }
}

/// Content-Type of the page.
pub const PAGE_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page that the control plane's metrics thread makes, of what all workers have counted or noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// The metrics, for a scraper.
    Metrics,
    /// How the backends are, as JSON: what `llmproxy backends` shows.
    Backends,
    /// What became of the newest requests, as JSON: so many at most.
    Requests(u16),
    /// The same of those with this id: what `llmproxy explain` shows.
    RequestsOf(RequestId),
}

impl Page {
    /// Its Content-Type.
    pub fn content_type(self) -> &'static str {
        match self {
            Page::Metrics => PAGE_CONTENT_TYPE,
            Page::Backends | Page::Requests(_) | Page::RequestsOf(_) => "application/json",
        }
    }
}

/// Where a page is asked for; the control plane's metrics thread answers.
pub type AskPage = Ask<Page, Arc<[u8]>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_counted_outlives_it() {
        let (mut scraper, boxes) = mailboxes(&[Arc::default(), Arc::default()]);
        let copy = |fallbacks| Box::new(Meters { fallbacks, ..Meters::default() });
        let threads: Vec<_> = boxes
            .into_iter()
            .map(|mailbox| {
                std::thread::spawn(move || {
                    let reply = mailbox.requests.recv().unwrap();
                    reply.send((mailbox.worker, copy(3))).unwrap();
                    mailbox.leave(copy(4));
                })
            })
            .collect();
        let (first, silent) = scraper.collect();
        assert!(first.fallbacks >= 6 && silent == 0);
        threads.into_iter().for_each(|t| t.join().unwrap());
        let (after, silent) = scraper.collect();
        assert_eq!((after.fallbacks, silent), (8, 2), "both are gone, their counts are not");
    }
}
