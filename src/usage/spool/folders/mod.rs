//! The folders of a spool's directory: one for each process that writes or has written there.
//!
//! *Takes:* a directory, and the reporters. *Gives:* the folder of this process, opened, and to
//! each reporter its records of all folders that no living process holds. *Runs on:* the thread
//! that starts the spool, and one of its own that looks at the other folders. *May:* block on the
//! disk. *Never:* touches a folder whose lock another process holds, writes records into a folder
//! that is not its own, removes one of which a reporter has not had all.
//!
//! A starting process takes the newest folder that nobody holds as its own, so that a restart goes
//! on where it was, and adopts the other free ones: they are read like the own one (a torn end is
//! cut, what was in flight is told as aborted), delivered, and removed. The lock of a folder is the
//! kernel's (`flock`), which frees it when its process dies, however it dies.

pub mod root;
mod chain;
mod convert;

use super::absent;
use super::dead_letter;
use super::disk::{is_of_the_disk, Disk};
use super::state::SpoolState;
use super::table::SpoolShared;
use super::{open, open_in_memory, Opened, Options};
use crate::base::limits::SPOOL_FOLDERS_ADOPTED_MAX;
use crate::usage::ring::place;
pub use chain::Chain;
use chain::Handed;
pub use convert::is_of_a_spool;
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use root::{is_folder, new_name, Root, DONE};
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed},
};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Folders of others are looked at so often: when one dies, its records come after so long.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// And so often what is to be done for adopted ones, as long as there are any.
const WORK_EVERY: Duration = Duration::from_millis(500);

/// What a directory holds for this process.
pub struct OpenedFolders {
    /// Its own folder, without the cursors, which are in the chains.
    pub own: Opened,
    /// What each reporter is given, in the order of the configuration.
    pub chains: Vec<Chain>,
    /// What is done for the folders of others.
    pub folders: Folders,
}

/// The folders of others, and what is adopted of them.
pub struct Folders {
    root: Arc<dyn Root>,
    options: Options,
    reporters: Vec<String>,
    /// Of the own folder.
    home: (String, Arc<SpoolShared>),
    /// To the chains, in the order of the reporters.
    hands: Vec<Sender<Handed>>,
    adopted: Vec<Adopted>,
    looked_at: Instant,
    /// The last trouble that the log was told of.
    told: Option<String>,
}

/// A folder of a process that is gone.
struct Adopted {
    name: Arc<str>,
    disk: Arc<dyn Disk>,
    /// Its writer and its keeper.
    opened: Opened,
    /// Reporters that are not done with it.
    waiting: Arc<AtomicUsize>,
}

/// Opens a directory.
///
/// # Errors
/// It cannot be read or made, or what is in the own folder cannot be read. A disk that cannot be
/// written is none: the process begins in memory, and the disk is tried again while it runs.
pub fn open_folders(
    root: Arc<dyn Root>,
    options: Options,
    reporters: &[String],
) -> io::Result<OpenedFolders> {
    if let Err(error) = convert::convert(&*root) {
        // An older version writes there still, or the disk fails: it is looked at again.
        tracing::warn!(%error, "a spool of an older version stays as it is for now");
    }
    let (name, own, free) = choose(&*root, options, reporters)?;
    let shared = Arc::clone(&own.writer.shared);
    let (hands, arrivals): (Vec<_>, Vec<_>) =
        reporters.iter().map(|_| bounded(SPOOL_FOLDERS_ADOPTED_MAX)).unzip();
    let mut own = own;
    let cursors = std::mem::take(&mut own.cursors);
    let chain = |((cursor, arrivals), reporter): ((_, Receiver<Handed>), &String)| {
        Chain::new(reporter, (cursor, Arc::clone(&shared.disk)), arrivals)
    };
    let chains = cursors.into_iter().zip(arrivals).zip(reporters).map(chain).collect();
    let mut folders = Folders {
        root,
        options,
        reporters: reporters.to_vec(),
        home: (name, shared),
        hands,
        adopted: Vec::new(),
        looked_at: Instant::now(),
        told: None,
    };
    for (name, disk) in free {
        folders.adopt(&name, disk);
    }
    Ok(OpenedFolders { own, chains, folders })
}

/// Folders whose lock this process has, by name.
type Free = Vec<(String, Arc<dyn Disk>)>;

