//! The thread that writes the spool for all workers: takes what they hand over, writes it in one
//! go, and tells them how far it is. A worker waits for that a moment before it ends an answer.

use super::doorbell::Doorbell;
use super::record::UsageRecord;
use super::spool::keeper::Keeper;
use super::spool::segment::Kind;
use super::spool::writer::Writer;
use crate::base::limits::{SPOOL_BATCH_BYTES, SPOOL_BATCH_ENTRIES_MAX};
use crossbeam_channel::{Receiver, Sender};
use std::convert::Infallible;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A batch at which the writer panicked is tried again after so long.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Something that a worker hands over.
pub trait Piece: Send + 'static {
    /// What it says.
    fn kind(&self) -> Kind;

    /// What is known of the request.
    fn record(&self) -> &UsageRecord;

    /// A worker's index, and the number that it gave to this piece: they grow from piece to piece.
    fn ticket(&self) -> (usize, u64);
}

/// What the journal does with a batch that is kept.
pub trait Ends<P>: Send + 'static {
    /// All pieces of this worker up to this ticket are in the kernel's hands (or, while the disk
    /// fails, wherever the policy puts them). Called once per batch and worker.
    fn acknowledge(&mut self, worker: usize, ticket: u64);

    /// Pieces of one worker that are done with: to be filled again.
    fn spare(&mut self, pieces: Vec<P>);
}

/// The running threads.
pub struct Journal {
    /// Set, and then the doorbell rung, to stop.
    stop: Arc<AtomicBool>,
    doorbell: Arc<Doorbell>,
    writing: JoinHandle<()>,
    keeping: JoinHandle<()>,
    /// Dropped when the writer has ended: the keeper's last turn comes behind it.
    keeper_running: Sender<Infallible>,
}

impl Journal {
    /// Starts the threads. What comes through `inbox` at once is of one worker, who then rings.
    ///
    /// # Errors
    /// A thread could not be created.
    pub fn start<P: Piece>(
        (inbox, doorbell): (Receiver<Vec<P>>, Arc<Doorbell>),
        writer: Writer,
        keeper: Keeper,
        ends: impl Ends<P>,
    ) -> io::Result<Journal> {
        let stop = Arc::<AtomicBool>::default();
        let (is_over, called) = (Arc::clone(&stop), Arc::clone(&doorbell));
        let (keeper_running, keeper_stop) = crossbeam_channel::bounded(0);
        let keep = move || keeper.run(&keeper_stop);
        let keeping = thread::Builder::new().name("spool-sync".to_owned()).spawn(keep)?;
        let (batch, tickets) = (Vec::new(), Vec::new());
        let mut desk = Desk { writer, ends, batch, tickets };
        let write = move || desk.run(&inbox, (&called, &is_over));
        let writing = thread::Builder::new().name("journal".to_owned()).spawn(write)?;
        // Also here: a stop that comes before the thread's first turn must not miss it.
        doorbell.answered_by(writing.thread());
        Ok(Journal { stop, doorbell, writing, keeping, keeper_running })
    }

    /// Writes what was handed over until now, forces it to the disk where the plan says so, and
    /// ends. To be called when the workers have ended; before the reporters are stopped, so that
    /// they see the last records.
    pub fn stop(self) {
        self.stop.store(true, Release);
        self.doorbell.ring();
        let _ = self.writing.join();
        drop(self.keeper_running);
        let _ = self.keeping.join();
    }
}

struct Desk<P, E> {
    writer: Writer,
    ends: E,
    /// What is in the writer's batch.
    batch: Vec<Vec<P>>,
    /// The highest ticket of each worker in it.
    tickets: Vec<(usize, u64)>,
}

impl<P: Piece, E: Ends<P>> Desk<P, E> {
    fn run(&mut self, inbox: &Receiver<Vec<P>>, (doorbell, stop): (&Doorbell, &AtomicBool)) {
        doorbell.answer();
        loop {
            // Looked at before the inbox: what was handed over before the stop is written.
            let is_over = stop.load(Acquire);
            self.round(inbox.try_iter());
            if inbox.is_empty() {
                if is_over {
                    return;
                }
                let again = || Instant::now() + AFTER_PANIC;
                let unwritten = (!self.batch.is_empty()).then(again);
                doorbell.wait(self.writer.due().or(unwritten));
            }
        }
    }

    /// Writes one batch, and tells who waits for it.
    fn round(&mut self, turns: impl Iterator<Item = Vec<P>>) {
        let mut entries = 0;
        for turn in turns {
            entries += turn.len();
            self.append(turn);
            if entries >= SPOOL_BATCH_ENTRIES_MAX || self.writer.pending() >= SPOOL_BATCH_BYTES {
                break;
            }
        }
        if catch_unwind(AssertUnwindSafe(|| self.writer.commit())).is_err() {
            // The writer still has it, and the next round writes it: until then nobody is told.
            self.writer.state().end_write();
            return tracing::error!("the journal panicked; it goes on, please report this");
        }
        for (worker, ticket) in self.tickets.drain(..) {
            self.ends.acknowledge(worker, ticket);
        }
        for turn in self.batch.drain(..) {
            self.ends.spare(turn);
        }
    }

    /// Takes in a turn. A panic costs the piece at which it happens.
    fn append(&mut self, turn: Vec<P>) {
        for piece in &turn {
            let kind = piece.kind();
            let append = AssertUnwindSafe(|| self.writer.append(kind, piece.record()));
            if catch_unwind(append).is_err() {
                self.writer.lose(kind);
                tracing::error!("a usage record is lost by a panic; please report this");
            }
        }
        if let Some(last) = turn.last() {
            self.note_ticket(last.ticket());
        }
        self.batch.push(turn);
    }

    fn note_ticket(&mut self, (worker, ticket): (usize, u64)) {
        match self.tickets.iter_mut().find(|(other, _)| *other == worker) {
            Some((_, highest)) => *highest = (*highest).max(ticket),
            None => self.tickets.push((worker, ticket)),
        }
    }
}

#[cfg(test)]
mod tests;
