//! The file of the counters: where it lies, making it and taking it over, and freeing what a
//! process that is gone had in flight. Locks of files say who lives: the kernel frees them, however
//! a process dies.

use crate::base::clock::{boot_ns, unix_ms};
use crate::base::limits::{COUNTERS_LOOK_EVERY, COUNTERS_STRANGERS_SHARE};
use crate::config::plan::Plan;
use crate::rt::sys::mapping::Mapping;
use crate::state::counters::bucket::TICKS_PER_NS;
use crate::state::counters::shared::{header, Counters, HEADER_WORDS};
use crate::state::counters::slots::COLUMNS;
use crate::state::counters::table::{
    word, CounterTable, EntryFound, TablePart, TableShape, ENTRY_WORDS,
};
use crate::state::counters::word::Word;
use crate::usage::ring::place::runtime_folder;
use crate::usage::spool::disk::{is_at, must_be_ours};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What the file begins with.
const MAGIC: u64 = u64::from_le_bytes(*b"LLMPCNTR");
/// Grows when an older program could not read what a newer one writes.
const VERSION: u64 = 1;

/// The counters that a plan asks for; those of the view before it stay.
pub fn of(plan: &Plan, before: Option<&Arc<Counters>>) -> Option<Arc<Counters>> {
    let is_asked = plan.rate_limit.is_some() || plan.auth.is_some();
    before.cloned().or_else(|| is_asked.then(|| open(plan)).flatten())
}

/// Whether there is a place for one more process among those that count together. For a process
/// that starts in the place of another one, which can go on serving instead.
///
/// # Errors
/// There is none: a line for a person.
pub fn have_place(plan: &Plan) -> Result<(), String> {
    let is_counted = plan.rate_limit.is_some() || plan.auth.is_some();
    let Some(folder) = folder(plan).filter(|folder| is_counted && folder.is_dir()) else {
        return Ok(());
    };
    let is_taken = |column| {
        let file = column_file(&folder, column);
        file.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    };
    match (0..COLUMNS).all(is_taken) {
        true => Err(format!(
            "{COLUMNS} processes count limits together, and there is no place for another one: \
             try again when one of them has finished its requests"
        )),
        false => Ok(()),
    }
}

/// `None`: there is not even memory for them. Whoever asks for limits then gets none of them
/// wrong: he is refused.
fn open(plan: &Plan) -> Option<Arc<Counters>> {
    let entries = plan.counters.entries as usize;
    let opened = match folder(plan) {
        None => Err(io::Error::other("there is no folder for them")),
        Some(folder) => {
            let opened = OpenFolder::open(&folder, entries);
            if opened.is_ok() {
                tracing::info!(folder = %folder.display(), "the counters of limits are here");
            }
            opened
        }
    };
    let (counters, folder) = match opened {
        Ok((counters, folder)) => (counters, Some(folder)),
        Err(error) => {
            let message = "the counters of limits and quotas are memory of this process alone: \
                           they begin anew with the next start";
            tracing::error!(%error, "{message}");
            let made = Counters::anonymous(entries, strangers(entries), random());
            (made.inspect_err(|error| tracing::error!(%error, "no counters")).ok()?, None)
        }
    };
    let counters = Arc::new(counters);
    if let Some(folder) = folder {
        let watched = Arc::clone(&counters);
        let watch = move || folder.watch(&watched);
        if let Err(error) = std::thread::Builder::new().name("counters".into()).spawn(watch) {
            tracing::error!(%error, "what other processes leave in flight is not freed");
        }
    }
    Some(counters)
}

fn strangers(known: usize) -> usize {
    (known / COUNTERS_STRANGERS_SHARE).max(1)
}

fn random() -> u64 {
    RandomState::new().hash_one(boot_ns())
}

/// Where they lie: where the configuration says, or beside the rings of the journal.
fn folder(plan: &Plan) -> Option<PathBuf> {
    if let Some(dir) = &plan.counters.dir {
        return Some(dir.clone());
    }
    let spool = &plan.usage.spool;
    // What the spool is called, so that gateways that have nothing to do with each other have
    // nothing to count together.
    let name = std::path::absolute(&spool.dir).ok()?;
    let named = format!("counters-{:08x}", fingerprint(name.as_os_str().as_encoded_bytes()));
    let in_memory = spool.ring_dir.clone().or_else(runtime_folder).map(|dir| dir.join(named));
    in_memory.or_else(|| spool.enabled.then(|| spool.dir.join("counters")))
}

