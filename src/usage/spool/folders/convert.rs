//! A spool of the layout before there were folders, with its files directly in the directory,
//! becomes a folder: its files are moved, none is written. The format of the files is the same.

use super::super::disk::Disk;
use super::super::receipts;
use super::super::register::{self, Register};
use super::super::segment;
use super::super::{checkpoint, dead_letter, replay};
use super::root::{new_name, Root, MOVING};
use std::io;

/// In a folder that is being made: the names of the files that go there, a line each.
const LIST: &str = "to-be-moved";

/// True for a file of a spool. What else may lie in the directory is not ours.
pub fn is_of_a_spool(name: &str) -> bool {
    let plain = name.strip_suffix(".new").unwrap_or(name);
    let suffixes = [checkpoint::SUFFIX, dead_letter::SUFFIX, replay::SUFFIX, receipts::SUFFIX];
    segment::first_of(plain).is_some()
        || plain == register::NAME
        || suffixes.iter().any(|suffix| plain.ends_with(suffix))
        || dead_letter::is_archive(plain)
}

/// Moves what there is into a folder. A process that ends in between leaves a folder that nobody
/// adopts, and the next one goes on with it. True when there was something to do.
///
/// Where a process of an older version ran in between, it missed what was moved, and wrote files
/// and sequences that are there already. Then what was moved is a folder as it is, and the rest
/// becomes another one: nothing is written over.
///
/// # Errors
/// The disk does not do it, or a process of an older version still writes there.
pub(super) fn convert(root: &dyn Root) -> io::Result<bool> {
    let here = root.itself();
    let there = root.folders()?;
    let begun = there.iter().find(|name| name.ends_with(MOVING)).cloned();
    if begun.is_none() && files_of(&*here)?.is_empty() {
        return Ok(false);
    }
    here.lock()?;
    let moving = match begun {
        Some(begun) if is_as_left(root, &begun)? => begun,
        Some(begun) => {
            part(root, &begun)?;
            if files_of(&*here)?.is_empty() {
                return Ok(true);
            }
            new_name(&root.folders()?)? + MOVING
        }
        None => new_name(&there)? + MOVING,
    };
    move_into(root, &moving)?;
    Ok(true)
}

/// The files of a spool in a folder, or directly in the directory.
fn files_of(disk: &dyn Disk) -> io::Result<Vec<String>> {
    let mut files = match disk.list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names?,
    };
    files.retain(|name| is_of_a_spool(name));
    files.sort_unstable();
    Ok(files)
}

/// True when nobody has written here since the move began: what is not moved is what is here.
fn is_as_left(root: &dyn Root, moving: &str) -> io::Result<bool> {
    let folder = root.folder(moving);
    folder.lock()?;
    let moved = files_of(&*folder)?;
    let Some(list) = dead_letter::read(&*folder, LIST)? else { return Ok(moved.is_empty()) };
    let list = String::from_utf8_lossy(&list);
    let left = list.lines().filter(|name| !moved.iter().any(|moved| moved == name));
    Ok(left.eq(files_of(&*root.itself())?.iter()))
}

/// Makes a folder of what was moved, beside what an older version has written since. Checkpoints
/// may have stayed behind: their reporters are not new here, and get all that is there.
fn part(root: &dyn Root, moving: &str) -> io::Result<()> {
    let folder = root.folder(moving);
    let mut register = match Register::read(&*folder)? {
        register::Found::Whole(register) => register,
        _ => Register::default(),
    };
    for file in files_of(&*root.itself())?.iter().chain(&files_of(&*folder)?) {
        let reporter = file.strip_suffix(checkpoint::SUFFIX).map(str::to_owned);
        register.reporters.extend(reporter.filter(|name| !register.reporters.contains(name)));
    }
    register.write(&*folder)?;
    finish(root, moving)?;
    let message = "an older version wrote here while its spool was being moved: what it wrote \
                   becomes a folder of its own, and some records may be delivered twice";
    tracing::warn!(folder = moving.strip_suffix(MOVING), "{message}");
    Ok(())
}

fn move_into(root: &dyn Root, moving: &str) -> io::Result<()> {
    let (here, folder) = (root.itself(), root.folder(moving));
    folder.lock()?;
    here.sync_dir()?;
    let files = files_of(&*here)?;
    if dead_letter::read(&*folder, LIST)?.is_none() {
        let list: String = files.iter().map(|name| format!("{name}\n")).collect();
        dead_letter::write_whole(&*folder, LIST, list.as_bytes())?;
    }
    for name in &files {
        here.rename(name, &format!("{moving}/{name}"))?;
    }
    folder.sync_dir()?;
    drop(folder);
    finish(root, moving)?;
    let (folder, files) = (moving.strip_suffix(MOVING), files.len());
    tracing::info!(folder, files, "the spool has become a folder of its directory");
    Ok(())
}

/// Gives a folder the name under which it is adopted.
fn finish(root: &dyn Root, moving: &str) -> io::Result<()> {
    let (here, name) = (root.itself(), moving.strip_suffix(MOVING).unwrap_or(moving));
    here.sync_dir()?;
    here.rename(moving, name)?;
    here.sync_dir()?;
    // Where it stays, it says nothing to anybody.
    let _ = here.remove(&format!("{name}/{LIST}"));
    Ok(())
}
