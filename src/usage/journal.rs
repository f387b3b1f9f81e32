//! The thread that writes the spool for all workers: takes what is in their rings, writes it in one
//! go, and only then gives the room back to them. No worker ever waits for it.

use super::doorbell::Doorbell;
use super::ring::entry::{self, Check, HEADER_BYTES, NO_OPEN};
use super::ring::file::RingFile;
use super::ring::spsc::{Consumer, Taken};
use super::spool::codec;
use super::spool::keeper::Keeper;
use super::spool::segment::Kind;
use super::spool::writer::Writer;
use crate::base::limits::{JOURNAL_TICK, JOURNAL_TICK_SYNCED, SPOOL_BATCH_BYTES};
use crate::base::panic_point;
use crossbeam_channel::Sender;
use std::convert::Infallible;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A batch at which the writer panicked is tried again after so long.
const AFTER_PANIC: Duration = Duration::from_secs(1);
/// Bytes that the room for what was taken keeps when it was needed for more.
const TAKEN_BYTES_KEPT: usize = 256 * 1024;

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
    /// Starts the threads, for these rings, in which nothing is yet.
    ///
    /// # Errors
    /// A thread could not be created.
    pub fn start(
        (rings, doorbell): (Vec<Arc<RingFile>>, Arc<Doorbell>),
        writer: Writer,
        mut keeper: Keeper,
    ) -> io::Result<Journal> {
        keeper.rings.clone_from(&rings);
        let stop = Arc::<AtomicBool>::default();
        let (is_over, called) = (Arc::clone(&stop), Arc::clone(&doorbell));
        let (keeper_running, keeper_stop) = crossbeam_channel::bounded(0);
        let keep = move || keeper.run(&keeper_stop);
        let keeping = thread::Builder::new().name("spool-sync".to_owned()).spawn(keep)?;
        let mut desk = Desk::new(rings, writer);
        let write = move || desk.run(&called, &is_over);
        let writing = thread::Builder::new().name("journal".to_owned()).spawn(write)?;
        // Also here: a stop that comes before the thread's first turn must not miss it.
        doorbell.answered_by(writing.thread());
        Ok(Journal { stop, doorbell, writing, keeping, keeper_running })
    }

    /// Writes what is in the rings, forces it to the disk where the plan says so, and ends. To be
    /// called when the workers have ended; before the reporters are stopped, so that they see the
    /// last records.
    pub fn stop(self) {
        self.stop.store(true, Release);
        self.doorbell.ring();
        let _ = self.writing.join();
        drop(self.keeper_running);
        let _ = self.keeping.join();
    }
}

/// What the thread has in hand.
struct Desk {
    writer: Writer,
    rings: Vec<Consumer<Arc<RingFile>>>,
    /// What was taken from one of them, and the entries in it.
    taken: Taken,
    pieces: Vec<Piece>,
    /// Something was taken, and is not in the journal.
    is_behind: bool,
}

/// An entry that was taken.
struct Piece {
    kind: Kind,
    /// Where its payload is.
    at: usize,
    len: usize,
    role: Role,
}

impl Piece {
    /// True when it is, among these bytes, as it was put into the ring.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        let entry = self.at.checked_sub(HEADER_BYTES);
        entry.and_then(|from| bytes.get(from..self.at + self.len)).is_some_and(entry::is_whole)
    }
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is written, and the writer follows the request.
    Told,
    /// An open whose end, which says all of it and more, was taken along: it is not written.
    Spared,
    /// The end of such a one: it is written, and there is nothing to follow.
    Whole,
}

impl Desk {
    fn new(rings: Vec<Arc<RingFile>>, writer: Writer) -> Desk {
        let rings = rings.into_iter().map(Consumer::new).collect();
        Desk { writer, rings, taken: Taken::default(), pieces: Vec::new(), is_behind: false }
    }

    fn run(&mut self, doorbell: &Doorbell, stop: &AtomicBool) {
        doorbell.answer();
        let tick = if self.writer.syncs_each() { JOURNAL_TICK_SYNCED } else { JOURNAL_TICK };
        loop {
            // Looked at before the rings: what was put in before the stop is written.
            let is_over = stop.load(Acquire);
            let is_idle = !self.round();
            match (is_over, self.is_behind) {
                (true, _) if is_idle => break,
                (true, _) => continue,
                // What panicked does so again, for all we know: not at once.
                (false, true) => doorbell.pause(AFTER_PANIC),
                (false, false) if is_idle => {
                    let due = self.writer.due();
                    doorbell.sleep(due, || self.rings.iter().any(Consumer::has_more));
                    doorbell.pause(tick);
                }
                // What comes meanwhile goes in one write, and ends often come with their opens.
                (false, false) => doorbell.pause(tick),
            }
        }
        if !self.is_behind {
            let rings = self.rings.iter().map(Consumer::window);
            rings.filter(|ring| ring.waiting() == 0).for_each(|ring| ring.remove());
            self.writer.part_with_rings();
        }
    }

