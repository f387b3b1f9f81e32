//! Records that a running gateway is to deliver once more. `llmproxy spool replay` puts them beside
//! the spool as a file of dead letters with another name; the reporter's thread takes it up, lets
//! the journal append the records for this reporter alone, and puts the file aside when they are
//! delivered. A process that ends before that begins anew: repeated, not lost.

use super::dead_letter;
use super::disk::Disk;
use super::table::SpoolShared;
use crate::usage::record::UsageRecord;
use crossbeam_channel::{bounded, Receiver, Sender, TryRecvError};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The file's name begins with the reporter's and ends so.
pub const SUFFIX: &str = ".replay";

/// Whether there is a file is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And what failed is tried again after so long.
const AFTER_ERROR: Duration = Duration::from_secs(10);
/// Bytes of letters that the journal gets at one time: it has requests to serve.
const PIECE_BYTES: usize = 256 * 1024;

/// Records for the journal to append for one reporter.
pub(super) struct Again {
    pub reporter: usize,
    pub records: Vec<UsageRecord>,
    /// Gets the sequence of the last of them once they are written; dropped when they are not.
    pub written: Sender<u64>,
}

/// A reporter's end of it.
pub(super) struct Replay {
    shared: Arc<SpoolShared>,
    index: usize,
    look_at: Instant,
    file: Option<Letters>,
}

/// A file that was taken up.
struct Letters {
    bytes: Vec<u8>,
    /// So far the journal has it.
    at: usize,
    /// Sequence of the last record that was written.
    last: u64,
    /// The piece that the journal was asked to write: where it ends, and the answer.
    asked: Option<(usize, Receiver<u64>)>,
}

impl Replay {
    pub fn new(shared: Arc<SpoolShared>, index: usize) -> Replay {
        Replay { shared, index, look_at: Instant::now(), file: None }
    }

    /// Goes on. To be called when the reporter has read all that is there for it; it has all up to
    /// `through`.
    pub fn step(&mut self, through: u64) {
        let now = Instant::now();
        if now < self.look_at {
            return;
        }
        let Some(mut letters) = self.file.take().or_else(|| self.look(now)) else { return };
        match self.advance(&mut letters, through) {
            Ok(true) => self.look_at = now + LOOK_EVERY,
            Ok(false) => self.file = Some(letters),
            Err(error) => {
                let reporter = self.name();
                tracing::warn!(reporter, %error, "records cannot be delivered again now");
                self.look_at = now + AFTER_ERROR;
                self.file = Some(letters);
            }
        }
    }

    /// Takes up the file, if there is one.
    fn look(&mut self, now: Instant) -> Option<Letters> {
        let reporter = self.name();
        let bytes = dead_letter::read(&*self.shared.disk, &format!("{reporter}{SUFFIX}"));
        let bytes = bytes.unwrap_or_else(|error| {
            tracing::warn!(reporter, %error, "the file of a replay cannot be read");
            None
        });
        if bytes.is_none() {
            self.look_at = now + LOOK_EVERY;
        }
        Some(Letters { bytes: bytes?, at: 0, last: 0, asked: None })
    }

    /// True when all of it was delivered and the file is put aside.
    fn advance(&self, letters: &mut Letters, through: u64) -> io::Result<bool> {
        if let Some((end, written)) = letters.asked.take() {
            match written.try_recv() {
                Ok(last) => (letters.at, letters.last) = (end, last),
                Err(TryRecvError::Empty) => {
                    letters.asked = Some((end, written));
                    return Ok(false);
                }
                // It is asked again for the same piece.
                Err(TryRecvError::Disconnected) => {
                    return Err(io::Error::other("the spool takes no records"));
                }
            }
        }
        self.ask(letters)?;
        if letters.asked.is_some() || letters.last > through {
            return Ok(false);
        }
        finish(&*self.shared.disk, &self.name(), &letters.bytes).map(|()| true)
    }

    /// Asks the journal to write the next piece, if there is one.
    fn ask(&self, letters: &mut Letters) -> io::Result<()> {
        let rest = letters.bytes.get(letters.at..).unwrap_or_default();
        let (mut end, mut bytes, mut records) = (letters.at, 0, Vec::new());
        for line in rest.split_inclusive(|byte| *byte == b'\n') {
            if bytes >= PIECE_BYTES {
                break;
            }
            end += line.len();
            if let Some(record) = dead_letter::record_of(line) {
                bytes += line.len();
                records.push(record);
            }
        }
        if records.is_empty() {
            letters.at = end;
            return Ok(());
        }
        let (written, answer) = bounded(1);
        let again = Again { reporter: self.index, records, written };
        // There is room for one piece of each reporter.
        self.shared.again.0.try_send(again).map_err(|_| io::Error::other("the journal is busy"))?;
        letters.asked = Some((end, answer));
        self.shared.doorbell.ring();
        Ok(())
    }

    fn name(&self) -> String {
        let state = self.shared.state.reporters.get(self.index);
        state.map_or_else(String::new, |reporter| reporter.name.clone())
    }
}

/// Puts what cannot be read back among the dead letters, then the file aside. Where one of them
/// fails, or the process ends in between, all of it can be done again. What finds no room among the
/// dead letters stays in the file that is put aside: waiting for room would hold up the end of the
/// replay, and each start until then would deliver all of it once more.
///
/// # Errors
/// The file is still there.
pub(super) fn finish(disk: &dyn Disk, reporter: &str, letters: &[u8]) -> io::Result<()> {
    let (mut records, mut unreadable, mut kept) = (0, 0, Vec::new());
    for (_, line, record) in dead_letter::lines(letters) {
        match record {
            Some(_) => records += 1,
            None => {
                unreadable += 1;
                kept.extend([line, b"\n"].concat());
            }
        }
    }
    let mut has_room = true;
    if !kept.is_empty() {
        has_room = match dead_letter::put_back(disk, reporter, &kept) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => false,
            done => done.map(|()| true)?,
        };
    }
    let archive = dead_letter::free_name(disk, reporter)?;
    disk.rename(&format!("{reporter}{SUFFIX}"), &archive)?;
    if !has_room {
        tracing::warn!(
            reporter,
            file = archive,
            lines = unreadable,
            "lines that cannot be read stay in this file alone: the dead letters have no room"
        );
    }
    // It is not there any more, so that this must not be done again. If the power goes before the
    // disk knows, the file is back: its records are delivered once more, none is lost.
    if let Err(error) = disk.sync_dir() {
        tracing::warn!(reporter, %error, "if the power goes now, records are delivered again");
    }
    tracing::info!(
        reporter,
        records,
        unreadable,
        "usage records are queued once more for their reporter"
    );
    Ok(())
}
