//! Memory that belongs to a file: what is stored here is the kernel's at once, and stays when the
//! process is killed in the next instruction. No call, no wait.
//!
//! The memory is seen as words that are atomic, and as nothing else. So no use of it can be wrong
//! in the sense of the language, whichever thread or process stores into it at the same time.

#![allow(unsafe_code, reason = "the one room for it: mapped memory cannot be had without")]

use rustix::fs::{fallocate, flock, FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::mm::{madvise, mmap, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};
use rustix::process::geteuid;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::{null_mut, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

/// Bytes of a word.
pub const WORD: usize = 8;

/// Mapped memory. We never make its file smaller, and no other user may write to it (mode 0600).
/// Where the same user or root cuts it off, a page is gone: the next store there ends the process
/// (SIGBUS).
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
    /// Its file, whose lock (`flock`) says as long as this lives that somebody stores into it.
    lock: Option<File>,
}

// SAFETY: the memory belongs to this value and to no thread, and only atomics are made of it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// A new file of so many words, all zero; all of its room is taken on the disk and in memory
    /// now, so that no store has to wait for some. The folder is made when it is not there.
    ///
    /// # Errors
    /// There is such a file, or no room for it. Nothing is left behind then.
    pub fn create(path: &Path, words: usize) -> io::Result<Mapping> {
        if let Some(folder) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let map = || -> io::Result<Mapping> {
            let len = words * WORD;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            take_room(&file, len)?;
            // SAFETY: a new mapping, at a place that the kernel chooses.
            let start = unsafe { mmap(null_mut(), len, both(), flags(), &file, 0) }?;
            let mapping = Mapping::at(start.cast(), words)?;
            mapping.populate()?;
            Ok(mapping)
        };
        let mut made = map();
        if let Ok(mapping) = &mut made {
            mapping.lock = Some(file);
        }
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// What another process left in a file, or stores into now. Whoever else has it sees what is
    /// stored, and the other way round.
    ///
    /// # Errors
    /// It is no file of ours alone with whole words, or there is no room for it.
    pub fn open(path: &Path) -> io::Result<Mapping> {
        let flags_of_open = OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags_of_open).open(path)?;
        let found = file.metadata()?;
        let len = usize::try_from(found.len()).unwrap_or(0);
        let is_ours = found.uid() == geteuid().as_raw() && found.mode() & 0o077 == 0;
        if !found.is_file() || !is_ours || len == 0 || !len.is_multiple_of(WORD) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        take_room(&file, len)?;
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { mmap(null_mut(), len, both(), flags(), &file, 0) }?;
        let mut mapping = Mapping::at(start.cast(), len / WORD)?;
        mapping.populate()?;
        mapping.lock = Some(file);
        Ok(mapping)
    }

    /// The same without a file: it ends with the process.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn anonymous(words: usize) -> io::Result<Mapping> {
        // SAFETY: a new mapping, at a place that the kernel chooses.
        let start = unsafe { mmap_anonymous(null_mut(), words * WORD, both(), flags()) }?;
        Mapping::at(start.cast(), words)
    }

    fn at(start: *mut AtomicU64, words: usize) -> io::Result<Mapping> {
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { start, words, lock: None })
    }

    /// Makes all pages ready to be stored into. Memory that is not there after all (a tmpfs or a
    /// memory limit that is reached) shows now, and not as the end of the process at a store.
    fn populate(&self) -> io::Result<()> {
        let (start, len) = (self.start.as_ptr().cast(), self.words * WORD);
        // SAFETY: it is the whole mapping, whose bytes this does not change.
        match unsafe { madvise(start, len, Advice::LinuxPopulateWrite) } {
            // A kernel before 5.14 does not know it; there a store may still find a page missing.
            Err(Errno::INVAL) => Ok(()),
            // The kernel's word for a page that cannot be had.
            Err(Errno::FAULT) => Err(io::ErrorKind::StorageFull.into()),
            populated => Ok(populated?),
        }
    }

    /// Its file, if it has one.
    pub fn file(&self) -> Option<&File> {
        self.lock.as_ref()
    }

    /// The memory.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped from here on until this value is dropped, which the
        // result cannot outlive; a page begins where any integer may, and all bits are one.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is the whole mapping, and nobody borrows from it any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.words * WORD) };
    }
}

fn both() -> ProtFlags {
    ProtFlags::READ | ProtFlags::WRITE
}

/// All pages are there at once.
fn flags() -> MapFlags {
    MapFlags::SHARED | MapFlags::POPULATE
}

/// Takes the room of a file on its disk: a store into a page without any would be a SIGBUS.
fn take_room(mut file: &File, len: usize) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, len as u64) {
        // A file system that cannot do it in one go.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            if file.metadata()?.len() == len as u64 {
                // It has been here before.
                return Ok(());
            }
            let zeros = [0; 4096];
            let mut left = len;
            while left > 0 {
                left -= file.write(&zeros[..left.min(zeros.len())])?;
            }
            Ok(())
        }
        taken => Ok(taken?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt};
    use std::sync::atomic::Ordering::Relaxed;

    /// Catches: a store that the file has not at once, a file that others can read, is sparse, or
    /// stays behind when there is no room for it.
    #[test]
    fn what_is_stored_is_in_the_file() {
        let folder = std::env::temp_dir().join(format!("llmproxy-mapping-{}", std::process::id()));
        let path = folder.join("deeper").join("a");
        let mapping = Mapping::create(&path, 1024).unwrap();
        assert!(mapping.words().iter().all(|word| word.load(Relaxed) == 0));
        mapping.words()[1023].store(u64::from_le_bytes(*b"in it :)"), Relaxed);
        let file = File::open(&path).unwrap();
        let mut last = [0; 8];
        file.read_exact_at(&mut last, 1023 * 8).unwrap();
        assert_eq!(&last, b"in it :)");
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (8192, 0o600));
        assert!(meta.blocks() * 512 >= 8192, "no store may find that the disk is full");
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let again = Mapping::create(&path, 1).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(Mapping::create(&folder.join("b"), 1 << 55).is_err(), "there is no such disk");
        assert!(!folder.join("b").exists());
        let anonymous = Mapping::anonymous(512).unwrap();
        anonymous.words()[511].store(1, Relaxed);
        // A second one of the same file, as another process has it.
        let other = Mapping::open(&path).unwrap();
        assert_eq!(other.words()[1023].load(Relaxed), u64::from_le_bytes(*b"in it :)"));
        other.words()[3].store(4, Relaxed);
        assert_eq!(mapping.words()[3].load(Relaxed), 4);
        drop(mapping);
        std::os::unix::fs::symlink(&path, folder.join("link")).unwrap();
        assert!(Mapping::open(&folder.join("link")).is_err(), "it leads who knows where");
        fs::write(folder.join("odd"), "seven b").unwrap();
        fs::set_permissions(folder.join("odd"), PermissionsExt::from_mode(0o600)).unwrap();
        assert!(Mapping::open(&folder.join("odd")).is_err());
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Mapping::open(&path).is_err(), "others can read it");
        fs::remove_dir_all(folder).unwrap();
    }
}
