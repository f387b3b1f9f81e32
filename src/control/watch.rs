//! Hears that a file is another one, however it is replaced: that of the configuration
//! (`server.watch_config`), those of certificates, and those of discovery.
//!
//! Editors write a new file and rename it, or write into the old one; Kubernetes swaps a symbolic
//! link of a folder above; a file that is mounted by itself changes in place and no folder says so.
//! So the file is watched, the folder that it is in, and each folder with a link on the way to it.
//! What happened there is of no interest: once it is quiet, the file is looked at, and when it is
//! another one than before (or there is none), that is told.

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{add_watch, init, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::pipe::{pipe_with, PipeFlags};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// After the last thing that happened it is quiet for so long: then the file is looked at.
const QUIET: Duration = Duration::from_millis(100);
/// Where it is never quiet, the file is looked at after so long all the same.
const RESTLESS: Duration = Duration::from_secs(2);
/// A file that is away may be back in a moment; after so long that is told.
const AWAY: Duration = Duration::from_secs(1);
/// Symbolic links on the way to the file; the kernel follows as many. Beyond: not followed.
const LINKS_MAX: usize = 40;
/// Bytes of what happened that are read at a time. They are thrown away.
const EVENT_BYTES: usize = 4096;

/// What is heard of a file: all that may have made it another one.
const FILE: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF);
/// What is heard of a folder.
const FOLDER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// A watch that goes on until this is dropped.
pub struct ConfigWatch {
    /// Its other end sees when this closes.
    _running: OwnedFd,
}

/// Watches a file on a thread of its own; `changed` is called there.
///
/// # Errors
/// The system gives no watch or no thread.
pub fn start(file: &Path, changed: impl FnMut() + Send + 'static) -> io::Result<ConfigWatch> {
    start_all(vec![file.to_owned()], changed)
}

/// The same for several files: `changed` is called when any of them is another one, and once for
/// several that change together.
///
/// # Errors
/// The system gives no watch or no thread.
pub fn start_all(
    files: Vec<PathBuf>,
    changed: impl FnMut() + Send + 'static,
) -> io::Result<ConfigWatch> {
    let (stopped, running) = pipe_with(PipeFlags::CLOEXEC)?;
    let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let known = files.iter().map(|file| Known::of(file)).collect();
    let watched = Watched { files, events, known };
    watched.look_everywhere()?;
    let body = move || watched.run(&stopped, changed);
    std::thread::Builder::new().name("watch-file".into()).spawn(body)?;
    Ok(ConfigWatch { _running: running })
}

/// What tells one state of a file from another without reading it. When it is as before, so is the
/// file. When it differs, the file may still say the same, and is read once more for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known(Option<[i128; 5]>);

impl Known {
    fn of(file: &Path) -> Known {
        let time = |seconds: i64, part: i64| i128::from(seconds) << 32 | i128::from(part);
        Known(fs::metadata(file).ok().map(|found| {
            [
                found.dev().into(),
                found.ino().into(),
                found.size().into(),
                time(found.mtime(), found.mtime_nsec()),
                time(found.ctime(), found.ctime_nsec()),
            ]
        }))
    }
}

struct Watched {
    files: Vec<PathBuf>,
    events: OwnedFd,
    /// Of each file.
    known: Vec<Known>,
}

/// How a wait ended.
#[derive(PartialEq, Eq)]
enum Heard {
    Something,
    Nothing,
    Stop,
}

impl Watched {
    fn run(mut self, stopped: &OwnedFd, mut changed: impl FnMut()) {
        loop {
            match self.wait(stopped, None) {
                Heard::Stop => return,
                _ => self.forget_what_happened(),
            }
            if !self.await_quiet(stopped) {
                return;
            }
            // Other folders may be on the way now.
            if let Err(error) = self.look_everywhere() {
                let file = self.files.first().map(|file| file.display().to_string());
                tracing::warn!(file, %error, "the file may change unnoticed");
            }
            let now: Vec<Known> = self.files.iter().map(|file| Known::of(file)).collect();
            if now != self.known {
                self.known = now;
                changed();
            }
        }
    }

    /// Waits until nothing happens any more and all files are there, or for long enough. False when
    /// the watch is over.
    fn await_quiet(&self, stopped: &OwnedFd) -> bool {
        let began = Instant::now();
        let mut heard_last = began;
        loop {
            match self.wait(stopped, Some(QUIET)) {
                Heard::Stop => return false,
                Heard::Something => {
                    self.forget_what_happened();
                    heard_last = Instant::now();
                }
                Heard::Nothing => {}
            }
            let is_there = self.files.iter().all(|file| Known::of(file).0.is_some());
            let is_quiet = heard_last.elapsed() >= if is_there { QUIET } else { AWAY };
            if is_quiet || began.elapsed() >= RESTLESS {
                return true;
            }
        }
    }

    fn wait(&self, stopped: &OwnedFd, limit: Option<Duration>) -> Heard {
        let mut ends =
            [PollFd::new(&self.events, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut ends, limit.as_ref()) {
            Err(Errno::INTR) => Heard::Nothing,
            // Nothing would ever be heard again.
            Err(_) => Heard::Stop,
            Ok(_) if !ends[1].revents().is_empty() => Heard::Stop,
            Ok(0) => Heard::Nothing,
            Ok(_) => Heard::Something,
        }
    }

    fn forget_what_happened(&self) {
        let mut bytes = [0; EVENT_BYTES];
        while rustix::io::read(&self.events, &mut bytes).is_ok_and(|n| n > 0) {}
    }

    /// Watches all that the files hang on. What is watched already stays so.
    fn look_everywhere(&self) -> io::Result<()> {
        let folders = self.files.iter().flat_map(|file| folders(file));
        let folders = folders.map(|folder| (folder, FOLDER));
        let seen = folders.chain(self.files.iter().map(|file| (file.clone(), FILE)));
        for (path, flags) in seen {
            match add_watch(&self.events, &path, flags) {
                // It has just gone, or may not be looked at: the folder above says when it is back.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// The folders in which a file, or a link on the way to it, stands: what replaces either happens in
/// one of them. Where something on the way is missing, the last one is where it would be.
fn folders(file: &Path) -> Vec<PathBuf> {
    let names = |path: &Path| {
        let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
        parts.map(|part| part.as_os_str().to_owned()).collect::<VecDeque<OsString>>()
    };
    let (mut here, mut rest) = (PathBuf::from("."), names(file));
    let (mut found, mut links) = (Vec::new(), 0);
    while let Some(name) = rest.pop_front() {
        // `join` begins anew with what is absolute, and the kernel knows what `..` is.
        let next = here.join(&name);
        let target = fs::read_link(&next).ok().filter(|_| links < LINKS_MAX);
        if (target.is_some() || rest.is_empty() || !next.exists()) && !found.contains(&here) {
            found.push(here.clone());
        }
        match target {
            None => here = next,
            Some(target) => {
                links += 1;
                let mut all = names(&target);
                all.append(&mut rest);
                rest = all;
            }
        }
        if !here.exists() {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests;
