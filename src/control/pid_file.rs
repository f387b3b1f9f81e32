//! `server.pid_file`: the number of the process, for as long as it runs.

use super::process::Serving;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of such a file at most: a number and blanks.
const BYTES_MAX: u64 = 64;

/// A file that holds our number. It goes away with this.
pub struct PidFile {
    path: PathBuf,
}

impl PidFile {
    /// Writes our number. One of a process that is gone is replaced, and that of the one in whose
    /// place this one starts.
    ///
    /// # Errors
    /// An llmproxy that runs has its number there, or the file is none of that kind, or it cannot
    /// be written: a line for a person.
    pub fn write(path: &Path, predecessor: Option<u32>) -> Result<PidFile, String> {
        let named = |error: String| named(path, &error);
        let own = std::process::id();
        match read(path) {
            Ok(pid) if pid == own || Some(pid) == predecessor => {}
            Ok(pid) => {
                if Serving::find(pid).is_ok() {
                    return Err(named(format!("the llmproxy with the number {pid} has it")));
                }
                tracing::info!(path = %path.display(), pid, "the pid file of a process that is gone");
            }
            Err(Unread::NotThere) => {}
            Err(Unread::NoNumber) => {
                return Err(named("is no pid file, and is not replaced".into()))
            }
            Err(Unread::Io(error)) => return Err(named(error.to_string())),
        }
        put(path)?;
        Ok(PidFile { path: path.to_owned() })
    }
}

/// Writes our number there again, if a process that was to take our place wrote its own.
///
/// # Errors
/// It cannot be written: a line for a person.
pub fn keep(path: &Path) -> Result<(), String> {
    match read(path) {
        Ok(pid) if pid != std::process::id() && Serving::find(pid).is_err() => put(path),
        _ => Ok(()),
    }
}

/// Whoever reads it finds a whole number.
fn put(path: &Path) -> Result<(), String> {
    let own = std::process::id();
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{own}"));
    let written = fs::write(&fresh, format!("{own}\n")).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&fresh);
        named(path, &error.to_string())
    })
}

fn named(path: &Path, error: &str) -> String {
    format!("server.pid_file: {}: {error}", path.display())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Another process may have put its number there meanwhile.
        if read(&self.path).is_ok_and(|pid| pid == std::process::id()) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Why there is no number.
#[derive(Debug)]
pub enum Unread {
    /// There is no file.
    NotThere,
    /// Something else is in it.
    NoNumber,
    /// It cannot be read.
    Io(io::Error),
}

/// The number in a pid file.
pub fn read(path: &Path) -> Result<u32, Unread> {
    let found = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unread::NotThere,
        _ => Unread::Io(error),
    })?;
    if !found.is_file() || found.len() > BYTES_MAX {
        return Err(Unread::NoNumber);
    }
    let text = fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Unread::NoNumber,
        _ => Unread::Io(error),
    })?;
    match text.trim() {
        // Left by a machine that went down before it was written.
        "" => Err(Unread::NotThere),
        number => number.parse().ok().filter(|pid| *pid > 0).ok_or(Unread::NoNumber),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a file of somebody else's that is overwritten, and one that stays behind.
    #[test]
    fn it_is_ours_while_we_run_and_nobody_else_s_file() {
        let folder = std::env::temp_dir().join(format!("llmproxy-pid-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.pid");
        let own = std::process::id();
        for stale in [None, Some("4294967295\n"), Some(""), Some("1\n")] {
            stale.iter().for_each(|text| fs::write(&path, text).unwrap());
            let guard = PidFile::write(&path, None).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{own}\n"));
            drop(guard);
            assert!(!path.exists());
        }
        let guard = PidFile::write(&path, None).unwrap();
        fs::write(&path, "7\n").unwrap();
        drop(guard);
        assert_eq!(read(&path).unwrap(), 7, "a successor's stays");
        keep(&path).unwrap();
        assert_eq!(read(&path).unwrap(), own, "there is no such successor");
        for precious in ["root:x:0:0\n", "12 13\n", "-4\n", &"1".repeat(100)] {
            fs::write(&path, precious).unwrap();
            assert!(PidFile::write(&path, None).err().unwrap().contains("is no pid file"));
            assert_eq!(fs::read_to_string(&path).unwrap(), precious);
        }
        assert!(
            PidFile::write(&folder, None).is_err()
                && PidFile::write(&folder.join("a/b"), None).is_err()
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing half written is left");
        fs::remove_dir_all(&folder).unwrap();
    }
}
