//! What a process that died left in its journal rings, beside what it left in the spool. Its
//! journal may have written some of that already: what has an end there is done with.

use super::codec;
use super::segment::Kind;
use crate::usage::ring::place;
use crate::usage::ring::recover::{self, Drained};
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;

/// The entries of all rings in a folder.
#[derive(Default)]
pub(super) struct Leftover {
    entries: Vec<(Kind, Box<[u8]>)>,
    /// Ids of requests in them, less those that have an end in the spool.
    unended: HashSet<Box<str>>,
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
    pub damaged: u64,
}

impl Leftover {
    /// Reads the rings of these folders.
    ///
    /// # Errors
    /// They cannot be read, or a newer version wrote them.
    pub fn read(folders: &[PathBuf]) -> io::Result<Leftover> {
        let mut leftover = Leftover { folders: folders.to_vec(), ..Leftover::default() };
        let mut count = 0;
        for folder in folders {
            let (entries, ids) = (&mut leftover.entries, &mut leftover.unended);
            let drained = recover::drain(folder, &mut |kind, payload| {
                if let Some(id) = codec::request_id_of(payload) {
                    if !ids.contains(id) {
                        ids.insert(id.into());
                    }
                    entries.push((kind, payload.into()));
                }
            })?;
            let Drained { files, entries, damaged, is_missing } = drained;
            if is_missing {
                let folder = folder.display();
                let message = "the rings of a process that died are gone: what the spool did not \
                               have of its last milliseconds is lost";
                tracing::error!(%folder, "{message}");
                leftover.damaged += 1;
            }
            leftover.files.extend(files);
            leftover.damaged += damaged;
            count += entries;
        }
        if count > 0 {
            tracing::info!(entries = count, "a process that died left this in its rings");
        }
        Ok(leftover)
    }

    /// The spool has the end of this request.
    pub fn has_end(&mut self, payload: &[u8]) {
        if self.unended.is_empty() {
            return;
        }
        if let Some(id) = codec::request_id_of(payload) {
            self.unended.remove(id);
        }
    }

    /// Gives the entries that the spool does not make up for, in order.
    pub fn take(&mut self) -> impl Iterator<Item = (Kind, Box<[u8]>)> + '_ {
        let unended = &self.unended;
        let is_unended =
            |payload: &[u8]| codec::request_id_of(payload).is_some_and(|id| unended.contains(id));
        self.entries.drain(..).filter(move |(_, payload)| is_unended(payload))
    }

    /// Removes the rings: all that was in them is in the journal.
    pub fn remove(&mut self) {
        for file in self.files.drain(..) {
            if let Err(error) = fs::remove_file(&file) {
                let file = file.display();
                tracing::warn!(%file, %error, "a ring that was read cannot be removed");
            }
        }
        for folder in self.folders.drain(..) {
            place::part_with(&folder);
            // Those for rings alone; the others are not empty.
            let _ = fs::remove_dir(folder);
        }
    }
}
