//! The folders that a command is about.

use crate::usage::ring;
use crate::usage::spool::disk::RealDisk;
use crate::usage::spool::folders::is_of_a_spool;
use crate::usage::spool::folders::root::folders_in;
use crate::usage::spool::survey::Survey;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// A folder of a spool.
#[derive(Debug)]
pub struct SpoolPlace {
    /// Its name; `.` for the directory itself, which is one folder or holds a spool of a version
    /// that knew no folders.
    pub name: String,
    pub dir: PathBuf,
}

/// What is in one folder.
#[derive(Debug, Serialize)]
pub struct FolderSurvey {
    pub folder: String,
    /// A process writes or delivers it.
    pub in_use: bool,
    /// Entries in its rings that its journal has not taken over.
    pub in_rings: u64,
    #[serde(flatten)]
    pub survey: Survey,
}

/// What is in all of them.
#[derive(Debug, Default, Serialize)]
pub struct AllSurvey {
    /// Oldest first.
    pub folders: Vec<FolderSurvey>,
    /// All together.
    pub reporters: Vec<Sum>,
    /// Requests that began and have no end, in all folders.
    pub open: usize,
}

/// One reporter in all folders together.
#[derive(Debug, Default, Serialize)]
pub struct Sum {
    pub name: String,
    pub backlog: u64,
    pub oldest_ms: Option<u64>,
    pub dead_letters: u64,
}

impl SpoolPlace {
    /// True when a process has its lock.
    pub fn is_in_use(&self) -> bool {
        RealDisk::is_held(&self.dir)
    }

    /// Entries in its rings that its journal has not taken over: of a process that lives, some of a
    /// moment; of one that was killed, what the next one takes over.
    ///
    /// # Errors
    /// A ring cannot be read, or a newer version wrote it.
    pub fn in_rings(&self) -> io::Result<u64> {
        let mut entries = 0;
        for folder in ring::place::folders_of(&self.dir) {
            entries += ring::recover::count(&folder)?;
        }
        Ok(entries)
    }
}

impl AllSurvey {
    pub fn of(folders: Vec<FolderSurvey>) -> AllSurvey {
        let mut sums = BTreeMap::<&str, Sum>::new();
        for reporter in folders.iter().flat_map(|folder| &folder.survey.reporters) {
            let sum = sums.entry(&reporter.name).or_default();
            sum.backlog += reporter.backlog;
            sum.oldest_ms = sum.oldest_ms.into_iter().chain(reporter.oldest_ms).min();
            sum.dead_letters += reporter.dead_letters;
        }
        let named = |(name, sum): (&str, Sum)| Sum { name: name.to_owned(), ..sum };
        let reporters = sums.into_iter().map(named).collect();
        let open = folders.iter().map(|folder| folder.survey.open).sum();
        AllSurvey { folders, reporters, open }
    }
}

/// The folders in a directory, oldest first, or the directory itself when it is one of them.
///
/// # Errors
/// It is not there, or cannot be read.
pub fn places(dir: &Path) -> io::Result<Vec<SpoolPlace>> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", dir.display()));
    if !dir.is_dir() {
        return Err(io::Error::other(format!("{}: there is no such folder", dir.display())));
    }
    let mut names = folders_in(dir).map_err(named)?;
    names.sort_unstable();
    let mut places: Vec<SpoolPlace> =
        names.into_iter().map(|name| SpoolPlace { dir: dir.join(&name), name }).collect();
    let mut is_itself = false;
    for entry in std::fs::read_dir(dir).map_err(named)? {
        is_itself |= entry.map_err(named)?.file_name().to_str().is_some_and(is_of_a_spool);
    }
    if is_itself {
        // Older than any that was made behind it.
        places.insert(0, SpoolPlace { name: ".".to_owned(), dir: dir.to_owned() });
    }
    Ok(places)
}
