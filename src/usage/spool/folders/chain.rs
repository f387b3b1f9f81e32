//! What one reporter is given: the records of adopted folders, oldest folder first, then those of
//! the process' own. Each folder keeps its own order; a folder that is adopted while the process
//! runs comes in front of what was not read yet.

use super::super::cursor::Cursor;
use super::super::dead_letter;
use super::super::disk::Disk;
use super::super::replay;
use crate::base::limits::LANE_RECORDS_MIN;
use crate::usage::record::UsageRecord;
use crate::usage::source::{Parcel, Read, Source};
use crossbeam_channel::Receiver;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What cannot be taken over from a folder is tried again after so long.
const AFTER_ERROR: Duration = Duration::from_secs(10);

/// An adopted folder, as one reporter sees it.
pub struct Handed {
    /// Its name.
    pub folder: Arc<str>,
    /// The reporter's place in it.
    pub cursor: Cursor,
    /// Its files.
    pub disk: Arc<dyn Disk>,
    /// Reporters that are not done with it.
    pub waiting: Arc<AtomicUsize>,
}

/// All that one reporter is given. Belongs to its lane.
pub struct Chain {
    reporter: String,
    own: Cursor,
    /// Where dead letters go.
    home: Arc<dyn Disk>,
    adopted: BTreeMap<Arc<str>, Handed>,
    arrivals: Receiver<Handed>,
    /// The number that was given to the last record: folders count each for itself.
    last: u64,
    /// What was read and is not done: its number here, its folder (`None` = the own) and its
    /// sequence there.
    given: VecDeque<(u64, Option<Arc<str>>, u64)>,
    /// What could not be taken over is not tried again before.
    again_at: Instant,
}

impl Chain {
    /// For this reporter, with its place in the own folder, and the way on which adopted ones come.
    pub fn new(
        reporter: &str,
        (own, home): (Cursor, Arc<dyn Disk>),
        arrivals: Receiver<Handed>,
    ) -> Chain {
        Chain {
            reporter: reporter.to_owned(),
            own,
            home,
            adopted: BTreeMap::new(),
            arrivals,
            last: 0,
            given: VecDeque::new(),
            again_at: Instant::now(),
        }
    }

    /// Gives records of a folder numbers of this chain.
    fn give(&mut self, folder: Option<&Arc<str>>, seqs: &mut [u64]) {
        for seq in seqs {
            self.last += 1;
            self.given.push_back((self.last, folder.cloned(), *seq));
            *seq = self.last;
        }
    }

    /// Parts with folders of which this reporter has had all.
    fn part(&mut self) {
        if self.adopted.is_empty() || Instant::now() < self.again_at {
            return;
        }
        let (reporter, home) = (&self.reporter, &*self.home);
        let mut failed = false;
        self.adopted.retain(|name, handed| {
            if !handed.cursor.finish() {
                return true;
            }
            match take_over(&*handed.disk, home, reporter) {
                Ok(()) => {
                    handed.waiting.fetch_sub(1, AcqRel);
                    false
                }
                Err(error) => {
                    failed = true;
                    let message = "what belongs to a reporter stays in a folder of another process";
                    tracing::warn!(reporter, folder = &**name, %error, "{message}");
                    true
                }
            }
        });
        if failed {
            self.again_at = Instant::now() + AFTER_ERROR;
        }
    }
}

impl Source for Chain {
    fn read<'p>(&mut self, max: usize, room: &'p mut Parcel, into: &mut Read<'p>) -> bool {
        let arrived = self.arrivals.try_iter().map(|handed| (Arc::clone(&handed.folder), handed));
        self.adopted.extend(arrived);
        let mut folder = None;
        for (name, handed) in &mut self.adopted {
            // One that cannot be read now holds up no other.
            handed.cursor.find(max, room);
            if !room.is_empty() {
                folder = Some(Arc::clone(name));
                break;
            }
        }
        let handed = folder.as_ref().and_then(|name| self.adopted.get_mut(name));
        let is_more = match handed {
            Some(handed) => {
                handed.cursor.records(room, into);
                true
            }
            None => self.own.read(max, room, into),
        };
        self.give(folder.as_ref(), &mut into.seqs);
        self.part();
        is_more
    }

    fn done(&mut self, through: u64) {
        let mut own = None;
        let mut adopted = BTreeMap::new();
        while self.given.front().is_some_and(|(number, ..)| *number <= through) {
            match self.given.pop_front() {
                Some((_, None, seq)) => own = Some(seq),
                Some((_, Some(folder), seq)) => drop(adopted.insert(folder, seq)),
                None => break,
            }
        }
        if let Some(seq) = own {
            self.own.done(seq);
        }
        for (folder, seq) in adopted {
            if let Some(handed) = self.adopted.get_mut(&folder) {
                handed.cursor.done(seq);
            }
        }
        self.part();
    }

    fn bell(&self) -> &Receiver<()> {
        self.own.bell()
    }

    fn bury(&mut self, record: &UsageRecord, reason: &str) -> io::Result<()> {
        self.own.bury(record, reason)
    }

    fn rest(&mut self) {
        self.given.shrink_to(LANE_RECORDS_MIN);
        self.own.rest();
    }
}

/// Moves a reporter's dead letters, and the replay that somebody asked for, to another folder.
/// Who is stopped in between does it again: a letter is there twice at worst, and never gone.
///
/// # Errors
/// There is no room for them, or the disk does not take them: they are where they were.
pub(super) fn take_over(from: &dyn Disk, to: &dyn Disk, reporter: &str) -> io::Result<()> {
    let dead = format!("{reporter}{}", dead_letter::SUFFIX);
    if let Some(letters) = dead_letter::read(from, &dead)? {
        if !letters.is_empty() {
            dead_letter::put_back(to, reporter, &letters)?;
        }
        from.remove(&dead)?;
        from.sync_dir()?;
    }
    let asked = format!("{reporter}{}", replay::SUFFIX);
    if let Some(letters) = dead_letter::read(from, &asked)? {
        if dead_letter::read(to, &asked)?.is_some_and(|there| there != letters) {
            return Err(io::Error::other("another replay is under way"));
        }
        dead_letter::write_whole(to, &asked, &letters)?;
        from.remove(&asked)?;
        from.sync_dir()?;
    }
    Ok(())
}
