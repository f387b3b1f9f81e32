//! Where the rings of a process lie, and making them.

use super::file::RingFile;
use super::recover::open_regular;
use crate::config::plan::Spool;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::iter;
use std::os::unix::ffi::OsStringExt;
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

/// The folders in which the rings of a process may lie that has, or had, this folder of the spool.
pub fn folders_of(home: &Path) -> Vec<PathBuf> {
    let elsewhere = elsewhere(home).filter(|path| path.is_absolute());
    iter::once(home.to_owned()).chain(elsewhere).collect()
}

/// Where this folder says that its rings lie.
fn elsewhere(home: &Path) -> Option<PathBuf> {
    let mut file = open_regular(&home.join(ELSEWHERE), PATH_BYTES_MAX).ok()??;
    let mut path = Vec::new();
    file.read_to_end(&mut path).ok()?;
    Some(OsString::from_vec(path).into())
}

/// Removes what is left of the part of a ring folder that belonged to this folder of a spool, whose
/// rings are read and gone.
pub fn part_with(home: &Path) {
    for folder in folders_of(home).iter().skip(1) {
        // One in which there still is something stays.
        let _ = fs::remove_dir(folder);
    }
}

/// Where they are to lie: in a part of the folder for rings that has the name of the process' own
/// folder, which no two processes share; or there.
fn choose(plan: &Spool, home: &Path) -> io::Result<PathBuf> {
    let runtime = || Some(PathBuf::from(RUNTIME)).filter(|dir| is_writable(dir));
    let (Some(dir), Some(name)) = (plan.ring_dir.clone().or_else(runtime), home.file_name()) else {
        return Ok(home.to_owned());
    };
    let folder = std::path::absolute(dir)?.join(name);
    // Renamed when it is whole: half a path would lead nowhere.
    let new = home.join(format!("{ELSEWHERE}.new"));
    fs::write(&new, folder.as_os_str().as_encoded_bytes())?;
    fs::rename(new, home.join(ELSEWHERE))?;
    Ok(folder)
}

fn is_writable(dir: &Path) -> bool {
    use rustix::fs::{access, Access};
    dir.is_dir() && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

/// Makes a ring for each of so many workers of a process that has this folder of the spool; without
/// one they lie in no file. Where files cannot be made (the disk is full, or read-only, which the
/// spool bridges with memory, too) they are memory of the process alone. That is told, and does not
/// end before the next start.
///
/// # Errors
/// There is not so much memory.
pub fn make(plan: &Spool, home: Option<&Path>, workers: usize) -> io::Result<Vec<Arc<RingFile>>> {
    let anonymous = || (0..workers).map(|_| RingFile::anonymous(plan.ring_size)).collect();
    let made: io::Result<Vec<RingFile>> = match home {
        None => anonymous(),
        Some(home) => match choose(plan, home).and_then(|folder| {
            tracing::info!(folder = %folder.display(), "the journal's rings are here");
            in_folder(&folder, workers, plan.ring_size)
        }) {
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
