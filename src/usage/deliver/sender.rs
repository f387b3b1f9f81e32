//! The hands of a lane: who calls its reporter. One connection needs no thread but the lane's own;
//! more have one each, and the lane's own thread another, which is never used beside them.

use super::window::Batch;
use crate::config::plan;
use crate::usage::record::borrowed::RecordRef;
use crate::usage::reporter::{self, Reporter, Tried};
use crossbeam_channel::{Receiver, Sender};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A batch and the time for it.
type Job = (Batch, Duration);

/// What came of a batch.
pub struct Ended {
    /// Its name in the window.
    pub id: u64,
    /// What the reporter said.
    pub tried: Tried,
}

/// All senders of a lane.
pub enum Senders {
    /// The lane's thread.
    Own(Box<Hand>),
    /// Threads of their own.
    Threads {
        /// And the lane's thread, while all that waits goes in one call.
        own: Box<Hand>,
        /// Where they take batches from. Never holds more than there are threads.
        jobs: Sender<Job>,
        /// Where they put what came of them.
        ended: Receiver<Ended>,
        /// Themselves.
        threads: Vec<JoinHandle<()>>,
    },
}

impl Senders {
    /// Makes as many as there may be sends at one time.
    ///
    /// # Errors
    /// A thread could not be created, or the reporter not be made.
    pub fn start(plan: &plan::Reporter, concurrency: usize) -> io::Result<Senders> {
        let own = Box::new(Hand::new(plan)?);
        if concurrency <= 1 {
            return Ok(Senders::Own(own));
        }
        let (jobs, taken) = crossbeam_channel::bounded::<Job>(concurrency);
        let (told, ended) = crossbeam_channel::bounded(concurrency);
        let mut threads = Vec::with_capacity(concurrency);
        for index in 0..concurrency {
            let mut hand = Hand::new(plan)?;
            let (taken, told) = (taken.clone(), told.clone());
            let run = move || {
                for (batch, limit) in taken {
                    let ended = Ended { id: batch.id, tried: hand.send_batch(&batch, limit) };
                    if told.send(ended).is_err() {
                        return;
                    }
                }
            };
            let name = format!("usage-send-{index}");
            threads.push(thread::Builder::new().name(name).spawn(run)?);
        }
        Ok(Senders::Threads { own, jobs, ended, threads })
    }

    /// Sends a batch; gives what came of it when that is known at once.
    pub fn send(&mut self, batch: Batch, limit: Duration) -> Option<Ended> {
        match self {
            Senders::Own(hand) => {
                Some(Ended { id: batch.id, tried: hand.send_batch(&batch, limit) })
            }
            Senders::Threads { jobs, .. } => {
                let refused = jobs.send((batch, limit)).err()?;
                // All threads are gone, which they never are while the lane has this end.
                let tried = Tried::Again("no thread to send it".to_owned());
                Some(Ended { id: refused.0 .0.id, tried })
            }
        }
    }

    /// The hand that sends on the lane's own thread.
    pub fn own(&mut self) -> &mut Hand {
        let (Senders::Own(hand) | Senders::Threads { own: hand, .. }) = self;
        hand
    }

    /// Where results come that are not known at once.
    pub fn ended(&self) -> Receiver<Ended> {
        match self {
            Senders::Own(_) => crossbeam_channel::never(),
            Senders::Threads { ended, .. } => ended.clone(),
        }
    }

    /// Waits for the threads to end.
    pub fn finish(self) {
        if let Senders::Threads { jobs, threads, ended, .. } = self {
            drop((jobs, ended));
            for thread in threads {
                let _ = thread.join();
            }
        }
    }
}

/// One connection to the destination.
pub struct Hand {
    plan: plan::Reporter,
    reporter: Box<dyn Reporter>,
}

impl Hand {
    fn new(plan: &plan::Reporter) -> io::Result<Hand> {
        Ok(Hand { plan: plan.clone(), reporter: reporter::open(plan)? })
    }

    /// One that sends with this reporter, until that panics.
    #[cfg(test)]
    pub(super) fn with(plan: &plan::Reporter, reporter: Box<dyn Reporter>) -> Hand {
        Hand { plan: plan.clone(), reporter }
    }

    /// Where it sends to, for a log.
    pub fn place(plan: &plan::Reporter) -> io::Result<String> {
        Ok(reporter::open(plan)?.place())
    }

    fn send_batch(&mut self, batch: &Batch, limit: Duration) -> Tried {
        let records: Vec<RecordRef<'_>> = batch.records.iter().map(|r| r.borrowed()).collect();
        self.send(&records, limit)
    }

    /// A panic costs this try, not the lane. What it left of the connection is not used again.
    pub fn send(&mut self, records: &[RecordRef<'_>], limit: Duration) -> Tried {
        let send = AssertUnwindSafe(|| self.reporter.send(records, limit));
        catch_unwind(send).unwrap_or_else(|_| {
            if let Ok(fresh) = reporter::open(&self.plan) {
                self.reporter = fresh;
            }
            Tried::Failed("the reporter panicked".to_owned())
        })
    }

    /// Nothing was sent for a while.
    pub fn rest(&mut self) {
        self.reporter.rest();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::secret::Secret;
    use crate::config::plan::{KeyForm, RecordFormat, ReporterKind, Webhook, WebhookBatch};

    struct Panics;

    impl Reporter for Panics {
        fn send(&mut self, _records: &[RecordRef<'_>], _limit: Duration) -> Tried {
            panic!("of this test");
        }

        fn place(&self) -> String {
            String::new()
        }
    }

    /// Catches: a bug of one reporter that ends its lane, or that meets a broken connection again.
    #[test]
    fn a_panic_costs_one_try() {
        let kind = ReporterKind::Webhook(Webhook {
            url: Secret::new("http://127.0.0.1:1/"),
            method: "POST".into(),
            timeout: Duration::from_secs(1),
            retry: 0,
            headers: Vec::new(),
            hmac_secret: Secret::default(),
            batch: WebhookBatch::Single,
            batch_size: 1,
            concurrency: 1,
            format: RecordFormat::Full,
        });
        let plan = plan::Reporter { name: "test".into(), api_key: KeyForm::None, kind };
        let mut hand = Hand { plan, reporter: Box::new(Panics) };
        let mut send = || hand.send(&[RecordRef::default()], Duration::from_secs(1));
        assert_eq!(send(), Tried::Failed("the reporter panicked".into()));
        let tried = send();
        assert!(matches!(tried, Tried::Again(_)), "{tried:?}");
    }
}
