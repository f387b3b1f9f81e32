//! A disk with a page cache: what was not synced may be lost or torn when the power goes, and any
//! operation can be made to fail.

use super::super::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};

/// All that a disk and the kernel hold at one moment.
#[derive(Clone, Default)]
pub struct World {
    files: Vec<Inode>,
    /// As programs see them. A file in a folder has the number of that before its name.
    names: BTreeMap<String, usize>,
    /// As the disk has them.
    durable_names: BTreeMap<String, usize>,
    /// Numbers of folders, as programs see them.
    folders: BTreeMap<String, usize>,
    /// As the disk has them.
    durable_folders: BTreeMap<String, usize>,
    /// How many there ever were.
    folders_made: usize,
}

#[derive(Clone, Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last sync, in order.
    pending: Vec<Change>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The kernel lives on, and with it all that was written.
    Kill,
    /// Only what was synced is certain.
    PowerCut,
}

/// What is done to the disk; only these are counted and fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Write,
    Truncate,
    Sync,
    SyncDir,
    Rename,
    Remove,
}

/// From which operation on, and for how many, all fail so.
#[derive(Clone, Copy)]
pub struct Faults {
    pub from: usize,
    pub count: usize,
    pub error: io::ErrorKind,
    /// Only what takes more room: all else goes on, as on a disk that others have filled.
    pub growth_only: bool,
}

impl Faults {
    /// From there on, so many operations of any kind.
    pub fn of_all(from: usize, count: usize, error: io::ErrorKind) -> Faults {
        Faults { from, count, error, growth_only: false }
    }
}

/// A moment before an operation, with what the test knew then.
pub struct Snapshot<P> {
    pub world: World,
    pub operation: Operation,
    /// A write that had begun: file, place, bytes.
    pub during: Option<(usize, usize, Vec<u8>)>,
    pub progress: P,
}

struct Inner<P> {
    world: World,
    operations: usize,
    faults: Option<Faults>,
    /// Bytes that all files together may have.
    room: Option<usize>,
    /// Numbers of folders that are locked.
    locks: Vec<usize>,
    progress: P,
    snapshots: Option<Vec<Snapshot<P>>>,
}

/// The disk; clones are the same one. Or one of its folders.
pub struct FaultDisk<P> {
    inner: Arc<Mutex<Inner<P>>>,
    /// A folder, by its name.
    folder: Option<String>,
    /// Gives a lock back with the last clone.
    lock: Arc<Lock<P>>,
}

/// The lock of a folder, when it is held.
struct Lock<P> {
    inner: Arc<Mutex<Inner<P>>>,
    held: Mutex<Option<usize>>,
}

impl<P> Drop for Lock<P> {
    fn drop(&mut self) {
        if let Some(number) = self.held.get_mut().unwrap().take() {
            self.inner.lock().unwrap().locks.retain(|held| *held != number);
        }
    }
}

struct FaultFile<P> {
    disk: FaultDisk<P>,
    inode: usize,
}

impl<P> Clone for FaultDisk<P> {
    fn clone(&self) -> Self {
        let (inner, lock) = (Arc::clone(&self.inner), Arc::clone(&self.lock));
        FaultDisk { inner, folder: self.folder.clone(), lock }
    }
}

/// Repeatable randomness.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

impl Inode {
    fn apply(bytes: &mut Vec<u8>, change: &Change) {
        match change {
            Change::Write(at, new) => {
                if bytes.len() < at + new.len() {
                    bytes.resize(at + new.len(), 0);
                }
                bytes[*at..at + new.len()].copy_from_slice(new);
            }
            Change::Truncate(len) => bytes.truncate(*len),
        }
    }

    fn change(&mut self, change: Change) {
        Self::apply(&mut self.cached, &change);
        self.pending.push(change);
    }

    /// What a power cut leaves.
    fn survivor(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let style = random.below(4);
        let keep = random.below(self.pending.len() + 1);
        for (index, change) in self.pending.iter().enumerate() {
            match style {
                // In order up to a point, at which one is torn.
                0 | 1 if index < keep => Self::apply(&mut bytes, change),
                0 if index == keep => {
                    if let Change::Write(at, new) = change {
                        let torn = new[..random.below(new.len() + 1)].to_vec();
                        Self::apply(&mut bytes, &Change::Write(*at, torn));
                    }
                }
                // Any of them.
                2 if random.below(2) == 0 => Self::apply(&mut bytes, change),
                // The length, and zeros in place of the bytes.
                3 => match change {
                    Change::Write(at, new) if bytes.len() < at + new.len() => {
                        bytes.resize(at + new.len(), 0);
                    }
                    Change::Write(..) => {}
                    truncate @ Change::Truncate(_) => Self::apply(&mut bytes, truncate),
                },
                _ => {}
            }
        }
        bytes
    }
}

