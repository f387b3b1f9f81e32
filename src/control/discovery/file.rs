//! Sources that are files with a list of backends. A file is read when it changes, and at
//! intervals: on a network's disk nobody hears of a change.

use super::finder::Inquiry;
use crate::config::found::FoundRows;
use crate::config::origin;
use crate::config::plan::FileSource;
use crate::control::watch::{self, ConfigWatch};
use crossbeam_channel::{bounded, Receiver};
use std::path::PathBuf;

/// Hears when the file may be another one.
pub type Woken = Receiver<()>;

/// Reads a file.
pub struct FileInquiry {
    path: PathBuf,
    _watch: Option<ConfigWatch>,
}

impl FileInquiry {
    /// With a watch on the file, if the system gives one.
    pub fn new(source: &FileSource) -> (FileInquiry, Woken) {
        let (wake, woken) = bounded(1);
        let changed = move || {
            let _ = wake.try_send(());
        };
        let watch = watch::start(&source.path, changed).inspect_err(|error| {
            let file = source.path.display();
            let how = "discovery: the file is not watched, and read at intervals";
            tracing::warn!(%file, %error, "{how}");
        });
        let (path, _watch) = (source.path.clone(), watch.ok());
        // Without a watch nobody wakes: a closed channel would do so all the time.
        let woken = if _watch.is_some() { woken } else { crossbeam_channel::never() };
        (FileInquiry { path, _watch }, woken)
    }
}

impl Inquiry for FileInquiry {
    fn look(&mut self) -> Result<FoundRows, String> {
        let named = |why| format!("{}: {why}", self.path.display());
        let bytes = origin::read_regular(&self.path).map_err(|error| named(error.to_string()))?;
        FoundRows::of_file(bytes).map_err(named)
    }

    fn is_ours(&self) -> bool {
        true
    }
}