    /// Takes what is in all rings, and writes it. False: there was nothing.
    fn round(&mut self) -> bool {
        let mut is_any = false;
        for ring in 0..self.rings.len() {
            while self.rings.get_mut(ring).is_some_and(|ring| ring.take(&mut self.taken)) {
                is_any = true;
                self.append();
                if self.writer.pending() >= SPOOL_BATCH_BYTES {
                    self.commit();
                }
            }
        }
        self.taken.shrink_to(TAKEN_BYTES_KEPT);
        self.commit();
        is_any
    }

    /// Hands the batch to the kernel, and gives the rings their room back.
    fn commit(&mut self) {
        let Ok(is_written) = catch_unwind(AssertUnwindSafe(|| self.writer.write())) else {
            // The writer still has it, and the next round writes it: until then it stays in the
            // rings, too.
            self.is_behind = true;
            self.writer.state().end_write();
            return tracing::error!("the journal panicked; it goes on, please report this");
        };
        self.is_behind = false;
        // Before a segment may follow, and this one may go: what a kill leaves in the rings must
        // be found in the journal, or neither must be there.
        self.rings.iter_mut().for_each(Consumer::release);
        if !is_written {
            return;
        }
        self.rings.iter().for_each(|ring| ring.window().beat());
        if catch_unwind(AssertUnwindSafe(|| self.writer.settle())).is_err() {
            self.writer.state().end_write();
            tracing::error!("the journal panicked; it goes on, please report this");
        }
    }

    /// Puts what was taken into the writer's batch. A panic costs the entry at which it happens;
    /// one among entries that are not told apart yet costs those behind it, too.
    fn append(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.sort())).is_err() {
            // An end that makes up for its open may be among the lost.
            self.pieces.iter_mut().for_each(|piece| piece.role = Role::Told);
            let bytes = self.taken.bytes();
            self.pieces.retain(|piece| piece.is_whole(bytes));
            self.writer.note_damage(self.taken.bytes().len());
            tracing::error!("usage records are lost by a panic; please report this");
        }
        for piece in self.pieces.drain(..) {
            let payload = self.taken.bytes().get(piece.at..piece.at + piece.len);
            let Some(payload) = payload.filter(|_| piece.role != Role::Spared) else { continue };
            let append = AssertUnwindSafe(|| match piece.role {
                Role::Whole => self.writer.append_whole(payload),
                _ => self.writer.append_bytes(piece.kind, payload),
            });
            if catch_unwind(append).is_err() {
                self.writer.lose(piece.kind);
                tracing::error!("a usage record is lost by a panic; please report this");
            }
        }
    }

    /// Finds the entries in what was taken, and which of them need not be written. Of these the
    /// checksum is not looked at, unless there is damage: then that of each entry is, so that no
    /// open is left out whose end cannot be read.
    fn sort(&mut self) {
        let is_well = self.tell_apart(Check::Later) && {
            let bytes = self.taken.bytes();
            let mut told = self.pieces.iter().filter(|piece| piece.role != Role::Spared);
            told.all(|piece| piece.is_whole(bytes))
        };
        if !is_well && !self.tell_apart(Check::Each) {
            self.writer.note_damage(self.taken.bytes().len());
        }
    }

    /// Does that, looking at checksums or not. False: it came upon what is no entry.
    fn tell_apart(&mut self, check: Check) -> bool {
        self.pieces.clear();
        // Behind the last note, whose request the writer will follow: it may be of any before it.
        let mut noted = 0;
        let mut walk = self.taken.walk(check);
        for entry in &mut walk {
            panic_point::pass("sort");
            // Only this program writes here: there is no kind that it does not know.
            let Some(kind) = Kind::of(entry.header.kind) else { continue };
            let mut role = Role::Told;
            if kind == Kind::Close && entry.header.open != NO_OPEN {
                if let Some(open) = self.opened_by(entry.header.open, entry.payload) {
                    self.pieces[open].role = Role::Spared;
                    role = if open < noted { Role::Told } else { Role::Whole };
                }
            }
            let (at, len) = (entry.at, entry.payload.len());
            self.pieces.push(Piece { kind, at, len, role });
            if kind == Kind::Note {
                noted = self.pieces.len();
            }
        }
        !walk.is_damaged()
    }

    /// The open of this name, if it was taken along and is of the same request.
    fn opened_by(&self, name: u32, payload: &[u8]) -> Option<usize> {
        let behind = name.wrapping_sub(entry::name_of(self.taken.start)) as usize;
        let at = behind.checked_mul(entry::ALIGN)?.checked_add(HEADER_BYTES)?;
        let index = self.pieces.binary_search_by_key(&at, |piece| piece.at).ok()?;
        let open = self.pieces.get(index).filter(|piece| piece.kind == Kind::Open)?;
        let opened = self.taken.bytes().get(open.at..open.at + open.len)?;
        let is_same = codec::request_id_bytes(opened) == codec::request_id_bytes(payload);
        is_same.then_some(index)
    }
}

#[cfg(test)]
pub(crate) mod tests;