/// Which entries of folders a power cut leaves: each that was not synced is there or not. One that
/// was moved is at the one place or at the other.
fn survivors(
    durable: &BTreeMap<String, usize>,
    cached: &BTreeMap<String, usize>,
    random: &mut Random,
) -> BTreeMap<String, usize> {
    let mut names = durable.clone();
    for (name, inode) in cached {
        if durable.get(name) != Some(inode) && random.below(2) == 0 {
            names.insert(name.clone(), *inode);
            let is_old = |old: &String, at: &usize| at == inode && cached.get(old) != Some(inode);
            names.retain(|old, at| old == name || !is_old(old, at));
        }
    }
    for (name, inode) in durable {
        let is_removed = !cached.contains_key(name) && !cached.values().any(|at| at == inode);
        if is_removed && random.below(2) == 0 {
            names.remove(name);
        }
    }
    names
}

impl World {
    /// What the next start finds.
    pub fn after(&self, end: End, random: &mut Random) -> World {
        if end == End::Kill {
            return self.clone();
        }
        let names = survivors(&self.durable_names, &self.names, random);
        let folders = survivors(&self.durable_folders, &self.folders, random);
        let files = self.files.iter().map(|inode| {
            let bytes = inode.survivor(random);
            Inode { cached: bytes.clone(), durable: bytes, pending: Vec::new() }
        });
        World {
            files: files.collect(),
            durable_names: names.clone(),
            names,
            durable_folders: folders.clone(),
            folders,
            folders_made: self.folders_made,
        }
    }

    /// The same, with a write that was half done.
    pub fn torn(&self, (inode, at, bytes): &(usize, usize, Vec<u8>), cut: usize) -> World {
        let mut world = self.clone();
        let cut = cut.min(bytes.len());
        world.files[*inode].change(Change::Write(*at, bytes[..cut].to_vec()));
        world
    }

    /// Where a file is entered: it may be in a folder.
    fn key(&self, folder: Option<&str>, name: &str) -> Option<String> {
        let (folder, name) = match name.split_once('/') {
            Some((folder, name)) => (Some(folder), name),
            None => (folder, name),
        };
        match folder {
            None => Some(name.to_owned()),
            Some(folder) => Some(format!("{}/{name}", self.folders.get(folder)?)),
        }
    }

    /// The bytes of a file as programs see them; `folder/file` when it is in one.
    pub fn file(&mut self, name: &str) -> &mut Vec<u8> {
        let key = self.key(None, name).unwrap();
        &mut self.files[self.names[&key]].cached
    }

    /// A file goes behind everybody's back.
    pub fn take_away(&mut self, name: &str) {
        let key = self.key(None, name).unwrap();
        self.names.remove(&key);
        self.durable_names.remove(&key);
    }

    /// A folder goes with all that is in it, behind everybody's back.
    pub fn take_folder_away(&mut self, folder: &str) {
        for name in self.names_in(folder) {
            self.take_away(&format!("{folder}/{name}"));
        }
        self.folders.remove(folder);
        self.durable_folders.remove(folder);
    }

    /// The folders that programs see.
    pub fn folders(&self) -> Vec<String> {
        self.folders.keys().cloned().collect()
    }

    /// The names that programs see in a folder.
    pub fn names_in(&self, folder: &str) -> Vec<String> {
        let prefix = self.key(Some(folder), "").unwrap();
        self.names.keys().filter_map(|name| Some(name.strip_prefix(&prefix)?.to_owned())).collect()
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> usize {
        self.names.values().map(|inode| self.files[*inode].cached.len()).sum()
    }

    /// The names that programs see, but for those in folders.
    pub fn names(&self) -> Vec<String> {
        self.names.keys().filter(|name| !name.contains('/')).cloned().collect()
    }
}

impl<P: Clone + Default> FaultDisk<P> {
    pub fn new(world: World) -> Self {
        let (progress, locks) = (P::default(), Vec::new());
        let (operations, faults, room, snapshots) = (0, None, None, None);
        let inner = Inner { world, operations, faults, room, locks, progress, snapshots };
        Self::view(Arc::new(Mutex::new(inner)), None)
    }

