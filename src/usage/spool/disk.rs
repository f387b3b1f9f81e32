//! The few things that the spool asks of a disk, and the real one. A fake one stands in its place
//! in tests, and one of memory where the spool is off.

use rustix::process::geteuid;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Held by the one process that writes.
const LOCK: &str = "lock";
/// `spool inspect` has a lock for an instant: that is not to be taken for a process that writes.
const LOCK_TRIES: usize = 4;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// A folder of files, none of which has a folder of its own.
pub trait Disk: Send + Sync {
    /// Makes this process the only one that writes here, for as long as the disk lives.
    ///
    /// # Errors
    /// Another one does, or the folder cannot be made.
    fn lock(&self) -> io::Result<()>;

    /// False when this is not the folder that was locked, or its lock is gone: what is written to
    /// it is not found again.
    ///
    /// # Errors
    /// It cannot be told.
    fn is_there(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Gives the lock up: [`Disk::lock`] makes the folder anew.
    fn let_go(&self) {}

    /// A file of the folder that was locked last, wherever somebody has moved that.
    ///
    /// # Errors
    /// It is not there, or cannot be opened.
    fn open_moved(&self, _name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    /// Where it is, for a person.
    fn place(&self) -> String {
        String::new()
    }

    /// The folder of the file system that it is, if it is one.
    fn path(&self) -> Option<PathBuf> {
        None
    }

    /// The names of all files.
    ///
    /// # Errors
    /// The folder cannot be read.
    fn list(&self) -> io::Result<Vec<String>>;

    /// An empty file, whatever was there before.
    ///
    /// # Errors
    /// It cannot be made.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// A file that is there.
    ///
    /// # Errors
    /// It is not, or cannot be opened.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file; one that is open can be read on.
    ///
    /// # Errors
    /// It is still there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of what had it.
    ///
    /// # Errors
    /// It still has the old one.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Forces to the disk which files there are.
    ///
    /// # Errors
    /// It may not know.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Writes all bytes at a place.
    ///
    /// # Errors
    /// Some or none were written.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Reads some bytes from a place; 0 at the end.
    ///
    /// # Errors
    /// They cannot be read.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;

    /// Cuts the file to this length.
    ///
    /// # Errors
    /// It may have the old one.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Forces to the disk what was written.
    ///
    /// # Errors
    /// The disk may never have it, even if a later call succeeds.
    fn sync(&self) -> io::Result<()>;

    /// False when its last name was removed.
    ///
    /// # Errors
    /// It cannot be told.
    fn has_name(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Its length in bytes.
    ///
    /// # Errors
    /// It cannot be told.
    fn size(&self) -> io::Result<u64>;
}

/// A folder of the file system; its files are for this user alone.
pub struct RealDisk {
    dir: PathBuf,
    /// The open lock file.
    lock: Mutex<Option<File>>,
    /// The folder when it was locked last: whoever moves it away moves this.
    folder: Mutex<Option<File>>,
    /// Nothing is ever written.
    read_only: bool,
    /// Only a folder that belongs to the user of this process is locked.
    ours_only: bool,
}

impl RealDisk {
    /// For this folder, which need not be there yet.
    pub fn new(dir: &Path) -> RealDisk {
        let (lock, folder) = (Mutex::default(), Mutex::default());
        RealDisk { dir: dir.to_owned(), lock, folder, read_only: false, ours_only: false }
    }

    /// The same, for a folder that somebody else may have put there: one that is not ours is not
    /// locked.
    pub fn ours(dir: &Path) -> RealDisk {
        RealDisk { ours_only: true, ..RealDisk::new(dir) }
    }

    /// True when a process holds the lock of a folder.
    pub fn is_held(dir: &Path) -> bool {
        let lock = File::open(dir.join(LOCK));
        lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// For looking at a folder beside whoever writes there: files are opened for reading only.
    pub fn reader(dir: &Path) -> RealDisk {
        RealDisk { read_only: true, ..RealDisk::new(dir) }
    }
}

impl Disk for RealDisk {
    fn lock(&self) -> io::Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_some() {
            return Ok(());
        }
        let place = self.dir.display();
        let named = |e: io::Error| io::Error::new(e.kind(), format!("spool {place}: {e}"));
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(named)?;
        if self.ours_only {
            must_be_ours(&self.dir).map_err(named)?;
        }
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(self.dir.join(LOCK)).map_err(named)?;
        let mut tries = 1..LOCK_TRIES;
        while let Err(error) = file.try_lock() {
            match error {
                TryLockError::Error(error) => return Err(named(error)),
                TryLockError::WouldBlock if tries.next().is_some() => {
                    thread::park_timeout(LOCK_PAUSE)
                }
                TryLockError::WouldBlock => {
                    let message = format!("spool {place}: another llmproxy uses this folder");
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
                }
            }
        }
        // Whoever had the lock before may have removed the folder meanwhile.
        if !is_at(&file, &self.dir.join(LOCK)).map_err(named)? {
            let message = format!("spool {place}: it was removed a moment ago");
            return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
        }
        // Only for what is left of it if somebody moves it away.
        let folder = File::open(&self.dir).ok();
        *self.folder.lock().unwrap_or_else(PoisonError::into_inner) = folder;
        *held = Some(file);
        Ok(())
    }

    fn is_there(&self) -> io::Result<bool> {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map_or(Ok(true), |held| is_at(held, &self.dir.join(LOCK)))
    }

    fn let_go(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn open_moved(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = folder.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // The kernel's name of an open folder leads to where that is now.
        let folder = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string());
        Ok(Arc::new(File::open(folder.join(name))?))
    }

    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn path(&self) -> Option<PathBuf> {
        Some(self.dir.clone())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Neither is a folder or a pipe ours, nor a name that is not text.
            let is_file = entry.file_type().is_ok_and(|of| of.is_file() || of.is_symlink());
            names.extend(entry.file_name().into_string().ok().filter(|_| is_file));
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Arc::new(options.open(self.dir.join(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(
            OpenOptions::new().read(true).write(!self.read_only).open(self.dir.join(name))?,
        ))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

/// True for what a disk does by itself and may stop doing. All else is for a person to set right,
/// and stops a start.
pub fn is_of_the_disk(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::TimedOut
    ) || error.raw_os_error() == Some(EIO)
}

/// Whoever owns a folder can put anything there at any time, and could have us write it over. So
/// root uses none of others either, who could not go on with what root makes in them.
///
/// # Errors
/// This is no folder that belongs to the user of this process, or that cannot be told.
pub fn must_be_ours(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    let (owner, user) = (found.uid(), geteuid().as_raw());
    if found.is_dir() && owner == user {
        return Ok(());
    }
    let message = format!("it is no folder of user {user}, whose process this is, but of {owner}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// True when this is the file at a place, and not one that was there before.
///
/// # Errors
/// It cannot be told.
pub fn is_at(file: &File, place: &Path) -> io::Result<bool> {
    let there = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    let ours = file.metadata()?;
    Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino()))
}

impl DiskFile for File {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, into, at)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn has_name(&self) -> io::Result<bool> {
        Ok(self.metadata()?.nlink() > 0)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