/// The own folder: the newest that is free, or else a new one. And the others that are free.
fn choose(
    root: &dyn Root,
    options: Options,
    reporters: &[String],
) -> io::Result<(String, Opened, Free)> {
    let mut names = match root.folders() {
        Err(error) if is_of_the_disk(&error) => {
            tracing::error!(%error, "the directory of the spool cannot be read");
            Vec::new()
        }
        names => names?,
    };
    names.sort_unstable();
    let mut free = Free::new();
    for name in names.iter().filter(|name| is_folder(name)) {
        let disk = root.folder(name);
        match disk.lock() {
            Ok(()) => free.push((name.clone(), disk)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::info!(folder = name, "another process writes to this folder of the spool");
            }
            Err(error) => tracing::warn!(folder = name, %error, "a folder stays as it is for now"),
        }
    }
    if let Some((name, disk)) = free.pop() {
        let opened = open(Arc::clone(&disk), options, reporters)?;
        return Ok((name, opened, free));
    }
    let name = new_name(&names)?;
    let disk = root.folder(&name);
    let opened = match disk.lock().and_then(|()| root.itself().sync_dir()) {
        Err(error) if is_of_the_disk(&error) => {
            open_in_memory(Arc::clone(&disk), options, reporters, &error)?
        }
        locked => {
            locked?;
            open(Arc::clone(&disk), options, reporters)?
        }
    };
    Ok((name, opened, free))
}

impl Folders {
    /// Opens a folder whose lock this process has, and hands its records to the reporters. What
    /// cannot be opened now is let go and looked at again.
    fn adopt(&mut self, name: &str, disk: Arc<dyn Disk>) {
        if self.adopted.len() >= SPOOL_FOLDERS_ADOPTED_MAX {
            return;
        }
        let mut opened = match open(Arc::clone(&disk), self.options, &self.reporters) {
            Ok(opened) => opened,
            Err(error) => return self.tell(format!("folder {name} cannot be adopted: {error}")),
        };
        let backlog: Vec<u64> = opened.cursors.iter().map(|cursor| cursor.backlog()).collect();
        let aborted = opened.state.aborted.load(Relaxed);
        tracing::info!(folder = name, ?backlog, aborted, "a folder of the spool is adopted");
        let name: Arc<str> = name.into();
        let waiting = Arc::new(AtomicUsize::new(opened.cursors.len()));
        for (hand, mut cursor) in self.hands.iter().zip(std::mem::take(&mut opened.cursors)) {
            cursor.takes_no_replays();
            let (folder, disk) = (Arc::clone(&name), Arc::clone(&disk));
            let handed = Handed { folder, cursor, disk, waiting: Arc::clone(&waiting) };
            // There is room for as many as are adopted at a time, and the chain lives.
            let _ = hand.try_send(handed);
        }
        self.home.1.state.add_adopted(&opened.state);
        self.home.1.ring();
        self.adopted.push(Adopted { name, disk, opened, waiting });
    }

    /// Looks at the folders of others: adopts those whose process is gone.
    pub fn look(&mut self) {
        self.looked_at = Instant::now();
        if let Err(error) = self.try_look() {
            self.tell(format!("the folders of the spool cannot be looked at: {error}"));
        }
    }