    fn view(inner: Arc<Mutex<Inner<P>>>, folder: Option<String>) -> Self {
        let lock = Arc::new(Lock { inner: Arc::clone(&inner), held: Mutex::default() });
        FaultDisk { inner, folder, lock }
    }

    /// One of its folders, as one process sees it.
    pub fn folder(&self, name: &str) -> Self {
        Self::view(Arc::clone(&self.inner), Some(name.to_owned()))
    }

    /// An empty folder goes.
    pub fn remove_folder(&self, name: &str) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::Remove, None);
        result?;
        inner.world.folders.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn key(&self, world: &World, name: &str) -> io::Result<String> {
        Ok(world.key(self.folder.as_deref(), name).ok_or(io::ErrorKind::NotFound)?)
    }

    fn inner(&self) -> MutexGuard<'_, Inner<P>> {
        self.inner.lock().unwrap()
    }

    /// From now on every moment before an operation is kept.
    pub fn record(&self, progress: P) {
        let mut inner = self.inner();
        inner.progress = progress;
        inner.snapshots = Some(Vec::new());
    }

    pub fn snapshots(&self) -> Vec<Snapshot<P>> {
        self.inner().snapshots.take().unwrap_or_default()
    }

    /// Notes what the test knows now.
    pub fn note(&self, note: impl FnOnce(&mut P)) {
        note(&mut self.inner().progress);
    }

    pub fn fail(&self, faults: Option<Faults>) {
        self.inner().faults = faults;
    }

    /// From now on all files together have so much room.
    pub fn give_room(&self, bytes: Option<usize>) {
        self.inner().room = bytes;
    }

    pub fn operations(&self) -> usize {
        self.inner().operations
    }

    pub fn world(&self) -> World {
        self.inner().world.clone()
    }

    /// Does something behind the program's back.
    pub fn meddle(&self, meddle: impl FnOnce(&mut World)) {
        meddle(&mut self.inner().world);
    }

    /// Counts an operation, and says whether it is to fail.
    fn count(
        &self,
        operation: Operation,
        during: Option<(usize, usize, &[u8])>,
    ) -> (MutexGuard<'_, Inner<P>>, io::Result<()>) {
        let mut inner = self.inner();
        let number = inner.operations;
        inner.operations += 1;
        if inner.snapshots.is_some() {
            let world = inner.world.clone();
            let progress = inner.progress.clone();
            let during = during.map(|(inode, at, bytes)| (inode, at, bytes.to_vec()));
            let snapshot = Snapshot { world, operation, during, progress };
            inner.snapshots.as_mut().unwrap().push(snapshot);
        }
        let grows = match (operation, during) {
            (Operation::Create, _) => true,
            (_, Some((inode, at, bytes))) => {
                at + bytes.len() > inner.world.files[inode].cached.len()
            }
            _ => false,
        };
        let fails = |f: &Faults| {
            let is_its_turn = (f.from..f.from.saturating_add(f.count)).contains(&number);
            is_its_turn && (grows || !f.growth_only)
        };
        let more = during.map_or(0, |(inode, at, bytes)| {
            (at + bytes.len()).saturating_sub(inner.world.files[inode].cached.len())
        });
        let is_full = more > 0 && inner.room.is_some_and(|room| inner.world.used() + more > room);
        let result = match inner.faults.filter(fails) {
            Some(faults) => Err(io::Error::new(faults.error, "made to fail")),
            None if is_full => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(()),
        };
        (inner, result)
    }

    fn handle(&self, inode: usize) -> Arc<dyn DiskFile>
    where
        P: Send + 'static,
    {
        Arc::new(FaultFile { disk: self.clone(), inode })
    }
}

