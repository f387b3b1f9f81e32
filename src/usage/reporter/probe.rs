//! Whether a destination can be reached: looked at before the first record is there. Nothing is
//! sent or made; a webhook is only connected to.

use super::table;
use crate::config::plan::{self, ReporterKind};
use crate::store::http::HttpService;
use crate::store::redis::{self, RedisServer};
use crate::store::Trouble;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Reads the files that a reporter reads, and connects to nothing.
///
/// # Errors
/// One cannot be read, or holds nothing of use; in words that name the reporter and the file.
pub fn readable(plan: &plan::Reporter) -> Result<(), String> {
    match &plan.kind {
        ReporterKind::Redis(reporter) => redis::readable(&reporter.redis)
            .map_err(|error| format!("reporter {}: {error}", plan.name)),
        ReporterKind::Database(_) | ReporterKind::Builtin(_) => table::readable(plan),
        ReporterKind::Webhook(_) | ReporterKind::File(_) => Ok(()),
    }
}

/// Tries to reach the destination of a reporter for at most so long. Blocks.
///
/// # Errors
/// What is in the way, in words for a person, without a secret.
pub fn probe(plan: &plan::Reporter, limit: Duration) -> Result<(), String> {
    let until = Instant::now() + limit;
    match &plan.kind {
        ReporterKind::Webhook(webhook) => {
            HttpService::new(&webhook.url).probe(until).map_err(Trouble::into_words)
        }
        ReporterKind::Redis(reporter) => {
            RedisServer::new(reporter.redis.clone()).probe(until).map_err(Trouble::into_words)
        }
        ReporterKind::File(file) => writable(&file.path),
        ReporterKind::Builtin(_) | ReporterKind::Database(_) => table::probe(plan, limit),
    }
}

/// Whether a file can be written, or made: what has to be made for that is removed again.
pub(super) fn writable(path: &Path) -> Result<(), String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    if path.exists() {
        return OpenOptions::new().append(true).open(path).map(drop).map_err(said);
    }
    let folders = path.ancestors().skip(1);
    let folders = folders.map(|f| if f.as_os_str().is_empty() { Path::new(".") } else { f });
    let folder = folders.into_iter().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let trial = folder.join(format!(".llmproxy-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create(true).truncate(false).open(&trial);
    made.map_err(said)?;
    fs::remove_file(&trial).map_err(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a file that cannot be written, found out by the first record; and a trace of the
    /// look at it.
    #[test]
    fn a_file_is_tried_and_left_as_it_is() {
        let folder = std::env::temp_dir().join(format!("llmproxy-probe-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(writable(&folder.join("new/er/file")), Ok(()));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::write(folder.join("old"), "x").unwrap();
        assert_eq!(writable(&folder.join("old")), Ok(()));
        let said = writable(&folder).unwrap_err();
        assert!(said.contains("Is a directory"), "{said}");
        let said = writable(&folder.join("old/file")).unwrap_err();
        assert!(said.contains("Not a directory"), "{said}");
        assert_eq!(fs::read(folder.join("old")).unwrap(), b"x");
        fs::remove_dir_all(&folder).unwrap();
    }
}