/// FNV-1a: the same in each process and version.
fn fingerprint(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The folder, with the lock of the process' own column.
struct OpenFolder {
    path: PathBuf,
    _own: File,
}

impl OpenFolder {
    /// Opens or makes the table in a folder.
    fn open(path: &Path, known: usize) -> io::Result<(Counters, OpenFolder)> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        must_be_ours(path)?;
        // Of processes that start at the same moment, one comes after the other.
        let _starting = {
            let file = lock_file(path, "lock")?;
            file.lock()?;
            file
        };
        let mut free: Vec<(usize, File)> = Vec::new();
        for column in 0..COLUMNS {
            let file = column_file(path, column)?;
            match file.try_lock() {
                Ok(()) => free.push((column, file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        let is_alone = free.len() == COLUMNS;
        let columns: Vec<usize> = free.iter().map(|(column, _)| *column).collect();
        if free.is_empty() {
            return Err(io::Error::other(format!("{COLUMNS} processes have them already")));
        }
        let (column, own) = free.swap_remove(0);
        let memory = obtain(path, known, is_alone)?;
        let shape = shape_in(&memory).ok_or(io::ErrorKind::InvalidData)?;
        let counters = Counters::new(memory, shape, column).ok_or(io::ErrorKind::OutOfMemory)?;
        // Whoever had them is gone.
        columns.iter().for_each(|column| counters.clear_column(*column));
        counters.begin_column();
        Ok((counters, OpenFolder { path: path.to_owned(), _own: own }))
    }

    /// Frees, for as long as the process runs, what others leave behind.
    fn watch(&self, counters: &Counters) {
        let mut is_lost = false;
        for _ in crossbeam_channel::tick(COUNTERS_LOOK_EVERY) {
            super::survive("counters", || {
                self.look(counters);
                is_lost = self.look_at_file(counters, is_lost);
            });
        }
    }

    fn look(&self, counters: &Counters) {
        let others = (0..COLUMNS).filter(|column| *column != counters.column());
        for column in others.filter(|column| counters.is_used(*column)) {
            // Whoever lives has the lock; who starts meanwhile takes another column.
            let Ok(file) = column_file(&self.path, column) else { continue };
            if file.try_lock().is_ok() {
                counters.clear_column(column);
                tracing::info!(column, "what a process that is gone had in flight is free");
            }
        }
    }

    fn look_at_file(&self, counters: &Counters, was_lost: bool) -> bool {
        let Some(file) = counters.table().memory().file() else { return false };
        let is_lost = !is_at(file, &self.path.join(TABLE)).unwrap_or(true);
        if is_lost && !was_lost {
            let folder = self.path.display();
            let message = "the file of the counters was deleted or moved: they begin anew with \
                           the next start";
            tracing::error!(%folder, "{message}");
        }
        is_lost
    }
}

/// The file of the table.
const TABLE: &str = "table";

fn lock_file(folder: &Path, name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).open(folder.join(name))
}

fn column_file(folder: &Path, column: usize) -> io::Result<File> {
    lock_file(folder, &format!("column-{column}"))
}

/// The memory of the table. Whoever is alone may make it anew; else it is that of the others.
fn obtain(folder: &Path, known: usize, is_alone: bool) -> io::Result<Mapping> {
    let path = folder.join(TABLE);
    let found = match Mapping::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return create(&path, known),
        found => found.and_then(|memory| match shape_in(&memory) {
            Some(_) => Ok(memory),
            None => Err(io::Error::other("it is none of ours, or damaged")),
        }),
    };
    let wanted = (known, strangers(known));
    match found {
        Ok(memory) if !is_alone => {
            if shape_in(&memory).is_some_and(|has| (has.known, has.strangers) != wanted) {
                tracing::warn!("counters.entries is used when no other process uses the counters");
            }
            Ok(memory)
        }
        Ok(memory) => {
            forget_moments(&memory);
            match shape_in(&memory).filter(|has| (has.known, has.strangers) != wanted) {
                Some(has) => convert(&path, (memory, has), known),
                None => Ok(memory),
            }
        }
        Err(error) if is_alone => {
            let aside = folder.join("table.damaged");
            let path_shown = path.display();
            let message = "the file of the counters cannot be used and is put aside: limits and \
                           quotas begin anew";
            tracing::error!(file = %path_shown, %error, "{message}");
            fs::rename(&path, aside)?;
            create(&path, known)
        }
        Err(error) => Err(error),
    }
}

/// A new one, which is seen by others when it is whole.
fn create(path: &Path, known: usize) -> io::Result<Mapping> {
    let new = path.with_extension("new");
    let memory = make(&new, known)?;
    fs::rename(&new, path)?;
    Ok(memory)
}

fn make(new: &Path, known: usize) -> io::Result<Mapping> {
    let shape =
        TableShape { header: HEADER_WORDS, known, strangers: strangers(known), seed: random() };
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let memory = Mapping::create(new, shape.words())?;
    let set = |which: usize, value: u64| {
        if let Some(word) = memory.words().get(which) {
            word.set(value);
        }
    };
    set(header::VERSION, VERSION);
    set(header::SHAPE[0], shape.known as u64);
    set(header::SHAPE[1], shape.strangers as u64);
    set(header::SEED, shape.seed);
    set(header::BOOT, boot());
    set(header::MAGIC, MAGIC);
    Ok(memory)
}

/// The shape of a table that lies in some memory, if it is one.
fn shape_in(memory: &Mapping) -> Option<TableShape> {
    let words = memory.words();
    let at = |which: usize| words.get(which).map(Word::value);
    if (at(header::MAGIC)?, at(header::VERSION)?) != (MAGIC, VERSION) {
        return None;
    }
    let entries = |which| usize::try_from(at(which)?).ok().filter(|n| (1..1 << 31).contains(n));
    let (known, strangers) = (entries(header::SHAPE[0])?, entries(header::SHAPE[1])?);
    let shape = TableShape { header: HEADER_WORDS, known, strangers, seed: at(header::SEED)? };
    (shape.words() == words.len()).then_some(shape)
}

/// Which start of the machine this is, and so which moments its clock means. Where that cannot be
/// told, the time at which it was, to a quarter of an hour.
fn boot() -> u64 {
    match fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(id) => u64::from(fingerprint(&id)),
        Err(_) => unix_ms().saturating_sub(boot_ns() / 1_000_000) / 900_000,
    }
}

/// The machine was started again, and its clock begins anew: all buckets are full.
fn forget_moments(memory: &Mapping) {
    let Some(is) = memory.words().get(header::BOOT).map(Word::value) else { return };
    if is == boot() {
        return;
    }
    for entry in memory.words().get(HEADER_WORDS..).unwrap_or_default().chunks(ENTRY_WORDS) {
        for which in word::BUCKETS.into_iter().chain([word::SEEN]) {
            entry.get(which).into_iter().for_each(|word| word.set(0));
        }
    }
    memory.words().get(header::BOOT).into_iter().for_each(|word| word.set(boot()));
}

/// The same ids in a table of another size; those that say nothing are left out. What was used here
/// of a quota was told under the name of the old table, and is not told again under the new one's.
fn convert(path: &Path, (old, has): (Mapping, TableShape), known: usize) -> io::Result<Mapping> {
    let now = boot_ns().saturating_mul(TICKS_PER_NS);
    let new = path.with_extension("new");
    let memory = make(&new, known)?;
    let shape = shape_in(&memory).ok_or(io::ErrorKind::InvalidData)?;
    let (old, table) = (CounterTable::new(old, has), CounterTable::new(memory, shape));
    let (mut fill, mut lost) = ([0u64; 2], 0u64);
    for place in old.places().filter(|place| !old.is_idle(*place, now)) {
        let Some((id, part)) = old.id(place) else { continue };
        match table.find(id, part, now) {
            EntryFound::There(to) | EntryFound::New(to) | EntryFound::Instead(to) => {
                fill[part as usize] += 1;
                for which in word::BUCKETS.into_iter().chain([word::QUOTA]) {
                    let (from, to) = (old.word(place, which), table.word(to, which));
                    from.zip(to).into_iter().for_each(|(from, to)| to.set(from.value()));
                }
            }
            EntryFound::Full => lost += u64::from(part == TablePart::Known),
        }
    }
    if lost > 0 {
        tracing::error!(lost, "counters.entries has no room for so many keys: they begin anew");
    }
    let memory = table.into_memory();
    for (which, n) in header::FILL.into_iter().zip(fill) {
        memory.words().get(which).into_iter().for_each(|word| word.set(n));
    }
    fs::rename(&new, path)?;
    Ok(memory)
}

#[cfg(test)]
mod tests;
