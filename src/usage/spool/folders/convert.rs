//! A spool of the layout before there were folders, with its files directly in the directory,
//! becomes a folder: its files are moved, none is written. The format of the files is the same.

use super::super::receipts;
use super::super::register;
use super::super::segment;
use super::super::{checkpoint, dead_letter, replay};
use super::root::{new_name, Root, MOVING};
use std::io;

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
/// adopts, and the next one goes on with it. True when a folder was made.
///
/// # Errors
/// The disk does not do it, or a process of an older version still writes there.
pub(super) fn convert(root: &dyn Root) -> io::Result<bool> {
    let here = root.itself();
    let there = root.folders()?;
    let begun = there.iter().find(|name| name.ends_with(MOVING)).cloned();
    let files = || match here.list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names,
    };
    if begun.is_none() && !files()?.iter().any(|name| is_of_a_spool(name)) {
        return Ok(false);
    }
    here.lock()?;
    let moving = match begun {
        Some(begun) => begun,
        None => new_name(&there)? + MOVING,
    };
    let folder = root.folder(&moving);
    folder.lock()?;
    here.sync_dir()?;
    // Listed again, with the lock in hand.
    let mut files = files()?;
    files.retain(|name| is_of_a_spool(name));
    for name in &files {
        here.rename(name, &format!("{moving}/{name}"))?;
    }
    folder.sync_dir()?;
    here.sync_dir()?;
    let name = moving.strip_suffix(MOVING).unwrap_or(&moving);
    here.rename(&moving, name)?;
    here.sync_dir()?;
    let files = files.len();
    tracing::info!(folder = name, files, "the spool has become a folder of its directory");
    Ok(true)
}