impl<P: Clone + Default + Send + 'static> Disk for FaultDisk<P> {
    fn lock(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut held = self.lock.held.lock().unwrap();
        if held.is_some() {
            return Ok(());
        }
        let there = self.inner().world.folders.get(folder).copied();
        let number = match there {
            Some(number) => number,
            None => {
                let (mut inner, result) = self.count(Operation::Create, None);
                result?;
                let world = &mut inner.world;
                world.folders_made += 1;
                world.folders.insert(folder.clone(), world.folders_made);
                world.folders_made
            }
        };
        let mut inner = self.inner();
        if inner.locks.contains(&number) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        inner.locks.push(number);
        *held = Some(number);
        Ok(())
    }

    fn is_there(&self) -> io::Result<bool> {
        let held = *self.lock.held.lock().unwrap();
        let there = self.folder.as_ref().map(|f| self.inner().world.folders.get(f).copied());
        Ok(held.is_none() || there.flatten() == held)
    }

    fn let_go(&self) {
        let held = self.lock.held.lock().unwrap().take();
        self.inner().locks.retain(|number| Some(*number) != held);
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.inner();
        match &self.folder {
            None => Ok(inner.world.names()),
            Some(folder) if inner.world.folders.contains_key(folder) => {
                Ok(inner.world.names_in(folder))
            }
            Some(_) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let (mut inner, result) = self.count(Operation::Create, None);
        result?;
        let world = &mut inner.world;
        let key = self.key(world, name)?;
        let inode = match world.names.get(&key) {
            Some(inode) => *inode,
            None => {
                world.files.push(Inode::default());
                world.files.len() - 1
            }
        };
        world.names.insert(key, inode);
        world.files[inode].change(Change::Truncate(0));
        drop(inner);
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inner = self.inner();
        let inode = inner.world.names.get(&self.key(&inner.world, name)?).copied();
        drop(inner);
        Ok(self.handle(inode.ok_or(io::ErrorKind::NotFound)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::Remove, None);
        result?;
        let key = self.key(&inner.world, name)?;
        inner.world.names.remove(&key).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::Rename, None);
        result?;
        let world = &mut inner.world;
        if let Some(number) = world.folders.remove(from) {
            world.folders.insert(to.to_owned(), number);
            return Ok(());
        }
        let (from, to) = (self.key(world, from)?, self.key(world, to)?);
        let inode = world.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to, inode);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::SyncDir, None);
        result?;
        let world = &mut inner.world;
        let prefix = self.key(world, "")?;
        let is_here = |name: &str| match self.folder {
            Some(_) => name.starts_with(&prefix),
            None => !name.contains('/'),
        };
        world.durable_names.retain(|name, _| !is_here(name));
        let here = world.names.iter().filter(|(name, _)| is_here(name));
        let here: Vec<_> = here.map(|(name, inode)| (name.clone(), *inode)).collect();
        // What was moved here is nowhere else.
        world.durable_names.retain(|_, at| !here.iter().any(|(_, inode)| inode == at));
        world.durable_names.extend(here);
        if self.folder.is_none() {
            world.durable_folders = world.folders.clone();
        }
        Ok(())
    }
}

impl<P: Clone + Default + Send + 'static> DiskFile for FaultFile<P> {
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let at = at as usize;
        let (mut inner, result) = self.disk.count(Operation::Write, Some((self.inode, at, bytes)));
        // A write that fails may have done a part of its work.
        let done = if result.is_ok() { bytes.len() } else { bytes.len() / 2 };
        inner.world.files[self.inode].change(Change::Write(at, bytes[..done].to_vec()));
        result
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let inner = self.disk.inner();
        let from = inner.world.files[self.inode].cached.get(at as usize..).unwrap_or_default();
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let (mut inner, result) = self.disk.count(Operation::Truncate, None);
        result?;
        inner.world.files[self.inode].change(Change::Truncate(len as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let (mut inner, result) = self.disk.count(Operation::Sync, None);
        let inode = &mut inner.world.files[self.inode];
        // What could not be written out counts as clean from now on: it is never written.
        inode.pending.clear();
        result?;
        inode.durable = inode.cached.clone();
        Ok(())
    }

    fn has_name(&self) -> io::Result<bool> {
        Ok(self.disk.inner().world.names.values().any(|inode| *inode == self.inode))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.inner().world.files[self.inode].cached.len() as u64)
    }
}

/// Says that a test is not for this machine, past what keeps the words of tests that pass: the
/// script that runs all tests lists these.
pub fn skip(why: &str) {
    let _ = writeln!(io::stderr(), "skipped: {why}");
}
