//! Where the rings of a process lie, and making them.

use super::file::{is_ring, RingFile};
use super::recover::open_regular;
use crate::config::plan::{OnSpoolFailure, Spool};
use crate::usage::spool::disk::must_be_ours;
use rustix::fs::{access, statfs, Access};
use rustix::process::geteuid;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::iter;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Memory that systemd keeps from one start of a service to the next, where it is told to
/// (`RuntimeDirectory=llmproxy`, `RuntimeDirectoryPreserve=yes`).
const RUNTIME: &str = "/run/llmproxy";

/// What says, in a process' folder of the spool, that its rings lie elsewhere, and where: whoever
/// takes over what it left may have another configuration.
pub const ELSEWHERE: &str = "rings";

/// Bytes of a path that the kernel takes.
const PATH_BYTES_MAX: u64 = 4096;

/// What the kernel calls file systems that are memory (`f_type`): tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// The folders in which the rings of a process may lie that has, or had, this folder of the spool.
/// The first is that folder itself, the second, if there is one, must be there.
pub fn folders_of(home: &Path) -> Vec<PathBuf> {
    iter::once(home.to_owned()).chain(elsewhere(home)).collect()
}

/// Where this folder says that its rings lie. Not that they lie in it: they would be read twice.
fn elsewhere(home: &Path) -> Option<PathBuf> {
    let mut file = open_regular(&home.join(ELSEWHERE), PATH_BYTES_MAX).ok()??;
    let mut path = Vec::new();
    file.read_to_end(&mut path).ok()?;
    let path = PathBuf::from(OsString::from_vec(path));
    Some(path).filter(|path| path.is_absolute() && !is_same(path, home))
}

/// Whether both are one folder, by whichever names.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    id(one).is_some_and(|one| Some(one) == id(other))
}

/// Removes the part of a ring folder that belongs to this folder of a spool, and then what leads
/// there. To be called when all that was in those rings is kept elsewhere. A part in which there
/// still is something stays.
pub fn part_with(home: &Path) {
    let Some(folder) = elsewhere(home) else { return };
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {}
        // What leads nowhere would be taken for rings that somebody deleted.
        _ => drop(fs::remove_file(home.join(ELSEWHERE))),
    }
}

/// Memory that outlives the process, where there is a folder for it that is ours alone.
pub fn runtime_folder() -> Option<PathBuf> {
    Some(PathBuf::from(RUNTIME)).filter(|dir| is_for_us_alone(dir))
}

/// Where they are to lie: in a part of the folder for rings that has the name of the process' own
/// folder, which no two processes share; or there. From now on the own folder leads there.
fn choose(plan: &Spool, home: &Path) -> io::Result<PathBuf> {
    let wanted = match (plan.ring_dir.clone().or_else(runtime_folder), home.file_name()) {
        (Some(dir), Some(name)) => Some(std::path::absolute(dir)?.join(name)),
        _ => None,
    };
    // The folder of the spool itself, by its name or by another one.
    let wanted = wanted.filter(|wanted| !is_same(wanted, home));
    let before = elsewhere(home);
    if let Some(before) = before.as_ref().filter(|before| holds_rings(before)) {
        // A process that died left them, and the disk has not taken what is in them yet. There is
        // one place for what leads to rings: without it they would be forgotten.
        if wanted.as_ref() != Some(before) {
            let (ring_dir, message) = (
                before.display(),
                "usage.spool.ring_dir is used from the \
                next start on: rings of an earlier one wait here until the disk takes them",
            );
            tracing::warn!(%ring_dir, "{message}");
        }
        return Ok(before.clone());
    }
    let Some(folder) = wanted else {
        return match fs::remove_file(home.join(ELSEWHERE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(home.to_owned()),
        };
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    must_be_ours(&folder)?;
    if before.as_ref() != Some(&folder) {
        lead(home, &folder)?;
    }
    Ok(folder)
}

/// Notes in the own folder where the rings lie. Renamed when it is whole: half a path would lead
/// nowhere.
fn lead(home: &Path, folder: &Path) -> io::Result<()> {
    let new = home.join(format!("{ELSEWHERE}.new"));
    let mut file = File::create(&new)?;
    file.write_all(folder.as_os_str().as_encoded_bytes())?;
    file.sync_all()?;
    fs::rename(new, home.join(ELSEWHERE))?;
    File::open(home)?.sync_all()
}

fn holds_rings(folder: &Path) -> bool {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_str().is_some_and(is_ring))
}

/// True for a folder that nobody chose and that may be used all the same: whoever else may write
/// there could put a folder of his own in the place of ours.
pub(super) fn is_for_us_alone(dir: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(dir) else { return false };
    let is_ours = found.uid() == geteuid().as_raw() && found.mode() & 0o022 == 0;
    if found.is_dir() && !is_ours {
        let dir = dir.display();
        tracing::info!(%dir, "not used for rings: it is not ours, or others may write there");
    }
    found.is_dir() && is_ours && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// True when a store there never waits for a disk, or when that cannot be told.
fn is_in_memory(folder: &Path) -> bool {
    statfs(folder).is_ok_and(|found| IN_MEMORY.contains(&found.f_type))
}

/// Makes a ring for each of so many workers of a process that has this folder of the spool; without
/// one they lie in no file. Where files cannot be made (the disk is full, or read-only, which the
/// spool bridges with memory, too) they are memory of the process alone. That is told, and does not
/// end before the next start; where nobody may be served without a record it prevents the start.
///
/// # Errors
/// There is not so much memory; or the files cannot be made, and the plan says `refuse`.
pub fn make(plan: &Spool, home: Option<&Path>, workers: usize) -> io::Result<Vec<Arc<RingFile>>> {
    let anonymous = || (0..workers).map(|_| RingFile::anonymous(plan.ring_size)).collect();
    let made: io::Result<Vec<RingFile>> = match home {
        None => anonymous(),
        Some(home) => match in_files(plan, home, workers) {
            Err(error) if plan.on_failure == OnSpoolFailure::Refuse => {
                let message = format!(
                    "the journal's rings cannot be made, and with on_spool_failure: refuse nobody \
                     is served without them: {error}"
                );
                Err(io::Error::new(error.kind(), message))
            }
            Err(error) => {
                let message = "the journal's rings cannot be made: until the next start a kill \
                               loses what the spool does not have yet";
                tracing::error!(%error, "{message}");
                anonymous()
            }
            made => made,
        },
    };
    Ok(made?.into_iter().map(Arc::new).collect())
}

fn in_files(plan: &Spool, home: &Path, workers: usize) -> io::Result<Vec<RingFile>> {
    let folder = choose(plan, home)?;
    let rings = in_folder(&folder, workers, plan.ring_size)?;
    let is_in_memory = is_in_memory(&folder);
    let folder = folder.display();
    match is_in_memory {
        true => tracing::info!(%folder, "the journal's rings are here"),
        false => tracing::warn!(
            %folder,
            "the journal's rings are here, on a disk: a worker may wait for milliseconds while a \
             page is written back; usage.spool.ring_dir may name a folder in memory (tmpfs)"
        ),
    }
    Ok(rings)
}

fn in_folder(folder: &Path, workers: usize, bytes: u64) -> io::Result<Vec<RingFile>> {
    let mut rings = Vec::with_capacity(workers);
    for worker in 0..workers {
        match RingFile::create(folder, worker, bytes) {
            Ok(ring) => rings.push(ring),
            Err(error) => {
                rings.iter().for_each(RingFile::remove);
                return Err(error);
            }
        }
    }
    Ok(rings)
}