    fn try_look(&mut self) -> io::Result<()> {
        match convert::convert(&*self.root) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            converted => drop(converted?),
        }
        let mut names = self.root.folders()?;
        names.sort_unstable();
        // Told together: one by one each would be news after the other.
        let mut left = Vec::new();
        for name in names {
            if name.ends_with(DONE) {
                // Another process may do the same.
                let _ = self.root.remove(&name);
            }
            let is_ours = name == self.home.0 || self.adopted.iter().any(|a| *a.name == *name);
            if is_ours || !is_folder(&name) {
                continue;
            }
            let disk = self.root.folder(&name);
            // A start takes what is of other reporters all the same: then they are not configured
            // any more. While this process runs, whose they are may come back for it.
            match disk.lock().and_then(|()| absent::of_others(&*disk, &self.reporters)) {
                Ok(None) => self.adopt(&name, disk),
                Ok(Some(reporter)) => left.push(format!(
                    "{name} is of a process that has a reporter {reporter}, and waits for it"
                )),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => left.push(error.to_string()),
            }
        }
        if !left.is_empty() {
            self.tell(format!("folders cannot be adopted: {}", left.join("; ")));
        }
        Ok(())
    }

    /// Does for the adopted folders what has to be done now and then, and removes those of which
    /// all have had all.
    pub fn work(&mut self) {
        for adopted in &mut self.adopted {
            adopted.opened.writer.tick();
            adopted.opened.keeper.turn();
        }
        let is_done = |adopted: &mut Adopted| adopted.is_done();
        let done: Vec<Adopted> = self.adopted.extract_if(.., is_done).collect();
        for adopted in done {
            match self.remove(&adopted) {
                Ok(()) => self.home.1.state.remove_adopted(&adopted.opened.state),
                Err(error) => {
                    self.tell(format!("folder {} cannot be removed: {error}", adopted.name));
                    self.adopted.push(adopted);
                }
            }
        }
    }

    /// Takes over what else is kept in a folder, then removes it. Under another name first: one
    /// that is half removed must not be taken for one with something in it.
    fn remove(&self, adopted: &Adopted) -> io::Result<()> {
        let (name, disk) = (&adopted.name, &*adopted.disk);
        let (home, home_disk) = (&self.home.0, &*self.home.1.disk);
        let itself = self.root.itself();
        for file in disk.list()? {
            if let Some(reporter) = file.strip_suffix(dead_letter::SUFFIX) {
                // Of a reporter that is not configured: no lane writes to them at home.
                chain::take_over(disk, home_disk, reporter)?;
            } else if dead_letter::is_archive(&file) {
                let free = dead_letter::free_archive(home_disk, &file)?;
                itself.rename(&format!("{name}/{file}"), &format!("{home}/{free}"))?;
                home_disk.sync_dir()?;
                disk.sync_dir()?;
            }
        }
        if let Some(path) = disk.path() {
            place::part_with(&path);
        }
        let done = format!("{name}{DONE}");
        itself.rename(name, &done)?;
        itself.sync_dir()?;
        if let Err(error) = self.root.remove(&done) {
            // Whoever looks next removes the rest.
            tracing::warn!(folder = done, %error, "some files of a delivered folder stay for now");
        }
        tracing::info!(folder = &**name, "all of an adopted folder is delivered: it is removed");
        Ok(())
    }

    /// Tells the log of trouble that it was not told of last.
    fn tell(&mut self, trouble: String) {
        if self.told.as_ref() != Some(&trouble) {
            tracing::warn!(trouble, "the spool");
        }
        self.told = Some(trouble);
    }

    /// Goes on with it on a thread of its own.
    ///
    /// # Errors
    /// The thread could not be created.
    pub fn start(mut self) -> io::Result<FolderWatch> {
        let (running, stop) = bounded::<Infallible>(0);
        let watch = move || {
            loop {
                let pause = if self.adopted.is_empty() { LOOK_EVERY } else { WORK_EVERY };
                if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                if self.looked_at.elapsed() >= LOOK_EVERY {
                    self.look();
                }
                self.work();
            }
            self.work();
        };
        let thread = thread::Builder::new().name("spool-folders".to_owned()).spawn(watch)?;
        Ok(FolderWatch { running, thread })
    }
}

impl Adopted {
    fn is_done(&mut self) -> bool {
        let is_had = self.waiting.load(Acquire) == 0 && !self.opened.state.failing.load(Relaxed);
        is_had && self.opened.keeper.waits_for_nobody()
    }
}

/// The thread that looks at the folders of others.
pub struct FolderWatch {
    /// Dropped to stop; nothing is ever sent.
    running: Sender<Infallible>,
    thread: JoinHandle<()>,
}

impl FolderWatch {
    /// Ends it. To be called when the reporters have ended, so that what they had is noted.
    pub fn stop(self) {
        drop(self.running);
        // One that panicked has nothing more to say.
        let _ = self.thread.join();
    }
}

/// The figures of what was adopted, beside those of the own folder.
impl SpoolState {
    fn add_adopted(&self, state: &Arc<SpoolState>) {
        self.adopted().push(Arc::clone(state));
    }

    fn remove_adopted(&self, state: &Arc<SpoolState>) {
        let mut adopted = self.adopted();
        adopted.retain(|other| !Arc::ptr_eq(other, state));
        self.absorb(state);
    }
}
