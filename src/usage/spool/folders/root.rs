//! The directory of the spool: a folder for each process, and the few things that are done with
//! whole folders. A fake one stands in its place in tests.

use super::super::disk::{Disk, RealDisk};
use crate::base::clock::unix_ms;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What each folder's name begins with.
const PREFIX: &str = "folder-";
/// Behind the name of a folder into which a spool of the old layout is being moved.
pub(super) const MOVING: &str = ".moving";
/// Behind the name of a folder that is done with and being removed.
pub(super) const DONE: &str = ".done";

/// A directory of folders.
pub trait Root: Send + Sync {
    /// The names of all folders in it, in any order; none when there is no directory yet.
    ///
    /// # Errors
    /// It cannot be read.
    fn folders(&self) -> io::Result<Vec<String>>;

    /// A folder, which is made when it is locked.
    fn folder(&self, name: &str) -> Arc<dyn Disk>;

    /// The directory itself: where a spool of the old layout lies. A file in a folder has the name
    /// `folder/file` here, and a whole folder can be renamed.
    fn itself(&self) -> Arc<dyn Disk>;

    /// Removes a folder with all that is in it.
    ///
    /// # Errors
    /// Something of it is still there.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A directory of the file system.
pub struct RealRoot {
    dir: PathBuf,
}

impl RealRoot {
    /// For this directory, which need not be there yet.
    pub fn new(dir: &Path) -> RealRoot {
        RealRoot { dir: dir.to_owned() }
    }
}

impl Root for RealRoot {
    fn folders(&self) -> io::Result<Vec<String>> {
        folders_in(&self.dir)
    }

    fn folder(&self, name: &str) -> Arc<dyn Disk> {
        Arc::new(RealDisk::ours(&self.dir.join(name)))
    }

    fn itself(&self) -> Arc<dyn Disk> {
        Arc::new(RealDisk::new(&self.dir))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.dir.join(name))
    }
}

/// The names of all folders of a spool in a directory, also of those that are being moved or
/// removed; none when there is no directory.
///
/// # Errors
/// It cannot be read.
pub fn folders_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        // A name that is not text is none of ours.
        let name = entry.file_name().into_string().ok().filter(|name| name.starts_with(PREFIX));
        names.extend(name.filter(|_| entry.file_type().is_ok_and(|of| of.is_dir())));
    }
    Ok(names)
}

/// True for the name of a folder that is whole.
pub fn is_folder(name: &str) -> bool {
    name.starts_with(PREFIX) && !name.ends_with(MOVING) && !name.ends_with(DONE)
}

/// A name that sorts behind those that are there, and that nobody has had before: a folder that is
/// put back from elsewhere must not meet another of its name.
///
/// # Errors
/// The system has no randomness.
pub(super) fn new_name(there: &[String]) -> io::Result<String> {
    let random = getrandom::u32().map_err(|e| io::Error::other(format!("no randomness: {e}")))?;
    let time_of = |name: &String| name.strip_prefix(PREFIX)?.get(..15)?.parse::<u64>().ok();
    let newest = there.iter().filter_map(time_of).max();
    // A clock that was set back does not change the order.
    let time = unix_ms().max(newest.map_or(0, |newest| newest.saturating_add(1)));
    Ok(format!("{PREFIX}{time:015}-{random:08x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a folder that sorts before an older one, and names of parts that are taken for
    /// whole folders.
    #[test]
    fn names_sort_by_age() {
        let first = new_name(&[]).unwrap();
        assert!(is_folder(&first) && first.len() == "folder-001234567890123-01234567".len());
        let future = format!("{PREFIX}{:015}-00000000", unix_ms() + 1_000_000);
        let there = vec![future.clone(), first.clone(), "folder-x".to_owned()];
        let next = new_name(&there).unwrap();
        assert!(next > future && next > first, "{next}");
        assert!(!is_folder(&format!("{first}{MOVING}")) && !is_folder(&format!("{first}{DONE}")));
    }
}
