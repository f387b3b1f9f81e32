//! A disk with a page cache: what was not synced may be lost or torn when the power goes, and any
//! operation can be made to fail.

use super::super::disk::{Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// All that a disk and the kernel hold at one moment.
#[derive(Clone, Default)]
pub struct World {
    files: Vec<Inode>,
    /// As programs see them.
    names: BTreeMap<String, usize>,
    /// As the disk has them.
    durable_names: BTreeMap<String, usize>,
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
    progress: P,
    snapshots: Option<Vec<Snapshot<P>>>,
}

/// The disk; clones are the same one.
pub struct FaultDisk<P>(Arc<Mutex<Inner<P>>>);

struct FaultFile<P> {
    disk: FaultDisk<P>,
    inode: usize,
}

impl<P> Clone for FaultDisk<P> {
    fn clone(&self) -> Self {
        FaultDisk(Arc::clone(&self.0))
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

impl World {
    /// What the next start finds.
    pub fn after(&self, end: End, random: &mut Random) -> World {
        if end == End::Kill {
            return self.clone();
        }
        let mut names = self.durable_names.clone();
        // Each entry of the folder that was not synced is there or not.
        for (name, inode) in &self.names {
            if self.durable_names.get(name) != Some(inode) && random.below(2) == 0 {
                names.insert(name.clone(), *inode);
            }
        }
        for name in self.durable_names.keys() {
            if !self.names.contains_key(name) && random.below(2) == 0 {
                names.remove(name);
            }
        }
        let files = self.files.iter().map(|inode| {
            let bytes = inode.survivor(random);
            Inode { cached: bytes.clone(), durable: bytes, pending: Vec::new() }
        });
        World { files: files.collect(), durable_names: names.clone(), names }
    }

    /// The same, with a write that was half done.
    pub fn torn(&self, (inode, at, bytes): &(usize, usize, Vec<u8>), cut: usize) -> World {
        let mut world = self.clone();
        let cut = cut.min(bytes.len());
        world.files[*inode].change(Change::Write(*at, bytes[..cut].to_vec()));
        world
    }

    /// The bytes of a file as programs see them.
    pub fn file(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.files[self.names[name]].cached
    }

    /// A file goes behind everybody's back.
    pub fn take_away(&mut self, name: &str) {
        self.names.remove(name);
        self.durable_names.remove(name);
    }

    /// Bytes of all files that have a name.
    pub fn used(&self) -> usize {
        self.names.values().map(|inode| self.files[*inode].cached.len()).sum()
    }

    /// The names that programs see.
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}

impl<P: Clone + Default> FaultDisk<P> {
    pub fn new(world: World) -> Self {
        FaultDisk(Arc::new(Mutex::new(Inner {
            world,
            operations: 0,
            faults: None,
            room: None,
            progress: P::default(),
            snapshots: None,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<P>> {
        self.0.lock().unwrap()
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
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().world.names())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let (mut inner, result) = self.count(Operation::Create, None);
        result?;
        let world = &mut inner.world;
        let inode = match world.names.get(name) {
            Some(inode) => *inode,
            None => {
                world.files.push(Inode::default());
                world.files.len() - 1
            }
        };
        world.names.insert(name.to_owned(), inode);
        world.files[inode].change(Change::Truncate(0));
        drop(inner);
        Ok(self.handle(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.inner().world.names.get(name).copied();
        Ok(self.handle(inode.ok_or(io::ErrorKind::NotFound)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::Remove, None);
        result?;
        inner.world.names.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::Rename, None);
        result?;
        let inode = inner.world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.world.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut inner, result) = self.count(Operation::SyncDir, None);
        result?;
        inner.world.durable_names = inner.world.names.clone();
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

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.inner().world.files[self.inode].cached.len() as u64)
    }
}
