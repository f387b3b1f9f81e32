//! Sources in memory, until records are kept on disk: one thread shares what is in the outbox
//! among the reporters. A reporter whose queue is full loses records alone, counted.

use crate::base::limits::REPORTER_RECORDS_MAX;
use crate::usage::counters::{count, UsageCounters};
use crate::usage::outbox::{Inbox, Kind, Queued, Spare};
use crate::usage::record::UsageRecord;
use crate::usage::source::{Delivery, Source};
use crossbeam_channel::{bounded, Receiver, Sender};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// The thread that shares records out.
pub struct Memory {
    running: Sender<Infallible>,
    sharing: JoinHandle<()>,
}

/// A reporter's queue, and how to wake its lane.
type Queue = (Sender<Arc<Shared>>, Sender<()>);

/// A record that several reporters have. The last one that is done with it makes it a spare one.
struct Shared(Box<Queued>);

/// Starts the thread; gives a source for each reporter of these counters.
///
/// # Errors
/// The thread could not be created.
pub fn start(inbox: Inbox) -> io::Result<(Memory, Vec<Box<dyn Source>>)> {
    let (running, stop) = bounded(0);
    let mut queues: Vec<Queue> = Vec::new();
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for index in 0..inbox.counters.reporters.len() {
        let ((queue, records), (ring, bell)) = (bounded(REPORTER_RECORDS_MAX), bounded(1));
        queues.push((queue, ring));
        let (counters, spare) = (inbox.counters.clone(), inbox.spare.clone());
        let kept = Kept { records, bell, counters, index, spare, read: 0, done: 0 };
        sources.push(Box::new(kept));
    }
    let share = move || share(&inbox, &queues, &stop);
    let sharing = thread::Builder::new().name("usage".to_owned()).spawn(share)?;
    Ok((Memory { running, sharing }, sources))
}

impl Memory {
    /// Shares out what was offered until now, and ends.
    pub fn stop(self) {
        drop(self.running);
        let _ = self.sharing.join();
    }
}

/// Hands out records until stopped and the outbox is empty.
fn share(inbox: &Inbox, queues: &[Queue], stop: &Receiver<Infallible>) {
    let share = |queued: Box<Queued>| {
        if let Some(desk) = inbox.desks.get(queued.worker as usize) {
            desk.advance(queued.ticket);
        }
        match queued.kind {
            Kind::Close => hand_out(queued, inbox, queues),
            Kind::Open | Kind::Note => queued.spare(&inbox.spare),
        }
    };
    loop {
        crossbeam_channel::select! {
            recv(inbox.records) -> queued => match queued {
                Ok(queued) => share(queued),
                Err(_) => return,
            },
            recv(stop) -> _ => break,
        }
        inbox.records.try_iter().for_each(share);
    }
    inbox.records.try_iter().for_each(share);
}

fn hand_out(queued: Box<Queued>, inbox: &Inbox, queues: &[Queue]) {
    let shared = Arc::new(Shared(queued));
    for ((queue, ring), counters) in queues.iter().zip(&inbox.counters.reporters) {
        // Counted before it can be taken out, so that the figure never falls below zero.
        counters.queued.fetch_add(1, Relaxed);
        if queue.try_send(shared.clone()).is_err() {
            counters.queued.fetch_sub(1, Relaxed);
            count(&counters.dropped);
        }
        let _ = ring.try_send(());
    }
    let_go(shared, &inbox.spare);
}

fn let_go(shared: Arc<Shared>, spare: &Spare) {
    if let Some(Shared(queued)) = Arc::into_inner(shared) {
        queued.spare(spare);
    }
}

/// One reporter's records.
struct Kept {
    records: Receiver<Arc<Shared>>,
    bell: Receiver<()>,
    counters: Arc<UsageCounters>,
    index: usize,
    spare: Spare,
    read: u64,
    done: u64,
}

impl Source for Kept {
    fn read(&mut self, max: usize) -> Vec<Delivery> {
        let mut read = Vec::new();
        while let Some(shared) = (read.len() < max).then(|| self.records.try_recv().ok()).flatten()
        {
            self.read += 1;
            read.push(Delivery { seq: self.read, record: shared.0.record.clone() });
            let_go(shared, &self.spare);
        }
        read
    }

    fn done(&mut self, through: u64) {
        if let Some(counters) = self.counters.reporters.get(self.index) {
            counters.queued.fetch_sub(through.saturating_sub(self.done), Relaxed);
        }
        self.done = through;
    }

    fn bell(&self) -> &Receiver<()> {
        &self.bell
    }

    /// There is no place for dead letters here.
    fn bury(&mut self, _record: &UsageRecord, _reason: &str) {}
}
